"""What a new model costs the stream while it is loaded, warmed and compared: images/s then over those before and after,
in one run, of a replica that has more to do than it can. And the largest delay of an image from its pixels to its
labels, which with `--per-second` is the new model's doing and not the backlog's.

.venv/bin/python -m benchmarks.swap --rounds 3
.venv/bin/python -m benchmarks.swap --rounds 3 --per-second 40
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.harness import BirdModel, Replica, broker, replica
from tests.kafka_broker import KafkaBroker
from tests.models import PHOTOGRAPHS, tiny_model

TOPICS = {"input": "images", "output": "predictions", "letters": "images.dlq"}
STEADY_S = 12.0
_STATES = {0.0: "none", 1.0: "loading", 2.0: "shadowing"}


@dataclass(frozen=True)
class Sample:
    """One look at /metrics."""

    at_s: float
    labelled: float
    state: str
    swapped: float
    resident_bytes: float


class Backlog:
    """Keeps more in the topic than the replica can do: references to files."""

    def __init__(self, node: KafkaBroker, photographs: list[Path]) -> None:
        self._producer = Producer(node.client_properties(linger_ms=20))
        self._values = [json.dumps({"image_id": path.name, "uri": path.as_uri()}).encode() for path in photographs]
        self.sent = 0

    def reach(self, count: int) -> None:
        """So many messages in all."""
        while self.sent < count:
            try:
                self._producer.produce(TOPICS["input"], self._values[self.sent % len(self._values)])
            except BufferError:
                self._producer.poll(0.1)
                continue
            self.sent += 1
        self._producer.poll(0)


def _sample(health: str) -> Sample:
    with urllib.request.urlopen(f"http://{health}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    def value(name: str) -> float:
        return float(values[name])

    refused = sum(
        value(f'ouzel_model_swaps_total{{result="{result}"}}') for result in ("refused", "failed", "no_memory")
    )
    if refused:
        raise RuntimeError("the new model was not taken: see the replica's log")
    return Sample(
        time.monotonic(),
        value('ouzel_images_total{outcome="labelled"}'),
        _STATES[value("ouzel_swap_state")],
        value('ouzel_model_swaps_total{result="swapped"}'),
        value("process_resident_memory_bytes"),
    )


class Watch:
    """Samples five times a second, and keeps the backlog up, or to its pace."""

    def __init__(self, running: Replica, backlog: Backlog, per_second: float) -> None:
        self._health = running.health
        self._backlog = backlog
        self._per_second = per_second
        self._began_s = time.monotonic()

    def samples(self, until: "float | None" = None, swaps: float | None = None) -> Iterator[Sample]:
        """Until this monotonic second, or until so many swaps were made."""
        while True:
            found = _sample(self._health)
            if self._per_second:
                self._backlog.reach(int(self._per_second * (found.at_s - self._began_s)))
            else:
                self._backlog.reach(int(found.labelled) + 20_000)
            yield found
            if (until is not None and found.at_s >= until) or (swaps is not None and found.swapped >= swaps):
                return
            time.sleep(0.2)


def _rate(samples: list[Sample], state: str | None = None) -> float:
    """Images/s over the intervals that begin in this state."""
    pairs = [(a, b) for a, b in pairwise(samples) if state is None or a.state == state]
    took_s = sum(b.at_s - a.at_s for a, b in pairs)
    return sum(b.labelled - a.labelled for a, b in pairs) / took_s if took_s else float("nan")


def _seconds(samples: list[Sample], state: str) -> float:
    return sum(b.at_s - a.at_s for a, b in pairwise(samples) if a.state == state)


def _write_settings(path: Path, model: dict[str, str], labels: Path, images: int) -> None:
    lines = ["[model]", *(f"{key} = {json.dumps(value)}" for key, value in {**model, "labels": str(labels)}.items())]
    lines += ["[swap]", "watch_interval_ms = 0", f"shadow_images = {images}"]
    path.write_text("\n".join(lines) + "\n")


def _measure(
    name: str, model: dict[str, str], label_rows: list[str], photographs: list[Path], args: argparse.Namespace
) -> None:
    with tempfile.TemporaryDirectory() as temporary, broker(list(TOPICS.values())) as node:
        folder = Path(temporary)
        settings, log = folder / "settings.toml", folder / "log.jsonl"
        environment = {
            "OUZEL_SETTINGS": str(settings),
            "OUZEL_LOG__LEVEL": "INFO",
            "OUZEL_LOG__FILE": str(log),
            "OUZEL_STORES__FILE__ROOTS": json.dumps([str(photographs[0].parent)]),
        }
        backlog = Backlog(node, photographs)
        labels = [folder / f"labels-{number}.csv" for number in range(args.rounds + 1)]
        for number, path in enumerate(labels):  # a column that nobody reads makes another digest
            path.write_text("\n".join(["id,name,version", *(f"{row},{number}" for row in label_rows)]) + "\n")
        _write_settings(settings, model, labels[0], args.shadow_images)
        with replica(node, TOPICS, environment) as running:
            running.wait_ready()
            watch = Watch(running, backlog, args.per_second)
            list(watch.samples(until=time.monotonic() + 5))
            for number in range(1, args.rounds + 1):
                before = list(watch.samples(until=time.monotonic() + STEADY_S))
                _write_settings(settings, model, labels[number], args.shadow_images)
                running.process.send_signal(signal.SIGHUP)
                during = list(watch.samples(swaps=number))
                after = list(watch.samples(until=time.monotonic() + STEADY_S))
                normal = statistics.mean((_rate(before), _rate(after)))
                loading, shadowing, whole = _rate(during, "loading"), _rate(during, "shadowing"), _rate(during)
                worst = min(
                    (b.labelled - a.labelled) / (b.at_s - a.at_s) for a, b in zip(during, during[5:], strict=False)
                )
                grown = max(each.resident_bytes for each in during) - before[-1].resident_bytes
                print(
                    f"| {name} | {normal:.0f} | {loading / normal:.2f} ({_seconds(during, 'loading'):.1f} s) "
                    f"| {shadowing / normal:.2f} ({_seconds(during, 'shadowing'):.1f} s) | {whole / normal:.2f} "
                    f"| {worst / normal:.2f} | {_delays(log, number)} | {grown / 2**20:.0f} |",
                    flush=True,
                )


def _delays(log: Path, number: int) -> str:
    lines = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    said = [line for line in lines if "labels from now on" in line][number - 1]
    words = said.partition("an image waited ")[2].split()
    return f"{words[-3]} / {words[0]}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-second", type=float, default=0, help="images sent; 0: more than it can do")
    parser.add_argument("--shadow-images", type=int, default=500)
    parser.add_argument("--models", nargs="+", default=["tiny", "bird"])
    args = parser.parse_args()
    sys.stderr.write(f"{os.cpu_count()} cores\n")
    print("| model | images/s | while loading | while comparing | both | worst second | delay ms before / then | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.models:
        if name == "tiny":
            rows = [f"{index},class-{index}" for index in range(10)]
            photographs = sorted(PHOTOGRAPHS.glob("*.jpg"))
            _measure(name, {"source": str(tiny_model()), "name": "tiny"}, rows, photographs, args)
        elif (bird := BirdModel.find()) is not None:
            rows = (bird.folder / "labelmap.csv").read_text().splitlines()
            rows = [row for row in rows if row and row.split(",")[0].isdigit()]
            model = {"source": str(bird.folder / "model"), "name": "birds"}
            _measure(name, model, rows, bird.photographs, args)


if __name__ == "__main__":
    main()
