"""`ouzel run` as another version of it would be, in the one thing that versions tell each other: the note that goes
with a commit. Only tests start it.

OUZEL_TEST_NOTES=earlier    knows nothing of marks and ranges, as 0.1.0: neither writes nor reads them
OUZEL_TEST_NOTES=later      writes fields that this version does not know
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from consumer.bootstrap import Ports
from consumer.errors import Fatal
from consumer.messages import CommitPoint, Partition
from consumer.ports import CommitResult
from consumer.service import end_service, run_service
from consumer.settings import load
from tests.crashing_replica import Wrapped

ENTRY = "tests.other_version"

_EARLIER_FIELDS = ("v", "topic_id", "start_partitions", "trip")


def _earlier(note: str) -> str:
    fields = orjson.loads(note)
    return orjson.dumps({name: fields[name] for name in _EARLIER_FIELDS if name in fields}).decode()


def _later(note: str) -> str:
    return orjson.dumps(orjson.loads(note) | {"owner": {"version": "9.0.0"}, "seen": [1, None]}).decode()


def with_other_notes(ports: Ports) -> Ports:
    """Puts the other version's form between the service and the broker."""
    written: Callable[[str], str] = {"earlier": _earlier, "later": _later}[os.environ["OUZEL_TEST_NOTES"]]
    source: Any = ports.source
    view: Any = ports.view
    asked: dict[Partition, CommitPoint] = {}

    def commit(points: Mapping[Partition, CommitPoint]) -> None:
        asked.update(points)
        source.commit({each: CommitPoint(point.offset, written(point.metadata)) for each, point in points.items()})

    def commit_result() -> CommitResult | None:
        found: CommitResult | None = source.commit_result()
        return found and replace(found, committed={each: asked[each] for each in found.committed})

    def committed(partitions: Sequence[Partition]) -> Mapping[Partition, CommitPoint]:
        found = view.committed(partitions)
        return {each: CommitPoint(point.offset, _known(point.metadata)) for each, point in found.items()}

    def _known(note: str) -> str:
        return _earlier(note) if written is _earlier and note else note

    wrapped: Any = Wrapped
    return replace(
        ports,
        source=wrapped(source, commit=commit, commit_result=commit_result),
        view=wrapped(view, committed=committed),
    )


def main() -> None:
    """What `ouzel run` does."""
    try:
        run_service(load(), resume="--resume" in sys.argv, wrap=with_other_notes)
    except Fatal as error:
        end_service(error)
    end_service()


if __name__ == "__main__":
    main()
