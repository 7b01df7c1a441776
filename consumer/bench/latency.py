"""Latency by load: what the generator is told, and what its answer says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumer.bench.children import Asked
from consumer.bench.open_loop import Latency, lagged, percentile
from consumer.bench.workload import Form, Workload
from consumer.kafka_properties import client_properties
from consumer.settings import KafkaSettings

_SILENT_S = 20.0


@dataclass(frozen=True, slots=True)
class Level:
    """One load for some seconds."""

    load: float
    """Share of the measured throughput; 0 of a bare round trip."""
    rate: float
    """Images/s."""
    latency: Latency | None
    """None where no answer came."""
    unanswered: int
    late_p99_ms: float
    """How late the generator itself was."""
    generator_lagged: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What is the same for every load."""

    kafka: KafkaSettings
    workload: Workload
    form: Form
    input_topic: str

    def measure(
        self, generator: Asked, *, load: float, rate: float, seconds: float, seed: int, read_topic: str, prefix: str
    ) -> Level:
        """`rate` images/s for `seconds`; answers are read from `read_topic`. `prefix` makes their ids its own."""
        answer = generator.ask(
            {
                "producer_properties": self._producer_properties(),
                "reader_properties": self._reader_properties(),
                "input_topic": self.input_topic,
                "read_topic": read_topic,
                "rate": rate,
                "seconds": seconds,
                "seed": seed,
                "folder": str(Path(self.workload.folder)),
                "megapixels": self.workload.megapixels,
                "form": self.form,
                "prefix": prefix,
                "silent_s": _SILENT_S,
            }
        )
        return level_of(answer, load=load, rate=rate)

    def _producer_properties(self) -> Mapping[str, Any]:
        """As a sender would send that wants each image there at once."""
        return {**client_properties(self.kafka, "producer"), "linger.ms": 0}

    def _reader_properties(self) -> Mapping[str, Any]:
        return {**client_properties(self.kafka, "consumer"), "group.id": "ouzel-bench-reader"}


def level_of(answer: Mapping[str, Any], *, load: float, rate: float) -> Level:
    """From what the generator found."""
    latencies, late = answer["latencies_ms"], answer["late_ms"]
    latency = Latency.of(latencies) if latencies else None
    return Level(
        load,
        rate,
        latency,
        answer["unanswered"],
        percentile(late, 0.99),
        latency is not None and lagged(late, latency.p99_ms),
    )
