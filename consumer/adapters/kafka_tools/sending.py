"""Sending records to one topic, and hearing of each whether the broker has it."""

from collections import deque
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message

from consumer.adapters.kafka_tools.clients import (
    KAFKA_ERRORS,
    Complaints,
    Properties,
    kafka_error,
    open_producer,
    partitions_of,
)
from consumer.messages import Headers

_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What became of one record: its place, or why it has none."""

    name: str
    value_bytes: int
    partition: int | None = None
    offset: int | None = None
    error: str | None = None
    number: int = 0
    """Which `send` it answers, from 0."""


class Sender:
    """An idempotent producer for one topic. Results come in any order, one for each `send`."""

    def __init__(self, properties: Properties, topic: str, *, timeout_s: float) -> None:
        """Connect. Raises `TopicMissing`, `BrokerUnreachable`, `NotAuthorized` or `SettingsError`."""
        self.topic = topic
        self._results: deque[Acknowledgement] = deque()
        self._complaints = Complaints()
        self._count = 0
        # Bounds what lies in memory, with room for a few of the largest messages.
        largest_kbytes = int(properties.get("message.max.bytes", 1_000_000)) // 1024 + 1
        self._producer = open_producer(
            properties, self._complaints, queue_buffering_max_kbytes=max(64 * 1024, 4 * largest_kbytes)
        )
        partitions_of(self._producer, topic, self._complaints, timeout_s)

    def send(self, name: str, value: bytes, *, key: bytes | None, headers: Headers) -> int:
        """Hand over one record; waits while the producer's buffer is full. `name` comes back in its result, and the
        number that is returned."""
        number = self._count
        self._count += 1

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                place = (message.partition(), message.offset())
                self._results.append(Acknowledgement(name, len(value), *place, number=number))
            else:
                why = _why(self._complaints.explain(error))
                self._results.append(Acknowledgement(name, len(value), error=why, number=number))

        while True:
            try:
                self._producer.produce(self.topic, value, key, headers=list(headers), on_delivery=delivered)
            except BufferError:
                self.wait(_WAIT_S)
            except KAFKA_ERRORS as error:
                self._results.append(Acknowledgement(name, len(value), error=_why(kafka_error(error)), number=number))
                return number
            else:
                return number

    def wait(self, timeout_s: float) -> None:
        """Serve delivery reports for up to `timeout_s` seconds, or until the first of them."""
        try:
            self._producer.poll(timeout_s)
        except KAFKA_ERRORS as error:  # fatal: the reports of what was under way still come
            self._complaints(kafka_error(error))

    @property
    def unacknowledged(self) -> int:
        """Records without a result yet."""
        return len(self._producer)

    def results(self) -> list[Acknowledgement]:
        """The results that came since the last call."""
        found = []
        while self._results:
            found.append(self._results.popleft())
        return found


def _why(error: KafkaError) -> str:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return "too large: raise kafka.max_message_bytes, and the topic's max.message.bytes with it"
    return f"{error.str()} ({error.name()})"
