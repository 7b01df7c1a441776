"""Whether a variant's labels agree with its original's: how surely, and what follows from it. Pure.

The share of images on which both give the same first label is an estimate. What is held against the bar is the lower
end of its one-sided 95 % confidence interval: with that the share among all images like these is at least so much.

* One image a photograph: the exact interval of Clopper and Pearson (1934), "The use of confidence or fiducial limits
  illustrated in the case of the binomial", Biometrika 26. With no disagreement among n it is `0.05 ** (1 / n)`.
* Several images of a photograph (crops, bursts) are not independent, and count as one: the photograph agrees by the
  share of its images that do, and the interval is Clopper-Pearson's with photographs in the place of images. That is
  the method of Korn and Graubard (1998), "Confidence intervals for proportions with small expected number of positive
  counts estimated from survey data", Survey Methodology 24, with the largest design effect there can be: that further
  images of a photograph say nothing new. With one image a photograph both are the same.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
_ERROR = 1.0 - CONFIDENCE
# Of a bisection of [0, 1], and of the continued fraction: far below what is printed.
_HALVINGS = 60
_TINY = 1e-300
_CONVERGED = 1e-14
_MOST_TERMS = 10_000

Method = Literal["Clopper-Pearson", "Clopper-Pearson by photograph"]
Verdict = Literal["accepted", "provisional", "rejected"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """On how many images two models give the same first label."""

    images: int
    photographs: int
    """How many the images come from."""
    disagreements: int
    """Images with another first label."""
    share: float
    """The mean over photographs of the share of its images that agree; 0 where there are none."""
    lower_bound: float
    """One-sided, at `CONFIDENCE`."""
    method: Method


def agreement(found: Iterable[tuple[str, bool]]) -> Agreement:
    """What is known from (photograph, whether the first labels are the same) of each image."""
    agreeing: dict[str, int] = {}
    of: dict[str, int] = {}
    for photograph, same in found:
        of[photograph] = of.get(photograph, 0) + 1
        agreeing[photograph] = agreeing.get(photograph, 0) + same
    images = sum(of.values())
    # fsum: the order of the photographs must not matter.
    successes = math.fsum(agreeing[photograph] / of[photograph] for photograph in of)
    return Agreement(
        images=images,
        photographs=len(of),
        disagreements=images - sum(agreeing.values()),
        share=successes / len(of) if of else 0.0,
        lower_bound=lower_bound(successes, len(of)),
        method="Clopper-Pearson" if images == len(of) else "Clopper-Pearson by photograph",
    )


def lower_bound(successes: float, trials: int) -> float:
    """The one-sided lower bound of Clopper and Pearson: the 5 % quantile of Beta(successes, trials - successes + 1).

    Args:
        successes: 0 to `trials`; not whole where trials agree by a share.
        trials: independent ones.
    """
    if successes <= 0.0:
        return 0.0
    if successes >= trials:
        return float(_ERROR ** (1.0 / trials))
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if beta_cdf(middle, successes, trials - successes + 1.0) < _ERROR:
            low = middle
        else:
            high = middle
    return low


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22) and, where that is
    slow, from the other side (8.17.4). For whole a and b it is the binomial tail P(X >= a) of a + b - 1 trials."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x <= (a + 1.0) / (a + b + 2.0):
        return _front(x, a, b) * _continued_fraction(x, a, b)
    return 1.0 - _front(1.0 - x, b, a) * _continued_fraction(1.0 - x, b, a)


def _front(x: float, a: float, b: float) -> float:
    """x^a (1-x)^b / (a B(a, b)), by logarithms: its factors alone may be far below the smallest float."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1/(1 + d1/(1 + d2/(1 + ...))), evaluated from the front by Lentz's method."""
    above, below = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    value = below
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        change = 1.0
        for factor in (even, odd):
            below = 1.0 / _not_zero(1.0 + factor * below)
            above = _not_zero(1.0 + factor / above)
            change = below * above
            value *= change
        if abs(change - 1.0) < _CONVERGED:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def images_needed(min_agreement: float) -> int:
    """The fewest independent images that can reach the bar: all of them agree. 299 for 0.99.

    `min_agreement` is in [0, 1); of 1 no number of images could be sure.
    """
    if min_agreement <= _ERROR:
        return 1
    guess = max(1, math.floor(math.log(_ERROR) / math.log(min_agreement)) - 1)
    while lower_bound(guess, guess) < min_agreement:
        guess += 1
    return guess


def verdict(found: Agreement, *, min_agreement: float) -> Verdict:
    """`accepted`: the bound reaches the bar. `provisional`: it cannot with so few photographs, but the share does.
    `rejected`: the rest."""
    if found.lower_bound >= min_agreement:
        return "accepted"
    if found.photographs < images_needed(min_agreement) and found.photographs and found.share >= min_agreement:
        return "provisional"
    return "rejected"


# --- hold-out and calibration ---------------------------------------------------------------------------------------


def calibration_photographs(images_of: Mapping[str, int], wanted_images: int) -> frozenset[str]:
    """Which photographs calibrate; the others are the hold-out set.

    The first in the order of their ids, which are hashes, until they have `wanted_images` images, and at most half of
    the photographs: the same photographs are always divided alike, and no photograph is in both.
    """
    chosen: set[str] = set()
    images = 0
    for photograph in sorted(images_of)[: len(images_of) // 2]:
        if images >= wanted_images:
            break
        chosen.add(photograph)
        images += images_of[photograph]
    return frozenset(chosen)
