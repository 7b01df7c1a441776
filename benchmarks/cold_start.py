"""From the start of a process to a warm model, for each runtime: `python -m benchmarks.cold_start`.

Each start is a process of its own that reads settings, verifies, loads and warms the model as a replica does, without
Kafka. The first of each runtime fills the cache; then they take turns, round by round. `null` has no model: what
imports and settings take. CPU seconds say more than wall time on a machine that does other things.

One JSON line for each runtime on stdout, words on stderr.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, spread
from benchmarks.harness import BirdModel
from consumer.adapters.runtimes.kinds import KINDS, is_installed

# What a replica does until its model is warm, in a process that has imported nothing else.
_START = """
import json, os, resource
from pathlib import Path
from consumer import bootstrap_model, service
from consumer.log import configure
from consumer.settings import load
from consumer.stages.batch import padded_sizes
settings = load()
configure(settings.log)
model = bootstrap_model.load_model(settings)
model.runtime.warm_up(padded_sizes(settings.batch.max_size))
usage = resource.getrusage(resource.RUSAGE_SELF)
pages = int(Path("/proc/self/statm").read_text().split()[1])
mib = round(pages * resource.getpagesize() / 2**20, 1)
print(json.dumps({"cpu_s": round(usage.ru_utime + usage.ru_stime, 3), "resident_mib": mib}), flush=True)
os._exit(0)  # what tidying up takes is not what is measured
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = ["null", *(kind.name for kind in KINDS if is_installed(kind))]
    parser.add_argument("--rounds", type=int, default=5, help="starts of each runtime")
    parser.add_argument("--runtimes", nargs="+", default=installed, choices=installed)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.runtimes}
    with tempfile.TemporaryDirectory(prefix="ouzel-cold-start-") as cache:
        for number in range(options.rounds + 1):
            for name in options.runtimes:
                found[name].append(started(name, Path(cache)))
                sys.stderr.write(f"round {number}: {name} {found[name][-1]}\n")
    for name, (first, *rounds) in found.items():
        line: dict[str, Any] = {"figure": "cold-start", "runtime": name, "first": first}
        line |= {key: spread([each[key] for each in rounds]) for key in first}
        sys.stdout.write(json.dumps({**line, "machine": machine()}) + "\n")


def started(runtime: str, cache: Path) -> dict[str, float]:
    """One start: seconds until the model is warm, CPU seconds, and resident MiB."""
    birds = BirdModel.find() if runtime != "null" else None  # which has other classes than these
    environment = {**os.environ, **(birds.environment if birds else {})}
    environment |= {"OUZEL_MODEL__RUNTIME": runtime, "OUZEL_LOG__LEVEL": "WARNING", "XDG_CACHE_HOME": str(cache)}
    began_s = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", _START],
        env=environment,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        wall_s = time.monotonic() - began_s
    return {"warm_s": round(wall_s, 3), **json.loads(line)}


if __name__ == "__main__":
    main()
