"""Small plain clients for tests: send, read a topic from end to end, and a group member with its events kept."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from tests.kafka_broker import Cluster
from tests.processes import wait_until

Headers = list[tuple[str, str | bytes | None]]
Protocol = Literal["classic", "consumer"]
PROTOCOLS: tuple[Protocol, Protocol] = ("classic", "consumer")


def unique(prefix: str) -> str:
    """A name nobody else uses."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Sent:
    """One record that the broker acknowledged."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """What to send. `partition` None leaves the choice to librdkafka's murmur2_random, the Java default."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
    partition: int | None = None
    timestamp_ms: int | None = None
    """Milliseconds since the epoch; None for now."""


def send(cluster: Cluster, topic: str, records: Iterable[Record], *, timeout_s: float = 30, **more: Any) -> list[Sent]:
    """Send, and return what the broker acknowledged, in the order of `records`.

    Raises:
        KafkaException: a record was refused or not acknowledged in time.
    """
    producer = Producer(cluster.client_properties(partitioner="murmur2_random", linger_ms=1, **more))
    sent: dict[int, Sent] = {}
    errors: list[KafkaError] = []
    for number, record in enumerate(records):

        def done(error: KafkaError | None, message: Message, number: int = number, record: Record = record) -> None:
            if error is not None:
                errors.append(error)
                return
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            sent[number] = Sent(topic, partition, offset, record.key, record.value)

        where: Any = {} if record.partition is None else {"partition": record.partition}
        if record.timestamp_ms is not None:
            where["timestamp"] = record.timestamp_ms
        while True:
            try:
                producer.produce(
                    topic, value=record.value, key=record.key, headers=record.headers, on_delivery=done, **where
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(timeout_s)
    if errors:
        raise KafkaException(errors[0])
    assert left == 0, f"{left} records were not acknowledged within {timeout_s} s"
    return [sent[number] for number in sorted(sent)]


# A leader that was only just elected can still disown its partition for a moment, or know less than we of who leads.
_NOT_LED_YET = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}


def numbered(count: int, partitions: int = 1) -> list[Record]:
    """Records "0", "1", ... dealt to partitions in turn."""
    return [Record(b"%d" % n, key=b"%d" % n, partition=n % partitions) for n in range(count)]


def end_offsets(
    cluster: Cluster, topic: str, *, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
) -> dict[int, int]:
    """The last stable offset (or with READ_UNCOMMITTED the high watermark) of every partition."""
    partitions = cluster.admin().list_topics(topic, timeout=10).topics[topic].partitions
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): latest for number in partitions}
    found: dict[int, int] = {}

    def told() -> bool:
        answers = cluster.admin().list_offsets(asked, isolation_level=isolation)
        try:
            found.update({where.partition: answer.result(10).offset for where, answer in answers.items()})
        except KafkaException as error:
            if error.args[0].code() not in _NOT_LED_YET:
                raise
            return False
        return True

    wait_until(told, timeout_s=20, what=f"the end offsets of {topic}")
    return found


Ends = dict[tuple[str, int], int]
"""By topic and partition."""


def stable_and_high(cluster: Cluster, topics: Iterable[str]) -> tuple[Ends, Ends]:
    """The last stable offset and the high watermark of every partition. They differ while a transaction is open."""
    stable, high = (
        {
            (topic, partition): offset
            for topic in topics
            for partition, offset in end_offsets(cluster, topic, isolation=isolation).items()
        }
        for isolation in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
    )
    return stable, high


def delete_before(cluster: Cluster, topic: str, offsets: dict[int, int]) -> None:
    """What retention does, at once."""
    places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    for answer in cluster.admin().delete_records(places).values():
        answer.result(20)


def read_to_end(cluster: Cluster, topic: str, *, timeout_s: float = 30) -> list[Message]:
    """Every committed record from the beginning of a topic to its end as of now; within a partition in order."""
    ends = end_offsets(cluster, topic)
    reader = Consumer(
        cluster.client_properties(
            group_id=unique("reader"),
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
    )
    found: list[Message] = []
    wanted = {number for number, end in ends.items() if end > 0}
    try:
        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in wanted])

        def at_end() -> bool:
            for message in reader.consume(500, 0.1):
                if message.error() is not None:
                    raise KafkaException(message.error())
                found.append(message)
            places = reader.position([TopicPartition(topic, number) for number in wanted])
            return all(place.offset >= ends[place.partition] for place in places)

        wait_until(at_end, timeout_s=timeout_s, what=f"the end of {topic}", interval_s=0)
    finally:
        reader.close()
    return [message for message in found if (message.offset() or 0) < ends[message.partition() or 0]]


def count_records(cluster: Cluster, topic: str, *, timeout_s: float = 60) -> int:
    """How many records a read_uncommitted reader finds in a topic up to its end: those of aborted transactions too."""
    partitions = cluster.admin().list_topics(topic, timeout=10).topics[topic].partitions
    reader = Consumer(
        cluster.client_properties(
            group_id=unique("reader"),
            enable_auto_commit=False,
            isolation_level="read_uncommitted",
            auto_offset_reset="earliest",
            enable_partition_eof=True,
        )
    )
    count = 0
    left = set(partitions)
    try:
        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])

        def at_end() -> bool:
            nonlocal count
            for message in reader.consume(500, 0.1):
                error = message.error()
                if error is None:
                    count += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition() or 0)
                else:
                    raise KafkaException(error)
            return not left

        wait_until(at_end, timeout_s=timeout_s, what=f"the end of {topic}", interval_s=0)
    finally:
        reader.close()
    return count


class Member:
    """A plain group member whose messages, errors and rebalances are kept. Use as a context manager.

    `on_assigned` replaces the incremental assignment that it does by itself.
    """

    def __init__(
        self,
        cluster: Cluster,
        topics: Sequence[str],
        *,
        group: str | None = None,
        protocol: Protocol = "classic",
        on_assigned: Callable[[Consumer, list[TopicPartition]], None] | None = None,
        on_revoked: Callable[[Consumer, list[TopicPartition]], None] | None = None,
        **more: Any,
    ) -> None:
        self.group = group or unique("group")
        self.messages: list[Message] = []
        self.errors: list[KafkaError] = []
        self.client_errors: list[KafkaError] = []
        self.rebalances: list[tuple[str, tuple[int, ...]]] = []
        self.commits: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        properties = cluster.client_properties(
            group_id=self.group,
            group_protocol=protocol,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            **({"auto_offset_reset": "earliest"} | more),
        )
        if protocol == "classic":
            properties["partition.assignment.strategy"] = "cooperative-sticky"
            properties.setdefault("heartbeat.interval.ms", 300)  # a rebalance is noticed at a heartbeat
        properties["on_commit"] = lambda error, partitions: self.commits.append((error, partitions))
        properties["error_cb"] = self.client_errors.append
        self.consumer = Consumer(properties)
        self.consumer.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalances.append(("assigned", tuple(place.partition for place in partitions)))
        if self._on_assigned is not None:
            self._on_assigned(consumer, partitions)
        else:
            consumer.incremental_assign(partitions)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalances.append(("revoked", tuple(place.partition for place in partitions)))
        if self._on_revoked is not None:
            self._on_revoked(consumer, partitions)
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalances.append(("lost", tuple(place.partition for place in partitions)))
        consumer.incremental_unassign(partitions)

    def poll(self, timeout_s: float = 0.1) -> None:
        """One poll; what came is kept."""
        message = self.consumer.poll(timeout_s)
        if message is None:
            return
        error = message.error()
        if error is not None:
            self.errors.append(error)
        else:
            self.messages.append(message)

    def poll_until(self, condition: Callable[[], bool], *, what: str, timeout_s: float = 20) -> None:
        """Poll until `condition()`; TimeoutError after `timeout_s`."""

        def polled() -> bool:
            if condition():
                return True
            self.poll()
            return condition()

        wait_until(polled, timeout_s=timeout_s, what=what, interval_s=0)

    def poll_for(self, polls: int, timeout_s: float = 0.1) -> None:
        """A fixed number of polls, to let something happen that should not."""
        for _ in range(polls):
            self.poll(timeout_s)

    def offsets(self, partition: int = 0) -> list[int]:
        """Offsets of the messages so far of one partition, in the order of delivery."""
        return [message.offset() or 0 for message in self.messages if message.partition() == partition]

    def assigned(self) -> set[int]:
        """Numbers of the partitions it has now."""
        return {place.partition for place in self.consumer.assignment()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.consumer.close()
