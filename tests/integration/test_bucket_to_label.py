"""From a bucket to a label, with nothing between them made up: an S3 server notifies a queue of its own, a bridge takes
that over to the real broker, and the service fetches what is named from the same server."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumer import headers as names
from tests.answers import Answer, Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.contract.schema_files import check
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, Sent, send, unique
from tests.notifications import notification
from tests.replica import Replica
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server, running_server

pytestmark = pytest.mark.kafka

ODD_KEY = "a folder/x+y é.jpg"
ODD_PATH = "a%20folder/x%2By%20%C3%A9.jpg"

Document = dict[str, Any]
Deliver = Callable[[list[bytes]], list[Sent]]


def bridge(sqs: Any, queue_url: str, deliver: Deliver) -> list[Sent]:
    """Take over what waits in a queue, each body unchanged; deleted there once it was delivered."""
    carried: list[Sent] = []
    while waiting := sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10).get("Messages", []):
        carried += deliver([message["Body"].encode() for message in waiting])
        for message in waiting:
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return carried


@dataclass(frozen=True)
class NotifyingBucket:
    """A bucket, and the queue that it tells of its objects."""

    server: S3Server
    name: str
    queue_url: str

    def put(self, key: str, body: bytes) -> str:
        """The version id; empty in a bucket without versions."""
        return self.server.put(self.name, key, body)

    def carry(self, deliver: Deliver) -> list[Sent]:
        """Run the bridge until the queue is empty. What comes first of all is S3's test of the new notifications."""
        return bridge(self.server.client("sqs"), self.queue_url, deliver)


def notifying_bucket(*, versions: bool = False, by_sns: bool = False, raw: bool = False) -> NotifyingBucket:
    """An empty bucket. Its notifications go to its queue, or to a topic of SNS that the queue subscribes to."""
    server, name = running_server(), unique("photos")
    server.make_bucket(name, versions=versions)
    sqs = server.client("sqs")
    queue_url = sqs.create_queue(QueueName=name)["QueueUrl"]
    queue = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    told = {"QueueConfigurations": [{"QueueArn": queue, "Events": events}]}
    if by_sns:
        sns = server.client("sns")
        topic = sns.create_topic(Name=name)["TopicArn"]
        sns.subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=queue, Attributes={"RawMessageDelivery": str(raw).lower()}
        )
        told = {"TopicConfigurations": [{"TopicArn": topic, "Events": events}]}
    server.client().put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=told)
    return NotifyingBucket(server, name, queue_url)


@dataclass(frozen=True)
class Served:
    """A replica that may read every bucket `photos-*`."""

    cluster: Cluster
    topics: Topics
    replica: Replica
    answers: Answers

    def deliver(self, bodies: list[bytes]) -> list[Sent]:
        """One message each, in their order."""
        return send(self.cluster, self.topics.images, [Record(body, key=b"a bridge") for body in bodies])

    def notify(self, *documents: Document) -> list[Sent]:
        """As a server that writes to Kafka itself."""
        return self.deliver([json.dumps(document).encode() for document in documents])

    def event(self, sent: Sent) -> Document:
        """The label event, held against its schema."""
        event = self.answers.to(sent).event
        check("label-event.v1.json", event)
        return event

    def all_to(self, sent: list[Sent]) -> list[Answer]:
        """Every answer to these, once the group has committed to the very end."""
        wait_no_lag(self.cluster, self.topics)
        self.answers.read_to_end()
        places = {(each.topic, each.partition, each.offset) for each in sent}
        return [answer for answer in self.answers.all if answer.source in places]


@pytest.fixture(scope="module")
def served(kafka: Cluster, make_module_topics: MakeTopics) -> Iterator[Served]:
    topics = make_module_topics()
    settings = {
        "OUZEL_STORES__S3__BUCKETS": "photos-*",
        "OUZEL_STORES__S3__ENDPOINT_URL": running_server().url,
        "OUZEL_STORES__S3__REGION": REGION,
        "OUZEL_STORES__S3__MAX_CONCURRENCY": "1",  # of several messages at once most find no room at first
        "OUZEL_STORES__S3__ACCESS_KEY_ID": ACCESS_KEY,
        "OUZEL_STORES__S3__SECRET_ACCESS_KEY": SECRET_KEY,
    }
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        yield Served(kafka, topics, replica, answers)
        assert replica.terminate() == 0


@pytest.fixture(scope="module")
def jpegs(photographs: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in photographs]


def etag_of(body: bytes) -> str:
    """What S3 gives an object that was put whole and without KMS:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html"""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def is_of(event: Document, body: bytes) -> bool:
    """Whether these bytes were labelled, by digest."""
    return bool(event["image"]["sha256"] == hashlib.sha256(body).hexdigest())


# --- S3 to SQS to Kafka ---------------------------------------------------------------------------------------------


def test_an_object_that_is_put_is_labelled_and_its_version_is_told(served: Served, jpegs: list[bytes]) -> None:
    bucket = notifying_bucket(versions=True)
    version = bucket.put("2026/bird.jpg", jpegs[0])
    _, sent = bucket.carry(served.deliver)
    event = served.event(sent)
    assert version
    assert (event["image_id"], event["uri"]) == (f"{bucket.name}/2026/bird.jpg", f"s3://{bucket.name}/2026/bird.jpg")
    assert (event["image"]["etag"], event["image"]["version_id"]) == (etag_of(jpegs[0]), version)
    assert "stale_reference" not in event["image"]
    assert event["labels"]
    assert is_of(event, jpegs[0])
    assert bucket.carry(served.deliver) == []  # the bridge has emptied the queue


def test_an_object_that_was_overwritten_meanwhile_is_labelled_and_marked(served: Served, jpegs: list[bytes]) -> None:
    bucket = notifying_bucket()
    bucket.put("bird.jpg", jpegs[0])
    bucket.put("bird.jpg", jpegs[1])
    _, *sent = bucket.carry(served.deliver)
    first, second = (served.event(each) for each in sent)
    assert first["image"]["stale_reference"] is True
    assert "stale_reference" not in second["image"]
    for event in (first, second):  # the bytes of both are those that are there now
        assert event["image"]["etag"] == etag_of(jpegs[1])
        assert "version_id" not in event["image"]
        assert is_of(event, jpegs[1])


def test_odd_keys_lead_to_their_objects(served: Served, jpegs: list[bytes]) -> None:
    bucket = notifying_bucket()
    paths = {
        ODD_KEY: ODD_PATH,
        "100%25 sûr?#.jpg": "100%2525%20s%C3%BBr%3F%23.jpg",
        "鳥/🐦&=;~'(1).jpg": "%E9%B3%A5/%F0%9F%90%A6%26%3D%3B~%27%281%29.jpg",
    }
    for number, key in enumerate(paths):
        bucket.put(key, jpegs[number])
    _, *sent = bucket.carry(served.deliver)
    for number, (each, (key, path)) in enumerate(zip(sent, paths.items(), strict=True)):
        event = served.event(each)
        assert (event["image_id"], event["uri"]) == (f"{bucket.name}/{key}", f"s3://{bucket.name}/{path}")
        assert event["metadata"]["key"] == key
        assert "stale_reference" not in event["image"]
        assert is_of(event, jpegs[number])


def test_an_object_uploaded_in_parts_is_not_taken_for_another(served: Served, jpegs: list[bytes]) -> None:
    bucket, key = notifying_bucket(), "parts.jpg"
    s3 = bucket.server.client()
    upload = {
        "Bucket": bucket.name,
        "Key": key,
        "UploadId": s3.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"],
    }
    part = s3.upload_part(**upload, PartNumber=1, Body=jpegs[0])["ETag"]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})
    *_, sent = bucket.carry(served.deliver)  # moto tells of a POST too
    event = served.event(sent)
    assert event["image"]["etag"].endswith("-1")  # no MD5 of the bytes
    assert "stale_reference" not in event["image"]
    assert is_of(event, jpegs[0])


def test_what_asks_for_nothing_is_skipped_and_committed(served: Served, jpegs: list[bytes]) -> None:
    reasons = ("test_event", "removed", "folder")

    def skipped() -> list[float]:
        return [served.replica.metric("ouzel_skipped_total", reason=reason) for reason in reasons]

    bucket = notifying_bucket()
    bucket.put("bird.jpg", jpegs[0])
    bucket.put("a folder/", b"")
    wait_no_lag(served.cluster, served.topics)  # of the tests before
    before = skipped()
    test_event, created, folder = bucket.carry(served.deliver)
    assert served.event(created)
    bucket.server.client().delete_object(Bucket=bucket.name, Key="bird.jpg")
    (removed,) = bucket.carry(served.deliver)
    assert json.loads(test_event.value or b"")["Event"] == "s3:TestEvent"
    assert json.loads(removed.value or b"")["Records"][0]["eventName"] == "ObjectRemoved:Delete"
    assert served.all_to([test_event, folder, removed]) == []
    assert [after - count for after, count in zip(skipped(), before, strict=True)] == [1, 1, 1]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "in its envelope"])
def test_what_comes_by_sns_is_labelled_too(served: Served, jpegs: list[bytes], raw: bool) -> None:
    bucket = notifying_bucket(by_sns=True, raw=raw)
    bucket.put(ODD_KEY, jpegs[0])
    test_event, sent = bucket.carry(served.deliver)
    assert ("Message" in json.loads(sent.value or b"")) is not raw
    event = served.event(sent)
    assert event["image_id"] == f"{bucket.name}/{ODD_KEY}"
    assert is_of(event, jpegs[0])
    assert served.all_to([test_event]) == []


def test_each_record_of_a_message_is_for_itself(served: Served, jpegs: list[bytes]) -> None:
    bucket = notifying_bucket()
    for number in range(3):
        bucket.put(f"{number}.jpg", jpegs[number])

    def all_in_one(bodies: list[bytes]) -> list[Sent]:
        records = [record for body in bodies for record in json.loads(body).get("Records", [])]
        return served.notify({"Records": records})

    bucket.server.client().delete_object(Bucket=bucket.name, Key="1.jpg")
    (sent,) = bucket.carry(all_in_one)  # three creations and a removal
    answers = served.all_to([sent])
    events = {answer.event["image_id"]: answer.event for answer in answers if not answer.is_letter}
    assert len(answers) == 3
    assert set(events) == {f"{bucket.name}/0.jpg", f"{bucket.name}/2.jpg"}
    for number in (0, 2):
        assert is_of(events[f"{bucket.name}/{number}.jpg"], jpegs[number])
    (letter,) = (answer for answer in answers if answer.is_letter)
    assert (letter.error, letter.text(names.ORIGIN_RECORD_INDEX)) == ("ImageNotFound", "1")
    assert letter.value == sent.value


# --- servers that write to Kafka themselves ---------------------------------------------------------------------------


def told_of(name: str, bucket: str, **found: str) -> Document:
    """The source's own notification, of a bucket of ours; `found` are more fields of its object."""
    document = notification(name)
    (record,) = document["Records"]
    record["s3"]["bucket"]["name"] = bucket
    record["s3"]["object"] |= found
    if "Key" in document:
        document["Key"] = document["Key"].replace("photos/", f"{bucket}/")
    return document


@pytest.mark.parametrize(("name", "etag"), [("minio", "eTag"), ("ceph", "eTag"), ("ceph-quincy", "etag")])
def test_minio_s_and_ceph_s_messages_are_labelled(served: Served, jpegs: list[bytes], name: str, etag: str) -> None:
    bucket, key = unique("photos"), "a folder/x+y.jpg"
    running_server().make_bucket(bucket, versions=True)
    versions = [running_server().put(bucket, key, body) for body in jpegs[:2]]
    newest, older, overwritten, elsewhere = served.notify(
        told_of(name, bucket, **{etag: etag_of(jpegs[1])}),
        told_of(name, bucket, **{etag: etag_of(jpegs[0]), "versionId": versions[0]}),
        told_of(name, bucket, **{etag: etag_of(jpegs[0])}),
        told_of(name, "private", **{etag: etag_of(jpegs[0])}),
    )
    for sent, number, stale in ((newest, 1, None), (older, 0, None), (overwritten, 1, True)):
        event = served.event(sent)
        assert event["image_id"] == f"{bucket}/{key}"
        assert event["image"].get("stale_reference") is stale
        assert event["image"]["version_id"] == versions[number]
        assert is_of(event, jpegs[number])
    assert served.answers.to(elsewhere).error == "ReferenceRefused"
