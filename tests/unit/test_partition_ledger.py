"""Which offset may be committed: I2 and I3, whatever the order in which work is finished."""

from hypothesis import given
from hypothesis import strategies as st

from consumer.messages import CommitPoint, Delivery, Lease, Partition
from consumer.stages.commit import PartitionLedger

PARTITION = Partition("images", 0)


def _lease() -> Lease:
    return Lease(PARTITION, epoch=1, topic_id="id")


def _ledger(lease: Lease, *, start: int = 0, committed: CommitPoint | None = None) -> PartitionLedger:
    return PartitionLedger(lease, start=start, committed=committed, note="note")


def _take(ledger: PartitionLedger, *offsets: int) -> list[Delivery]:
    taken = [Delivery(ledger.lease, offset, b"") for offset in offsets]
    for delivery in taken:
        ledger.take(delivery)
    return taken


def test_only_the_finished_prefix_may_be_committed() -> None:
    ledger = _ledger(_lease())
    first, second, third = _take(ledger, 0, 4, 9)
    ledger.finish(third)
    ledger.finish(second)
    assert ledger.point(None) == CommitPoint(0, "note")
    ledger.finish(first)
    assert ledger.point(None) == CommitPoint(10, "note")


def test_with_nothing_in_flight_the_position_past_transaction_markers_counts() -> None:
    ledger = _ledger(_lease())
    (only,) = _take(ledger, 3)
    assert ledger.point(5) == CommitPoint(0, "note")
    ledger.finish(only)
    assert ledger.point(5) == CommitPoint(5, "note")


def test_no_commit_is_older_than_one_that_may_have_landed() -> None:
    ledger = _ledger(_lease())
    (only,) = _take(ledger, 3)
    ledger.finish(only)
    assert ledger.point(5) == CommitPoint(5, "note")  # never answered
    ledger.note = "the last"
    assert ledger.point(None) == CommitPoint(5, "the last")


def test_no_commit_passes_the_end_of_a_range() -> None:
    ledger = PartitionLedger(_lease(), start=0, committed=None, note="", end=5)
    assert ledger.wants(4)
    first = _take(ledger, 4)[0]
    before = ledger.past_end
    assert not ledger.wants(7)  # 5 and 6 are no messages
    assert (before, ledger.past_end) == (False, True)
    assert ledger.point(8) == CommitPoint(0)
    ledger.finish(first)
    assert ledger.point(8) == CommitPoint(5)


def test_what_the_broker_has_is_not_sent_again_unless_the_note_changed() -> None:
    ledger = _ledger(_lease(), start=7, committed=CommitPoint(7, "note"))
    assert ledger.point(None) is None
    ledger.note = "another"
    assert ledger.point(None) == CommitPoint(7, "another")


def test_a_result_of_an_old_lease_is_not_on_the_books() -> None:
    ledger = _ledger(_lease())
    _take(ledger, 0)
    assert not ledger.finish(Delivery(_lease(), 0, b""))
    assert ledger.in_flight == 1


def test_finishing_twice_counts_once() -> None:
    ledger = _ledger(_lease())
    first, _ = _take(ledger, 0, 1)
    assert ledger.finish(first)
    assert not ledger.finish(first)
    assert (ledger.in_flight, ledger.point(None)) == (1, CommitPoint(1, "note"))


def test_the_answer_to_a_commit_of_an_older_lease_says_nothing_of_this_one() -> None:
    """A topic made anew: the old one's offset 1000 must not be taken for progress in the new one."""
    ledger = _ledger(_lease())
    ledger.committed_to(CommitPoint(1_000, "note"))
    (only,) = _take(ledger, 0)
    ledger.finish(only)
    assert ledger.point(None) == CommitPoint(1, "note")


def test_a_gap_that_retention_made_ends_where_the_log_goes_on() -> None:
    ledger = _ledger(_lease())
    (only,) = _take(ledger, 0)
    ledger.skip_to(100)
    assert ledger.next_offset == 100
    assert ledger.point(None) == CommitPoint(0, "note")  # what is in flight is still wanted
    ledger.finish(only)
    assert ledger.point(None) == CommitPoint(100, "note")


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 5)),  # a gap before the next offset
        st.tuples(st.just("finish"), st.integers(0, 30)),  # which of those in flight
        st.tuples(st.just("commit"), st.integers(0, 3)),  # markers behind the last message
        st.tuples(st.just("answer"), st.booleans()),
        st.tuples(st.just("skip"), st.integers(1, 50)),
    ),
    max_size=60,
)


@given(_STEPS, st.integers(0, 100))
def test_whatever_happens_a_commit_passes_nothing_unfinished_and_never_goes_back(
    steps: list[tuple[str, int]], start: int
) -> None:
    ledger = _ledger(_lease(), start=start, committed=CommitPoint(start, "note"))
    unfinished: list[Delivery] = []
    taken: list[int] = []
    committed, sent, next_offset = start, None, start
    for step, number in steps:
        if step == "take":
            offset = next_offset + number - 1
            unfinished += _take(ledger, offset)
            taken.append(offset)
            next_offset = offset + 1
        elif step == "finish" and unfinished:
            assert ledger.finish(unfinished.pop(number % len(unfinished)))
        elif step == "skip":
            next_offset += number
            ledger.skip_to(next_offset)
        elif step == "commit" and sent is None:
            next_offset += 0 if unfinished else number
            sent = ledger.point(next_offset)
            if sent is not None:
                assert sent.offset >= committed
                assert all(delivery.offset >= sent.offset for delivery in unfinished)
        elif step == "answer" and sent is not None:
            if number:
                ledger.committed_to(sent)
                committed = sent.offset
                next_offset = max(next_offset, committed)
            sent = None
        assert ledger.in_flight == len(unfinished)
        assert sorted(d.offset for d in ledger.unfinished()) == sorted(d.offset for d in unfinished)
        # Never fewer than a crash would repeat; ranges that were skipped may count as one each.
        assert ledger.uncommitted >= sum(offset >= committed for offset in taken)
    for delivery in unfinished:
        ledger.finish(delivery)
    end = ledger.point(None) or ledger.committed
    assert end is not None
    assert end.offset >= max(taken, default=-1) + 1
    ledger.committed_to(end)
    assert ledger.uncommitted == 0
