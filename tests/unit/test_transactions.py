"""The owner's loop with transactions, over fakes: what is seen and what is committed go together, however one ends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from consumer.errors import (
    DeadLetterLimit,
    EventTooLarge,
    NotAuthorized,
    OutputRefused,
    OutputUnavailable,
    RuntimeStuck,
)
from consumer.messages import CommitPoint, OutputRecord, Partition
from consumer.stages.start import Note
from tests.fakes import FakeSink, FakeTransactionalSink
from tests.unit.test_pipeline import A, B, Rig, _nothing_left


class Held(Rig):
    """A replica with transactions, and what its readers see."""

    def __init__(self, **rules: Any) -> None:
        super().__init__(transactional=True, **rules)
        assert isinstance(self.transactions, FakeTransactionalSink)
        self.ends = self.transactions

    def seen(self, partition: Partition) -> list[int]:
        """Offsets of this partition that readers have an event or a letter of, in their order."""
        return [offset for where, offset in map(_answers, self.sink.written) if where == str(partition)]

    def assert_as_committed(self, *partitions: Partition) -> None:
        """What is seen is what is committed: each message before the offset once, in order, and none after it."""
        for partition in partitions:
            committed = self.committed(partition) or 0
            wanted = [
                record.offset
                for record in self.cluster.logs[partition].records
                if record.offset < committed and record.value is not None
            ]
            assert self.seen(partition) == wanted


def _answers(record: OutputRecord) -> tuple[str, int]:
    headers = dict(record.headers)
    if "ce_subject" in headers:
        subject = (headers["ce_subject"] or b"").decode()
        where, _, offset = subject.rpartition("-")
        return where, int(offset)
    topic, partition, offset = (
        (headers[f"__connect.errors.{name}"] or b"").decode() for name in ("topic", "partition", "offset")
    )
    return f"{topic}[{partition}]", int(offset)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Held]]:
    made: list[Held] = []

    def make(**rules: float) -> Held:
        made.append(Held(**rules))
        return made[-1]

    yield make
    for rig in made:
        rig.ends.settling.set()
        rig.clean()


@pytest.fixture
def rig(make_rig: Callable[..., Held]) -> Held:
    return make_rig()


def test_events_letters_and_offsets_are_seen_together(rig: Held) -> None:
    sent: list[object] = []
    rig.source.commit = sent.append  # type: ignore[method-assign,assignment]
    rig.cluster.send(A, b"1", b"2", b"bad", None, b"3", key=b"k")
    rig.cluster.send(B, b"1", b"2")
    rig.own(A, B)
    rig.until_committed(A, 5)
    rig.until_committed(B, 2)
    rig.assert_as_committed(A, B)
    _nothing_left(rig)
    rig.stop()
    assert rig.error is None
    assert rig.source._landed == 0
    assert not sent, "the source itself commits nothing"


def test_what_is_done_out_of_order_waits_for_what_is_before_it_in_its_partition(rig: Held) -> None:
    rig.decoder.gate.clear()
    rig.cluster.send(A, b"1", b"bad", b"bad", b"2")  # letters need no decoder
    rig.own(A)
    rig.until(lambda: rig.publisher._decided >= 2, "both letters to be there")
    rig.turns(4)
    assert rig.sink.handed_over == []
    rig.decoder.gate.set()
    rig.until_committed(A, 4)
    rig.assert_as_committed(A)


@pytest.mark.parametrize("how", ["abort", "lost", "landed"])
def test_a_transaction_that_ends_otherwise_loses_and_doubles_nothing(rig: Held, how: str) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.ends.ends.append(how)
    rig.cluster.send(A, b"1", b"2", b"bad", b"3")
    rig.until_committed(A, 4)
    rig.until(lambda: not rig.ends.ends, "it to end so")
    rig.cluster.send(A, b"4")
    rig.until_committed(A, 5)
    rig.assert_as_committed(A)
    assert rig.seen(A) == [0, 1, 2, 3, 4]
    assert rig.metrics.registry.get_sample_value("ouzel_transactions_undone_total") == 1
    _nothing_left(rig)


def test_nothing_is_begun_before_it_is_certain_what_is_committed(rig: Held) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.until(lambda: not rig.ends.commit_under_way, "its answer")
    rig.ends.settling.clear()
    rig.ends.ends.append("lost")
    rig.cluster.send(A, b"1")
    rig.until(lambda: rig.ends._busy, "the commit")
    rig.done(rig.source.lose(A))
    rig.done(rig.source.assign(B))
    rig.turns(4)
    assert not rig.ledgers
    rig.ends.settling.set()
    rig.until(lambda: B in rig.ledgers, "the other partition to begin")
    assert rig.seen(A) == []


def test_a_record_that_is_not_written_undoes_its_transaction(rig: Held) -> None:
    failed: list[OutputRecord] = []

    def answers(record: OutputRecord) -> Exception | None:
        if _answers(record)[1] == 2 and not failed:
            failed.append(record)
            return OutputUnavailable("timed out")
        return None

    rig.sink.answers = answers
    rig.cluster.send(A, b"1", b"2", b"3", b"4")
    rig.own(A)
    rig.until_committed(A, 4)
    assert failed
    assert rig.seen(A) == [0, 1, 2, 3]
    _nothing_left(rig)


def test_a_record_that_is_refused_for_good_ends_the_process(rig: Held) -> None:
    refusal = NotAuthorized("no", remedy="ask")
    rig.sink.answers = lambda _: refusal
    rig.cluster.send(A, b"1")
    rig.own(A)
    assert rig.ended() is refusal
    assert rig.committed(A) in {None, 0}


def test_a_message_that_came_with_what_ended_the_loop_is_not_committed(rig: Held) -> None:
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.until_committed(A, 1)

    def fail_with_a_message_in_hand() -> None:
        if len(rig.cluster.logs[A].records) == 2:
            rig.source._at[A] = 2
            rig.source._handed_over.add(A)
            rig.source.poll_error = NotAuthorized("no", remedy="ask")

    rig.source.on_poll = fail_with_a_message_in_hand
    rig.cluster.send(A, b"2")
    assert isinstance(rig.ended(), NotAuthorized)
    assert rig.committed(A) == 1
    assert rig.seen(A) == [0]


def test_suspects_stay_suspects_when_their_transaction_is_undone(rig: Held) -> None:
    """The letter of the one that ends a decoder is then not written: decoded outside of the sandbox, it ends us."""
    rig.cluster.committed[A] = CommitPoint(0, Note("id-1", 2, in_hand=1_200).dump())
    rig.cluster.send(A, b"1", b"2", b"3")
    rig.sandbox.culprits = {b"2"}
    rig.sandbox.gate.clear()
    rig.own(A)
    rig.until(lambda: bool(rig.sandbox.decoded), "a suspect to be with the sandbox")
    rig.until(lambda: not rig.ends.commit_under_way, "the mark to be committed")
    rig.ends.ends.append("abort")
    rig.sandbox.gate.set()
    rig.until_committed(A, 3)
    assert rig.seen(A) == [0, 1, 2]
    assert not rig.ends.ends
    assert rig.sandbox.decoded.count(b"1") == 2
    assert rig.sandbox.decoded[-3:] == [b"1", b"2", b"3"]
    _nothing_left(rig)


def test_an_event_that_the_broker_finds_too_large_becomes_a_letter(rig: Held) -> None:
    tries: list[int] = []

    def answers(record: OutputRecord) -> Exception | None:
        if record.topic == "predictions" and _answers(record)[1] == 1:
            tries.append(len(rig.sink.under_way))
            return EventTooLarge("too large")
        return None

    rig.sink.answers = answers
    rig.cluster.send(A, b"1", b"2", b"3")
    rig.own(A)
    rig.until_committed(A, 3)
    assert rig.seen(A) == [0, 1, 2]
    assert [record.topic for record in rig.sink.written] == ["predictions", "images.dlq", "predictions"]
    assert tries[1:] == [1], "the second time by itself, and no third time"
    _nothing_left(rig)


def test_an_event_that_our_own_producer_finds_too_large_undoes_nothing(rig: Held) -> None:
    rig.sink.answers = lambda record: (
        EventTooLarge("too large", "local") if record.topic == "predictions" and _answers(record)[1] == 1 else None
    )
    rig.cluster.send(A, b"1", b"2")
    rig.own(A)
    rig.until_committed(A, 2)
    assert sorted(rig.seen(A)) == [0, 1]
    assert not rig.ends.undone


def test_partitions_go_away_with_all_that_was_done_and_nothing_of_it_comes_later(rig: Held) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1", b"2")
    rig.cluster.send(B, b"1")
    rig.own(A, B)
    rig.sink.wait(lambda: len(rig.sink.held) == 3, "three records under way")
    gone = rig.source.revoke(A)
    rig.sink.answers = lambda _: None
    for _ in range(3):
        rig.sink.answer()
    rig.done(gone)
    rig.assert_as_committed(A, B)
    assert rig.committed(A) == 2
    rig.cluster.send(B, b"2")
    rig.until_committed(B, 2)
    assert rig.seen(A) == [0, 1]
    assert rig.seen(B) == [0, 1]


def test_a_partition_that_is_taken_away_undone_leaves_nothing_in_the_next_transaction(rig: Held) -> None:
    rig.own(A, B)
    rig.until_committed(A, 0)
    rig.until_committed(B, 0)
    rig.ends.ends.append("abort")
    rig.runtime.gate.clear()
    rig.cluster.send(A, b"1", b"2")
    rig.until(lambda: rig.pipeline._leases.in_flight == 2, "both to be in flight")
    gone = rig.source.revoke(A)
    rig.runtime.gate.set()
    rig.done(gone)
    rig.cluster.send(B, b"1")
    rig.until_committed(B, 1)
    assert rig.seen(A) == []
    assert rig.committed(A) == 0
    assert rig.seen(B) == [0]


def test_partitions_that_are_lost_take_the_open_transaction_with_them(rig: Held) -> None:
    rig.sink.answers = lambda record: FakeSink.HOLD if _answers(record)[0] == str(B) else None
    rig.cluster.send(A, b"1")
    rig.cluster.send(B, b"1")
    rig.own(A, B)
    rig.until(lambda: len(rig.ends.in_transaction) == 1, "the one event to be in the transaction")
    rig.done(rig.source.lose(A))
    rig.sink.answers = lambda _: None
    rig.until_committed(B, 1)
    assert rig.seen(A) == []
    assert rig.seen(B) == [0]


def test_a_letter_that_is_withheld_holds_back_its_partition_and_no_other(rig: Held) -> None:
    absent = b"fake://images/absent"
    rig.decoder.gate.clear()
    rig.cluster.send(B, b"1")
    rig.own(A, B)
    rig.until(lambda: rig.pipeline._leases.in_flight == 1, "the other partition's image to be on its way")
    rig.cluster.send(A, absent, absent, absent, absent)  # two in a row reach the limit
    rig.until(lambda: rig.pipeline.holding, "the limit")
    rig.decoder.gate.set()
    rig.until_committed(B, 1)
    rig.until_committed(A, 1)
    assert rig.seen(A) == [0]
    rig.pipeline.resume()  # once: what has waited is not judged again
    rig.until_committed(A, 4)
    assert rig.seen(A) == [0, 1, 2, 3]
    _nothing_left(rig)


def test_an_image_behind_a_withheld_letter_ends_a_probation(rig: Held) -> None:
    rig.limit.put_on_probation(A, "system")
    rig.own(A)
    rig.limit.put_on_probation(A, "system")
    rig.cluster.send(A, b"fake://images/absent")
    rig.until(lambda: rig.publisher._withheld != {}, "the letter to be withheld")
    rig.cluster.send(A, b"1")
    rig.until_committed(A, 2)
    assert rig.seen(A) == [0, 1]


def test_a_message_with_several_records_is_in_one_transaction(rig: Held) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1|2|bad")
    rig.own(A)
    rig.sink.wait(lambda: len(rig.sink.held) == 3, "its three records")
    rig.sink.answer()
    rig.sink.answer()
    rig.turns(4)
    assert rig.sink.written == []
    rig.sink.answer()
    rig.until_committed(A, 1)
    assert len(rig.sink.written) == 3


def test_shutdown_ends_the_transaction(make_rig: Callable[..., Held]) -> None:
    rig = make_rig(commit_interval_s=3_600.0)
    rig.cluster.send(A, b"1", b"2", key=b"k")
    rig.own(A)
    rig.until_committed(A, 2)  # with nothing left to wait for it ends at once
    rig.cluster.send(A, b"3")
    rig.runtime.gate.clear()
    rig.until(lambda: rig.pipeline._leases.in_flight == 1, "one in flight")
    rig.pipeline.stop()
    rig.runtime.gate.set()
    rig.stop()
    assert rig.error is None
    assert rig.seen(A) == [0, 1, 2]
    assert rig.note(A).in_hand == 0
    rig.assert_as_committed(A)


def test_a_process_that_ends_at_the_limit_commits_what_is_done_and_why_it_ended(make_rig: Callable[..., Held]) -> None:
    rig = make_rig(exit_on_limit=True)
    rig.cluster.send(A, b"1", b"fake://images/absent", b"fake://images/absent", b"2")
    rig.done(rig.source.assign(A))
    assert isinstance(rig.ended(), DeadLetterLimit)
    assert (rig.committed(A), rig.note(A).trip) == (2, "system")
    assert rig.seen(A) == [0, 1]


def test_a_limit_that_is_reached_within_a_message_holds_back_all_of_it(rig: Held) -> None:
    rig.cluster.send(A, b"fake://images/absent|fake://images/absent|1", b"2")
    rig.own(A)
    rig.until(lambda: rig.pipeline.holding, "the limit")
    rig.turns(4)
    assert (rig.sink.handed_over, rig.committed(A)) == ([], 0)
    rig.pipeline.resume()
    rig.until_committed(A, 2)
    assert len(rig.sink.written) == 4
    assert not rig.publisher._withheld


def test_a_letter_that_the_broker_finds_too_large_goes_without_its_value(rig: Held) -> None:
    rig.sink.answers = lambda record: (
        EventTooLarge("too large") if record.topic == "images.dlq" and record.value is not None else None
    )
    rig.cluster.send(A, b"1", b"malformed", b"2")
    rig.own(A)
    rig.until_committed(A, 3)
    assert rig.seen(A) == [0, 1, 2]
    assert [record.value for record in rig.sink.written if record.topic == "images.dlq"] == [None]


def test_a_revoke_that_fails_commits_nothing_of_what_goes_away(rig: Held) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.sink.wait(lambda: len(rig.sink.held) == 1, "the record to be under way")
    error = RuntimeStuck("stuck", remedy="none")

    def stuck() -> None:
        raise error

    rig.flow.tick = stuck  # type: ignore[method-assign]
    rig.source.revoke(A)
    assert rig.ended() is error
    assert (rig.seen(A), rig.committed(A)) == ([], 0)


def test_transactions_that_never_end_end_the_process(rig: Held) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.ends.ends.extend(["abort"] * 100)
    rig.cluster.send(A, b"1")

    def has_ended() -> bool:
        rig.clock.advance(5.0)
        return not rig.thread.is_alive()

    rig.until(has_ended, "the end")
    assert isinstance(rig.ended(), OutputRefused)
    assert rig.seen(A) == []
