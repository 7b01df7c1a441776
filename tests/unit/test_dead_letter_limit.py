"""When too many dead letters hold the replica."""

import pytest

from consumer.errors import Family
from consumer.messages import Partition
from consumer.stages.dead_letter_limit import DeadLetterLimit, Verdict

A, B = Partition("images", 0), Partition("images", 1)


@pytest.fixture
def limit() -> DeadLetterLimit:
    return DeadLetterLimit(window_s=100, min_sample=10, content_ratio=0.9, system_ratio=0.5, system_consecutive=6)


def _letters(limit: DeadLetterLimit, family: Family, count: int, now_s: float = 0.0) -> list[Verdict]:
    return [limit.judge(A, family, now_s) for _ in range(count)]


def _images(limit: DeadLetterLimit, count: int, now_s: float = 0.0) -> None:
    for _ in range(count):
        limit.succeeded(A, now_s)


def test_below_the_minimum_sample_no_ratio_counts(limit: DeadLetterLimit) -> None:
    assert _letters(limit, "content", 9) == [Verdict.PUBLISH] * 9
    assert limit.judge(A, "content", 0.0) is Verdict.WITHHOLD
    assert limit.trip is not None
    assert limit.trip.family == "content"
    assert "10 of the last 10" in limit.trip.reason


def test_each_family_has_its_own_ratio(limit: DeadLetterLimit) -> None:
    _images(limit, 6)
    assert _letters(limit, "content", 6) == [Verdict.PUBLISH] * 6  # half is far from 0.9
    assert _letters(limit, "system", 5) == [Verdict.PUBLISH] * 5
    other = DeadLetterLimit(window_s=100, min_sample=10, content_ratio=0.9, system_ratio=0.5, system_consecutive=99)
    _images(other, 6)
    assert _letters(other, "system", 6)[-1] is Verdict.WITHHOLD


def test_letters_in_a_row_trip_only_where_they_point_at_us(limit: DeadLetterLimit) -> None:
    _images(limit, 50)
    assert _letters(limit, "system", 6) == [Verdict.PUBLISH] * 5 + [Verdict.WITHHOLD]
    assert limit.trip is not None
    assert "6 letters in a row" in limit.trip.reason


@pytest.mark.parametrize("between", ["image", "content"])
def test_anything_else_between_them_breaks_the_row(limit: DeadLetterLimit, between: str) -> None:
    _images(limit, 50)
    for _ in range(3):
        _letters(limit, "system", 4)
        _images(limit, 5) if between == "image" else _letters(limit, "content", 1)
    assert limit.trip is None


def test_what_is_older_than_the_window_does_not_count(limit: DeadLetterLimit) -> None:
    _letters(limit, "content", 9, now_s=0.0)
    _images(limit, 9, now_s=101.0)
    assert limit.judge(A, "content", 101.0) is Verdict.PUBLISH


def test_once_tripped_every_letter_is_withheld_until_a_person_says_go_on(limit: DeadLetterLimit) -> None:
    _letters(limit, "content", 10)
    _images(limit, 100)
    assert limit.judge(B, "system", 0.0) is Verdict.WITHHOLD
    limit.resume()
    assert limit.trip is None
    assert _letters(limit, "content", 9) == [Verdict.PUBLISH] * 9


def test_on_probation_no_letter_of_that_family_leaves_until_one_image_succeeds(limit: DeadLetterLimit) -> None:
    limit.put_on_probation(A, "system")
    assert limit.judge(A, "system", 0.0) is Verdict.WITHHOLD
    assert limit.judge(A, "content", 0.0) is Verdict.PUBLISH
    assert limit.judge(B, "system", 0.0) is Verdict.PUBLISH
    assert not limit.succeeded(B, 0.0)
    assert limit.succeeded(A, 0.0)
    assert not limit.succeeded(A, 0.0)
    assert limit.judge(A, "system", 0.0) is Verdict.PUBLISH


def test_a_probation_in_which_nothing_succeeds_trips_after_a_window(limit: DeadLetterLimit) -> None:
    limit.put_on_probation(A, "system")
    limit.judge(A, "system", 5.0)
    limit.check_probation(104.9)
    assert limit.trip is None
    limit.check_probation(105.0)
    assert getattr(limit.trip, "family", None) == "system"


def test_no_letter_withheld_means_no_trip_however_long_the_probation(limit: DeadLetterLimit) -> None:
    limit.put_on_probation(A, "system")
    limit.check_probation(1e6)
    assert limit.trip is None
    limit.judge(A, "system", 5.0)
    limit.forget(A)
    limit.check_probation(1e6)
    assert limit.trip is None
    limit.put_on_probation(A, "system")
    limit.judge(A, "system", 5.0)
    limit.succeeded(A, 6.0)
    limit.check_probation(1e6)
    assert limit.trip is None


def test_success_in_one_partition_ends_no_other_partitions_probation(limit: DeadLetterLimit) -> None:
    for partition in (A, B):
        limit.put_on_probation(partition, "system")
        limit.judge(partition, "system", 5.0)
    limit.succeeded(A, 6.0)
    limit.check_probation(105.0)
    assert limit.trip is not None


def test_the_next_owner_of_a_partition_is_not_on_our_books(limit: DeadLetterLimit) -> None:
    limit.put_on_probation(A, "content")
    limit.forget(A)
    assert not limit.on_probation(A)
    assert limit.judge(A, "content", 0.0) is Verdict.PUBLISH


def test_a_burst_that_begins_with_its_letters_is_judged_with_what_is_still_in_flight() -> None:
    def limit_of_half() -> DeadLetterLimit:
        return DeadLetterLimit(
            window_s=60, min_sample=10, content_ratio=0.51, system_ratio=0.51, system_consecutive=1000
        )

    limit = limit_of_half()
    for left in range(20, 0, -1):  # 20 letters of 40 messages; the images are slower
        limit.judge(Partition("images", 0), "content", 0.0, undecided=20 + left)
    assert limit.trip is None
    alone = limit_of_half()
    for left in range(20, 0, -1):
        alone.judge(Partition("images", 0), "content", 0.0, undecided=left)
    assert alone.trip is not None
