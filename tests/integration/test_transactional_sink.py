"""Records and offsets in one transaction, on a real broker: they hold together or not at all, and what is left open is
settled by the next producer of the same name."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import IsolationLevel

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.adapters.kafka.transactional_sink import TransactionalSink
from consumer.clock import SystemClock
from consumer.errors import EventTooLarge, TransactionBroken, TransactionFenced
from consumer.messages import CommitPoint, OutputRecord, Partition
from consumer.ports import CommitResult
from tests.conftest import Topics
from tests.contract.test_result_sink import Reports
from tests.kafka_broker import Cluster
from tests.kafka_clients import Member, end_offsets, read_to_end
from tests.processes import wait_until

pytestmark = pytest.mark.kafka


class Stage:
    """A group with one member, and transactional sinks that commit in its name."""

    def __init__(self, kafka: Cluster, topics: Topics) -> None:
        self.kafka, self.topics = kafka, topics
        self.member = Member(kafka, [topics.images], group=topics.group, protocol="consumer")
        self.sinks: list[TransactionalSink] = []

    def sink(self, *, shared: bool = False, member: Callable[[], Any] | None = None) -> TransactionalSink:
        properties = self.kafka.client_properties(
            transactional_id=self.topics.group,
            transaction_timeout_ms=10_000,
            message_max_bytes=100_000,
            linger_ms=0,
        )
        metadata = member or self.member.consumer.consumer_group_metadata
        sink = TransactionalSink(properties, group_metadata=metadata, shared_id=shared, clock=SystemClock())
        self.sinks.append(sink)
        wait_until(lambda: not sink.unresolved, timeout_s=30, what="its producer's introduction")
        return sink

    def publish(self, sink: TransactionalSink, *values: bytes) -> Reports:
        reports = Reports()
        for number, value in enumerate(values):
            sink.publish(OutputRecord(self.topics.predictions, value, b"key"), reports.of(number))
        reports.wait(len(values))
        return reports

    def end(self, sink: TransactionalSink, offset: int, note: str = "", *, partition: int = 0) -> CommitResult:
        sink.commit({Partition(self.topics.images, partition): CommitPoint(offset, note)})
        assert sink.confirm_commit({}, 30) == (sink._answer is not None and not sink._answer.undone)
        answer = sink.commit_result()
        assert answer is not None
        assert not sink.commit_under_way
        return answer

    def seen(self) -> list[bytes | None]:
        return [record.value() for record in read_to_end(self.kafka, self.topics.predictions)]

    def until_seen(self, *values: bytes) -> None:
        """A transaction that is committed shows a moment later, on each partition by itself."""
        wait_until(lambda: self.seen() == list(values), timeout_s=5, what=f"readers to see {values}")

    def committed(self) -> CommitPoint | None:
        offsets = CommittedOffsets(self.kafka.client_properties(), self.topics.group)
        try:
            return offsets.read([Partition(self.topics.images, 0)], 30).get(Partition(self.topics.images, 0))
        finally:
            offsets.close()

    def nothing_hangs(self) -> bool:
        ends = [end_offsets(self.kafka, self.topics.predictions, isolation=level) for level in IsolationLevel]
        return ends[0] == ends[1]


@pytest.fixture
def stage(kafka: Cluster, topics: Topics) -> Iterator[Stage]:
    made = Stage(kafka, topics)
    with made.member:
        made.member.poll_until(lambda: bool(made.member.assigned()), what="the partitions")
        yield made
        for sink in made.sinks:
            sink.close(5)


def test_records_and_offsets_are_seen_when_the_transaction_ends_and_not_before(stage: Stage) -> None:
    sink = stage.sink()
    stage.publish(sink, b"1", b"2")
    assert (stage.seen(), stage.committed()) == ([], None)
    assert stage.end(sink, 2, "note").undone == ""
    stage.until_seen(b"1", b"2")
    assert stage.committed() == CommitPoint(2, "note")
    stage.publish(sink, b"3")
    assert stage.end(sink, 3).undone == ""
    stage.until_seen(b"1", b"2", b"3")


def test_offsets_alone_are_a_transaction(stage: Stage) -> None:
    sink = stage.sink()
    assert stage.end(sink, 1, "mark").undone == ""
    assert stage.committed() == CommitPoint(1, "mark")


def test_what_is_undone_is_never_seen_and_the_next_transaction_is_another(stage: Stage) -> None:
    sink = stage.sink()
    stage.publish(sink, b"1")
    sink.undo()
    wait_until(lambda: not sink.unresolved, timeout_s=30, what="it to be undone")
    stage.publish(sink, b"2")
    stage.end(sink, 1)
    stage.until_seen(b"2")
    assert stage.nothing_hangs()


def test_offsets_in_the_name_of_no_member_are_not_sent(stage: Stage) -> None:
    sink = stage.sink(member=lambda: None)
    stage.publish(sink, b"1")
    assert "no member" in stage.end(sink, 1).undone
    assert not sink.unresolved
    assert (stage.seen(), stage.committed()) == ([], None)


def test_offsets_of_an_old_generation_undo_the_transaction_and_the_producer_goes_on(stage: Stage) -> None:
    old = stage.member.consumer.consumer_group_metadata()
    sink = stage.sink(member=lambda: old if stale else stage.member.consumer.consumer_group_metadata())
    stale = True
    with Member(stage.kafka, [stage.topics.images], group=stage.topics.group, protocol="consumer") as other:
        wait_until(lambda: _both_own(stage.member, other), timeout_s=30, what="the group to share")
        stage.publish(sink, b"1")
        theirs = min(other.assigned())
        assert stage.end(sink, 1, partition=theirs).undone
        stale = False
        stage.publish(sink, b"2")
        mine = min(stage.member.assigned())
        assert stage.end(sink, 1, partition=mine).undone == ""
    stage.until_seen(b"2")


def _both_own(one: Member, other: Member) -> bool:
    one.poll_for(1)
    other.poll_for(1)
    return bool(one.assigned()) and bool(other.assigned())


def test_a_producer_that_was_fenced_is_replaced_and_what_it_held_is_undone(stage: Stage) -> None:
    first = stage.sink()
    stage.publish(first, b"1")
    second = stage.sink()  # the same transactional.id: settles what the first left open
    stage.publish(second, b"2")
    assert stage.end(second, 1).undone == ""
    assert stage.end(first, 1).undone
    wait_until(lambda: not first.unresolved, timeout_s=30, what="its new producer")
    stage.publish(first, b"3")
    assert stage.end(first, 2).undone == ""
    stage.until_seen(b"2", b"3")
    assert stage.nothing_hangs()


def _take_turns(stage: Stage, one: TransactionalSink, other: TransactionalSink) -> None:
    for sink in (one, other) * 20:
        stage.publish(sink, b"x")
        sink.commit({Partition(stage.topics.images, 0): CommitPoint(1)})
        sink.confirm_commit({}, 30)
        sink.commit_result()
        wait_until(lambda sink=sink: not sink.unresolved, timeout_s=30, what="its new producer")  # type: ignore[misc]


def test_two_that_fence_each_other_again_and_again_are_told_so(stage: Stage) -> None:
    one, other = stage.sink(shared=True), stage.sink()
    with pytest.raises(TransactionFenced, match="another replica uses"):
        _take_turns(stage, one, other)


def test_a_record_that_is_too_large_for_the_producer_leaves_the_transaction_whole(stage: Stage) -> None:
    sink = stage.sink()
    reports = stage.publish(sink, b"x" * 200_000, b"1")
    assert isinstance(reports.errors[0][0], EventTooLarge)
    assert stage.end(sink, 1).undone == ""
    stage.until_seen(b"1")


def test_a_record_that_the_broker_refuses_breaks_the_transaction_and_says_why(stage: Stage) -> None:
    narrow = f"{stage.topics.predictions}-narrow"
    stage.kafka.create_topic(narrow, partitions=1, config={"max.message.bytes": "1000"})
    sink, reports = stage.sink(), Reports()
    sink.publish(OutputRecord(narrow, os.urandom(2_000), b"key"), reports.of(0))
    reports.wait(1)
    broken = reports.errors[0][0]
    assert isinstance(broken, TransactionBroken)
    assert isinstance(broken.__cause__, EventTooLarge)
    assert isinstance(stage.publish(sink, b"1").errors[0][0], TransactionBroken)
    sink.undo()
    wait_until(lambda: not sink.unresolved, timeout_s=30, what="it to be undone")
    stage.publish(sink, b"2")
    assert stage.end(sink, 1).undone == ""
    stage.until_seen(b"2")


def test_what_is_open_at_the_end_is_aborted(stage: Stage) -> None:
    sink = stage.sink()
    stage.publish(sink, b"1")
    assert not stage.nothing_hangs()
    sink.close(10)
    wait_until(stage.nothing_hangs, timeout_s=5, what="the last stable offset to reach the end")
    assert stage.seen() == []
