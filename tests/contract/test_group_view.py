"""The contract of `ports.GroupView`, over the fake, librdkafka's mock cluster and a real broker."""

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from consumer.adapters.kafka.group_view import KafkaGroupView
from consumer.errors import BrokerUnreachable
from consumer.messages import CommitPoint, Partition
from consumer.ports import GroupView
from tests.contract.kafka_places import Assigned, KafkaPlace, Place
from tests.fakes import FakeCluster, FakeGroupView
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique
from tests.processes import free_port, wait_until


@pytest.fixture
def view(place: Place) -> Iterator[GroupView]:
    view = place.view()
    yield view
    view.close()
    view.close()


def test_a_cluster_keeps_its_id(place: Place, view: GroupView) -> None:
    assert view.cluster_id() == place.view().cluster_id()


def test_topics_that_are_there_are_told_with_their_partitions_and_others_left_out(
    place: Place, view: GroupView
) -> None:
    found = view.topics([place.topic])
    assert set(found) == {place.topic}
    assert found[place.topic].partitions == 4
    assert found[place.topic] == view.topics([place.topic])[place.topic]


def test_a_group_that_never_committed_has_no_offsets(place: Place, view: GroupView) -> None:
    assert view.committed([Partition(place.topic, 0)]) == {}
    assert view.committed([]) == {}


def test_offsets_are_told_by_end_and_by_time(place: Place, view: GroupView) -> None:
    first, second = Partition(place.topic, 0), Partition(place.topic, 1)
    place.send(first, b"1", b"2", b"3")
    assert view.offsets([first, second], "earliest") == {first: 0, second: 0}
    assert view.offsets([first, second], "latest") == {first: 3, second: 0}
    assert view.offsets([first, second], "stable") == {first: 3, second: 0}
    assert view.offsets([], "latest") == {}
    if not place.is_mock:  # the moment 0 has nothing before it
        assert view.offsets([first, second], 0) == {first: 0, second: 0}


@pytest.mark.kafka
def test_the_stable_end_is_where_a_transaction_is_open(kafka: Cluster) -> None:
    topic = unique("images")
    kafka.create_topic(topic, partitions=1)
    only = Partition(topic, 0)
    view = KafkaPlace(kafka, topic).view()
    producer = Producer(kafka.client_properties(transactional_id=unique("writer")))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"1", partition=0)
    assert producer.flush(10) == 0
    assert (view.offsets([only], "stable"), view.offsets([only], "latest")) == ({only: 0}, {only: 1})
    producer.commit_transaction(10)
    wait_until(lambda: view.offsets([only], "stable") == {only: 2}, timeout_s=10, what="the marker")
    view.close()


def test_a_topic_that_went_away_since_it_was_told_is_to_be_asked_about_again(view: GroupView) -> None:
    """Not an error of a kind of its own, which would end the process for a topic that is being made anew."""
    with pytest.raises(BrokerUnreachable):
        view.offsets([Partition(unique("gone"), 0)], "latest")


def test_a_group_without_members_takes_commits_from_outside(place: Place, view: GroupView) -> None:
    if place.is_mock:  # it knows no such request
        return
    first, second = Partition(place.topic, 0), Partition(place.topic, 1)
    points = {first: CommitPoint(3, "a note"), second: CommitPoint(0)}
    assert view.commit_while_empty(points)
    assert view.committed([first, second]) == points


def test_a_commit_from_outside_for_a_topic_that_went_away_is_to_be_tried_again(place: Place, view: GroupView) -> None:
    if place.is_mock:
        return
    with pytest.raises(BrokerUnreachable):
        view.commit_while_empty({Partition(unique("gone"), 0): CommitPoint(3)})


def test_a_group_with_a_member_takes_none(place: Place, view: GroupView) -> None:
    if place.is_mock:
        return
    source, assigned = place.source(), Assigned()
    source.subscribe(assigned)

    def joined() -> bool:
        source.poll(0.05)
        return bool(assigned.partitions)

    wait_until(joined, timeout_s=20, what="an assignment")
    first = Partition(place.topic, 0)
    assert not view.commit_while_empty({first: CommitPoint(3)})
    assert view.committed([first]) == {}
    source.close()


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_a_broker_that_does_not_answer_is_told_as_such(kind: str) -> None:
    view: GroupView
    if kind == "fake":
        view = FakeGroupView(FakeCluster({"images": 1}))
        view.reachable = False
    else:
        nobody = f"127.0.0.1:{free_port()}"
        view = KafkaGroupView({"bootstrap.servers": nobody, "log_level": 0}, group_id="group", timeout_ms=200)
    for question in (
        view.cluster_id,
        lambda: view.committed([Partition("images", 0)]),
        lambda: view.topics(["images"]),
        lambda: view.offsets([Partition("images", 0)], "latest"),
        lambda: view.commit_while_empty({Partition("images", 0): CommitPoint(0)}),
    ):
        with pytest.raises(BrokerUnreachable):
            question()
    view.close()
