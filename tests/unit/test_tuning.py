"""The search for the best settings, on surfaces that are known. No clock, no model."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from consumer.tuning import Axis, Gain, Look, Point, compare, looks_at_most, search, smallest_of_the_best

AXES = [
    Axis("batch", (2, 4, 8, 16, 32)),
    Axis("threads", (1, 2, 4, 8)),
    Axis("streams", (0, 1, 2, 4, 8)),
    Axis("decoders", (1, 2, 4, 6, 8, 12)),
]
START = (16, 8, 0, 8)


def hill(*peak: int, width: float = 1.0) -> Callable[[Point], float]:
    """1,000 images/s at the peak, less in every direction, by how many doublings a value is away."""

    def rate(point: Point) -> float:
        away = sum(math.log2((value + 1) / (best + 1)) ** 2 for value, best in zip(point, peak, strict=True))
        return 1_000 / (1 + away / width)

    return rate


class Looks:
    """A surface that is looked at, with noise that is the same at each run."""

    def __init__(self, rate: Callable[[Point], float | None], *, noise: float = 0.0, seed: int = 0) -> None:
        self._rate = rate
        self._noise = noise
        self._dice = random.Random(seed)
        self.points: list[Point] = []

    def __call__(self, point: Point) -> float | None:
        self.points.append(point)
        rate = self._rate(point)
        return None if rate is None else rate * (1 + self._dice.uniform(-self._noise, self._noise))


@pytest.mark.parametrize("peak", [(8, 4, 2, 4), (32, 8, 0, 12), (2, 1, 0, 1), (16, 8, 0, 8), (4, 8, 8, 2)])
def test_the_peak_is_found_within_the_number_of_looks_stated(peak: Point) -> None:
    looks = Looks(hill(*peak))
    found = search(AXES, START, looks)
    assert found.point == peak
    assert found.finished
    assert found.looks == len(looks.points) <= looks_at_most(AXES)


def test_it_looks_at_a_tenth_of_what_a_grid_would() -> None:
    looks = Looks(hill(8, 4, 2, 4))
    search(AXES, START, looks)
    grid = math.prod(len(axis.values) for axis in AXES)
    assert len(set(looks.points)) <= grid / 10


def test_the_second_way_goes_on_from_where_the_first_ended() -> None:
    """Where the best of one axis moves with the other."""

    def rate(point: Point) -> float:
        batch, decoders = (math.log2(value) for value in point)
        return 1_000 / (1 + (batch - decoders) ** 2 + 0.5 * (decoders - 1) ** 2)

    found = search([AXES[0], Axis("decoders", (1, 2, 4, 8))], (16, 8), Looks(rate))
    assert found.point == (4, 4)  # the first way ends at (8, 4), with 400 images/s in place of 667


def test_on_a_ridge_it_stops_at_most_a_twentieth_short() -> None:
    """Of eight cores, what the model has decoding has not."""

    def rate(point: Point) -> float:
        threads, decoders = point
        return min(100.0 * threads, 150.0 * decoders) / max(1.0, (threads + decoders) / 8)

    axes = [Axis("threads", (1, 2, 4, 5, 6, 8)), Axis("decoders", (1, 2, 3, 4, 6, 8))]
    found = search(axes, (8, 8), Looks(rate))
    best = max(rate((threads, decoders)) for threads in axes[0].values for decoders in axes[1].values)
    assert rate(found.point) >= 0.95 * best


def test_of_values_within_three_percent_the_smallest_wins() -> None:
    rates = {2: 900.0, 4: 975.0, 8: 990.0, 16: 1_000.0, 32: 1_001.0}
    found = search([AXES[0]], (16,), Looks(lambda point: rates[point[0]]))
    assert found.point == (4,)


def test_a_batch_that_gains_more_than_three_percent_is_taken() -> None:
    rates = {2: 900.0, 4: 960.0, 8: 990.0, 16: 1_000.0, 32: 1_040.0}
    found = search([AXES[0]], (16,), Looks(lambda point: rates[point[0]]))
    assert found.point == (32,)


def test_what_cannot_be_run_is_passed_over() -> None:
    looks = Looks(lambda point: None if point[0] > 8 else float(point[0]))
    assert search([AXES[0]], (16,), looks).point == (8,)


def test_where_nothing_can_be_run_the_start_stays() -> None:
    found = search(AXES, START, Looks(lambda _point: None))
    assert found.point == START


def test_what_is_held_is_not_looked_at() -> None:
    axes = [Axis("batch", (16,)), *AXES[1:]]
    looks = Looks(hill(2, 4, 2, 4))
    assert search(axes, START, looks).point[0] == 16
    assert {point[0] for point in looks.points} == {16}


def test_all_held_takes_no_look() -> None:
    looks = Looks(hill(2, 4, 2, 4))
    found = search([Axis(axis.name, (value,)) for axis, value in zip(AXES, START, strict=True)], START, looks)
    assert (found.point, looks.points) == (START, [])


@pytest.mark.parametrize("allowed", range(12))
def test_a_budget_that_ends_leaves_what_was_known_by_then(allowed: int) -> None:
    looks = Looks(hill(2, 1, 1, 1))
    found = search(AXES, START, looks, may_go_on=lambda: len(looks.points) < allowed)
    assert len(looks.points) == allowed
    assert not found.finished
    assert (found.point == START) == (allowed < 5)  # one whole round of the first axis


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_win(seed: int) -> None:
    """Everything is equally fast, and each look is up to a tenth off: whatever the search likes, in turns against the
    start it is not faster every time, or it would be by luck alone in one of 128."""
    looks = Looks(lambda _point: 1_000.0, noise=0.1, seed=seed)
    found = search(AXES, START, looks)
    gain = compare(found.point, START, looks, rounds=7, may_go_on=lambda: True)
    assert not gain.is_one


@pytest.mark.parametrize("seed", range(10))
def test_a_real_gain_is_found_through_noise(seed: int) -> None:
    looks = Looks(hill(4, 4, 2, 4, width=2.0), noise=0.05, seed=seed)
    found = search(AXES, START, looks)
    assert compare(found.point, START, looks, rounds=7, may_go_on=lambda: True).is_one
    assert hill(4, 4, 2, 4, width=2.0)(found.point) > 0.8 * 1_000


def test_both_are_looked_at_in_turns_and_every_other_time_the_other_way_round() -> None:
    looks = Looks(lambda point: float(point[0]))
    gain = compare((3,), (2,), looks, rounds=4, may_go_on=lambda: True)
    assert [point[0] for point in looks.points] == [3, 2, 2, 3, 3, 2, 2, 3]
    assert gain.ratios == (1.5,) * 4


@pytest.mark.parametrize(
    ("ratios", "is_one"),
    [((1.2, 1.1, 1.3), True), ((1.2, 0.99, 1.3), False), ((1.5, 1.5), False), ((), False), ((1.0, 1.1, 1.2), False)],
)
def test_a_gain_within_the_spread_is_none(ratios: Sequence[float], is_one: bool) -> None:
    assert Gain(tuple(ratios)).is_one is is_one


def test_no_round_is_no_gain_and_no_loss() -> None:
    gain = compare((3,), (2,), Looks(lambda point: float(point[0])), rounds=4, may_go_on=lambda: False)
    assert (gain.median, gain.is_one, gain.is_no_loss) == (1.0, False, False)


def test_of_no_rates_there_is_no_best() -> None:
    with pytest.raises(ValueError, match="empty"):
        smallest_of_the_best({})


def test_a_look_is_any_callable() -> None:
    look: Look = Looks(lambda _point: 1.0)
    assert look((1,)) == 1.0
