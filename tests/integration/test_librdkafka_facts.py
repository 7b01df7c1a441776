"""Facts about librdkafka and Apache Kafka on which the consumer stands, each found by running.

When one of these turns red after an upgrade, the fact has changed: look at what the code does because of it before
changing the test. None of them runs our code.
"""

import contextlib
import json
import re
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    ShareConsumer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AclOperation, AdminClient, NewTopic, OffsetSpec, ResourceType

from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import PROTOCOLS, Member, Protocol, Record, end_offsets, numbered, read_to_end, send, unique
from tests.processes import wait_until

pytestmark = pytest.mark.kafka
both_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


def restart(consumer: Consumer, topic: str, partition: int, offset: int) -> None:
    consumer.incremental_unassign([TopicPartition(topic, partition)])
    consumer.incremental_assign([TopicPartition(topic, partition, offset)])


def position(consumer: Consumer, topic: str, partition: int = 0) -> int:
    return int(consumer.position([TopicPartition(topic, partition)])[0].offset)


def committed(cluster: Cluster, group: str, topic: str, partitions: int = 1) -> dict[int, tuple[int, str | None]]:
    """Asked by a consumer that never joins: AdminClient.list_consumer_group_offsets can end the process (librdkafka
    issue 5040)."""
    asks = Consumer(cluster.client_properties(group_id=group))
    try:
        places = asks.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=10)
        return {place.partition: (place.offset, place.metadata) for place in places}
    finally:
        asks.close()


# --- callbacks -----------------------------------------------------------------------------------------------------


def test_an_exception_in_a_callback_loses_the_messages_that_consume_had_in_hand(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(5000))

    def raising(_: str) -> None:
        raise RuntimeError("out of a callback")

    with Member(kafka, [topic], statistics_interval_ms=10) as plain:
        plain.poll_until(lambda: len(plain.messages) == 5000, what="all of them, with no exception")
    properties = kafka.client_properties(group_id=unique("group"), auto_offset_reset="earliest")
    consumer = Consumer(properties | {"statistics.interval.ms": 10, "stats_cb": raising})
    consumer.subscribe([topic])
    received = 0

    def at_end() -> bool:
        nonlocal received
        with contextlib.suppress(RuntimeError):
            received += len(consumer.consume(200, 0.05))
        return position(consumer, topic) == 5000

    wait_until(at_end, timeout_s=20, what="the end of the topic", interval_s=0)
    assert received < 5000
    consumer.unsubscribe()


@both_protocols
def test_statistics_come_only_inside_poll(kafka: Cluster, topics: Topics, protocol: Protocol) -> None:
    seen: list[str] = []
    others: list[str] = []
    with (
        Member(kafka, [topics.images], protocol=protocol, statistics_interval_ms=50, stats_cb=seen.append) as member,
        Member(kafka, [topics.images], statistics_interval_ms=50, stats_cb=others.append) as clock,
    ):
        member.poll_until(lambda: len(seen) > 0, what="statistics")
        before = len(seen)
        clock.poll_until(lambda: len(others) >= 5, what="time for more statistics of the first")
        member.consumer.committed([TopicPartition(topics.images, 0)], timeout=5)
        position(member.consumer, topics.images)
        assert len(seen) == before
        member.consumer.poll(0)
        assert len(seen) > before


# --- assignments ---------------------------------------------------------------------------------------------------


@both_protocols
def test_a_paused_partition_that_is_lost_and_regained_is_still_paused(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=2).images
    with Member(kafka, [topic], protocol=protocol) as stays:
        stays.poll_until(lambda: stays.assigned() == {0, 1}, what="both partitions")
        stays.consumer.pause([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        with Member(kafka, [topic], protocol=protocol, group=stays.group) as comes:

            def shared() -> bool:
                comes.poll(0.05)
                return len(stays.assigned()) == 1 and len(comes.assigned()) == 1

            stays.poll_until(shared, what="one partition each")
            moved = next(iter(comes.assigned()))
        stays.poll_until(lambda: stays.assigned() == {0, 1}, what="both again")
        send(kafka, topic, numbered(10, partitions=2))
        stays.poll_for(10)
        assert stays.messages == []
        stays.consumer.resume([TopicPartition(topic, moved)])
        stays.poll_until(lambda: len(stays.offsets(moved)) == 5, what="messages after resume")


@both_protocols
def test_an_unowned_partition_refuses_seek_and_store_but_not_commit_and_pause(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(3))
    with Member(kafka, [topic], protocol=protocol) as member:
        member.poll_until(lambda: len(member.messages) == 3, what="messages")
        unowned = TopicPartition(topic, 0, 1)
        member.consumer.incremental_unassign([unowned])
        with pytest.raises(KafkaException) as seek:
            member.consumer.seek(unowned)
        assert seek.value.args[0].code() == KafkaError._STATE
        with pytest.raises(KafkaException) as store:
            member.consumer.store_offsets(offsets=[unowned])
        assert store.value.args[0].code() == KafkaError._STATE
        member.consumer.pause([unowned])
        member.consumer.commit(offsets=[unowned], asynchronous=True)
        member.poll_until(lambda: bool(member.commits), what="the commit's answer")
        assert member.commits[0][0] is None
        assert committed(kafka, member.group, topic) == {0: (1, None)}


@both_protocols
def test_an_owned_partition_restarts_at_an_offset_by_unassign_and_assign(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=2).images
    send(kafka, topic, numbered(2000, partitions=2))
    with Member(kafka, [topic], protocol=protocol) as member:
        member.poll_until(lambda: len(member.messages) >= 100, what="messages")
        for target in (5, 900, 0):
            member.messages.clear()
            restart(member.consumer, topic, 0, target)
            assert position(member.consumer, topic) == OFFSET_INVALID, "there is no position until a message comes"
            member.poll_until(lambda: len(member.offsets(0)) >= 50, what="messages of the restarted partition")
            received = member.offsets(0)
            assert received == list(range(target, target + len(received))), "a stale message came"
        assert len(member.rebalances) == 1


@both_protocols
@pytest.mark.parametrize("how", ["unassign and assign", "seek"])
def test_a_revoke_that_waits_to_be_heard_is_answered_by_unassign_and_assign_and_not_by_seek(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol, how: str
) -> None:
    """The partition has its next owner then, before we know that it is to go. So a partition begins by `seek`."""
    topic = make_topics(partitions=2).images
    with contextlib.ExitStack() as members:
        first = members.enter_context(Member(kafka, [topic], protocol=protocol, client_id="first"))
        first.poll_until(lambda: len(first.consumer.assignment()) == 2, what="both partitions")
        second = members.enter_context(Member(kafka, [topic], protocol=protocol, group=first.group))
        kept = _partition_that_is_kept(kafka, second, of=first)
        for _ in range(20):
            if how == "seek":
                first.consumer.seek(TopicPartition(topic, kept, 0))
            else:
                restart(first.consumer, topic, kept, 0)
            second.poll(0.1)
        assert ("revoked", (1 - kept,)) not in first.rebalances, "it has not polled"
        early = bool(second.consumer.assignment())
        assert early == (how == "unassign and assign")
        first.poll_until(lambda: ("revoked", (1 - kept,)) in first.rebalances, what="the revoke")
        second.poll_until(lambda: bool(second.consumer.assignment()), what="the partition")


def _partition_that_is_kept(kafka: Cluster, second: Member, *, of: Member) -> int:
    """Of the first member, which does not poll, when the coordinator has taken one partition of it."""

    def kept() -> list[int]:
        second.poll(0.1)
        group = kafka.admin().describe_consumer_groups([of.group])[of.group].result(10)
        for member in group.members:
            if member.client_id == "first":
                assigned = member.target_assignment or member.assignment
                return [each.partition for each in assigned.topic_partitions]
        return []

    wait_until(lambda: len(kept()) == 1, timeout_s=30, what="the coordinator to take one of the two")
    return kept()[0]


@both_protocols
def test_a_pause_survives_unassign_and_assign(kafka: Cluster, make_topics: MakeTopics, protocol: Protocol) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(20))
    with Member(kafka, [topic], protocol=protocol) as member:
        member.poll_until(lambda: len(member.messages) == 20, what="messages")
        member.messages.clear()
        member.consumer.pause([TopicPartition(topic, 0)])
        restart(member.consumer, topic, 0, 7)
        member.poll_for(5)
        assert member.messages == []
        member.consumer.resume([TopicPartition(topic, 0)])
        member.poll_until(lambda: len(member.messages) == 13, what="messages after resume")
        assert member.offsets() == list(range(7, 20))


@both_protocols
def test_a_partition_assigned_at_a_logical_offset_and_paused_asks_nothing_and_delivers_nothing(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(20))

    def hold(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        held = [TopicPartition(place.topic, place.partition, OFFSET_BEGINNING) for place in partitions]
        consumer.incremental_assign(held)
        consumer.pause(held)

    with Member(kafka, [topic], protocol=protocol, on_assigned=hold, auto_offset_reset="error") as member:
        member.poll_until(lambda: member.assigned() == {0}, what="the partition")
        member.poll_for(10)
        assert (member.messages, member.errors) == ([], [])
        restart(member.consumer, topic, 0, 4)
        member.consumer.resume([TopicPartition(topic, 0)])
        member.poll_until(lambda: len(member.messages) == 16, what="messages")
        assert member.offsets() == list(range(4, 20))


@both_protocols
def test_without_a_committed_offset_reset_error_is_raised_even_when_paused(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(3))

    def assign_and_pause(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)

    with Member(kafka, [topic], protocol=protocol, on_assigned=assign_and_pause, auto_offset_reset="error") as member:
        member.poll_until(lambda: bool(member.errors), what="the error")
        member.poll_for(3)
        assert [(error.code(), error.fatal()) for error in member.errors] == [(KafkaError._AUTO_OFFSET_RESET, False)]
        with pytest.raises(KafkaException) as seek:
            member.consumer.seek(TopicPartition(topic, 0, 1))
        assert seek.value.args[0].code() == KafkaError._STATE
        restart(member.consumer, topic, 0, 1)
        member.consumer.resume([TopicPartition(topic, 0)])
        member.poll_until(lambda: member.offsets() == [1, 2], what="messages")


def test_reset_latest_loses_what_was_sent_to_a_partition_before_the_group_saw_it(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    with Member(
        kafka, [topic], auto_offset_reset="latest", topic_metadata_refresh_interval_ms=2000, protocol="classic"
    ) as member:
        member.poll_until(lambda: member.assigned() == {0}, what="the first partition")
        kafka.add_partitions(topic, 2)
        send(kafka, topic, [Record(b"lost", partition=1) for _ in range(50)])
        member.poll_until(lambda: member.assigned() == {0, 1}, what="the added partition")
        wait_until_position = [Record(b"seen", partition=1)]
        member.poll_for(10)
        send(kafka, topic, wait_until_position)
        member.poll_until(lambda: bool(member.offsets(1)), what="a later message")
        assert member.offsets(1)[0] >= 50


# --- commits -------------------------------------------------------------------------------------------------------


@both_protocols
def test_inside_a_revoke_callback_an_asynchronous_commit_is_confirmed_by_committed(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=2).images
    send(kafka, topic, numbered(20, partitions=2))
    confirmed: list[tuple[int, str | None]] = []
    callbacks_inside: list[int] = []

    def on_revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        points = [TopicPartition(topic, place.partition, 5, metadata="note") for place in partitions]
        consumer.commit(offsets=points, asynchronous=True)
        confirmed.extend((place.offset, place.metadata) for place in consumer.committed(partitions, timeout=5))
        callbacks_inside.append(len(member.commits))

    with Member(kafka, [topic], protocol=protocol, on_revoked=on_revoked) as member:
        member.poll_until(lambda: len(member.messages) == 20, what="messages")
        # `unsubscribe` and polls, not `close`: inside close() committed() is never answered (next test).
        member.consumer.unsubscribe()
        member.poll_until(lambda: bool(confirmed), what="the revocation")
        assert confirmed == [(5, "note"), (5, "note")]
        assert callbacks_inside == [0]
        member.poll_until(lambda: bool(member.commits), what="the commit's own answer, in a later poll")
        assert committed(kafka, member.group, topic, 2) == {0: (5, "note"), 1: (5, "note")}


@both_protocols
def test_inside_close_a_commit_is_sent_but_committed_is_never_answered(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(3))
    errors: list[Any] = []

    def on_revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=True)
        try:
            consumer.committed(partitions, timeout=1)
        except KafkaException as error:
            errors.append(error.args[0].code())

    with Member(kafka, [topic], protocol=protocol, on_revoked=on_revoked) as member:
        member.poll_until(lambda: len(member.messages) == 3, what="messages")
    assert errors == [KafkaError._TIMED_OUT]
    assert committed(kafka, member.group, topic) == {0: (2, None)}


@both_protocols
def test_the_note_of_a_commit_is_stored_and_a_commit_without_one_clears_it(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    with Member(kafka, [topic], protocol=protocol) as member:
        member.poll_until(lambda: member.assigned() == {0}, what="the partition")
        for note, stored in (("trip: é", "trip: é"), (None, None)):
            member.commits.clear()
            more: Any = {} if note is None else {"metadata": note}
            member.consumer.commit(offsets=[TopicPartition(topic, 0, 1, **more)], asynchronous=True)
            member.poll_until(lambda: bool(member.commits), what="the answer")
            assert committed(kafka, member.group, topic) == {0: (1, stored)}
            (place,) = member.consumer.committed([TopicPartition(topic, 0)], timeout=5)
            assert (place.offset, place.metadata) == (1, stored)


@both_protocols
def test_one_failed_partition_of_a_commit_gives_its_error_to_those_that_were_committed(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    with Member(kafka, [topic], protocol=protocol) as member:
        member.poll_until(lambda: member.assigned() == {0}, what="the partition")
        points = [TopicPartition(topic, 0, 1), TopicPartition(topic, 9, 1)]  # there is no partition 9
        member.consumer.commit(offsets=points, asynchronous=True)
        member.poll_until(lambda: bool(member.commits), what="the answer")
        codes = [place.error.code() for place in member.commits[0][1] if place.error]
        assert codes == [KafkaError.UNKNOWN_TOPIC_OR_PART] * 2
        assert committed(kafka, member.group, topic)[0] == (1, None)


def test_a_synchronous_commit_waits_for_an_outage_to_end(broker: KafkaBroker, make_topics: MakeTopics) -> None:
    topic = make_topics(partitions=1).images
    send(broker, topic, numbered(3))
    with Member(broker, [topic]) as member, ThreadPoolExecutor(1) as thread:
        member.poll_until(lambda: len(member.messages) == 3, what="messages")
        broker.pause()
        commit = thread.submit(member.consumer.commit, offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
        with pytest.raises(TimeoutError):
            commit.result(2)
        broker.resume()
        assert commit.result(20)[0].error is None


def test_transaction_markers_leave_lag_behind_the_last_message_and_position_passes_them(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    producer = Producer(kafka.client_properties(transactional_id=unique("transactions")))
    producer.init_transactions(20)
    for commits in (True, True, False):
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(topic, b"x")
        producer.flush(10)
        if commits:
            producer.commit_transaction(10)
        else:
            producer.abort_transaction(10)
    wait_until(lambda: end_offsets(kafka, topic) == {0: 12}, timeout_s=10, what="the last marker")
    with Member(kafka, [topic], isolation_level="read_committed") as member:
        member.poll_until(lambda: position(member.consumer, topic) == 12, what="the end")
        assert member.offsets() == [0, 1, 2, 4, 5, 6]
        assert member.consumer.get_watermark_offsets(TopicPartition(topic, 0), cached=True) == (0, 12)
    assert len(read_to_end(kafka, topic)) == 6


def test_the_lag_of_the_statistics_is_unknown_until_something_is_committed(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(10))
    seen: list[Any] = []
    with Member(
        kafka, [topic], statistics_interval_ms=50, stats_cb=lambda text: seen.append(json.loads(text))
    ) as member:

        def partition() -> Any:
            return seen[-1]["topics"].get(topic, {}).get("partitions", {}).get("0", {}) if seen else {}

        member.poll_until(lambda: partition().get("app_offset") == 10, what="statistics at the end")
        assert partition()["ls_offset"] == 10
        assert partition()["consumer_lag"] == -1
        member.consumer.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=True)
        member.poll_until(lambda: partition()["consumer_lag"] == 6, what="lag, counted from the commit")


# --- members of a group --------------------------------------------------------------------------------------------


@both_protocols
def test_the_loser_of_a_group_instance_id_is_told_once_and_not_as_fatal(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    with Member(kafka, [topic], protocol=protocol, group_instance_id="one") as first:
        first.poll_until(lambda: first.assigned() == {0}, what="the partition")
        with Member(kafka, [topic], protocol=protocol, group=first.group, group_instance_id="one") as second:

            def told() -> bool:
                second.poll(0.05)
                return bool(first.errors or second.errors)

            first.poll_until(told, what="one of the two to be fenced", timeout_s=30)
            loser = first if first.errors else second
            loser.poll_for(10)
            assert [(error.code(), error.fatal()) for error in loser.errors] == [(KafkaError._FATAL, False)]


def recreate(cluster: Cluster, topic: str) -> None:
    cluster.delete_topic(topic)
    cluster.create_topic(topic)


def test_a_recreated_topic_is_read_from_the_old_position_by_the_classic_protocol(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(100))

    def topic_id() -> str:
        return str(kafka.admin().describe_topics(TopicCollection([topic]))[topic].result(10).topic_id)

    with Member(kafka, [topic], protocol="classic") as member:
        member.poll_until(lambda: len(member.messages) == 100, what="the first topic's messages")
        old_id = topic_id()
        member.messages.clear()
        recreate(kafka, topic)  # nobody polls meanwhile, as in a long rebalance or a paused process
        send(kafka, topic, numbered(200))
        member.poll_until(lambda: len(member.messages) >= 100, what="the second topic's messages")
        member.poll_for(10)
        assert member.offsets() == list(range(100, 200)), "100 of 200, without an error"
        assert member.errors == []
        assert topic_id() != old_id


def test_a_recreated_topic_is_read_whole_by_kip_848_after_some_of_it_came_on_the_old_assignment(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(100))
    with Member(kafka, [topic], protocol="consumer", topic_metadata_refresh_interval_ms=1000) as member:
        member.poll_until(lambda: len(member.messages) == 100, what="the first topic's messages")
        member.messages.clear()
        recreate(kafka, topic)
        send(kafka, topic, numbered(200))
        member.poll_until(lambda: member.offsets()[-200:] == list(range(200)), what="the second topic's messages")
        assert set(member.offsets()[:-200]) <= set(range(100, 200)), "read at the old position of the new topic"


def test_a_missing_topic_is_an_error_in_the_classic_protocol_and_silence_in_kip_848(kafka: Cluster) -> None:
    missing = unique("missing")
    with Member(kafka, [missing], protocol="classic") as classic:
        classic.poll_until(lambda: bool(classic.errors), what="the error")
        assert [(error.code(), error.fatal()) for error in classic.errors] == [
            (KafkaError.UNKNOWN_TOPIC_OR_PART, False)
        ]
    with Member(kafka, [missing], protocol="consumer") as modern:
        modern.poll_for(20)
        assert (modern.errors, modern.rebalances) == ([], [])


@both_protocols
def test_a_topic_deleted_while_it_is_read_is_taken_away(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(3))
    with Member(kafka, [topic], protocol=protocol, topic_metadata_refresh_interval_ms=500) as member:
        member.poll_until(lambda: len(member.messages) == 3, what="messages")
        kafka.delete_topic(topic)
        member.poll_until(lambda: member.assigned() == set(), what="the partition to be taken away")
        member.poll_for(3)
        kinds = [kind for kind, _ in member.rebalances]
        codes = [error.code() for error in member.errors]
        if protocol == "classic":
            assert kinds == ["assigned", "lost"]
            assert codes == [KafkaError.UNKNOWN_TOPIC_OR_PART]
        else:
            assert kinds[:2] == ["assigned", "revoked"]
            assert codes == []


@both_protocols
def test_rights_taken_away_while_reading_show_where_they_show(
    secure_broker: KafkaBroker, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topics = make_topics(partitions=1, cluster=secure_broker)
    topic = topics.images
    send(secure_broker, topic, numbered(3))
    secure_broker.allow(AclOperation.READ, ResourceType.TOPIC, topic)
    ouzel = KafkaBroker.user_properties("ouzel")
    more: Any = {name.replace(".", "_"): value for name, value in ouzel.items()}
    with Member(secure_broker, [topic], protocol=protocol, group=topics.group, **more) as refused:
        refused.poll_until(lambda: bool(refused.errors), what="the refused group")
        assert refused.errors[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED
        assert not refused.errors[0].fatal()
    secure_broker.allow(AclOperation.READ, ResourceType.GROUP, topics.group)
    with Member(
        secure_broker,
        [topic],
        protocol=protocol,
        group=topics.group,
        topic_metadata_refresh_interval_ms=500,
        **more,
    ) as member:
        member.poll_until(lambda: len(member.messages) == 3, what="messages")
        secure_broker.revoke(AclOperation.READ, ResourceType.TOPIC, topic)
        member.poll_until(lambda: bool(member.client_errors), what="error_cb")
        assert {error.code() for error in member.client_errors} == {KafkaError.TOPIC_AUTHORIZATION_FAILED}
        assert not any(error.fatal() for error in member.client_errors)
        if protocol == "classic":
            member.poll_until(lambda: ("lost", (0,)) in member.rebalances, what="the loss")
        else:
            # It keeps the partition. Whether a fetch was refused first, which poll() tells, is a matter of moments.
            member.poll_for(10)
            assert member.assigned() == {0}
            assert {error.code() for error in member.errors} <= {KafkaError.TOPIC_AUTHORIZATION_FAILED}


# --- producing -----------------------------------------------------------------------------------------------------


def test_a_record_reported_as_timed_out_may_be_in_the_topic(broker: KafkaBroker, make_topics: MakeTopics) -> None:
    topic = make_topics(partitions=1).images
    reports: list[KafkaError | None] = []
    producer = Producer(
        broker.client_properties(enable_idempotence=True, acks="all", linger_ms=50, delivery_timeout_ms=1500)
    )
    producer.produce(topic, b"warm", on_delivery=lambda error, _: reports.append(error))
    assert producer.flush(10) == 0
    broker.pause()
    for _ in range(3):
        producer.produce(topic, b"x", on_delivery=lambda error, _: reports.append(error))
    wait_until(lambda: producer.poll(0.1) == 0 and len(reports) == 4, timeout_s=20, what="the reports", interval_s=0)
    broker.resume()
    codes = [None if error is None else error.code() for error in reports]
    assert codes == [None] + [KafkaError._MSG_TIMED_OUT] * 3
    wait_until(lambda: end_offsets(broker, topic) == {0: 4}, timeout_s=20, what="all of them in the topic")


def test_a_null_key_is_refused_by_a_compacted_topic(kafka: Cluster, make_topics: MakeTopics) -> None:
    topic = make_topics(partitions=1, images_config={"cleanup.policy": "compact"}).images
    with pytest.raises(KafkaException) as refused:
        send(kafka, topic, [Record(b"x")])
    assert refused.value.args[0].code() == KafkaError.INVALID_RECORD


def test_a_record_over_a_million_bytes_is_refused_by_the_client_and_above_the_topics_limit_by_the_broker(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    largest = 1_048_400  # with the topic's default max.message.bytes of 1,048,588
    with pytest.raises(KafkaException) as by_client:
        send(kafka, topic, [Record(b"0" * largest)], compression_type="zstd")
    assert by_client.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    send(kafka, topic, [Record(b"0" * largest)], message_max_bytes=2_000_000)
    letter = Record(b"0" * largest, headers=[("__connect.errors.exception.message", b"x" * 500)])
    with pytest.raises(KafkaException) as by_broker:
        send(kafka, topic, [letter], message_max_bytes=2_000_000)
    assert by_broker.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


# --- administration ------------------------------------------------------------------------------------------------


def test_offsets_are_listed_by_isolation_and_an_unreached_time_gives_minus_one(
    kafka: Cluster, make_topics: MakeTopics
) -> None:
    topic = make_topics(partitions=1).images
    send(kafka, topic, numbered(5))
    producer = Producer(kafka.client_properties(transactional_id=unique("transactions")))
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, b"x")
    producer.flush(10)
    assert end_offsets(kafka, topic) == {0: 5}
    assert end_offsets(kafka, topic, isolation=IsolationLevel.READ_UNCOMMITTED) == {0: 6}
    producer.abort_transaction(10)
    later = OffsetSpec.for_timestamp(int(time.time() * 1000) + 3_600_000)
    (answer,) = kafka.admin().list_offsets({TopicPartition(topic, 0): later}).values()
    assert answer.result(10).offset == -1


def test_the_cluster_has_an_id(kafka: Cluster) -> None:
    assert kafka.admin().describe_cluster().result(10).cluster_id


# --- the mock cluster of the demo ----------------------------------------------------------------------------------


@pytest.fixture
def mock_cluster() -> Iterator[Cluster]:
    """librdkafka's own, in this process; it lives as long as the client that made it."""
    host = AdminClient({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 2})
    address = str(host.list_topics(timeout=10).brokers)
    found = re.findall(r"127\.0\.0\.1:\d+", address)
    yield Cluster(found[0])
    del host


@both_protocols
def test_the_mock_cluster_has_groups_of_both_protocols_but_does_not_create_topics_by_request(
    mock_cluster: Cluster, protocol: Protocol
) -> None:
    topic = unique("images")
    refused = mock_cluster.admin().create_topics([NewTopic(topic, num_partitions=1)], request_timeout=3)
    with pytest.raises(KafkaException):
        refused[topic].result(10)
    send(mock_cluster, topic, [Record(b"x", partition=0) for _ in range(10)])  # created by being written to
    with Member(mock_cluster, [topic], protocol=protocol) as member:
        member.poll_until(lambda: len(member.messages) == 10, what="messages")
        member.consumer.commit(offsets=[TopicPartition(topic, 0, 10)], asynchronous=True)
        member.poll_until(lambda: bool(member.commits), what="the commit's answer")
        assert member.commits[0][0] is None
        assert member.consumer.committed([TopicPartition(topic, 0)], timeout=5)[0].offset == 10


# --- transactions ---------------------------------------------------------------------------------------------------


def _transact(kafka: Cluster, topics: Topics, member: bytes | None, offset: int) -> KafkaError | None:
    """One transaction with an offset of the group, in the name of that member; why it failed, if it did."""
    producer = Producer(kafka.client_properties(transactional_id=f"{topics.group}-{offset}"))
    producer.init_transactions(30)
    producer.begin_transaction()
    try:
        producer.send_offsets_to_transaction([TopicPartition(topics.images, 0, offset)], member, 30)
        producer.commit_transaction(30)
    except KafkaException as error:
        producer.abort_transaction(30)
        refusal: KafkaError = error.args[0]
        return refusal
    return None


@both_protocols
def test_a_transactions_offsets_are_refused_from_an_old_member_and_in_the_classic_protocol_taken_from_nobody(
    kafka: Cluster, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topics = make_topics(partitions=1)
    send(kafka, topics.images, numbered(3))
    with Member(kafka, [topics.images], group=topics.group, protocol=protocol) as member:
        nobody: bytes = member.consumer.consumer_group_metadata()
        assert struct.unpack_from("=7si", nobody) == (b"CGMDv2:", -1)
        member.poll_until(lambda: member.assigned() == {0}, what="the partition")
        known: bytes = member.consumer.consumer_group_metadata()
        assert struct.unpack_from("=7si", known)[1] >= 0
        assert _transact(kafka, topics, known, 1) is None
        in_nobodys_name = _transact(kafka, topics, nobody, 2)
        assert (in_nobodys_name is None) == (protocol == "classic"), "so we must not ask in nobody's name"
    with Member(kafka, [topics.images], group=topics.group, protocol=protocol) as other:
        other.poll_until(lambda: other.assigned() == {0}, what="the partition")
        refusal = _transact(kafka, topics, known, 3)
        assert refusal is not None
        assert refusal.txn_requires_abort()


# --- groups of another kind ----------------------------------------------------------------------------------------


def _share_is_refused(kafka: Cluster, group: str, topic: str) -> bool:
    member = ShareConsumer(kafka.client_properties(group_id=group))
    member.subscribe([topic])
    refused = False
    try:
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s and not refused:
            try:
                member.poll(0.2)
            except KafkaException as error:
                refused = error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND
    finally:
        member.close()
    return refused


@both_protocols
def test_a_share_group_gets_the_id_of_a_consumer_group_only_when_that_was_deleted(
    kafka: Cluster, topics: Topics, protocol: Protocol
) -> None:
    """docs/operations.md: another guarantee. Neither its members nor, when they have left, its offsets matter."""
    properties = kafka.client_properties(group_id=topics.group, group_protocol=protocol, enable_auto_commit=False)
    member = Consumer(properties | {"auto.offset.reset": "earliest"})
    member.subscribe([topics.images])

    def joined() -> bool:
        member.poll(0.1)
        return len(member.assignment()) == topics.partitions

    wait_until(joined, timeout_s=20, what="an assignment", interval_s=0)
    member.commit(offsets=[TopicPartition(topics.images, 0, 0)], asynchronous=False)
    assert _share_is_refused(kafka, topics.group, topics.images)
    member.close()
    assert _share_is_refused(kafka, topics.group, topics.images)

    def deleted() -> bool:
        with contextlib.suppress(KafkaException):  # while the broker thinks that it has a member
            kafka.admin().delete_consumer_groups([topics.group])[topics.group].result(10)
            return True
        return False

    wait_until(deleted, timeout_s=20, what="the group to be deleted")
    assert not _share_is_refused(kafka, topics.group, topics.images)
