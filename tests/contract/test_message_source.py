"""The contract of `ports.MessageSource`, over the fake, librdkafka's mock cluster and a real broker."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import KafkaError

from consumer.adapters.kafka.source import KafkaSource
from consumer.errors import NotAuthorized
from consumer.messages import CommitPoint, Delivery, Lease, Partition
from consumer.ports import CommitResult, MessageSource, OffsetLost
from tests.contract.kafka_places import Assigned, KafkaPlace, Place
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique
from tests.processes import wait_until


class Owner:
    """Listens, and polls until something is there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.source: MessageSource = place.source()
        self.partitions: set[Partition] = set()
        self.on_revoke: Callable[[Sequence[Partition]], None] = lambda _partitions: None
        self.revoked: list[Partition] = []
        self.lost: list[OffsetLost] = []
        self.epoch = 0
        self.source.subscribe(self)
        self.until(lambda: len(self.partitions) == 4, "an assignment")

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self.partitions.update(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self.on_revoke(partitions)
        self.revoked += partitions

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        raise AssertionError("nothing is lost here")

    def partition(self, number: int = 0) -> Partition:
        return Partition(self.place.topic, number)

    def start(self, number: int = 0, offset: int = 0) -> Lease:
        self.epoch += 1
        lease = Lease(self.partition(number), epoch=self.epoch, topic_id="")
        self.source.start(lease, offset)
        return lease

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def polled() -> bool:
            if condition():
                return True
            found = self.source.poll(0.05)
            assert not isinstance(found, Delivery), f"{found} came unasked"
            self.lost += [found] if found is not None else []
            return condition()

        wait_until(polled, timeout_s=10, what=what, interval_s=0)

    def take(self, count: int) -> list[Delivery]:
        """So many messages."""
        taken: list[Delivery] = []

        def polled() -> bool:
            found = self.source.poll(0.05)
            if isinstance(found, Delivery):
                taken.append(found)
            return len(taken) >= count

        wait_until(polled, timeout_s=10, what=f"{count} messages", interval_s=0)
        return taken

    def nothing_comes(self) -> None:
        for _ in range(4):
            assert self.source.poll(0.05) is None

    def answer(self) -> CommitResult:
        """The answer to the commit under way."""
        found: list[CommitResult] = []

        def polled() -> bool:
            result = self.source.commit_result()
            found.extend([result] if result is not None else [])
            return bool(found)

        self.until(polled, "a commit's answer")
        return found[0]


@pytest.fixture
def owner(place: Place) -> Iterator[Owner]:
    owner = Owner(place)
    yield owner
    owner.source.close()


def test_nothing_is_delivered_before_a_partition_is_started(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1", b"2")
    assert owner.source.joined
    owner.nothing_comes()
    assert owner.source.position(owner.partition()) is None


def test_a_started_partition_delivers_from_its_offset_in_order(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1", None, b"", b"4", key=b"k")
    lease = owner.start(offset=1)
    taken = owner.take(3)
    assert [(d.offset, d.value, d.key) for d in taken] == [(1, None, b"k"), (2, b"", b"k"), (3, b"4", b"k")]
    assert all(d.lease is lease for d in taken)
    assert owner.source.position(owner.partition()) == 4
    owner.nothing_comes()


def test_a_paused_partition_is_silent_until_it_is_resumed(owner: Owner) -> None:
    owner.start()
    owner.source.pause([owner.partition()])
    owner.place.send(owner.partition(), b"1")
    owner.nothing_comes()
    owner.source.pause([owner.partition()])
    owner.source.resume([owner.partition()])
    assert [d.offset for d in owner.take(1)] == [0]


def test_pausing_one_partition_silences_no_other(owner: Owner) -> None:
    owner.start(0)
    owner.start(1)
    owner.source.pause([owner.partition(0), owner.partition(3)])  # 3 was never started: nothing to pause
    for number in (0, 1):
        owner.place.send(owner.partition(number), b"1")
    assert [d.partition.number for d in owner.take(1)] == [1]


def test_starting_anew_goes_back_on_the_books_of_the_new_lease_even_while_paused(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1", b"2", b"3")
    owner.start()
    owner.take(3)
    owner.source.pause([owner.partition()])
    lease = owner.start(offset=1)
    assert owner.source.position(owner.partition()) is None
    again = owner.take(2)
    assert [d.offset for d in again] == [1, 2]
    assert all(d.lease is lease for d in again)


def test_an_offset_that_the_log_does_not_have_is_told_once_and_the_partition_can_be_started_anew(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1")
    owner.start(offset=1_000)
    owner.until(lambda: bool(owner.lost), "the loss")
    assert owner.lost == [OffsetLost(owner.partition())]
    owner.nothing_comes()
    owner.start(offset=0)
    assert [d.offset for d in owner.take(1)] == [0]


def test_a_commit_is_answered_once_and_the_next_owner_finds_it(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1", b"2")
    owner.start()
    owner.take(2)
    points = {owner.partition(): CommitPoint(2, '{"v":1}'), owner.partition(1): CommitPoint(0, "note")}
    under_way = []
    owner.source.commit(points)
    under_way.append(owner.source.commit_under_way)
    answer = owner.answer()
    assert (dict(answer.committed), dict(answer.errors)) == (points, {})
    under_way.append(owner.source.commit_under_way)
    assert under_way == [True, False]
    assert owner.source.commit_result() is None
    assert owner.place.view().committed(sorted(owner.partitions)) == points


def test_a_commit_is_confirmed_when_the_group_has_it_and_not_before(owner: Owner) -> None:
    point = {owner.partition(): CommitPoint(5)}
    assert not owner.source.confirm_commit(point, 5)
    owner.source.commit(point)
    assert owner.source.confirm_commit(point, 5)
    assert owner.source.confirm_commit({owner.partition(): CommitPoint(4)}, 5)
    assert owner.source.confirm_commit({}, 0)
    owner.answer()


def test_closing_revokes_and_what_is_committed_inside_lands(owner: Owner) -> None:
    owner.on_revoke = lambda _: owner.source.commit({owner.partition(): CommitPoint(7, "last")})
    owner.source.close()
    owner.source.close()
    assert set(owner.revoked) == owner.partitions
    assert owner.place.view().committed([owner.partition()]) == {owner.partition(): CommitPoint(7, "last")}


def test_lag_counts_what_is_not_delivered(owner: Owner) -> None:
    owner.start()
    owner.place.send(owner.partition(), b"1", b"2", b"3")
    owner.take(2)
    owner.source.pause([owner.partition()])
    owner.until(lambda: owner.source.lag().get(owner.partition()) == 1, "a lag of one")


def test_who_leaves_is_told_what_goes_away_and_joins_again_by_subscribing(owner: Owner) -> None:
    owner.place.send(owner.partition(), b"1", b"2")
    owner.start()
    owner.take(1)
    point = {owner.partition(): CommitPoint(1)}
    confirmed: list[bool] = []

    def drained(_partitions: Sequence[Partition]) -> None:
        owner.source.commit(point)
        confirmed.append(owner.source.confirm_commit(point, 5))

    owner.on_revoke = drained
    before, owner.partitions = owner.partitions, set()
    owner.source.leave()
    owner.until(lambda: set(owner.revoked) == before, "all to go away")
    assert confirmed == [True]
    owner.source.subscribe(owner)
    owner.until(lambda: owner.partitions == before, "all to come back")
    owner.nothing_comes()
    owner.start(offset=1)
    assert [d.offset for d in owner.take(1)] == [1]


def test_what_ends_the_process_is_not_hidden_by_the_error_that_follows_it(
    mock_cluster: Callable[[str], Cluster],
) -> None:
    """A refused password is told once a connection, and "all brokers are down" right after it."""
    topic = unique("images")
    source = KafkaPlace(mock_cluster(topic), topic, is_mock=True).source()
    assert isinstance(source, KafkaSource)
    for code in (KafkaError._AUTHENTICATION, KafkaError._ALL_BROKERS_DOWN):
        source._on_client_error(KafkaError(code))
    with pytest.raises(NotAuthorized):
        source.poll(0)
    source.close()


def test_a_partition_that_begins_answers_no_revoke_that_waits_to_be_heard(place: Place) -> None:
    """Else it has its next owner before this one has committed."""
    if not isinstance(place, KafkaPlace) or place.is_mock:
        return
    owner, other, theirs = Owner(place), place.source(), Assigned()
    other.subscribe(theirs)
    kept: set[int] = set()

    def wanted_back() -> bool:
        other.poll(0.1)
        group = place.cluster.admin().describe_consumer_groups([place.group])[place.group].result(10)
        for member in group.members:
            targets = member.target_assignment.topic_partitions if member.target_assignment else []
            if len(member.assignment.topic_partitions) == 4 and len(targets) == 2:
                kept.update(each.partition for each in targets)
        return bool(kept)

    wait_until(wanted_back, timeout_s=30, what="the coordinator to want two of four back")
    for _ in range(20):
        for number in kept:
            owner.start(number)
        other.poll(0.1)
    assert not theirs.partitions
    owner.until(lambda: len(owner.revoked) == 2, "the revoke")
    wait_until(lambda: other.poll(0.1) is None and len(theirs.partitions) == 2, timeout_s=20, what="the two")
    owner.source.close()
    other.close()
