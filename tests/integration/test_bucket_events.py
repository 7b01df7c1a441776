"""Buckets' own notifications through the real broker: each new object is labelled, each record for itself."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumer import headers as names
from tests.answers import Answer, Answers, Group, wait_no_lag
from tests.contract.schema_files import check
from tests.faulty_replica import ENTRY
from tests.integration.command_line import Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, Sent, send, unique
from tests.notifications import notification, s3_record
from tests.observer import topic_ids
from tests.replica import Replica

pytestmark = pytest.mark.kafka


class BucketTopics(Topics):
    """The topics under the names of both the replica and the command line."""

    @property
    def dead_letters(self) -> str:
        return self.letters


@dataclass(frozen=True)
class Served:
    """A replica that reads `s3` and `gs` out of a folder."""

    cluster: Cluster
    topics: BucketTopics
    replica: Replica
    answers: Answers
    folder: Path
    body: bytes

    def put(self, name: str) -> None:
        """Have an object of this name in every bucket."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.body)

    def notify(self, *documents: dict[str, Any]) -> list[Sent]:
        """As MinIO and Ceph do it: no header, and MinIO's under bucket and key."""
        records = [Record(json.dumps(each).encode(), key=(each.get("Key") or "a key").encode()) for each in documents]
        return send(self.cluster, self.topics.images, records)

    def event_id(self, sent: Sent, event: dict[str, Any], *, record_index: int) -> str:
        """I7, by the published recipe and not by our code."""
        cluster_id = self.cluster.admin().describe_cluster().result(10).cluster_id
        topic_id = topic_ids(self.cluster, [sent.topic])[sent.topic]
        fields = ("ouzel-event-1", cluster_id, topic_id, sent.partition, sent.offset, record_index)
        recipe = "".join(f"{each}\n" for each in (*fields, event["model"]["digest"]))
        return hashlib.sha256(recipe.encode()).hexdigest()

    def all_to(self, sent: Sent, count: int) -> list[Answer]:
        """Every answer to this message, in the order of reading."""
        self.answers.wait(lambda: self.answers.count(sent) >= count, f"{count} answers")
        wait_no_lag(self.cluster, self.topics)
        self.answers.read_to_end()
        found = [a for a in self.answers.all if a.source == (sent.topic, sent.partition, sent.offset)]
        assert len(found) == count
        return found


@pytest.fixture
def served(kafka: Cluster, photographs: list[Path], tmp_path: Path) -> Iterator[Served]:
    topics = BucketTopics(kafka.bootstrap_servers, unique("buckets"))
    kafka.create_topics(dict.fromkeys((topics.images, topics.predictions, topics.letters)), partitions=2)
    kafka.create_topic(topics.markers, partitions=1, config={"cleanup.policy": "compact"})
    settings = {"OUZEL_TEST_STORE": str(tmp_path), "OUZEL_INPUT__MAX_RECORDS": "10"}
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        yield Served(kafka, topics, replica, answers, tmp_path, photographs[0].read_bytes())
        assert replica.terminate() == 0
    with Group(kafka, topics.group, topics.images) as group:
        assert group.lag() == {}


def test_each_source_s_notification_is_labelled_and_what_asks_for_nothing_is_committed(served: Served) -> None:
    served.put("a folder/x+y.jpg")
    served.put("a folder/x+y.jpg".replace("y.jpg", "y%20.jpg"))  # EventBridge's, as it is
    named = ["minio", "ceph", "ceph-quincy", "aws-sns", "aws-eventbridge", "gcs-object", "gcs-cloudevent", "gcs-pubsub"]
    aws = notification("aws-s3")
    key = "a+folder%2Fx%2By.jpg"
    fresh = s3_record(key) | {"eventSource": "aws:s3"}
    fresh["s3"]["object"] |= {"eTag": hashlib.md5(served.body, usedforsecurity=False).hexdigest()}
    skipped = ["aws-s3-test-event", "aws-s3-removed", "minio-tagged", "gcs-pubsub-deleted", "aws-sns-subscription"]
    served.notify(*map(notification, skipped))
    sent = served.notify(*map(notification, named), aws, {"Records": [fresh]})
    answers = served.answers.to_all(sent)
    events = {name: answer.event for name, answer in zip([*named, "aws-s3", "fresh"], answers, strict=True)}
    for event in events.values():
        check("label-event.v1.json", event)
    ids = {name: event["image_id"] for name, event in events.items()}
    assert ids.pop("aws-eventbridge") == "photos/a folder/x+y%20.jpg"
    assert set(ids.values()) == {"photos/a folder/x+y.jpg"}
    assert events["minio"]["uri"] == "s3://photos/a%20folder/x%2By.jpg"
    assert events["gcs-pubsub"]["uri"] == "gs://photos/a%20folder/x%2By.jpg"
    assert answers[0].key == b"photos/a folder/x+y.jpg"
    assert events["aws-s3"]["image"]["version_id"] == "096fKKXTRTtl3on89fVO.nfljtsv6qko"
    assert events["gcs-object"]["image"]["version_id"] == "1769851800125318"
    # The object has been written again since all of these but one, which gives its ETag.
    stale = {name for name, event in events.items() if event["image"].get("stale_reference")}
    assert stale == {"minio", "ceph", "ceph-quincy", "aws-s3", "aws-sns", "aws-eventbridge"}
    for one, answer in zip(sent, answers, strict=True):
        assert answer.event["event_id"] == served.event_id(one, answer.event, record_index=0)
    wait_no_lag(served.cluster, served.topics)
    served.answers.read_to_end()
    assert served.answers.letters == []
    assert served.replica.metric("ouzel_images_total", outcome="skipped") == len(skipped)
    assert served.replica.metric("ouzel_skipped_total", reason="removed") == 2


def test_each_record_of_a_message_has_its_own_event_or_letter_and_a_letter_goes_back_alone(served: Served) -> None:
    served.put("0.jpg")
    served.put("4.jpg")
    unreadable = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "photos"}}}
    records = [
        s3_record("0.jpg"),
        s3_record("absent.jpg"),
        s3_record("gone.jpg", event="ObjectRemoved:Delete"),
        unreadable,
        s3_record("4.jpg"),
    ]
    document = {"Records": records}
    (sent,) = served.notify(document)
    answers = served.all_to(sent, 4)
    events = {answer.event["image_id"]: answer.event for answer in answers if not answer.is_letter}
    assert set(events) == {"photos/0.jpg", "photos/4.jpg"}
    for number in (0, 4):
        event = events[f"photos/{number}.jpg"]
        assert event["event_id"] == served.event_id(sent, event, record_index=number)
    letters = {answer.text(names.ORIGIN_RECORD_INDEX): answer for answer in answers if answer.is_letter}
    assert {index: letter.error for index, letter in letters.items()} == {
        "1": "ImageNotFound",
        "3": "MalformedMessage",
    }
    for letter in letters.values():
        assert letter.value == json.dumps(document).encode()
        assert letter.key == b"a key"
    # The object is there now: its letter goes back, and the others' records are not labelled again.
    served.put("absent.jpg")
    replayed = served.topics.ouzel("dlq", "replay", "--class", "ImageNotFound", "--execute")
    assert replayed.code == 0, replayed.stderr
    answer = served.all_to(sent, 5)[-1]
    assert answer.event["image_id"] == "photos/absent.jpg"
    assert answer.event["event_id"] == served.event_id(sent, answer.event, record_index=1)
    assert served.replica.metric("ouzel_images_total", outcome="labelled") == 3


def test_more_records_than_the_setting_are_one_letter(served: Served) -> None:
    (sent,) = served.notify({"Records": [s3_record("0.jpg")] * 11})
    (letter,) = served.all_to(sent, 1)
    assert letter.error == "MalformedMessage"
    assert "input.max_records" in letter.text(names.ERROR_EXCEPTION_MESSAGE)
    assert names.ORIGIN_RECORD_INDEX not in dict(letter.headers)
