"""`make model`: every state at larger sizes, and the shortest way to each seeded bug's violation.

python -m tests.model [--quick] [--protocol at_least_once|exactly_once|share]
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.model import at_least_once, exactly_once, share
from tests.model.explore import explore
from tests.model.sizes import AT_LEAST_ONCE, EXACTLY_ONCE, SHARE

PROTOCOLS: dict[str, tuple[Callable[..., Any], Any]] = {
    "at_least_once": (at_least_once.AtLeastOnce, AT_LEAST_ONCE),
    "exactly_once": (exactly_once.ExactlyOnce, EXACTLY_ONCE),
    "share": (share.Share, SHARE),
}


def main() -> int:
    """Exit code 1 where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--quick", action="store_true", help="the sizes of the test run")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="this one alone")
    parser.add_argument("--most-states", type=int, default=20_000_000, help="give up beyond (%(default)s)")
    asked = parser.parse_args()
    broken = False
    for name in [asked.protocol] if asked.protocol else PROTOCOLS:
        model, sizes = PROTOCOLS[name]
        for size in sizes.quick if asked.quick else sizes.large:
            begun_s = time.monotonic()
            found = explore(model(size), most_states=asked.most_states)
            print(f"{name} {size}\n{found}\n{time.monotonic() - begun_s:.1f} s\n", flush=True)
            broken = broken or bool(found.broken)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
