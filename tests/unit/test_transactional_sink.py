"""What cannot be had from a real broker at will: a call of librdkafka that does not come back, or fails oddly."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from consumer.adapters.kafka import transactional_sink
from consumer.errors import Fatal, Stalled
from consumer.messages import CommitPoint, Partition
from tests.fakes import FakeClock
from tests.processes import wait_until


class StuckProducer:
    """Never introduced."""

    def __init__(self, *_properties: Any, **_more: Any) -> None:
        self.called = threading.Event()
        self.back = threading.Event()

    def init_transactions(self, _timeout_s: float) -> None:
        self.called.set()
        self.back.wait(30)

    def poll(self, timeout_s: float) -> int:
        self.back.wait(timeout_s)
        return 0

    def __len__(self) -> int:
        return 0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[transactional_sink.TransactionalSink]:
    monkeypatch.setattr(transactional_sink, "Producer", StuckProducer)
    made = transactional_sink.TransactionalSink({}, group_metadata=lambda: None, shared_id=False, clock=clock)
    producer: Any = made._producer
    assert producer.called.wait(8)
    yield made
    producer.back.set()
    made.close(8)


def test_a_call_that_does_not_come_back_ends_the_process(
    sink: transactional_sink.TransactionalSink, clock: FakeClock
) -> None:
    clock.advance(14.0)
    assert sink.commit_result() is None
    clock.advance(3_600.0)
    assert sink.commit_result() is None, "the process may have been stopped"
    clock.advance(2.5)
    with pytest.raises(Stalled, match="has not come back"):
        sink.commit_result()
    producer: Any = sink._producer
    producer.back.set()
    wait_until(lambda: not sink.unresolved, timeout_s=8, what="the call to come back after all")
    assert sink.commit_result() is None


class FailingProducer(StuckProducer):
    """Introduced at once; offsets fail in a way that nobody knows of."""

    def init_transactions(self, _timeout_s: float) -> None:
        pass

    def begin_transaction(self) -> None:
        pass

    def send_offsets_to_transaction(self, *_args: Any) -> None:
        raise RuntimeError("a defect")

    def purge(self) -> None:
        pass

    def abort_transaction(self, _timeout_s: float) -> None:
        pass


def test_a_transaction_that_failed_in_an_unknown_way_is_not_taken_for_committed(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(transactional_sink, "Producer", FailingProducer)
    sink = transactional_sink.TransactionalSink({}, group_metadata=lambda: "me", shared_id=False, clock=clock)
    wait_until(lambda: not sink.unresolved, timeout_s=8, what="the producer to be introduced")
    points = {Partition("t", 0): CommitPoint(1, "")}
    sink.commit(points)
    assert not sink.confirm_commit(points, 8)
    with pytest.raises(Fatal, match="a defect"):
        sink.commit_result()
    producer: Any = sink._producer
    producer.back.set()
    sink.close(8)
