"""A run of `ouzel bench` as it might have been, for tests of what is said of one."""

from dataclasses import replace
from typing import Any

from consumer.bench.latency import Level
from consumer.bench.open_loop import LOADS, Latency
from consumer.bench.results import Facts, LatencyRound, Plan, Result, Round, StageTerms
from consumer.bench.roofline import Terms, Window, account, roofline
from consumer.bench.stages import Measured

FACTS = Facts(
    model={"name": "lite0", "version": "1", "digest": "sha256:0", "runtime": "null", "precision": "f32"},
    decode_threads=2,
    model_threads=2,
    batch_sizes=[1, 2],
    event_bytes=900,
    workload="cuts of the demo's 4 photographs",
    megapixels=0.3,
    form="raw",
    image_bytes=80_000.0,
    messages=1000,
    partitions=6,
    broker="Apache Kafka",
    broker_kind="kafka",
    broker_cpu_known=True,
    max_wait_ms=20,
)


def measured(cpu_ms: float, p99_ms: float = 5.0) -> Measured:
    return Measured(100, cpu_ms / 10, cpu_ms / 10, p99_ms / 2, p99_ms)


def one_round(service_cpu_s: float = 6.4, others_cpu_s: float | None = 0.0, **window: Any) -> Round:
    """1000 images in 4 s on 2 cores, terms of 5.5 ms."""
    terms = Terms(fetch_ms=0.1, decode_ms=2.0, infer_ms=3.0, overhead_ms=0.4, batch=2)
    found = Window(
        images=1000,
        wall_s=4.0,
        cores=2,
        service_cpu_s=service_cpu_s,
        bench_cpu_s=0.1,
        broker_cpu_s=0.5,
        others_cpu_s=others_cpu_s,
    )
    found = replace(found, **window)
    limit = roofline(terms, found.free_cores)
    return Round(
        stages=StageTerms(
            {"raw": measured(0.1), "inline": measured(0.3), "reference": measured(0.2)},
            {0.3: measured(2.0, p99_ms=6.0), 12.0: measured(100.0)},
            {1: measured(4.0), 2: measured(3.0, p99_ms=16.0)},
        ),
        bare_images=1000,
        bare_cpu_ms=0.4,
        terms=terms,
        window=found,
        roofline=limit,
        ratio=found.rate / limit,
        ratio_less_others=None if others_cpu_s is None else 0.9,
        parts=account(terms, found),
        peak_rss_bytes=300 * 2**20,
        mean_batch=1.9,
        first_event_s=2.5,
    )


def level(load: float, p99_ms: float = 40.0, *, unanswered: int = 0, lagged: bool = False) -> Level:
    return Level(load, 100.0, Latency(500, 10.0, 20.0, p99_ms, 50.0), unanswered, 0.3, lagged)


def result(*rounds: Round, latency: tuple[LatencyRound, ...] | None = None, **facts: Any) -> Result:
    loads = LatencyRound([level(load) for load in LOADS], level(0.0, p99_ms=4.0))
    return Result(
        Plan(),
        replace(FACTS, **facts),
        rounds or (one_round(), one_round(service_cpu_s=6.6)),
        (loads,) if latency is None else latency,
    )
