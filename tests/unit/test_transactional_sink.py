"""What cannot be had from a real broker at will: a call of librdkafka that does not come back."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from consumer.adapters.kafka import transactional_sink
from consumer.errors import Stalled
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
