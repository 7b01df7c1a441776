"""What is asked for, and what was found: the plan of a run, and its figures before anything is said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumer.bench.latency import Level
from consumer.bench.open_loop import LOADS
from consumer.bench.roofline import Part, Terms, Window
from consumer.bench.stages import Measured
from consumer.bench.workload import SIZES_MP, Form


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    images: Path | None = None
    megapixels: float = 0.3
    form: Form = "raw"
    rounds: int = 3
    seconds: float = 10.0
    """About how long the service works in each round."""
    latency_seconds: float | None = None
    """How long each load lasts; None: as long."""
    stage_seconds: float = 0.5
    """Of each term in each round."""
    messages: int | None = None
    """None: as many as the roofline does in `seconds`."""
    sizes: Sequence[float] = SIZES_MP
    loads: Sequence[float] = LOADS
    """None of them: no latency is measured."""
    latency_rounds: int = 2
    bootstrap_servers: str = ""
    broker_pid: int | None = None
    embedded: bool = False
    jars: Path = field(default=Path(".kafka"))
    """Where Apache Kafka's jars are, or go."""


QUICK = Plan(rounds=2, seconds=4.0, latency_seconds=2.0, stage_seconds=0.12, latency_rounds=1)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured, on what, with what."""

    model: Mapping[str, Any]
    decode_threads: int
    model_threads: int
    batch_sizes: Sequence[int]
    event_bytes: int
    workload: str
    megapixels: float
    form: Form
    image_bytes: float
    """Of one image, on average."""
    messages: int
    partitions: int
    broker: str
    broker_kind: str
    broker_cpu_known: bool
    max_wait_ms: float


@dataclass(frozen=True, slots=True)
class StageTerms:
    """One round's terms, each alone."""

    fetch: Mapping[str, Measured]
    """By form."""
    decode: Mapping[float, Measured]
    """By megapixels."""
    infer: Mapping[int, Measured]
    """By batch size."""


@dataclass(frozen=True, slots=True)
class Round:
    """Terms, bare loop and service, one after the other."""

    stages: StageTerms
    bare_images: int
    bare_cpu_ms: float
    terms: Terms
    window: Window
    roofline: float
    """Images/s."""
    ratio: float
    """Achieved over roofline."""
    ratio_less_others: float | None
    """The same with what other processes on the machine used taken off `C` too; None where that is not known. On a
    machine that is not quiet this is the one to look at."""
    parts: Sequence[Part]
    peak_rss_bytes: int
    mean_batch: float
    first_event_s: float


@dataclass(frozen=True, slots=True)
class LatencyRound:
    """Every load once, and a bare round trip at the rate of the third quarter."""

    levels: Sequence[Level]
    round_trip: Level


@dataclass(frozen=True, slots=True)
class Result:
    """Everything."""

    plan: Plan
    facts: Facts
    rounds: Sequence[Round]
    latency: Sequence[LatencyRound]
