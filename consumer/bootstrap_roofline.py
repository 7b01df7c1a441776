"""Wires `ouzel_roofline_ratio`: its cores, and what a bare loop over Kafka costs here, as `ouzel bench` found it."""

import math
from pathlib import Path

from consumer.bootstrap_model import cache_folder
from consumer.cpu import quota_share
from consumer.metrics import Metrics
from consumer.roofline_meter import RooflineMeter

OVERHEAD_MS = 0.045
"""CPU-milliseconds of a bare consume-produce loop for one image, where `ouzel bench` has not measured it: below the
least of three rounds of it with messages of 80 kB (0.047 to 0.055; AMD EPYC with AVX-512, 2 virtual cores), so that the
ratio is rather too low."""
_FILE = "bench-overhead.json"
_MOST_MS = 100.0


def build_meter(metrics: Metrics) -> RooflineMeter:
    """The meter that writes the metric."""
    known = known_overhead_ms()
    return RooflineMeter(
        cores=quota_share(), overhead_ms=OVERHEAD_MS if known is None else known, tell=metrics.roofline_ratio
    )


def remember_overhead(overhead_ms: float) -> None:
    """What `ouzel bench` measured, for replicas on this kind of CPU."""
    from consumer.adapters.runtimes.remembered import remember

    remember(_path(), _key(), {"overhead_ms": overhead_ms})


def known_overhead_ms() -> float | None:
    """What `ouzel bench` measured on this kind of CPU; None where it did not."""
    from consumer.adapters.runtimes.remembered import read_remembered

    found = read_remembered(_path()).get(_key())
    value = found.get("overhead_ms") if isinstance(found, dict) else None
    if not isinstance(value, float) or not math.isfinite(value) or not 0 < value < _MOST_MS:
        return None
    return value


def _path() -> Path:
    return cache_folder() / _FILE


def _key() -> str:
    from consumer.adapters.cpu_flags import cpu_flags, cpu_name
    from consumer.adapters.runtimes.compiled_cache import key_of

    return key_of({"cpu": [cpu_name(), *sorted(cpu_flags())]})
