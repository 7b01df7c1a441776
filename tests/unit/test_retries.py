"""An image whose store fails: never lost or doubled, and a letter only where the store serves others."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumer.errors import StoreBusy, StoreFailed, StoreUnavailable
from consumer.messages import Delivery, ImageJob, Lease, Partition
from consumer.stages.retry import Attempt, Retries

ERROR = StoreUnavailable("503")
STORE = "fake://images"


class _Room:
    """Retries whose dice always show `dice`; three attempts, 100 ms growing to 1 s."""

    def __init__(self, dice: float = 1.0) -> None:
        self.dice = dice
        self.retries = Retries(
            max_attempts=3,
            initial_backoff_ms=100,
            max_backoff_ms=1_000,
            max_retry_after_ms=60_000,
            dice=lambda: self.dice,
        )

    def attempt(self, number: int = 0, *, first_s: float = 0.0, store: str = STORE) -> Attempt:
        lease = Lease(Partition("images", 0), epoch=1, topic_id="")
        job = ImageJob(Delivery(lease, number, b""), str(number), uri=f"{store}/{number}")
        return Attempt(job, store, first_s)

    def take_down(self, first_s: float = 0.0) -> Attempt:
        """One image fails until its store is presumed down; it is the probe, due within a second."""
        probe = self.attempt(first_s=first_s)
        for _ in range(3):
            assert self.retries.failed(probe, ERROR, first_s) is None
            if STORE not in self.retries.down_stores():
                assert self.retries.due(first_s + 10) == [probe]
        return probe


@pytest.mark.parametrize(("dice", "waits_s"), [(1.0, [0.1, 0.2]), (0.5, [0.05, 0.1]), (0.0, [0.0, 0.0])])
def test_backoff_doubles_under_full_jitter(dice: float, waits_s: list[float]) -> None:
    room = _Room(dice)
    attempt = room.attempt()
    for wait_s in waits_s:
        room.retries.failed(attempt, ERROR, 50.0)
        if wait_s:
            assert room.retries.due(50.0 + wait_s - 0.001) == []
        assert room.retries.due(50.0 + wait_s) == [attempt]


def test_where_there_is_no_time_for_more_attempts_the_first_decides() -> None:
    room = _Room()
    slow = room.attempt(first_s=10.0)
    assert room.retries.failed(slow, ERROR, 40.0, last=True) is None
    assert room.retries.down_stores() == {STORE: 40.0}
    other = _Room()
    other.retries.succeeded(other.attempt(1), 20.0)
    assert isinstance(other.retries.failed(other.attempt(first_s=10.0), ERROR, 40.0, last=True), StoreFailed)


def test_an_attempt_tells_of_its_store_once_it_failed_or_is_the_probe() -> None:
    other, room = _Room(), _Room()
    attempt, parked = other.attempt(1), room.attempt(2, first_s=1.0)
    assert not other.retries.tells(attempt)
    other.retries.failed(attempt, ERROR, 0.0)
    assert other.retries.tells(attempt)
    probe = room.take_down()
    assert not room.retries.admit(parked)
    assert not room.retries.tells(parked)
    room.retries.left(probe)
    assert room.retries.tells(parked)


def test_backoff_has_a_bound_however_often_the_probe_fails() -> None:
    room = _Room()
    probe = room.take_down()
    for tries in range(2_000):
        due = room.retries.due(float(tries + 1))
        assert due == [probe]
        room.retries.failed(probe, ERROR, float(tries + 1))


def test_a_store_that_asks_for_a_longer_wait_gets_it() -> None:
    room = _Room()
    attempt = room.attempt()
    room.retries.failed(attempt, StoreUnavailable("429", retry_after_s=30.0), 0.0)
    assert room.retries.due(30.0) == []  # all who were told the same do not come back at one moment
    assert room.retries.due(30.1) == [attempt]


def test_a_store_cannot_ask_for_more_than_the_setting_allows() -> None:
    room = _Room()
    attempt = room.attempt()
    room.retries.failed(attempt, StoreUnavailable("429", retry_after_s=1e9), 0.0)
    assert room.retries.due(59.9) == []
    assert room.retries.due(60.1) == [attempt]


def test_an_image_that_our_own_bounds_keep_waiting_has_not_failed() -> None:
    room = _Room()
    room.retries.succeeded(room.attempt(1), 0.5)
    attempt = room.attempt()
    for n in range(100):
        assert room.retries.failed(attempt, StoreBusy("no room"), 2.0 * n) is None
        assert room.retries.due(2.0 * n + 1.0) == [attempt]
    assert room.retries.down_stores() == {}
    probe = room.take_down(first_s=300.0)
    assert room.retries.failed(attempt, StoreBusy("no room"), 301.0) is None
    assert room.retries.next_crowded(STORE) is None
    assert room.retries.due(1e9) == [probe]


def test_whoever_found_no_room_is_called_in_turn_when_there_is_some() -> None:
    room = _Room()
    crowded = [room.attempt(number) for number in range(3)]
    for attempt in crowded:
        room.retries.failed(attempt, StoreBusy("no room"), 0.0)
    room.retries.failed(room.attempt(4, store="fake://other"), StoreBusy("no room"), 0.0)
    assert [room.retries.next_crowded(STORE) for _ in range(4)] == [*crowded, None]
    assert [attempt.store for attempt in room.retries.due(1e9)] == ["fake://other"]  # each is called once
    assert room.retries.next_crowded("fake://never-seen") is None


def test_who_is_to_come_at_a_time_is_not_called_before() -> None:
    room = _Room(dice=0.0)
    attempt = room.attempt()
    room.retries.failed(attempt, StoreBusy("too many a second", retry_after_s=2.0), 0.0)
    assert room.retries.next_crowded(STORE) is None
    assert room.retries.due(1.9) == []
    assert room.retries.due(2.0) == [attempt]


def test_a_store_that_served_another_meanwhile_makes_it_a_letter() -> None:
    room = _Room()
    attempt = room.attempt(first_s=0.0)
    room.retries.failed(attempt, ERROR, 0.0)
    room.retries.succeeded(room.attempt(1), 0.5)
    room.retries.due(1.0)
    assert room.retries.failed(attempt, ERROR, 1.0) is None
    room.retries.due(2.0)
    assert isinstance(room.retries.failed(attempt, ERROR, 2.0), StoreFailed)
    assert room.retries.due(1e9) == []


@pytest.mark.parametrize("served", ["before", "elsewhere", "never"])
def test_otherwise_the_store_is_down_and_it_goes_on_trying_for_ever(served: str) -> None:
    room = _Room()
    if served == "before":
        room.retries.succeeded(room.attempt(1), 4.9)
    elif served == "elsewhere":
        room.retries.succeeded(room.attempt(1, store="fake://other"), 6.0)
    probe = room.take_down(first_s=5.0)
    assert room.retries.down_stores() == {STORE: 5.0}
    for n in range(100):
        assert room.retries.due(10.0 + n) == [probe]
        assert room.retries.failed(probe, ERROR, 10.0 + n) is None


def test_while_a_store_is_down_only_the_probe_tries_and_the_rest_wait() -> None:
    room = _Room()
    out = room.attempt(1, first_s=1.0)
    waiting = room.attempt(2, first_s=1.0)
    room.retries.failed(waiting, StoreUnavailable("429", retry_after_s=20.0), 1.0)
    probe = room.take_down()
    assert room.retries.failed(out, ERROR, 2.0) is None
    assert not room.retries.admit(room.attempt(3, first_s=3.0))
    assert room.retries.admit(room.attempt(4, store="fake://other"))
    assert room.retries.due(100.0) == [probe]


def test_the_oldest_image_becomes_the_probe() -> None:
    room = _Room()
    probe = room.take_down(first_s=5.0)
    older = room.attempt(1, first_s=1.0)
    room.retries.failed(older, ERROR, 6.0)
    assert room.retries.due(100.0) == [older]
    room.retries.succeeded(older, 101.0)
    assert room.retries.due(101.0) == [probe]


def test_what_waited_starts_anew_when_the_store_is_back() -> None:
    room = _Room()
    probe = room.take_down()
    parked = [room.attempt(number, first_s=1.0) for number in (1, 2)]
    for attempt in parked:
        assert not room.retries.admit(attempt)
    assert room.retries.due(10.0) == [probe]
    assert room.retries.succeeded(probe, 10.0)
    assert not room.retries.succeeded(room.attempt(9), 10.0)
    assert room.retries.down_stores() == {}
    assert room.retries.due(10.0) == parked
    assert [(attempt.tries, attempt.first_s) for attempt in parked] == [(0, 10.0)] * 2


def test_while_a_store_is_down_images_take_turns_the_least_tried_first() -> None:
    room = _Room()
    probe = room.take_down(first_s=1.0)
    parked = [room.attempt(number, first_s=float(number)) for number in (3, 2)]
    for attempt in parked:
        room.retries.admit(attempt)
    tried = []
    for n in range(3):
        (due,) = room.retries.due(100.0 * (n + 1))
        tried.append(due)
        assert room.retries.failed(due, ERROR, 100.0 * (n + 1)) is None
    assert tried == [probe, parked[1], parked[0]]


def test_one_that_is_passed_over_twice_is_a_letter() -> None:
    """The store serves all but this one, and never while it is tried: it is presumed down each time."""
    room = _Room()
    poison = room.take_down(first_s=1.0)
    now_s = 10.0
    for _ in range(2):
        other = room.attempt(7, first_s=now_s)
        assert not room.retries.admit(other)
        assert room.retries.due(now_s) == [poison]
        assert room.retries.failed(poison, ERROR, now_s) is None
        now_s += 100.0
        assert room.retries.due(now_s) == [other]
        assert room.retries.succeeded(other, now_s)
        letter = None
        while letter is None and not room.retries.down_stores():
            now_s += 100.0
            assert room.retries.due(now_s) == [poison]
            letter = room.retries.failed(poison, ERROR, now_s)
        now_s += 100.0
    assert isinstance(letter, StoreFailed)


def test_an_outage_that_ends_twice_is_not_the_fault_of_those_that_waited() -> None:
    room = _Room()
    waiting = [room.attempt(number, first_s=1.0) for number in range(5)]
    now_s = 10.0
    for _ in range(3):
        for _ in range(3):
            now_s += 1.0
            for attempt in room.retries.due(now_s) or waiting:
                assert room.retries.failed(attempt, ERROR, now_s) is None
        assert room.retries.down_stores()
        while room.retries.down_stores():
            now_s += 100.0
            (probe,) = room.retries.due(now_s)
            assert room.retries.succeeded(probe, now_s)
            room.retries.admit(probe)


def test_a_probe_that_is_not_wanted_hands_over_to_the_next_oldest() -> None:
    room = _Room()
    probe = room.take_down()
    younger, older = room.attempt(1, first_s=3.0), room.attempt(2, first_s=2.0)
    room.retries.admit(younger)
    room.retries.admit(older)
    assert room.retries.forget(lambda job: job is probe.job) == [probe]
    assert room.retries.due(10.0) == [older]


def test_with_nobody_left_to_find_out_the_next_image_does() -> None:
    room = _Room()
    probe = room.take_down()
    room.retries.forget(lambda job: job is probe.job)
    assert room.retries.down_stores() == {}
    assert room.retries.admit(room.attempt(1))


def test_a_probe_out_at_its_store_that_ends_without_an_answer_hands_over_too() -> None:
    """Abandoned, a 404, a defect of ours: were it still the probe, nobody would ask the store again."""
    room = _Room()
    probe = room.take_down()
    parked = room.attempt(1)
    room.retries.admit(parked)
    assert room.retries.due(10.0) == [probe]
    room.retries.left(probe)
    assert room.retries.due(10.0) == [parked]
    room.retries.left(parked)
    assert room.retries.down_stores() == {}


def test_stores_without_number_are_not_all_remembered() -> None:
    room = _Room()
    down = room.take_down()
    waits = room.attempt(1, store="https://waits.example.org")
    assert room.retries.admit(waits)
    assert room.retries.failed(waits, ERROR, 0.0) is None
    for number in range(5_000):
        assert room.retries.admit(room.attempt(number, store=f"https://{number}.example.org"))
    assert len(room.retries._stores) < 2_100
    assert list(room.retries.down_stores()) == [STORE]
    assert set(room.retries.due(10.0)) == {down, waits}


def test_an_attempt_that_is_no_probe_leaves_the_store_as_it_is() -> None:
    room = _Room()
    room.take_down()
    room.retries.left(room.attempt(1))
    room.retries.left(room.attempt(2, store="fake://never-seen"))
    assert room.retries.down_stores() == {STORE: 0.0}


class _EveryAttemptIsSomewhere(RuleBasedStateMachine):
    """Attempts are out at a store, or kept by Retries; none is in both, none in neither."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.room = _Room()
        self.out: list[Attempt] = []
        self.kept: list[Attempt] = []
        self.unwanted: set[int] = set()
        self.number = 0

    @rule(store=st.sampled_from(["a", "b"]))
    def comes(self, store: str) -> None:
        self.number += 1
        attempt = self.room.attempt(self.number, first_s=self.now_s, store=store)
        (self.out if self.room.retries.admit(attempt) else self.kept).append(attempt)

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 60.0]), dice=st.floats(0, 1))
    def time_goes_on(self, seconds: float, dice: float) -> None:
        self.now_s += seconds
        self.room.dice = dice
        for attempt in self.room.retries.due(self.now_s):
            self.kept.remove(attempt)
            self.out.append(attempt)

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 10),
        how=st.sampled_from(["succeeds", *["fails"] * 3, "leaves", *["no room"] * 2]),
    )
    def comes_back(self, which: int, how: str) -> None:
        attempt = self.out.pop(which % len(self.out))
        if how == "no room":
            assert self.room.retries.failed(attempt, StoreBusy("no room"), self.now_s) is None
            self.kept.append(attempt)
            return
        if how == "leaves":
            self.room.retries.left(attempt)
        elif how == "succeeds":
            self.room.retries.succeeded(attempt, self.now_s)
            assert attempt.store not in self.room.retries.down_stores()
        elif self.room.retries.failed(attempt, ERROR, self.now_s) is None:
            self.kept.append(attempt)
        following = self.room.retries.next_crowded(attempt.store)
        if following is not None:
            assert following.store == attempt.store
            self.kept.remove(following)
            self.out.append(following)

    @rule(odd=st.booleans())
    def some_are_not_wanted(self, odd: bool) -> None:
        gone = self.room.retries.forget(lambda job: int(job.image_id) % 2 == odd)
        for attempt in gone:
            self.kept.remove(attempt)
        assert all(int(attempt.job.image_id) % 2 != odd for attempt in self.kept)

    @invariant()
    def a_store_that_is_down_is_being_asked(self) -> None:
        for store in self.room.retries.down_stores():
            if not any(attempt.store == store for attempt in self.out):
                later = self.now_s + 61.0
                waiting = [entry[2] for entry in self.room.retries._waiting if entry[0] <= later]
                assert any(attempt.store == store for attempt in waiting)

    def teardown(self) -> None:
        """All that is kept comes out, one store's answers after the other."""
        for _ in range(3 * (len(self.kept) + len(self.out)) + 5):
            self.time_goes_on(60.0, 1.0)
            for attempt in self.out:
                self.room.retries.succeeded(attempt, self.now_s)
            self.out.clear()
        assert self.kept == []
        assert self.room.retries.down_stores() == {}


TestEveryAttemptIsSomewhere = _EveryAttemptIsSomewhere.TestCase
TestEveryAttemptIsSomewhere.settings = settings(max_examples=60, stateful_step_count=40)
