"""Has the stream become slow? Ratios of one short run, against bounds far from what they are; 1 where one is broken.

    python -m benchmarks.guard [--json]

`ouzel bench` on the default model with OpenVINO: what the service does beside what its parts cost alone, in the same
minute on the same machine. So a slow or busy machine changes little, and a wait, a copy or a thread too many does.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from consumer.bench.results import QUICK, Result, Round
from consumer.bench.session import Told, bench

JARS = Path(__file__).resolve().parent.parent / ".kafka"
SETTINGS = {"OUZEL_MODEL__RUNTIME": "openvino", "OUZEL_SWAP__WATCH_INTERVAL_MS": "0"}


@dataclass(frozen=True, slots=True)
class Bound:
    """One ratio, and how far it may go."""

    name: str
    what: str
    worst: float
    at_least: bool
    """Whether `worst` is the least that is allowed; else it is the most."""
    usual: str
    """Where it was when the bound was set, on quiet and on busy machines."""

    def holds(self, value: float) -> bool:
        """Whether the value is on the right side."""
        return value >= self.worst if self.at_least else value <= self.worst


BOUNDS = (
    Bound(
        "cpu_over_terms",
        "CPU of an image in the service, over what fetch, decode, inference and a bare Kafka loop cost alone",
        1.5,
        at_least=False,
        usual="1.0 to 1.25",
    ),
    Bound(
        "roofline_ratio",
        "images/s over the roofline, the CPU of broker and other processes taken off",
        0.5,
        at_least=True,
        usual="0.75 to 0.98",
    ),
    Bound(
        "batch_fill",
        "images in a batch over batch.max_size, with a backlog",
        0.4,
        at_least=True,
        usual="0.8 to 1.0",
    ),
)


def ratios(rounds: Sequence[Round], max_size: int) -> dict[str, float]:
    """Of several rounds, each the median."""
    return {
        "cpu_over_terms": statistics.median(
            each.window.per_image_ms(each.window.service_cpu_s) / each.terms.total_ms for each in rounds
        ),
        "roofline_ratio": statistics.median(
            each.ratio if each.ratio_less_others is None else each.ratio_less_others for each in rounds
        ),
        "batch_fill": statistics.median(each.mean_batch / max_size for each in rounds),
    }


def broken(found: Mapping[str, float]) -> list[Bound]:
    """The bounds that do not hold."""
    return [bound for bound in BOUNDS if not bound.holds(found[bound.name])]


def measure() -> Result:
    """A short run of the service with what is installed here."""
    os.environ.update(SETTINGS)
    plan = replace(QUICK, rounds=3, seconds=4.0, loads=(), jars=JARS)
    return bench(plan, None, Told(say=lambda text: print(text, file=sys.stderr)))


def main() -> int:
    """A line for each ratio on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    result = measure()
    found = ratios(result.rounds, result.facts.batch_sizes[-1])
    wrong = broken(found)
    if options.json:
        print(json.dumps({"ratios": found, "broken": [bound.name for bound in wrong]}))
        return 1 if wrong else 0
    for bound in BOUNDS:
        side = "at least" if bound.at_least else "at most"
        verdict = "BROKEN" if bound in wrong else "ok"
        print(f"{verdict:7}{bound.name} {found[bound.name]:.2f}, {side} {bound.worst:g}, usually {bound.usual}")
        print(f"       {bound.what}")
    if wrong:
        print("look where the CPU goes with `ouzel bench`, and at what changed last", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
