"""Pure arithmetic on what was measured: percentiles, spreads, and ratios taken within a round."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of some rounds."""

    median: float
    least: float
    most: float
    rounds: int

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.least)} to {short(self.most)})"

    def as_json(self) -> dict[str, float]:
        """For `--json`."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: what a busy machine did to both of a round falls out.

    Raises:
        ValueError: not as many rounds on one side as on the other.
    """
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the least value that at least `share` of them do not exceed. NaN of none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def short(value: float) -> str:
    """Three significant digits or all before the point.

    >>> short(0.4567), short(12.345), short(345.6)
    ('0.457', '12.3', '346')
    """
    if math.isnan(value):
        return "-"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def judged(found: Spread, target: float, *, at_least: bool) -> str:
    """`met` or `missed`, by the median."""
    return "met" if (found.median >= target if at_least else found.median <= target) else "missed"
