"""Lag without progress is told from no traffic and from known waiting, and what is done about it grows."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from consumer.messages import Partition
from consumer.stages.stalls import Stalls, Standing

A, B = Partition("images", 0), Partition("images", 1)
STALL_S = 100.0
STEP_S = 10.0


class Watch:
    """A `Stalls` with its looks, answers and remedies; every look is `STEP_S` after the last."""

    def __init__(self) -> None:
        self.stalls = Stalls(STALL_S)
        self.now_s = 1_000.0
        self.standings = {A: Standing(epoch=1, read=5, finished=5, committed=5)}
        self.excused: set[Partition] = set()
        self.behind: set[Partition] | None = set()
        """What the broker has more of; None: it does not answer."""
        self.done: list[tuple[str, frozenset[Partition]]] = []
        self.asked = 0

    def moves(self, **changes: int) -> None:
        self.standings[A] = replace(self.standings[A], **changes)

    def look(self) -> None:
        suspects = self.stalls.look(self.standings, self.excused.__contains__, self.now_s)
        if suspects:
            self.asked += 1
            self.stalls.heard(suspects, () if self.behind is None else self.behind & suspects, self.now_s)
        found = self.stalls.due(self.now_s)
        if found is not None:
            self.done.append(found)

    def passes(self, seconds: float) -> "Watch":
        for _ in range(int(seconds / STEP_S)):
            self.look()
            self.now_s += STEP_S
        return self

    @property
    def remedies(self) -> list[str]:
        return [remedy for remedy, _ in self.done]


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_without_traffic_nothing_is_done_however_long_it_lasts(watch: Watch) -> None:
    assert watch.passes(50 * STALL_S).remedies == []
    assert 50 <= watch.asked <= 101  # about once in half of stall_s


def test_a_partition_that_stands_still_while_the_broker_has_more_is_begun_anew_then_rejoined_then_the_end(
    watch: Watch,
) -> None:
    watch.behind = {A}
    watch.passes(STALL_S)
    assert watch.remedies == []  # not before it is over
    watch.passes(STEP_S)
    assert watch.done == [("restart", frozenset({A}))]
    assert watch.passes(STALL_S).remedies == ["restart", "rejoin"]
    assert watch.stalls.hopeless == frozenset()
    watch.passes(STALL_S - STEP_S)
    assert watch.stalls.hopeless == {A}  # /livez turns before the process ends by itself
    assert watch.passes(STEP_S).remedies == ["restart", "rejoin", "exit"]


@pytest.mark.parametrize("what", ["read", "finished", "committed"])
def test_progress_of_any_kind_is_no_stall_and_forgives(watch: Watch, what: str) -> None:
    watch.behind = {A}
    watch.passes(2.5 * STALL_S)
    assert watch.remedies == ["restart", "rejoin"]
    for step in range(30):
        watch.moves(**{what: 6 + step})
        watch.passes(0.9 * STALL_S)
    assert watch.remedies == ["restart", "rejoin"]
    assert watch.passes(STALL_S).remedies == ["restart", "rejoin", "restart"]


def test_known_waiting_is_no_stall_and_the_clock_begins_when_it_is_over(watch: Watch) -> None:
    watch.behind, watch.excused = {A}, {A}
    assert watch.passes(20 * STALL_S).remedies == []
    watch.excused = set()
    assert watch.passes(0.5 * STALL_S).remedies == []
    assert watch.passes(STALL_S).remedies == ["restart"]


def test_an_excuse_that_is_there_only_now_and_then_still_counts(watch: Watch) -> None:
    """Work is with one stage or another, and for a moment with none."""
    watch.behind = {A}
    for _ in range(40):
        watch.excused = set()
        watch.passes(3 * STEP_S)
        watch.excused = {A}
        watch.passes(STEP_S)
    assert watch.remedies == []


def test_a_broker_that_does_not_answer_is_away_which_is_no_stall(watch: Watch) -> None:
    watch.behind = None
    assert watch.passes(20 * STALL_S).remedies == []
    watch.behind = {A}
    assert watch.passes(STALL_S).remedies == ["restart"]


def test_without_an_answer_nothing_is_done(watch: Watch) -> None:
    for _ in range(50):
        watch.stalls.look(watch.standings, lambda _: False, watch.now_s)
        assert watch.stalls.due(watch.now_s) is None
        watch.now_s += STEP_S


def test_another_lease_is_neither_progress_nor_the_lack_of_it(watch: Watch) -> None:
    watch.behind = {A}
    watch.passes(1.9 * STALL_S)
    assert watch.remedies == ["restart"]
    watch.moves(epoch=2, read=3)  # the group gave it back, further behind
    watch.passes(STALL_S)
    assert watch.remedies == ["restart"]
    assert watch.passes(STEP_S).remedies == ["restart", "rejoin"]


def test_what_was_tried_is_known_after_the_rejoin_took_the_partition_away(watch: Watch) -> None:
    watch.behind = {A}
    watch.passes(2 * STALL_S + 2 * STEP_S)
    assert watch.remedies == ["restart", "rejoin"]
    mine, watch.standings = watch.standings, {}
    watch.passes(STALL_S)
    watch.standings = mine
    watch.moves(epoch=2)
    assert watch.passes(STALL_S + STEP_S).remedies == ["restart", "rejoin", "exit"]


def test_what_was_tried_is_forgotten_of_a_partition_that_was_anothers_for_long(watch: Watch) -> None:
    watch.behind = {A}
    watch.passes(2 * STALL_S + 2 * STEP_S)
    mine, watch.standings = watch.standings, {}
    watch.passes(5 * STALL_S)
    watch.standings = mine
    watch.moves(epoch=2)
    assert watch.passes(STALL_S + STEP_S).remedies == ["restart", "rejoin", "restart"]


def test_the_strongest_remedy_that_is_due_is_done(watch: Watch) -> None:
    watch.behind = {A}
    watch.passes(STALL_S + STEP_S)
    watch.standings[B] = Standing(epoch=2, read=0, finished=0, committed=0)
    watch.behind = {A, B}
    watch.passes(STALL_S + STEP_S)
    assert watch.done[:2] == [("restart", frozenset({A})), ("rejoin", frozenset({A}))]
    assert watch.done[2:] in ([], [("restart", frozenset({B}))])


def test_a_replica_that_stood_still_itself_blames_no_partition(watch: Watch) -> None:
    watch.behind = {A}
    watch.passes(STEP_S)
    watch.now_s += 10 * STALL_S  # stopped, or in a drain
    assert watch.passes(STALL_S).remedies == []
    assert watch.passes(STEP_S).remedies == ["restart"]


def test_an_answer_about_a_partition_that_moved_meanwhile_says_nothing(watch: Watch) -> None:
    watch.look()
    watch.now_s += 0.4 * STALL_S
    watch.look()
    watch.now_s += 0.2 * STALL_S
    asked: Iterable[Partition] = watch.stalls.look(watch.standings, lambda _: False, watch.now_s)
    assert asked == {A}
    watch.moves(read=9)
    watch.stalls.look(watch.standings, lambda _: False, watch.now_s)
    watch.stalls.heard(asked, asked, watch.now_s)
    watch.behind = set()
    assert watch.passes(2 * STALL_S).remedies == []
