"""Where the contract suites of the Kafka ports run: the fake, librdkafka's mock cluster, and a real broker."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from confluent_kafka import Producer

from consumer.adapters.kafka.group_view import KafkaGroupView
from consumer.adapters.kafka.sink import KafkaSink
from consumer.adapters.kafka.source import KafkaSource
from consumer.adapters.mock_broker import MockBroker
from consumer.clock import SystemClock
from consumer.errors import EventTooLarge
from consumer.messages import OutputRecord, Partition
from consumer.ports import GroupView, MessageSource, ResultSink
from tests.fakes import FakeCluster, FakeGroupView, FakeSink, FakeSource
from tests.kafka_broker import Cluster
from tests.kafka_clients import read_to_end, unique

MARKS: dict[str, Sequence[pytest.MarkDecorator]] = {"fake": (), "mock": (), "real": (pytest.mark.kafka,)}


class Place(Protocol):
    """A cluster with one topic of several partitions that no other test uses."""

    topic: str
    is_mock: bool
    """librdkafka's mock knows no offsets of a time."""

    def source(self) -> MessageSource:
        """A new member of one group."""
        ...

    def view(self) -> GroupView:
        """Questions about that cluster and that group."""
        ...

    def sink(self) -> ResultSink:
        """A new sink; it takes records of up to 100,000 bytes."""
        ...

    def send(self, partition: Partition, *values: bytes | None, key: bytes | None = None) -> None:
        """Append records; returns when they are there."""
        ...

    def written(self, sink: ResultSink) -> list[OutputRecord]:
        """What a sink wrote to the topic, in the order of each key."""
        ...


class FakePlace:
    """`tests/fakes.py`."""

    def __init__(self) -> None:
        self.is_mock = False
        self.topic = "images"
        self.cluster = FakeCluster({"images": 4})

    def source(self) -> MessageSource:
        source = FakeSource(self.cluster)
        source.assign(*self.cluster.logs)
        return source

    def view(self) -> GroupView:
        return FakeGroupView(self.cluster)

    def sink(self) -> ResultSink:
        sink = FakeSink()
        sink.answers = lambda record: EventTooLarge("too large") if len(record.value or b"") > 100_000 else None
        return sink

    def send(self, partition: Partition, *values: bytes | None, key: bytes | None = None) -> None:
        self.cluster.send(partition, *values, key=key)

    def written(self, sink: ResultSink) -> list[OutputRecord]:
        assert isinstance(sink, FakeSink)
        return sink.written


class KafkaPlace:
    """The real adapters, on a cluster with KIP-848 groups (a classic group's first join takes the mock 3 s)."""

    def __init__(self, cluster: Cluster, topic: str, *, is_mock: bool = False) -> None:
        self.cluster = cluster
        self.is_mock = is_mock
        self.topic = topic
        self.group = unique("group")

    def source(self) -> MessageSource:
        properties = self.cluster.client_properties(
            group_id=self.group,
            group_protocol="consumer",
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",
            isolation_level="read_committed",
            statistics_interval_ms=50,
        )
        return KafkaSource(properties, [self.topic], clock=SystemClock())

    def view(self) -> GroupView:
        return KafkaGroupView(self.cluster.client_properties(), group_id=self.group, timeout_ms=5_000)

    def sink(self) -> ResultSink:
        properties = self.cluster.client_properties(
            enable_idempotence=True, acks="all", partitioner="murmur2_random", linger_ms=0, message_max_bytes=100_000
        )
        return KafkaSink(properties, clock=SystemClock())

    def send(self, partition: Partition, *values: bytes | None, key: bytes | None = None) -> None:
        producer = Producer(self.cluster.client_properties(linger_ms=0))
        for value in values:
            producer.produce(partition.topic, value=value, key=key, partition=partition.number)
        assert producer.flush(10) == 0

    def written(self, sink: ResultSink) -> list[OutputRecord]:
        return [
            OutputRecord(self.topic, message.value(), message.key(), _headers(message.headers()))
            for message in read_to_end(self.cluster, self.topic)
        ]


class Assigned:
    """A member that only joins."""

    def __init__(self) -> None:
        self.partitions: set[Partition] = set()

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self.partitions.update(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self.partitions.difference_update(partitions)

    on_lost = on_revoked


def _headers(raw: Any) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(raw or ())


@pytest.fixture(scope="session")
def mock_cluster() -> Iterator[Callable[[str], Cluster]]:
    """librdkafka's mock cluster, in this process; gives itself with a topic made."""
    with MockBroker() as broker:

        def with_topic(topic: str) -> Cluster:
            broker.create_topics([topic])
            return Cluster(broker.bootstrap_servers)

        yield with_topic


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the places in turn."""
    if request.param == "fake":
        return FakePlace()
    topic = unique("images")
    if request.param == "mock":
        return KafkaPlace(request.getfixturevalue("mock_cluster")(topic), topic, is_mock=True)
    cluster: Cluster = request.getfixturevalue("kafka")
    cluster.create_topic(topic, partitions=4)
    return KafkaPlace(cluster, topic)
