"""`ouzel run --from --until --group` against a real broker: the range, all of it, nothing else, and an end."""

import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, ResourceType
from PIL import Image

from consumer.adapters.kafka.group_view import KafkaGroupView
from consumer.errors import NotAuthorized, RangeUnfinished
from consumer.messages import CommitPoint, Partition
from consumer.stages.start import Note
from consumer.times import rfc3339
from tests.conftest import MakeTopics, Topics
from tests.integration.command_line import ouzel_here
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import PROTOCOLS, Protocol, Record, end_offsets, read_to_end, send, unique
from tests.processes import wait_until
from tests.replica import CRASHING, Replica
from tests.runs import inline_image

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000
NOON_MS = time.time_ns() // 1_000_000 - 6 * HOUR_MS
"""Some time ago, but nothing that retention would take."""


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


PICTURE = _picture()


def images(count: int, *, partitions: int = 3, at_ms: int | None = None) -> list[Record]:
    """So many images, dealt to the partitions in turn."""
    return [
        Record(inline_image(f"image-{n}", PICTURE), key=b"%d" % n, partition=n % partitions, timestamp_ms=at_ms)
        for n in range(count)
    ]


def relabelling(
    cluster: Cluster, topics: Topics, group: str, *, since: str = "earliest", until: str = "end", **settings: str
) -> Replica:
    """A replica of the range's group, not started."""
    options = ("--from", since, "--until", until, "--group", group)
    return Replica(cluster, topics, settings={"OUZEL_COMMIT__INTERVAL_MS": "50", **settings}, options=options)


def slow(cluster: Cluster, topics: Topics, group: str, **settings: str) -> Replica:
    """One of the same group, from the earliest to the end, whose model takes 0.1 s for each image."""
    changed = {
        "OUZEL_TEST_RELABEL": "earliest end",
        "OUZEL_TEST_SLOW_MODEL_S": "0.1",
        "OUZEL_BATCH__MAX_SIZE": "1",
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "6",  # what has begun is finished at a SIGTERM
        "OUZEL_COMMIT__INTERVAL_MS": "50",
    }
    return Replica(cluster, replace(topics, group=group), settings=changed | settings, entry=CRASHING)


def labelled(cluster: Cluster, topics: Topics) -> list[tuple[int, int]]:
    """(partition, offset) of the message that each label event answers, sorted."""
    events = [json.loads(message.value() or b"") for message in read_to_end(cluster, topics.predictions)]
    return sorted((event["source"]["partition"], event["source"]["offset"]) for event in events)


def committed(cluster: Cluster, topics: Topics, group: str) -> dict[Partition, CommitPoint]:
    view = KafkaGroupView(cluster.client_properties(), group_id=group, timeout_ms=10_000)
    try:
        return dict(view.committed([Partition(topics.images, number) for number in range(topics.partitions)]))
    finally:
        view.close()


def offsets_of(points: dict[Partition, CommitPoint]) -> dict[int, int]:
    return {partition.number: point.offset for partition, point in points.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_range_of_time_is_labelled_and_nothing_else(kafka: Cluster, topics: Topics, protocol: Protocol) -> None:
    send(kafka, topics.images, images(6, at_ms=NOON_MS - HOUR_MS))
    wanted = send(kafka, topics.images, images(30, at_ms=NOON_MS))
    send(kafka, topics.images, images(9, at_ms=NOON_MS + HOUR_MS))
    group = unique("range")
    times = {"since": rfc3339(NOON_MS), "until": rfc3339(NOON_MS + HOUR_MS)}
    with relabelling(kafka, topics, group, **times, OUZEL_KAFKA__GROUP_PROTOCOL=protocol) as replica:
        assert replica.start().wait_exit() == 0
        assert replica.said("relabelled 30 of 30 messages")
    assert labelled(kafka, topics) == sorted((each.partition, each.offset) for each in wanted)
    assert offsets_of(committed(kafka, topics, group)) == {0: 12, 1: 12, 2: 12}


def test_the_end_is_that_of_the_first_start_while_producers_go_on(kafka: Cluster, topics: Topics) -> None:
    send(kafka, topics.images, images(60))
    with _writing(kafka, topics), relabelling(kafka, topics, group := unique("range")) as replica:
        assert replica.start().wait_exit() == 0
        points = committed(kafka, topics, group)
        ends = end_offsets(kafka, topics.images)
    assert all(ends[number] > offset for number, offset in offsets_of(points).items())
    for partition, point in points.items():
        part = Note.load(point.metadata).part
        assert part is not None
        assert point.offset == part.end, partition
    # Every message before the ends, and none at or after them.
    assert labelled(kafka, topics) == [
        (number, offset) for number, end in sorted(offsets_of(points).items()) for offset in range(end)
    ]


@contextmanager
def _writing(cluster: Cluster, topics: Topics) -> Iterator[None]:
    """Messages go on coming to every partition."""
    over, begun = threading.Event(), threading.Event()

    def write() -> None:
        while not over.wait(0.02):
            send(cluster, topics.images, images(3))
            begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(30)
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_range_that_was_killed_goes_on_where_it_was_and_to_the_same_end(
    kafka: Cluster, topics: Topics, protocol: Protocol
) -> None:
    sent = send(kafka, topics.images, images(90))
    group = unique("range")
    crash = {"OUZEL_TEST_CRASH_AT": "after-commit:3", "OUZEL_KAFKA__GROUP_PROTOCOL": protocol}
    with slow(kafka, topics, group, **crash) as replica:
        assert replica.start().wait_exit() == -9
    half = committed(kafka, topics, group)
    assert 0 < sum(offsets_of(half).values()) < 90
    send(kafka, topics.images, images(30))  # not of the range: it was fixed when it was begun
    with relabelling(kafka, topics, group, OUZEL_KAFKA__GROUP_PROTOCOL=protocol) as replica:
        assert replica.start().wait_exit() == 0
    assert set(labelled(kafka, topics)) == {(each.partition, each.offset) for each in sent}
    assert offsets_of(committed(kafka, topics, group)) == {0: 30, 1: 30, 2: 30}
    again = labelled(kafka, topics)
    with relabelling(kafka, topics, group) as replica:  # once more: nothing is left
        assert replica.start().wait_exit() == 0
        assert replica.said("nothing is left of this range")
    assert labelled(kafka, topics) == again


def test_sigterm_midway_is_not_taken_for_the_end(kafka: Cluster, topics: Topics) -> None:
    sent = send(kafka, topics.images, images(90))
    group = unique("range")
    with slow(kafka, topics, group) as replica:
        replica.start().wait_ready()
        replica.wait_for(lambda: sum(offsets_of(committed(kafka, topics, group)).values()) > 0, 30, "a commit")
        assert replica.terminate() == RangeUnfinished.exit_code == 15
        assert replica.said("stopped before the range was done")
    done = labelled(kafka, topics)
    assert 0 < len(done) < 90
    with relabelling(kafka, topics, group) as replica:
        assert replica.start().wait_exit() == 0
    assert labelled(kafka, topics) == sorted((each.partition, each.offset) for each in sent)  # none twice


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replicas_share_a_range_and_all_end_when_all_of_it_is_done(
    kafka: Cluster, topics: Topics, protocol: Protocol
) -> None:
    sent = send(kafka, topics.images, images(60))
    group = unique("range")
    replicas = [slow(kafka, topics, group, OUZEL_KAFKA__GROUP_PROTOCOL=protocol) for _ in range(2)]
    with replicas[0] as one, replicas[1] as other:
        one.start()
        other.start()  # at once: one of them fixes the range, both find it
        assert one.wait_exit() == other.wait_exit() == 0
    assert set(labelled(kafka, topics)) == {(each.partition, each.offset) for each in sent}
    assert offsets_of(committed(kafka, topics, group)) == {0: 20, 1: 20, 2: 20}


def test_the_partitions_of_a_replica_that_dies_are_finished_by_the_other(kafka: Cluster, topics: Topics) -> None:
    sent = send(kafka, topics.images, images(90))
    group = unique("range")
    with slow(kafka, topics, group) as one, slow(kafka, topics, group) as other:
        one.start().wait_ready()
        other.start().wait_ready()
        other.wait_for(lambda: other.said("assigned"), 30, "partitions for the second")
        other.kill9()
        assert one.wait_exit() == 0
    assert set(labelled(kafka, topics)) == {(each.partition, each.offset) for each in sent}


def test_a_range_ends_although_its_last_records_are_no_messages(kafka: Cluster, topics: Topics) -> None:
    """Transaction markers and aborted records: no message has the offset before the end."""
    _send_transaction(kafka, topics, images(6), commit=True)
    _send_transaction(kafka, topics, images(9), commit=False)
    group = unique("range")
    with relabelling(kafka, topics, group) as replica:
        assert replica.start().wait_exit() == 0
    assert labelled(kafka, topics) == [(number, offset) for number in range(3) for offset in range(2)]
    assert offsets_of(committed(kafka, topics, group)) == {0: 7, 1: 7, 2: 7}  # 2, marker, 3 aborted, marker


def test_a_transaction_that_is_open_at_the_end_is_waited_for(kafka: Cluster, topics: Topics) -> None:
    producer = _transactional(kafka)
    producer.begin_transaction()
    _produce(producer, topics, images(6))
    with relabelling(kafka, topics, group := unique("range")) as replica:
        replica.start().wait_ready()
        replica.wait_for(lambda: bool(committed(kafka, topics, group)), 30, "the range to be fixed")
        assert replica.exit_code is None
        producer.commit_transaction()
        assert replica.wait_exit() == 0
    assert labelled(kafka, topics) == [(number, offset) for number in range(3) for offset in range(2)]


def _transactional(cluster: Cluster) -> Producer:
    producer = Producer(cluster.client_properties(transactional_id=unique("transaction")))
    producer.init_transactions(30)
    return producer


def _produce(producer: Producer, topics: Topics, records: Sequence[Record]) -> None:
    for record in records:
        producer.produce(topics.images, record.value, record.key, partition=record.partition or 0)
    assert producer.flush(30) == 0


def _send_transaction(cluster: Cluster, topics: Topics, records: Sequence[Record], *, commit: bool) -> None:
    producer = _transactional(cluster)
    producer.begin_transaction()
    _produce(producer, topics, records)
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()


def test_an_empty_range_ends_at_once(kafka: Cluster, topics: Topics) -> None:
    send(kafka, topics.images, images(6, at_ms=NOON_MS))
    times = {"since": rfc3339(NOON_MS - 2 * HOUR_MS), "until": rfc3339(NOON_MS - HOUR_MS)}
    with relabelling(kafka, topics, unique("range"), **times) as replica:
        assert replica.start().wait_exit() == 0
        assert replica.said("nothing is left of this range")
    assert labelled(kafka, topics) == []


def test_messages_that_retention_takes_meanwhile_do_not_keep_it_from_ending(
    kafka: Cluster, topics: Topics, make_topics: MakeTopics
) -> None:
    send(kafka, topics.images, images(30))
    group = unique("range")
    with slow(kafka, topics, group, OUZEL_TEST_CRASH_AT="after-commit:1") as replica:
        assert replica.start().wait_exit() == -9
    send(kafka, topics.images, images(30))
    admin: AdminClient = kafka.admin()
    asked = [TopicPartition(topics.images, number, 15) for number in range(3)]  # past the range's end, 10
    for answer in admin.delete_records(asked).values():
        answer.result(10)
    with relabelling(kafka, topics, group) as replica:
        assert replica.start().wait_exit() == 0
    assert offsets_of(committed(kafka, topics, group)) == {0: 10, 1: 10, 2: 10}
    assert all(offset < 10 for _, offset in labelled(kafka, topics))


# --- groups that are for something else -----------------------------------------------------------------------------


def _refused(replica: Replica) -> str:
    with replica:
        assert replica.start().wait_exit() in (1, 2)
        return replica.log_file.read_text()


def test_the_service_s_own_group_is_refused(kafka: Cluster, topics: Topics) -> None:
    assert "is the service's own" in _refused(relabelling(kafka, topics, topics.group))


def test_a_group_with_offsets_of_its_own_is_refused_and_keeps_them(kafka: Cluster, topics: Topics) -> None:
    send(kafka, topics.images, images(6))
    group = unique("reporting")
    client = Consumer(kafka.client_properties(group_id=group, enable_auto_commit=False))
    client.commit(offsets=[TopicPartition(topics.images, 1, 2)], asynchronous=False)
    client.close()
    assert "it is used for something else" in _refused(relabelling(kafka, topics, group))
    assert offsets_of(committed(kafka, topics, group)) == {1: 2}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_group_that_is_live_with_others_is_refused(kafka: Cluster, topics: Topics, protocol: Protocol) -> None:
    group = unique("reporting")
    member = Consumer(kafka.client_properties(group_id=group, group_protocol=protocol, enable_auto_commit=False))
    try:
        member.subscribe([topics.images])

        def joined() -> bool:
            member.poll(0.1)
            return bool(member.assignment())

        wait_until(joined, timeout_s=30, what="the other member to join")
        assert "has members that do something else" in _refused(relabelling(kafka, topics, group))
        assert committed(kafka, topics, group) == {}
    finally:
        member.close()


def test_a_group_relabels_one_range(kafka: Cluster, topics: Topics) -> None:
    send(kafka, topics.images, images(6, at_ms=NOON_MS))
    group = unique("range")
    with relabelling(kafka, topics, group) as replica:
        assert replica.start().wait_exit() == 0
    said = _refused(relabelling(kafka, topics, group, since=rfc3339(NOON_MS)))
    assert "relabels another range, from earliest until end" in said


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_on_its_group_is_all_the_right_that_a_range_needs_beside_the_services(
    secure_broker: KafkaBroker, make_topics: MakeTopics, protocol: Protocol
) -> None:
    topics = make_topics(cluster=secure_broker)
    group = unique("range")
    as_ouzel = {
        "OUZEL_KAFKA__CLIENT__SASL_USERNAME": "ouzel",
        "OUZEL_KAFKA__CLIENT__SASL_PASSWORD": "ouzel-secret",
        "OUZEL_KAFKA__GROUP_PROTOCOL": protocol,
    }
    send(secure_broker, topics.images, images(6))
    for operation, kind, name in (
        (AclOperation.READ, ResourceType.TOPIC, topics.images),
        (AclOperation.WRITE, ResourceType.TOPIC, topics.predictions),
        (AclOperation.WRITE, ResourceType.TOPIC, topics.dead_letters),
    ):
        secure_broker.allow(operation, kind, name)
    with relabelling(secure_broker, topics, group, **as_ouzel) as replica:
        assert replica.start().wait_exit() == NotAuthorized.exit_code
    secure_broker.allow(AclOperation.READ, ResourceType.GROUP, group)
    with relabelling(secure_broker, topics, group, **as_ouzel) as replica:
        assert replica.start().wait_exit() == 0
    assert len(labelled(secure_broker, topics)) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "earliest"), "belong together"),
        (("--group", "a"), "belong together"),
        (("--from", "yesterday", "--until", "end", "--group", "a"), "not an RFC 3339 time"),
        (("--from", "earliest", "--until", "2999-01-01T00:00:00Z", "--group", "a"), "yet to come"),
        (
            ("--from", "2026-01-01T12:00:00Z", "--until", "2026-01-01T12:00:00Z", "--group", "a"),
            "nothing lies from",
        ),
    ],
)
def test_a_range_that_is_none_is_told(options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.service.run_service", None)  # it would end this process
    answer = ouzel_here("run", *options)
    assert answer.code == 2
    assert said in " ".join(answer.stderr.replace("│", " ").split())


def test_a_range_that_is_none_ends_the_replica() -> None:
    topics = Topics("images", "predictions", "dead-letters", "group", partitions=1)
    with Replica(Cluster("127.0.0.1:9"), topics, options=("--from", "earliest")) as replica:
        assert replica.start().wait_exit() == 2
        assert "belong together" in " ".join(replica.log_file.read_text().replace("│", " ").split())
