"""The idempotent producer, where no broker can bring it about: a producer that fails and cannot be replaced."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.adapters.kafka import sink as sinks
from consumer.adapters.kafka.sink import KafkaSink
from consumer.errors import Fatal
from consumer.messages import OutputRecord
from tests.fakes import FakeClock


class _Producer:
    """Takes one record into its queue, reports nothing, and fails once `fatal` is set. There is no second one."""

    made = 0

    def __init__(self, _properties: Any, **_: Any) -> None:
        type(self).made += 1
        if self.made > 1:
            raise KafkaException(KafkaError(KafkaError._CRIT_SYS_RESOURCE, "no thread is left"))
        self.fatal = threading.Event()
        self._taken = 0

    def produce(self, _topic: str, **_: Any) -> None:
        if self._taken:
            raise BufferError
        self._taken += 1

    def poll(self, timeout_s: float) -> int:
        if self.fatal.wait(min(timeout_s, 0.01)):
            raise KafkaException(KafkaError(KafkaError._FATAL, "fenced"))
        return 0

    def purge(self) -> None: ...

    def flush(self, _timeout_s: float) -> int:
        return 0

    def __len__(self) -> int:
        return 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> type[_Producer]:
    _Producer.made = 0
    monkeypatch.setattr(sinks, "Producer", _Producer)
    return _Producer


def _asked(told: list[Exception | None], changed: threading.Condition) -> Callable[[Exception | None], None]:
    def done(error: Exception | None) -> None:
        with changed:
            told.append(error)
            changed.notify_all()

    return done


def test_where_no_new_producer_can_be_made_everybody_is_told(producer: type[_Producer]) -> None:
    sink = KafkaSink({}, clock=FakeClock())
    told: list[Exception | None] = []
    changed = threading.Condition()
    record = OutputRecord("predictions", b"{}")
    sink.publish(record, _asked(told, changed))  # with the producer
    sink.publish(record, _asked(told, changed))  # waits for room
    sink._producer.fatal.set()  # type: ignore[attr-defined]
    with changed:
        assert changed.wait_for(lambda: len(told) == 2, 8)
    sink.publish(record, _asked(told, changed))
    assert [isinstance(error, Fatal) for error in told] == [True, True, True]
    assert "no thread is left" in str(told[0])
    sink.close(0.0)
