"""The contract of `ports.ShareMember`, over the fake and a real broker."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from confluent_kafka import Producer

from consumer.adapters.kafka.share_source import KafkaShareMember
from consumer.clock import SystemClock
from consumer.kafka_properties import share_properties
from consumer.messages import Delivery, LockLease, Partition
from consumer.ports import Clock, ShareMember
from consumer.settings_tables import KafkaSettings
from tests.conftest import Topics
from tests.fake_share import FakeShareGroup, FakeShareMember
from tests.fakes import FakeClock
from tests.kafka_broker import Cluster
from tests.processes import wait_until
from tests.share_groups import configured

LOCK_MS = 1_500


class Place(Protocol):
    """A share group on one topic of one partition, with a limit of four deliveries."""

    clock: Clock

    def member(self) -> ShareMember:
        """One more."""
        ...

    def send(self, *values: bytes) -> None:
        """Each as a batch of its own."""
        ...

    def lapse(self) -> None:
        """Every lock that is held now is over when this returns."""
        ...


class FakePlace:
    def __init__(self) -> None:
        self._clock = FakeClock()
        self.clock: Clock = self._clock
        self._group = FakeShareGroup(self._clock, lock_s=LOCK_MS / 1000, limit=4)

    def member(self) -> ShareMember:
        return FakeShareMember(self._group)

    def send(self, *values: bytes) -> None:
        self._group.send(*values)

    def lapse(self) -> None:
        self._clock.advance(LOCK_MS / 1000 + 0.01)


class RealPlace:
    def __init__(self, cluster: Cluster, topics: Topics) -> None:
        self.clock: Clock = SystemClock()
        self._cluster = cluster
        self._topics = topics
        configured(cluster, topics, lock_ms=LOCK_MS, limit=4)

    def member(self) -> ShareMember:
        kafka = KafkaSettings(bootstrap_servers=self._cluster.bootstrap_servers, group_id=self._topics.group)
        properties = {**self._cluster.client_properties(), **share_properties(kafka, "test", max_poll_records=4)}
        return KafkaShareMember(properties, [self._topics.images], clock=self.clock)

    def send(self, *values: bytes) -> None:
        producer = Producer(self._cluster.client_properties(batch_num_messages=1))
        for value in values:
            producer.produce(self._topics.images, value)
        assert producer.flush(20) == 0

    def lapse(self) -> None:
        threading.Event().wait(LOCK_MS / 1000 + 0.5)  # the broker's clock is nobody's to move


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "fake":
        return FakePlace()
    return RealPlace(request.getfixturevalue("kafka"), request.getfixturevalue("make_topics")(partitions=1))


class Taking:
    """A member, and what it got."""

    def __init__(self, place: Place) -> None:
        self.member = place.member()
        self._clock = place.clock
        self.since_s: list[float] = []
        self.member.subscribe(self._lease)

    def _lease(self, partition: Partition, since_s: float) -> LockLease:
        self.since_s.append(since_s)
        ends_s = since_s + LOCK_MS / 1000
        return LockLease(partition, epoch=1, topic_id="id", ends_s=ends_s, now_s=self._clock.monotonic_s)

    def take_one(self) -> Delivery:
        """The next one, which comes alone."""
        found: list[Delivery] = []

        def polled() -> bool:
            found.extend(self.member.poll(0.2))
            return bool(found)

        wait_until(polled, timeout_s=20, what="a message")
        (one,) = found
        return one


@pytest.fixture
def join(place: Place) -> Iterator[Callable[[], Taking]]:
    made: list[Taking] = []

    def make() -> Taking:
        made.append(Taking(place))
        return made[-1]

    yield make
    for each in made:
        each.member.close()
        each.member.close()


def _facts(deliveries: Sequence[Delivery]) -> list[tuple[Any, ...]]:
    return [(each.offset, each.value, each.delivery_count) for each in deliveries]


def test_a_message_that_was_accepted_never_comes_again(place: Place, join: Callable[[], Taking]) -> None:
    taking = join()
    place.send(b"1")
    one = taking.take_one()
    assert _facts([one]) == [(0, b"1", 1)]
    assert taking.member.joined or isinstance(taking.member, KafkaShareMember)
    assert taking.member.accept([one], 10) == {}
    place.lapse()
    place.send(b"2")
    assert _facts([taking.take_one()]) == [(1, b"2", 1)]


def test_a_message_that_was_released_comes_again_at_once_to_whoever_asks(
    place: Place, join: Callable[[], Taking]
) -> None:
    first, second = join(), join()
    place.send(b"1")
    first.member.release([first.take_one()], 10)
    assert _facts([second.take_one()]) == [(0, b"1", 2)]


def test_a_lock_that_lapses_hands_the_message_to_another_and_is_refused_here(
    place: Place, join: Callable[[], Taking]
) -> None:
    first, second = join(), join()
    place.send(b"1")
    one = first.take_one()
    place.lapse()
    assert one.lease.ended
    again = second.take_one()
    assert _facts([again]) == [(0, b"1", 2)]
    assert list(first.member.accept([one], 10).values()) == ["INVALID_RECORD_STATE"]
    assert second.member.accept([again], 10) == {}
    place.send(b"2")
    assert _facts([first.take_one()]) == [(1, b"2", 1)]  # it goes on


def test_what_arrives_after_a_poll_that_timed_out_was_locked_since_then(
    place: Place, join: Callable[[], Taking]
) -> None:
    taking = join()
    before_s = place.clock.monotonic_s()
    assert not taking.member.poll(0.3)
    place.send(b"1")
    one = taking.take_one()
    assert before_s <= taking.since_s[-1] <= place.clock.monotonic_s()
    taking.member.accept([one], 10)


def test_a_member_that_leaves_hands_back_what_it_holds(place: Place, join: Callable[[], Taking]) -> None:
    first, second = join(), join()
    place.send(b"1")
    first.take_one()
    first.member.close()
    assert _facts([second.take_one()]) == [(0, b"1", 2)]
