"""How much is in flight: the byte budget, and which partitions pause."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.messages import Partition
from consumer.stages.intake import PAUSE_AFTER_S, ByteBudget, Intake, PartitionLoad

A, B, C = (Partition("images", number) for number in range(3))


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_the_account_returns_to_zero() -> None:
    budget, one, other = ByteBudget(100), object(), object()
    budget.hold(one, 10)
    budget.hold(one, 20)
    budget.hold(other, 5)
    budget.drop(one, 10)
    assert budget.used_bytes == 25
    budget.drop(one, 1_000)  # never more than it holds
    budget.release(one)
    budget.release(one)
    budget.drop(one, 5)  # released already
    budget.release(other)
    assert budget.used_bytes == 0


def test_a_reservation_larger_than_the_whole_bound_is_admitted_alone() -> None:
    budget = ByteBudget(100)
    budget.hold(object(), 90)
    budget.reserve(1_000)
    assert budget.used_bytes == 1_090
    started, admitted = threading.Event(), threading.Event()

    def another() -> None:
        started.set()
        budget.reserve(1)
        admitted.set()

    thread = threading.Thread(target=another)
    thread.start()
    assert started.wait(5)
    assert not admitted.wait(0.05)
    budget.unreserve(1_000)
    assert admitted.wait(5)
    thread.join()


def test_what_is_held_never_waits() -> None:
    budget = ByteBudget(10)
    budget.reserve(10)
    budget.hold(object(), 1_000)  # would stand still here
    assert budget.used_bytes == 1_010


@settings(max_examples=25)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.integers(0, 200))
def test_no_mixture_of_reservations_can_stop_all_decoding(sizes: list[int], held: int) -> None:
    budget, owner = ByteBudget(100), object()
    budget.hold(owner, held)

    def decode(size: int) -> None:
        budget.reserve(size)
        budget.unreserve(size)

    with ThreadPoolExecutor(4) as pool:
        done, late = wait([pool.submit(decode, size) for size in sizes], timeout=10)
    assert (len(done), len(late)) == (len(sizes), 0)
    assert budget.used_bytes == held


# --- partitions -----------------------------------------------------------------------------------------------------


class _Decisions:
    """An intake of 100 messages, 1000 bytes, 500 uncommitted; its clock goes on by more than the patience a step."""

    def __init__(self) -> None:
        self.intake = Intake(max_messages=100, max_bytes=1_000, max_uncommitted=500)
        self.now_s = 0.0

    def decide(
        self, loads: dict[Partition, PartitionLoad], *, used_bytes: int = 0, hold: bool = False, after_s: float = 2.0
    ) -> frozenset[Partition]:
        self.now_s += after_s
        return self.intake.decide(loads, used_bytes=used_bytes, now_s=self.now_s, hold=hold)


def _load(in_flight: int, *, uncommitted: int = 0, has_work: bool = True) -> PartitionLoad:
    return PartitionLoad(in_flight, max(uncommitted, in_flight), has_work)


@pytest.fixture
def decisions() -> _Decisions:
    return _Decisions()


def test_a_bound_that_holds_for_a_moment_pauses_nothing(decisions: _Decisions) -> None:
    fresh = _Decisions()
    assert fresh.decide({A: _load(40), B: _load(30)}, used_bytes=2_000) == frozenset()
    assert fresh.decide({A: _load(40), B: _load(30)}, used_bytes=2_000, after_s=PAUSE_AFTER_S / 2) == frozenset()
    assert fresh.decide({A: _load(40), B: _load(30)}, used_bytes=2_000, after_s=PAUSE_AFTER_S) == {A, B}


def test_once_full_it_resumes_only_well_below_the_bound(decisions: _Decisions) -> None:
    for _ in range(2):
        decisions.decide({A: _load(49), B: _load(49)}, used_bytes=1_000)
    assert decisions.decide({A: _load(10), B: _load(10)}, used_bytes=800) == {A, B}
    assert decisions.decide({A: _load(10), B: _load(10)}, used_bytes=749) == frozenset()


def test_with_nothing_in_flight_it_is_never_full_whatever_the_bytes(decisions: _Decisions) -> None:
    for _ in range(3):
        assert decisions.decide({A: _load(0)}, used_bytes=10_000) == frozenset()
    assert decisions.intake.room(0, 10_000)
    assert not decisions.intake.room(1, 1_000)
    assert not decisions.intake.room(100, 0)


def test_no_partition_keeps_more_than_its_share_while_another_has_work(decisions: _Decisions) -> None:
    assert decisions.decide({A: _load(50), B: _load(10)}) == frozenset()
    assert decisions.decide({A: _load(50), B: _load(10)}, after_s=PAUSE_AFTER_S / 2) == frozenset()
    assert decisions.decide({A: _load(50), B: _load(10)}, after_s=PAUSE_AFTER_S / 2) == {A}


def test_partitions_that_have_more_than_their_share_in_turn_pause_nothing(decisions: _Decisions) -> None:
    turn = PAUSE_AFTER_S * 0.75
    for _ in range(3):
        assert decisions.decide({A: _load(90), B: _load(5)}, after_s=turn) == frozenset()
        assert decisions.decide({A: _load(5), B: _load(90)}, after_s=turn) == frozenset()


def test_alone_it_takes_all(decisions: _Decisions) -> None:
    assert decisions.decide({A: _load(99), B: _load(0, has_work=False)}) == frozenset()


def test_a_partition_over_its_share_resumes_with_hysteresis(decisions: _Decisions) -> None:
    for _ in range(2):
        decisions.decide({A: _load(50), B: _load(10)})
    assert decisions.decide({A: _load(49), B: _load(10)}) == {A}
    assert decisions.decide({A: _load(37), B: _load(10)}) == frozenset()


def test_only_the_partition_whose_uncommitted_span_is_too_long_pauses(decisions: _Decisions) -> None:
    assert decisions.decide({A: _load(1, uncommitted=500), B: _load(1)}) == {A}
    assert decisions.decide({A: _load(1, uncommitted=400), B: _load(1)}) == {A}
    assert decisions.decide({A: _load(1, uncommitted=374), B: _load(1)}) == frozenset()


def test_a_hold_pauses_all_and_its_end_resumes_them(decisions: _Decisions) -> None:
    assert decisions.decide({A: _load(0), B: _load(0)}, hold=True) == {A, B}
    assert decisions.decide({A: _load(0), B: _load(0)}) == frozenset()


@given(st.integers(1, 500))
def test_more_busy_partitions_than_messages_still_lets_each_take_one(partitions: int) -> None:
    loads = {Partition("images", number): _load(0) for number in range(partitions)}
    assert _Decisions().decide(loads) == frozenset()
