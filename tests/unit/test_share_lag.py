"""The question for a share group's lag, and its answer, byte by byte."""

import struct

import pytest

from tests.share_lag import Unanswered, lag_in, request_of

NONE = b"\0"


def compact(text: str) -> bytes:
    return bytes([len(text) + 1]) + text.encode()


def partition(number: int, lag: int, error: int = 0) -> bytes:
    return struct.pack(">iqiqh", number, 3, 1, lag, error) + NONE + NONE


def answer(*partitions: bytes, group_error: int = 0) -> bytes:
    topic = compact("images") + bytes(16) + bytes([len(partitions) + 1]) + b"".join(partitions) + NONE
    group = compact("group") + bytes([2]) + topic + struct.pack(">h", group_error) + NONE + NONE
    return struct.pack(">i", 7) + NONE + struct.pack(">i", 0) + bytes([2]) + group + NONE


def test_a_group_is_asked_for_with_all_its_topics() -> None:
    asked = request_of("group", 7)
    assert asked[:8] == struct.pack(">hhi", 90, 1, 7)
    assert asked.endswith(NONE + bytes([2]) + compact("group") + NONE + NONE + NONE)


def test_partitions_of_which_the_broker_cannot_tell_are_left_out() -> None:
    told = lag_in(answer(partition(0, 5), partition(1, -1), partition(2, 9, error=3), partition(3, 0)), 7)
    assert told == {("images", 0): 5, ("images", 3): 0}


def test_a_broker_that_does_not_know_the_group_has_not_answered() -> None:
    with pytest.raises(Unanswered, match="16"):
        lag_in(answer(group_error=16), 7)
