"""Kafka's ends of `ouzel bench`: filling a topic, asking how long it is, the bare loop, and a load with its reader."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.adapters.librdkafka import CLIENT_LOG
from consumer.errors import BrokerUnreachable, OutputRefused, TopicMissing
from consumer.messages import Headers, Partition

Properties = Mapping[str, str | int | float | bool]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_ANSWER_S = 30.0
_CHUNK = 64
SUBJECT = "ce_subject"
"""The header of a label event that has the image's id."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is put on an input topic."""

    key: str
    value: bytes = field(repr=False)
    headers: Headers = ()


def fill(
    properties: Properties, topic: str, records: Iterable[Record], *, tell: Callable[[int], None] = lambda _more: None
) -> int:
    """Put the records on the topic; returns how many. Raises OutputRefused where the broker does not take one."""
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error)
        tell(1)

    producer = Producer(dict(properties), logger=CLIENT_LOG)
    count = 0
    for record in records:
        while True:
            try:
                producer.produce(
                    topic, record.value, record.key.encode(), headers=list(record.headers), on_delivery=delivered
                )
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                remedy = "raise kafka.max_message_bytes, where a message is too large"
                raise OutputRefused(f"{topic} was not filled: {error.args[0].str()}", remedy=remedy) from error
            else:
                break
        count += 1
        producer.poll(0)
        if refused:
            break
    left = producer.flush(_ANSWER_S)
    if refused or left:
        why = refused[0].str() if refused else f"{left} records are not confirmed after {_ANSWER_S:g} s"
        raise OutputRefused(f"{topic} was not filled: {why}", remedy="look at the broker's log and its free disk")
    return count


class Topics:
    """How long topics are, and an end to them. Cheap to ask."""

    def __init__(self, properties: Properties) -> None:
        self._properties = properties
        self._admin = AdminClient(dict(properties), logger=CLIENT_LOG)
        self._partitions: dict[str, list[TopicPartition]] = {}
        self._committed: dict[str, CommittedOffsets] = {}

    def records(self, topic: str) -> int:
        """The sum of the ends of its partitions: of a fresh topic without transactions, how many records it has.

        Raises BrokerUnreachable where no answer comes.
        """
        try:
            asked = dict.fromkeys(self._places(topic), _LATEST)
            futures = self._admin.list_offsets(asked, request_timeout=_ANSWER_S)
            return sum(future.result(_ANSWER_S).offset for future in futures.values())
        except (KafkaException, TimeoutError) as error:
            raise BrokerUnreachable(
                f"the broker does not say how long {topic} is: {error}", remedy="look at the broker's log"
            ) from error

    def committed(self, group_id: str, topic: str) -> int:
        """The sum of what the group has committed: of a fresh topic without transactions, how many records are done.

        Raises BrokerUnreachable where no answer comes.
        """
        known = self._committed.get(group_id)
        if known is None:
            known = self._committed[group_id] = CommittedOffsets(self._properties, group_id, logger=CLIENT_LOG)
        try:
            found = known.read([Partition(each.topic, each.partition) for each in self._places(topic)], _ANSWER_S)
        except KafkaException as error:
            raise BrokerUnreachable(
                f"the broker does not say what {group_id} has committed: {error}", remedy="look at the broker's log"
            ) from error
        return sum(point.offset for point in found.values())

    def delete(self, topics: Sequence[str], groups: Sequence[str], *, within_s: float = _ANSWER_S) -> None:
        """Delete these topics and groups, as far as they are there and the broker lets us; all within so long."""
        admin, until_s = self._admin, time.monotonic() + within_s
        deleted = [
            *admin.delete_topics(list(topics), operation_timeout=within_s, request_timeout=within_s).values(),
            *(admin.delete_consumer_groups(list(groups), request_timeout=within_s) if groups else {}).values(),
        ]
        for future in deleted:
            try:
                future.result(max(0.0, until_s - time.monotonic()))
            except (KafkaException, TimeoutError):
                continue

    def _places(self, topic: str) -> list[TopicPartition]:
        if topic not in self._partitions:
            self._partitions[topic] = [TopicPartition(topic, number) for number in _numbers(self._admin, topic)]
        return self._partitions[topic]


def _numbers(client: Consumer | AdminClient, topic: str) -> list[int]:
    """The partitions of a topic, once the broker that is asked has heard of it."""
    deadline_s = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline_s:
        try:
            found = client.list_topics(topic, timeout=_ANSWER_S).topics[topic]
        except KafkaException as error:
            raise BrokerUnreachable(
                f"the broker does not answer: {error}", remedy="look at the broker's log"
            ) from error
        if found.error is None and found.partitions:
            return sorted(found.partitions)
        time.sleep(0.1)
    raise TopicMissing(f"the topic {topic} was made and is not there", remedy="look at the broker's log")


def _places(consumer: Consumer, topic: str, *, at_end: bool = False) -> list[TopicPartition]:
    """The beginnings of a topic's partitions, or what is their end now: to be assigned, as no group is joined."""
    places = []
    for number in _numbers(consumer, topic):
        place = TopicPartition(topic, number, OFFSET_BEGINNING)
        if at_end:
            place.offset = consumer.get_watermark_offsets(place, timeout=_ANSWER_S)[1]
        places.append(place)
    return places


# --- the bare loop --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BareLoop:
    """What a bare loop used for so many messages, once it was connected."""

    images: int
    cpu_s: float
    wall_s: float


def bare_loop(
    consumer_properties: Properties,
    producer_properties: Properties,
    *,
    input_topic: str,
    output_topic: str,
    value: bytes,
    headers: Headers,
    count: int,
    commit_s: float,
) -> BareLoop:
    """Consume `count` messages and produce one event for each, nothing between. For a process of its own.

    The clocks start when both clients know the topics, so that connecting is no part of it, and before the first fetch:
    with small messages that one brings thousands. There is no call-back for each report, which a service needs to know
    what it may commit: this is the least that any consumer can use.
    """
    consumer = Consumer({**consumer_properties, "auto.offset.reset": "earliest"}, logger=CLIENT_LOG)
    producer = Producer(dict(producer_properties), logger=CLIENT_LOG)
    producer.list_topics(output_topic, timeout=_ANSWER_S)
    places = _places(consumer, input_topic)
    sent = list(headers)
    done = 0
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    committed_s = wall_s
    consumer.assign(places)
    while done < count:
        messages = _taken(consumer)
        for message in messages:
            _produced(producer, output_topic, value, message.key(), sent)
        done += len(messages)
        producer.poll(0)
        if time.perf_counter() - committed_s >= commit_s:
            consumer.commit(offsets=consumer.position(places), asynchronous=True)
            committed_s = time.perf_counter()
    left = producer.flush(_ANSWER_S)
    consumer.commit(offsets=consumer.position(places), asynchronous=False)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    consumer.close()
    if left:
        raise OutputRefused(f"{left} events are not confirmed after {_ANSWER_S:g} s", remedy="look at the broker's log")
    return BareLoop(done, cpu_s, wall_s)


def _taken(consumer: Consumer) -> list[Message]:
    silent_since_s = time.perf_counter()
    while time.perf_counter() - silent_since_s < _ANSWER_S:
        messages: list[Message] = consumer.consume(_CHUNK, timeout=0.2)
        for message in messages:
            error = message.error()
            if error is not None:
                raise BrokerUnreachable(f"the bare loop cannot read: {error.str()}", remedy="look at the broker's log")
        if messages:
            return messages
    raise BrokerUnreachable(f"the bare loop got no message for {_ANSWER_S:g} s", remedy="look at the broker's log")


def _produced(producer: Producer, topic: str, value: bytes, key: Any, headers: list[Any]) -> None:
    while True:
        try:
            producer.produce(topic, value, key, headers=headers)
        except BufferError:
            producer.poll(0.01)
        else:
            return


# --- a load that does not wait --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came of a load."""

    latencies_ms: list[float]
    """From the time at which each was due to its answer's arrival; in no order."""
    late_ms: list[float]
    """How late each was handed to the producer."""
    unanswered: int


class Reader:
    """Notes when the answer to each image came, in a thread of its own."""

    def __init__(self, properties: Properties, topic: str) -> None:
        """Begin at what is the topic's end now."""
        self._consumer = Consumer(dict(properties), logger=CLIENT_LOG)
        self._consumer.assign(_places(self._consumer, topic, at_end=True))
        self._stopping = threading.Event()
        self.arrived_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                self.arrived_s.setdefault(_image_id(message), time.monotonic())

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()


def _image_id(message: Message) -> str:
    """Of a label event by its header; of a record that nobody has answered, its key."""
    pairs: Any = message.headers() or []
    for name, value in pairs:
        if name == SUBJECT:
            return bytes(value).decode()
    return bytes(message.key() or b"").decode()


def _warm(producer: Producer, reader: Reader, topic: str, records: Sequence[Record], silent_s: float) -> None:
    """Have a few images answered before the load begins: connections and the producer's id are there then."""
    for record in records:
        producer.produce(topic, record.value, record.key.encode(), headers=list(record.headers))
    producer.flush(_ANSWER_S)
    deadline_s = time.monotonic() + silent_s
    while len(reader.arrived_s) < len(records) and time.monotonic() < deadline_s:
        time.sleep(0.02)


def open_loop(
    producer_properties: Properties,
    reader_properties: Properties,
    *,
    input_topic: str,
    read_topic: str,
    records: Sequence[Record],
    due_s: Sequence[float],
    silent_s: float,
    warm: Sequence[Record] = (),
) -> Arrivals:
    """Hand over each record when it is due, whatever became of those before, and note when its answer is there.

    Args:
        producer_properties, reader_properties: librdkafka's.
        input_topic: where records go.
        read_topic: where answers come, or the same for a bare round trip.
        records: with keys that are no two alike.
        due_s: for each the seconds from the start at which it is due, ascending.
        silent_s: gives up when no answer came for so long after the last record.
        warm: answered before the load begins, and left out of what is said; with keys of their own.
    """
    reader = Reader(reader_properties, read_topic)
    producer = Producer(dict(producer_properties), logger=CLIENT_LOG)
    _warm(producer, reader, input_topic, warm, silent_s)
    late_ms = []
    start_s = time.monotonic() + 0.2
    for record, offset_s in zip(records, due_s, strict=True):
        while (left_s := start_s + offset_s - time.monotonic()) > 0:
            # Woken early, as a sleep ends late; the last bit is spent in polls that return at once.
            producer.poll(left_s - 0.001 if left_s > 0.002 else 0)
        producer.produce(input_topic, record.value, record.key.encode(), headers=list(record.headers))
        late_ms.append(1000 * (time.monotonic() - start_s - offset_s))
    producer.flush(_ANSWER_S)
    known, since_s, expected = -1, time.monotonic(), len(records) + len(warm)
    while len(reader.arrived_s) < expected and time.monotonic() - since_s < silent_s:
        if len(reader.arrived_s) != known:
            known, since_s = len(reader.arrived_s), time.monotonic()
        time.sleep(0.02)
    reader.close()
    latencies_ms = [
        1000 * (reader.arrived_s[record.key] - start_s - offset_s)
        for record, offset_s in zip(records, due_s, strict=True)
        if record.key in reader.arrived_s
    ]
    return Arrivals(latencies_ms, late_ms, len(records) - len(latencies_ms))
