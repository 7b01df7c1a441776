"""Load that does not wait for answers: when to send, and what is said of the latencies. Pure.

Send times are fixed beforehand and a latency counts from the time at which its image was *due*. A generator that waits
for a slow service would send less just then, and so leave out what would have waited (coordinated omission).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

LOADS = (0.3, 0.5, 0.7, 0.9)
"""Shares of the measured throughput."""
ARRIVALS = "Poisson, its count fixed"


def send_times(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Seconds from the start at which images are due, in order: a Poisson process (senders that know nothing of each
    other) of `rate` a second, given that `rate * seconds` of them come; at least one."""
    dice = random.Random(seed)  # noqa: S311  (a load, and no secret)
    return sorted(dice.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all do not exceed (nearest rank). Raises ValueError where there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies at one load, in milliseconds."""

    images: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    most_ms: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> "Latency":
        """Raises ValueError for none."""
        p50_ms, p95_ms, p99_ms = (percentile(values_ms, share) for share in (0.50, 0.95, 0.99))
        return cls(len(values_ms), p50_ms, p95_ms, p99_ms, max(values_ms))


def lagged(late_ms: Sequence[float], p99_ms: float) -> bool:
    """Whether the generator itself was so late that the figures are partly its own: its p99 above a tenth of theirs,
    and above 1 ms."""
    own_ms = percentile(late_ms, 0.99)
    return own_ms > 1.0 and own_ms > 0.1 * p99_ms
