"""How long recovery took, and the story of a broken promise."""

from typing import Any

import pytest

from tests.chaos.harness.recovery import quantile, recoveries
from tests.chaos.harness.story import story
from tests.history import Violation

Line = dict[str, Any]


def sent(at_s: float, offset: int, sha256: str | None = "x") -> Line:
    return {"kind": "sent", "at_s": at_s, "topic": "images", "partition": 0, "offset": offset, "sha256": sha256}


def answered(at_s: float, offset: int) -> Line:
    return {
        "kind": "output", "at_s": at_s, "source_topic": "images", "source_partition": 0, "source_offset": offset,
    }  # fmt: skip


def fault(at_s: float, phase: str, number: int = 0, name: str = "broker killed") -> Line:
    return {"kind": "fault", "at_s": at_s, "phase": phase, "number": number, "name": name, "params": {"broker": 1}}


def test_recovery_lasts_until_all_that_was_sent_before_the_end_is_answered() -> None:
    history = [
        sent(1, 0), sent(2, 1), answered(2.5, 0), fault(3, "begin"), sent(4, 2), fault(5, "end"),
        sent(6, 3), answered(7, 2), answered(8, 1), answered(9, 3),
    ]  # fmt: skip
    (found,) = recoveries(history)
    assert (found.kind, found.begin_s, found.end_s, found.recovery_s) == ("broker killed", 3, 5, 3)


def test_a_fault_that_held_nothing_up_took_no_time() -> None:
    (found,) = recoveries([sent(1, 0), answered(2, 0), fault(3, "begin"), fault(4, "end"), sent(5, 1)])
    assert found.recovery_s == 0


def test_the_first_answer_counts_and_a_tombstone_is_owed_none() -> None:
    history = [sent(1, 0), sent(1, 1, sha256=None), fault(2, "begin"), fault(3, "end"), answered(4, 0), answered(9, 0)]
    assert [each.recovery_s for each in recoveries(history)] == [1]


def test_what_is_never_answered_is_no_recovery() -> None:
    (found,) = recoveries([sent(1, 0), fault(2, "begin"), fault(3, "end")])
    assert found.recovery_s is None


def test_faults_that_overlap_have_a_time_each() -> None:
    history = [
        fault(1, "begin", 0, "a"), fault(2, "begin", 1, "b"), sent(3, 0), fault(4, "end", 0, "a"), sent(5, 1),
        fault(6, "end", 1, "b"), answered(7, 0), answered(10, 1),
    ]  # fmt: skip
    assert {each.kind: each.recovery_s for each in recoveries(history)} == {"a": 3, "b": 4}


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0.25, 1), (1.0, 4), (0.0, 1)])
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile([4, 2, 1, 3], share) == value


def test_a_story_has_the_lines_of_its_input_the_faults_around_it_and_the_way_to_see_it_again() -> None:
    def sample(at_s: float, number: int, committed: int) -> Line:
        return {
            "kind": "sample", "at_s": at_s, "number": number,
            "partitions": [["images", "id", 0, committed, 0, 90], ["images", "id", 1, 7, 0, 90]],
        }  # fmt: skip

    history = [
        sent(100, 0), sent(101, 50), fault(102, "begin"), sample(103, 1, 0), sample(104, 2, 51), fault(105, "end"),
        sample(106, 3, 51), fault(200, "begin", 1, "much later"), fault(201, "end", 1, "much later"),
    ]  # fmt: skip
    violation = Violation("I2", "51 was committed while images[0]@50 had no answer yet", 4, ("images", 0, 50))
    text = story(history, violation, replay="python -m tests.chaos replay plan.json", seed=9)
    assert "seed 9; again: python -m tests.chaos replay plan.json" in text
    assert "2.0 to 5.0 s: broker killed (broker 1)" in text
    assert "line 1:" in text
    assert text.count("committed 51 of the log") == 1
    for other in ("line 0:", "committed 0", "much later"):
        assert other not in text
