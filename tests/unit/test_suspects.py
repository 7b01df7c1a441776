"""Which messages are suspects after an owner that ended without a word."""

from hypothesis import given
from hypothesis import strategies as st

from consumer.stages.suspects import Suspects


def test_what_lay_before_the_logs_end_is_suspect_and_what_came_later_is_not() -> None:
    suspects = Suspects(end=12, most=100)
    assert [suspects.take(offset) for offset in (3, 7, 11, 12, 13)] == [True, True, True, False, False]


def test_no_more_are_suspect_than_an_owner_takes_in_hand_however_long_the_log() -> None:
    suspects = Suspects(end=1_000_000, most=2)
    assert [suspects.take(offset) for offset in (10, 500, 501)] == [True, True, False]


def test_they_are_passed_once_all_are_taken_and_finished() -> None:
    suspects = Suspects(end=3, most=100)
    assert not suspects.passed(next_offset=0, finished_to=0)
    for offset in (0, 1, 2):
        suspects.take(offset)
    assert not suspects.passed(next_offset=3, finished_to=2)
    assert suspects.passed(next_offset=3, finished_to=3)


@given(offsets=st.lists(st.integers(0, 200), unique=True).map(sorted), end=st.integers(0, 200), most=st.integers(0, 50))
def test_the_first_ones_before_the_end_are_suspect(offsets: list[int], end: int, most: int) -> None:
    suspects = Suspects(end=end, most=most)
    assert [each for each in offsets if suspects.take(each)] == [each for each in offsets if each < end][:most]
