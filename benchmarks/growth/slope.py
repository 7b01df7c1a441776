"""Whether something grows: a straight line by least squares, and how sure its slope is. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

CONFIDENCE = 0.95
_FEWEST = 8


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope with its confidence interval, in units of y for one of x."""

    slope: float
    low: float
    high: float
    intercept: float
    points: int
    effective_points: float
    """How many independent points they are worth."""

    @property
    def flat(self) -> bool:
        """Whether no growth and no shrinking is within the interval."""
        return self.low <= 0 <= self.high


def fit(xs: Sequence[float], ys: Sequence[float], *, confidence: float = CONFIDENCE) -> Slope:
    """The line through the points, which are in the order in which they were taken.

    A process's memory moves in steps, so that a point says much of the next: the interval takes the residuals' lag-1
    autocorrelation r into account, n points being worth n (1 - r) / (1 + r) (Santer et al., J. Geophys. Res. 105,
    2000, 7337-7356, eq. 4-6). Without that it would be far too narrow.

    Raises ValueError for fewer than 8 points, or where all x are one.
    """
    count = len(xs)
    if count < _FEWEST or count != len(ys):
        raise ValueError(f"{count} points are too few for a slope with an interval: at least {_FEWEST}")
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    square_x = math.fsum((x - mean_x) ** 2 for x in xs)
    if square_x == 0:
        raise ValueError("all points have the same x")
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / square_x
    intercept = mean_y - slope * mean_x
    residuals = [y - intercept - slope * x for x, y in zip(xs, ys, strict=True)]
    square = math.fsum(each * each for each in residuals)
    if square == 0:
        return Slope(slope, slope, slope, intercept, count, float(count))
    correlation = math.fsum(one * other for one, other in pairwise(residuals)) / square
    effective = count * (1 - correlation) / (1 + correlation)
    # Alternating residuals would be worth more than they are; two points have no interval.
    effective = min(float(count), max(3.0, effective))
    error = math.sqrt(square / (effective - 2) / square_x)
    half = t_quantile(0.5 + confidence / 2, effective - 2) * error
    return Slope(slope, slope - half, slope + half, intercept, count, effective)


def t_quantile(probability: float, freedom: float) -> float:
    """Of Student's t. In closed form below 3 degrees of freedom, else by the asymptotic expansion of Abramowitz and
    Stegun (Handbook of Mathematical Functions, 26.7.5), right to 1 % from 3 degrees on for 0.9 to 0.975.

    Between 1 and 2, and between 2 and 3 degrees it takes the lower: the wider interval. Raises ValueError below 1.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    if freedom < 2:
        return math.tan(math.pi * (probability - 0.5))
    if freedom < 3:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    x = statistics.NormalDist().inv_cdf(probability)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
