"""Whether something grows: slopes with an interval that is neither too narrow nor blind."""

import random

import pytest
from scipy import stats

from benchmarks.growth.memory import slope_of, thinned
from benchmarks.growth.slope import fit, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 12, 30, 100, 1000])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.975, 0.995])
def test_the_t_quantile_is_that_of_scipy(probability: float, freedom: int) -> None:
    # From 3 to 4 degrees of freedom the expansion is a little too small, most of all far out.
    within = 0.05 if freedom in (3, 4) and probability > 0.98 else 0.01
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=within)


def test_between_whole_degrees_of_freedom_the_interval_is_the_wider_one() -> None:
    assert t_quantile(0.975, 2.9) == t_quantile(0.975, 2)
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(0.975, 0.5)


def test_a_line_without_noise_is_found_exactly() -> None:
    found = fit(range(20), [3.0 + 2.0 * x for x in range(20)])
    assert (found.slope, found.low, found.high, found.intercept) == pytest.approx((2.0, 2.0, 2.0, 3.0))
    assert not found.flat
    assert fit(range(20), [7.0] * 20).flat


def test_with_independent_noise_the_interval_is_that_of_scipy() -> None:
    dice = random.Random(2)
    xs = list(range(60))
    ys = [0.5 * x + dice.gauss(0, 5) for x in xs]
    found, known = fit(xs, ys), stats.linregress(xs, ys)
    assert found.slope == pytest.approx(known.slope)
    # Chance correlates neighbours a little, and this interval takes it into account.
    half = stats.t.ppf(0.975, 58) * known.stderr
    assert found.high - found.slope == pytest.approx(half, rel=0.35)


def _intervals_that_hold(slope: float, persistence: float) -> int:
    """Of 200 lines with noise that remembers, how many intervals have the true slope in them."""
    held = 0
    for seed in range(200):
        dice, noise = random.Random(seed), 0.0
        ys = []
        for x in range(300):
            noise = persistence * noise + dice.gauss(0, 1)
            ys.append(slope * x + noise)
        found = fit(range(300), ys)
        held += found.low <= slope <= found.high
    return held


@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
def test_the_interval_holds_the_true_slope_about_as_often_as_it_says(persistence: float) -> None:
    """Of 200 intervals of 95 % at least 174, also where a point says much of the next."""
    assert _intervals_that_hold(0.02, persistence) >= 174


def test_a_leak_under_steps_is_seen() -> None:
    dice = random.Random(4)
    ys = [200e6 + 100 * images + dice.choice([0, 1e6]) for images in range(0, 100_000, 250)]
    found = fit(range(0, 100_000, 250), ys)
    assert not found.flat
    assert found.low < 100 < found.high


def test_too_few_points_have_no_slope() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit(range(7), range(7))
    with pytest.raises(ValueError, match="the same x"):
        fit([1.0] * 10, range(10))


def test_what_fills_up_at_the_beginning_is_no_growth() -> None:
    images = list(range(0, 10_001, 100))
    held = [min(300e6, 50e6 + 250_000.0 * done) + (done // 100 % 2) * 4096 for done in images]
    slope = slope_of(images, held)
    assert slope["left_out_images"] == 2_000
    assert slope["flat"]
    assert slope_of(images, [each + 50.0 * done for done, each in zip(images, held, strict=True)])["flat"] is False


def test_thinned_points_keep_first_and_last() -> None:
    assert thinned(list(range(1001)), most=100)[0] == 0
    assert thinned(list(range(1001)), most=100)[-1] == 1000
    assert len(thinned(list(range(1001)), most=100)) <= 101
    assert thinned([1, 2, 3]) == [1, 2, 3]
