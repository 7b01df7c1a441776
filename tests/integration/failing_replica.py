"""`ouzel run` with a defect that tells all it knows. Only tests start it; the product has no such code.

OUZEL_TEST_FAIL_AT=start   the start fails; else the parsing of each message does
"""

import os
from typing import Any, NoReturn

from consumer import bootstrap
from consumer.__main__ import main
from consumer.settings import load
from consumer.stages.parse import Parser


def parse(_parser: Parser, delivery: Any) -> NoReturn:
    """A message and a password in an exception's text, and in its cause's."""
    try:
        raise KeyError(load().kafka.client["sasl.password"])
    except KeyError as error:
        raise ZeroDivisionError(f"{delivery.value!r} {load().kafka.client}") from error


def check_topics(settings: Any, _view: Any) -> NoReturn:
    """The same, where nothing of ours expects it."""
    raise ZeroDivisionError(f"cannot ask with {settings.kafka.client['sasl.password']} of {settings!r}")


if __name__ == "__main__":
    if os.environ.get("OUZEL_TEST_FAIL_AT") == "start":
        bootstrap.check_topics = check_topics  # type: ignore[assignment]
    else:
        Parser.__call__ = parse  # type: ignore[assignment, method-assign]
    main()
