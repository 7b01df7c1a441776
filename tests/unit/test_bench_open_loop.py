"""Load that does not wait: when images are due, and what is made of their latencies."""

import itertools

import pytest

from consumer.bench.latency import level_of
from consumer.bench.open_loop import Latency, lagged, percentile, send_times


def test_send_times_are_fixed_beforehand_in_order_and_as_many_as_the_rate_says() -> None:
    times = send_times(50, 4, seed=1)
    assert len(times) == 200
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= 4
    assert times == send_times(50, 4, seed=1)
    assert times != send_times(50, 4, seed=2)


def test_arrivals_come_in_clusters_and_not_like_a_clock() -> None:
    times = send_times(100, 20, seed=3)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    # Of a Poisson process the gaps' deviation is their mean; of a clock's it is 0.
    assert 0.8 < deviation / mean < 1.2


def test_a_load_too_small_for_one_image_sends_one() -> None:
    assert len(send_times(0.01, 1, seed=0)) == 1


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == expected


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_latency_counts_all_and_knows_the_worst() -> None:
    found = Latency.of([5.0, 1.0, 9.0])
    assert (found.images, found.p50_ms, found.p99_ms, found.most_ms) == (3, 5.0, 9.0, 9.0)


def test_a_generator_that_is_late_by_a_tenth_of_what_it_measures_is_told_of() -> None:
    assert lagged([5.0] * 100, p99_ms=40.0)
    assert not lagged([3.0] * 100, p99_ms=40.0)
    assert not lagged([0.5] * 100, p99_ms=2.0)  # under a millisecond is what a sleep ends late


def test_a_load_without_an_answer_has_no_latency_and_says_so() -> None:
    level = level_of({"latencies_ms": [], "late_ms": [0.1], "unanswered": 7}, load=0.5, rate=10.0)
    assert level.latency is None
    assert level.unanswered == 7
    assert not level.generator_lagged
