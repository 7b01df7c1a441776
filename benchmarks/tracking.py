"""What tracking costs the stream: `python -m benchmarks.tracking`. One JSON line on stdout, words on stderr.

Images/s of a replica whose run is written to disk over one without tracking, without a model (null runtime), so that
all the rest is what is measured; in turn, in one run, on one broker. The child's start is left out: both begin when the
run has begun. `cpu_ratio` is of the replica's own CPU an image, its child left out, and holds on a machine that is not
quiet too; `child_cpu_s_a_minute` is what the child and W&B's own processes take beside it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import PHOTOGRAPHS, machine
from benchmarks.harness import Follower, broker, fill, replica
from tests import wandb_runs
from tests.processes import wait_until

WARM = 200


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--images", type=int, default=3_000, help="images a round")
    parser.add_argument("--interval-ms", type=int, default=30_000, help="tracking.interval_ms")
    arguments = parser.parse_args()
    values = [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    order = [
        (number, tracked)
        for number in range(arguments.rounds)
        for tracked in ((False, True) if number % 2 == 0 else (True, False))
    ]
    topics = [
        {part: f"{part}-{number}-{tracked}" for part in ("input", "output", "letters")} for number, tracked in order
    ]
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with broker([name for names in topics for name in names.values()]) as node:
        for (_, tracked), names in zip(order, topics, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                environment = {"OUZEL_MODEL__RUNTIME": "null"}
                if tracked:
                    environment |= {
                        "OUZEL_TRACKING__ENABLED": "true",
                        "OUZEL_TRACKING__MODE": "offline",
                        "OUZEL_TRACKING__FOLDER": folder,
                        "OUZEL_TRACKING__INTERVAL_MS": str(arguments.interval_ms),
                    }
                fill(node, names["input"], values, WARM)
                with replica(node, names, environment) as running:
                    running.wait_ready()
                    follower = Follower(node, names["output"])
                    follower.until(WARM)
                    if tracked:
                        wait_until(lambda: bool(wandb_runs.run_files(Path(folder))), timeout_s=60, what="the run")
                    time.sleep(3)
                    family = psutil.Process(running.process.pid).children(recursive=True)
                    cpu_s, child_s, started_s = running.cpu_seconds(), _cpu_seconds(family), time.monotonic()
                    fill(node, names["input"], values, arguments.images)
                    follower.until(WARM + arguments.images)
                    wall_s = time.monotonic() - started_s
                    found[tracked].append(
                        {
                            "images_per_s": arguments.images / wall_s,
                            "cpu_ms": (running.cpu_seconds() - cpu_s) / arguments.images * 1000,
                            "child": (_cpu_seconds(family) - child_s) / wall_s * 60,
                        }
                    )
                    follower.close()
            sys.stderr.write(f"tracking {'on' if tracked else 'off'}: {found[tracked][-1]}\n")
    told = {
        "figure": "tracking",
        "ratio": _ratio(found, "images_per_s"),
        "cpu_ratio": _ratio(found, "cpu_ms"),
        "child_cpu_s_a_minute": round(statistics.median(each["child"] for each in found[True]), 2),
        "images_per_s": round(statistics.median(each["images_per_s"] for each in found[False])),
        "images": arguments.images,
        "rounds": arguments.rounds,
        "interval_ms": arguments.interval_ms,
        "machine": machine(),
    }
    sys.stdout.write(json.dumps(told) + "\n")


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _ratio(found: dict[bool, list[dict[str, float]]], name: str) -> dict[str, Any]:
    pairs = [on[name] / off[name] for on, off in zip(found[True], found[False], strict=True)]
    return {
        "median": round(statistics.median(pairs), 3),
        "least": round(min(pairs), 3),
        "most": round(max(pairs), 3),
    }


if __name__ == "__main__":
    main()
