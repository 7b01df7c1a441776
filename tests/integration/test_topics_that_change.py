"""Input topics that have gaps, grow, lose their records, or go away and come back: nothing that is there is lost."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import IsolationLevel, Producer

from tests.answers import Answers, Group, image_ids, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import PROTOCOLS, Protocol, Record, delete_before, end_offsets, read_to_end, send, unique
from tests.observer import topic_ids
from tests.processes import wait_until
from tests.replica import Replica
from tests.runs import inline_image

pytestmark = pytest.mark.kafka

PROTOCOL = "OUZEL_KAFKA__GROUP_PROTOCOL"
QUICK_METADATA = {
    "OUZEL_KAFKA__METADATA_INTERVAL_MS": "200",
    "OUZEL_KAFKA__CLIENT__TOPIC_METADATA_REFRESH_INTERVAL_MS": "300",
}
"""So that new partitions are seen at once; librdkafka looks every five minutes."""


def numbered_images(
    photographs: Sequence[Path], count: int, *, name: str = "image", partitions: int | None = None
) -> list[Record]:
    """`name-0`, `name-1`, ... under keys of their own, dealt to partitions in turn where their number is given."""
    return [
        Record(
            inline_image(f"{name}-{number}", photographs[number % len(photographs)].read_bytes()),
            key=f"{name}-{number}".encode(),
            partition=None if partitions is None else number % partitions,
        )
        for number in range(count)
    ]


def recreate(cluster: Cluster, topic: str, *, partitions: int) -> None:
    cluster.delete_topic(topic)

    def there() -> bool:
        try:
            cluster.create_topic(topic, partitions=partitions)
        except Exception:  # the broker is still at it
            return False
        return True

    wait_until(there, timeout_s=20, what="the topic to be made anew", interval_s=0.2)


# --- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_input_written_in_transactions_is_labelled_but_for_what_was_aborted(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol
) -> None:
    topics = make_topics(partitions=2)
    producer = Producer(kafka.client_properties(transactional_id=unique("writer"), partitioner="murmur2_random"))
    producer.init_transactions(30)
    committed: list[str] = []
    with Replica(kafka, topics, settings={PROTOCOL: protocol}) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        for transaction in range(10):
            aborts = transaction % 3 == 2 or transaction == 9  # the log ends with aborted records and markers
            name = f"{'aborted' if aborts else 'kept'}-{transaction}"
            producer.begin_transaction()
            for record in numbered_images(photographs, 7, name=name):
                producer.produce(topics.images, record.value, key=record.key)
            producer.flush(20)
            if aborts:
                producer.abort_transaction(20)
            else:
                producer.commit_transaction(20)
                committed += [f"{name}-{number}" for number in range(7)]
        answers.wait(lambda: len(answers.all) >= len(committed), "all that was committed")
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert sorted(image_ids(answers.events)) == sorted(committed)
        assert answers.letters == []
        # To the very end: behind the last marker, which no message shows.
        with Group(kafka, topics.group, topics.images) as group:
            ends = end_offsets(kafka, topics.images, isolation=IsolationLevel.READ_UNCOMMITTED)
            assert group.offsets() == {(topics.images, number): end for number, end in ends.items()}
        # As of the last statistics, which come once a second.
        replica.wait_for(lambda: replica.metric("ouzel_consumer_lag") == 0, 10, "a lag of none")
        assert replica.terminate() == 0


def test_compacted_input_is_labelled_to_its_end(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]
) -> None:
    topics = make_topics(
        partitions=1,
        images_config={
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.001",
            "segment.ms": "100",
            "max.compaction.lag.ms": "100",
            "delete.retention.ms": "100",
        },
    )
    photograph = photographs[0].read_bytes()

    def write(first: int, count: int) -> None:
        numbers = range(first, first + count)
        records = [Record(inline_image(f"image-{n}", photograph), key=b"key-%d" % (n % 5)) for n in numbers]
        send(kafka, topics.images, records)

    def compacted() -> bool:
        write(1000, 1)  # rolls the segment that compaction leaves alone while it is the newest
        return len(read_to_end(kafka, topics.images)) < end_offsets(kafka, topics.images)[0] - 20

    write(0, 50)
    wait_until(compacted, timeout_s=60, what="compaction", interval_s=0.5)
    with Replica(kafka, topics) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        write(2000, 3)
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        there = {json.loads(message.value() or b"")["image_id"] for message in read_to_end(kafka, topics.images)}
        assert {"image-48", "image-49", "image-2000", "image-2001", "image-2002"} <= there
        assert there <= set(image_ids(answers.events))
        assert len(set(image_ids(answers.events))) < 30  # of more than 50: the rest was gone before
        assert answers.letters == []
        assert replica.metric("ouzel_offsets_lost_total") == 0
        assert replica.terminate() == 0


# --- where a group starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_of_a_partition_that_is_added_is_lost(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol, start: str
) -> None:
    topics = make_topics(partitions=1)
    send(kafka, topics.images, numbered_images(photographs, 5, name="before"))
    settings = QUICK_METADATA | {PROTOCOL: protocol, "OUZEL_KAFKA__START": start}
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        with Group(kafka, topics.group, topics.images) as group:
            replica.wait_for(lambda: group.offsets() == {(topics.images, 0): 5}, 20, "the first commit")
        kafka.add_partitions(topics.images, 3)
        # Before the group has seen them.
        records = numbered_images(photographs, 30, name="after", partitions=3)
        producer = Producer(kafka.client_properties())
        for record in records:
            producer.produce(topics.images, record.value, key=record.key, partition=record.partition or 0)
        assert producer.flush(20) == 0
        expected = {f"after-{number}" for number in range(30)}
        if start == "earliest":
            expected |= {f"before-{number}" for number in range(5)}
        answers.wait(lambda: len(answers.all) >= len(expected), "all of the new partitions")
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert sorted(image_ids(answers.events)) == sorted(expected)
        assert replica.terminate() == 0


def test_a_group_may_start_at_a_time(kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]) -> None:
    topics = make_topics(partitions=2)
    begin_ms = int(time.time() * 1000) - 3_600_000
    records = [
        Record(record.value, record.key, partition=number % 2, timestamp_ms=begin_ms + 60_000 * number)
        for number, record in enumerate(numbered_images(photographs, 20))
    ]
    send(kafka, topics.images, records)
    moment = datetime.fromtimestamp((begin_ms + 60_000 * 11) / 1000, UTC).isoformat(timespec="milliseconds")
    with (
        Replica(kafka, topics, settings={"OUZEL_KAFKA__START": moment}) as replica,
        Answers(kafka, topics) as answers,
    ):
        replica.start().wait_ready()
        answers.wait(lambda: len(answers.all) >= 9, "those since that time")
        with Group(kafka, topics.group, topics.images) as group:
            replica.wait_for(lambda: len(group.offsets()) == 2 and not group.lag(), 20, "no lag")
        answers.read_to_end()
        assert sorted(image_ids(answers.events)) == sorted(f"image-{number}" for number in range(11, 20))
        assert replica.terminate() == 0


# --- retention ------------------------------------------------------------------------------------------------------


def test_retention_that_overtook_a_stopped_group_is_told_and_passed(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]
) -> None:
    topics = make_topics(partitions=2)
    with Replica(kafka, topics) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 10, partitions=2)))
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0
        send(kafka, topics.images, numbered_images(photographs, 20, name="gone", partitions=2))
        delete_before(kafka, topics.images, {0: 12, 1: 15})
        left = {f"gone-{number}" for number in (14, 16, 18)}  # from offset 12 of partition 0; of partition 1 none
        replica.start().wait_ready()
        sent = send(kafka, topics.images, numbered_images(photographs, 4, name="new", partitions=2))
        answers.to_all(sent)
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert set(image_ids(answers.events)) == (
            {f"image-{number}" for number in range(10)} | left | {f"new-{number}" for number in range(4)}
        )
        assert replica.metric("ouzel_offsets_lost_total") == 7 + 10
        said = {
            line["partition"]: (line["level"], line["message"])
            for line in replica.log_lines()
            if "were deleted before they were read" in line["message"]
        }
        assert said[0] == (
            "ERROR",
            "offsets 5 to 11 were deleted before they were read (retention); going on at 12",
        )
        assert said[1][1].startswith("offsets 5 to 14 ")
        assert replica.terminate() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_retention_that_overtakes_a_running_replica_is_told_and_passed(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol
) -> None:
    topics = make_topics(partitions=1)
    # Frozen, it cannot read; what the broker answers to a fetch that it had asked for is one batch, of one message.
    settings = {
        PROTOCOL: protocol,
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "4",
        "OUZEL_BATCH__MAX_SIZE": "2",
        "OUZEL_KAFKA__CONSUMER__QUEUED_MAX_MESSAGES_KBYTES": "1",
        "OUZEL_KAFKA__CONSUMER__QUEUED_MIN_MESSAGES": "1",
        "OUZEL_KAFKA__CONSUMER__FETCH_MESSAGE_MAX_BYTES": "1024",
    }
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 10)))
        wait_no_lag(kafka, topics)
        replica.freeze()
        send(kafka, topics.images, numbered_images(photographs, 30, name="gone"), batch_num_messages=1)
        delete_before(kafka, topics.images, {0: 35})
        replica.thaw()
        (last,) = send(kafka, topics.images, numbered_images(photographs, 1, name="new"))
        answers.to(last)
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        labelled = image_ids(answers.events)
        assert {f"gone-{number}" for number in range(25, 30)} <= set(labelled)
        assert len(labelled) == len(set(labelled))
        # Every one was labelled or is counted as lost.
        assert replica.metric("ouzel_offsets_lost_total") == 10 + 30 + 1 - len(labelled) > 0
        assert replica.said("were deleted before they were read")
        assert replica.terminate() == 0


def test_those_who_prefer_it_stop_when_retention_overtook_them(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]
) -> None:
    topics = make_topics(partitions=1)
    settings = {"OUZEL_KAFKA__ON_OFFSET_LOST": "stop"}
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 3)))
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0
        send(kafka, topics.images, numbered_images(photographs, 10, name="gone"))
        delete_before(kafka, topics.images, {0: 8})
        replica.start()
        assert replica.wait_exit() == 12
        (last,) = [line for line in replica.log_lines() if line.get("exit_code") == 12]
        assert "offsets 3 to 7" in last["message"]
        assert "kafka.on_offset_lost" in last["remedy"]
        with Group(kafka, topics.group, topics.images) as group:
            assert group.offsets() == {(topics.images, 0): 3}


# --- topics that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [3, 1], ids=["larger", "smaller"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_made_anew_is_read_from_its_beginning(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol, partitions: int
) -> None:
    topics = make_topics(partitions=2)
    settings = QUICK_METADATA | {PROTOCOL: protocol}
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 20, name="old", partitions=2)))
        wait_no_lag(kafka, topics)
        old_id = topic_ids(kafka, [topics.images])
        recreate(kafka, topics.images, partitions=partitions)
        assert topic_ids(kafka, [topics.images]) != old_id
        # More than the old one had: a reader that goes on at its old position would lose the first of them.
        send(kafka, topics.images, numbered_images(photographs, 60, name="new", partitions=partitions))
        expected = {f"new-{number}" for number in range(60)}
        answers.wait(lambda: expected <= set(image_ids(answers.events)), "all of the new topic", timeout_s=60)
        with Group(kafka, topics.group, topics.images) as group:
            replica.wait_for(lambda: group.offsets() == group.ends(), 30, "the commits of the new topic")
            notes = [json.loads(each.metadata or "{}") for each in group.committed().values()]
            assert {note["topic_id"] for note in notes} == set(topic_ids(kafka, [topics.images]).values())
        # Also after a restart it goes on there.
        assert replica.terminate() == 0
        sent = send(kafka, topics.images, numbered_images(photographs, 3, name="last"))
        before = len(answers.all)
        replica.start().wait_ready()
        answers.wait(lambda: len(answers.all) >= before + len(sent), "what came while it was away")
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert sorted(image_ids(answers.all[before:])) == ["last-0", "last-1", "last-2"]
        assert answers.letters == []
        assert replica.terminate() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_that_was_made_anew_while_nobody_looked_is_read_from_its_beginning(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol
) -> None:
    topics = make_topics(partitions=1)
    with Replica(kafka, topics, settings={PROTOCOL: protocol}) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 10, name="old")))
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0
        recreate(kafka, topics.images, partitions=1)
        send(kafka, topics.images, numbered_images(photographs, 20, name="new"))
        replica.start().wait_ready()
        expected = {f"new-{number}" for number in range(20)}
        answers.wait(lambda: expected <= set(image_ids(answers.events)), "all of the new topic")
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_that_stays_away_ends_the_replica(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], protocol: Protocol
) -> None:
    topics = make_topics(partitions=2)
    settings = QUICK_METADATA | {PROTOCOL: protocol, "OUZEL_KAFKA__TOPIC_GONE_MS": "2000"}
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(send(kafka, topics.images, numbered_images(photographs, 4)))
        kafka.delete_topic(topics.images)
        assert replica.wait_exit(30) == 6
        (last,) = [line for line in replica.log_lines() if line.get("exit_code") == 6]
        assert topics.images in last["message"]
        assert "ouzel topics create" in last["remedy"]
    kafka.create_topic(topics.images)  # what made the topics deletes them


def test_topics_that_are_missing_at_the_start_are_all_named(kafka: Cluster) -> None:
    name = unique("missing")
    topics = Topics(f"{name}-images", f"{name}-predictions", f"{name}-dlq", unique("group"), 1)
    kafka.create_topic(topics.images)
    with Replica(kafka, topics) as replica:
        replica.start()
        assert replica.wait_exit(30) == 6
        (last,) = [line for line in replica.log_lines() if line.get("exit_code") == 6]
        assert topics.predictions in last["message"]
        assert topics.dead_letters in last["message"]
        assert topics.images not in last["message"]
        assert last["remedy"] == "ouzel topics create"
    kafka.delete_topic(topics.images)
