"""From the start of a process to a replica that is ready, with a real broker: `python -m benchmarks.ready`.

What a person waits for who restarts a replica: imports, topics, model, and the group that takes it in, until /readyz
says 200. The first start of each runtime fills the cache; then they take turns, round by round, with both protocols of
groups. The broker's delay before a new classic group's first rebalance (`group.initial.rebalance.delay.ms`) is 0 here;
Kafka's own default adds 3 s to `classic`.

One JSON line for each runtime and protocol on stdout, words on stderr.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping

from benchmarks.figures import machine, spread
from benchmarks.harness import BirdModel, broker, replica
from consumer.adapters.runtimes.kinds import KINDS, is_installed
from tests.kafka_broker import KafkaBroker

TOPICS = {"input": "images", "output": "predictions", "letters": "images.dlq"}
PROTOCOLS = ("consumer", "classic")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [kind.name for kind in KINDS if is_installed(kind)]
    parser.add_argument("--rounds", type=int, default=5, help="starts of each runtime with each protocol")
    parser.add_argument("--runtimes", nargs="+", default=["openvino", "tensorflow"], choices=installed)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {
        (runtime, protocol): [] for runtime in options.runtimes for protocol in PROTOCOLS
    }
    birds = BirdModel.find()
    model = birds.environment if birds else {}
    with tempfile.TemporaryDirectory(prefix="ouzel-ready-") as cache, broker(list(TOPICS.values())) as node:
        for number in range(options.rounds + 1):
            for (runtime, protocol), seconds in found.items():
                environment = {**model, "OUZEL_MODEL__RUNTIME": runtime, "XDG_CACHE_HOME": cache}
                # A group of its own each time: the last one's member may not be gone yet.
                group = f"{runtime}-{protocol}-{number}"
                environment |= {"OUZEL_KAFKA__GROUP_PROTOCOL": protocol, "OUZEL_KAFKA__GROUP_ID": group}
                seconds.append(ready_s(node, environment))
                sys.stderr.write(f"round {number}: {runtime}, {protocol}: {seconds[-1]:.2f} s\n")
    for (runtime, protocol), (first, *rounds) in found.items():
        line = {"figure": "ready", "runtime": runtime, "group_protocol": protocol, "first_s": round(first, 3)}
        sys.stdout.write(json.dumps({**line, "ready_s": spread(rounds), "machine": machine()}) + "\n")


def ready_s(node: KafkaBroker, environment: Mapping[str, str]) -> float:
    """Seconds from the start of the process to the first 200 of /readyz."""
    began_s = time.monotonic()
    with replica(node, TOPICS, environment) as started:
        started.wait_ready(step_s=0.005)
        return time.monotonic() - began_s


if __name__ == "__main__":
    main()
