"""How surely two models agree, and what follows: held against SciPy and against what is known."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from consumer.stages.agreement import (
    Agreement,
    agreement,
    beta_cdf,
    calibration_photographs,
    images_needed,
    lower_bound,
    verdict,
)


def found(*photographs: tuple[int, int]) -> Agreement:
    """Of photographs with (agreeing, disagreeing) images each."""
    return agreement(
        (str(number), same)
        for number, (agreeing, disagreeing) in enumerate(photographs)
        for same in [True] * agreeing + [False] * disagreeing
    )


@given(st.integers(1, 5_000), st.integers(0, 1_000))
def test_the_bound_is_that_of_scipy(trials: int, thousandths: int) -> None:
    successes = trials * thousandths / 1_000
    expected = 0.0 if successes == 0 else beta.ppf(0.05, successes, trials - successes + 1)
    assert lower_bound(successes, trials) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 2_000), st.data())
def test_at_the_bound_so_many_successes_are_as_rare_as_it_says(trials: int, data: st.DataObject) -> None:
    # Clopper and Pearson's definition: the share at which so many or more successes have a chance of 5 %.
    successes = data.draw(st.integers(1, trials))
    assert binom.sf(successes - 1, trials, lower_bound(successes, trials)) == pytest.approx(0.05, abs=1e-6)


@given(st.floats(0.0, 1.0), st.floats(0.1, 3_000), st.floats(0.1, 3_000))
def test_the_incomplete_beta_function_is_that_of_scipy(x: float, a: float, b: float) -> None:
    assert beta_cdf(x, a, b) == pytest.approx(beta.cdf(x, a, b), abs=1e-9)


# Hanley and Lippman-Hand (1983), "If nothing goes wrong, is everything all right?", and the table of Clopper-Pearson
# bounds that R's binom.test(x, n, alternative = "greater") gives.
@pytest.mark.parametrize(
    ("successes", "trials", "bound"),
    [(299, 299, 0.990031), (298, 298, 0.989998), (10, 10, 0.741134), (9, 10, 0.605836), (95, 100, 0.897747), (0, 7, 0)],
)
def test_known_bounds(successes: int, trials: int, bound: float) -> None:
    assert lower_bound(successes, trials) == pytest.approx(bound, abs=1e-6)


def test_no_image_says_nothing() -> None:
    nothing = agreement([])
    assert (nothing.images, nothing.photographs, nothing.share, nothing.lower_bound) == (0, 0, 0.0, 0.0)
    assert verdict(nothing, min_agreement=0.5) == "rejected"
    assert verdict(nothing, min_agreement=0.0) == "accepted"


@pytest.mark.parametrize(("bar", "needed"), [(0.99, 299), (0.98, 149), (0.95, 59), (0.999, 2995), (0.5, 5), (0.0, 1)])
def test_so_many_images_are_needed(bar: float, needed: int) -> None:
    assert images_needed(bar) == needed


@given(st.floats(0.0, 0.9995))
@settings(max_examples=200)
def test_one_image_fewer_than_needed_cannot_reach_the_bar(bar: float) -> None:
    needed = images_needed(bar)
    assert lower_bound(needed, needed) >= bar
    assert needed == 1 or lower_bound(needed - 1, needed - 1) < bar


@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_with_one_image_a_photograph_the_interval_is_the_exact_one(same: list[bool]) -> None:
    known = agreement((str(number), each) for number, each in enumerate(same))
    assert known.method == "Clopper-Pearson"
    assert known.lower_bound == pytest.approx(lower_bound(sum(same), len(same)), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=1, max_size=60))
def test_more_images_of_the_same_photographs_make_nothing_surer(photographs: list[tuple[int, int]]) -> None:
    once = found(*photographs)
    again = found(*((3 * agreeing, 3 * disagreeing) for agreeing, disagreeing in photographs))
    assert again.lower_bound == pytest.approx(once.lower_bound, abs=1e-9)
    assert again.images == 3 * once.images
    assert once.lower_bound <= once.share


def test_photographs_that_agree_whole_or_not_at_all_count_as_one_image_each() -> None:
    crops = found(*[(12, 0)] * 95, *[(0, 12)] * 5)
    assert crops.method == "Clopper-Pearson by photograph"
    assert crops.lower_bound == pytest.approx(lower_bound(95, 100))
    assert (crops.images, crops.photographs, crops.disagreements) == (1200, 100, 60)


def test_a_photograph_counts_once_however_many_images_it_has() -> None:
    assert found((99, 0), (0, 1)).share == 0.5


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_bound_is_wrong_in_at_most_one_of_twenty_samples(alike: float) -> None:
    """Samples of 60 photographs with 8 images each, of which 93 % agree; `alike` is how often an image does as its
    photograph does."""
    dice = random.Random(5)
    truth, wrong, samples = 0.93, 0, 200
    for _ in range(samples):
        images = []
        for photograph in range(60):
            whole = dice.random() < truth
            images += [(str(photograph), whole if dice.random() < alike else dice.random() < truth) for _ in range(8)]
        wrong += agreement(images).lower_bound > truth
    assert wrong / samples <= 0.05 + 0.04  # two standard deviations of the share of so many samples


# --- the verdict ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agreeing", "disagreeing", "expected"),
    [
        (299, 0, "accepted"),
        (298, 0, "provisional"),
        (100, 0, "provisional"),
        (298, 1, "rejected"),  # enough images, and the bound is below the bar
        (99, 2, "rejected"),  # few images, and the share itself is below the bar
        (471, 1, "rejected"),
        (472, 1, "accepted"),
    ],
)
def test_the_verdict_is_of_the_bound_not_of_the_share(agreeing: int, disagreeing: int, expected: str) -> None:
    known = found(*[(1, 0)] * agreeing, *[(0, 1)] * disagreeing)
    assert verdict(known, min_agreement=0.99) == expected


def test_crops_of_five_photographs_are_too_few_however_many_they_are() -> None:
    assert verdict(found(*[(1000, 0)] * 5), min_agreement=0.99) == "provisional"


# --- hold-out and calibration ---------------------------------------------------------------------------------------


@given(st.dictionaries(st.text("0123456789abcdef", min_size=4, max_size=4), st.integers(1, 20)), st.integers(1, 100))
def test_calibration_takes_whole_photographs_and_leaves_at_least_half(images_of: dict[str, int], wanted: int) -> None:
    chosen = calibration_photographs(images_of, wanted)
    assert chosen <= images_of.keys()
    assert len(images_of) - len(chosen) >= len(chosen)
    enough = sum(images_of[each] for each in chosen)
    assert enough >= wanted or len(chosen) == len(images_of) // 2
    least = sum(sorted(images_of[each] for each in chosen)[:-1]) if chosen else 0
    assert least < wanted  # none more than needed


@given(st.dictionaries(st.text("0123456789abcdef", min_size=4, max_size=4), st.integers(1, 20)), st.integers(1, 100))
def test_the_same_photographs_are_always_divided_alike(images_of: dict[str, int], wanted: int) -> None:
    backwards = dict(reversed(images_of.items()))
    assert calibration_photographs(backwards, wanted) == calibration_photographs(images_of, wanted)
