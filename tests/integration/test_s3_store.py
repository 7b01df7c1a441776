"""Images from a bucket of a real S3 server, through the real broker and a replica of its own."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.answers import Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, Sent, send
from tests.replica import Replica
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, FaultyProxy, running_server

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Served:
    """A replica that reads a bucket with twelve photographs in it, by way of a proxy."""

    cluster: Cluster
    topics: Topics
    replica: Replica
    answers: Answers
    proxy: FaultyProxy
    bucket: str
    versions: list[str]

    def uri(self, number: int) -> str:
        return f"s3://{self.bucket}/birds/a%20b+%C3%A9-{number}.jpg"

    def send(self, *uris: str) -> list[Sent]:
        """A reference to each, under keys of their own."""
        records = [Record(json.dumps({"image_id": uri, "uri": uri}).encode(), key=uri.encode()) for uri in uris]
        return send(self.cluster, self.topics.images, records)

    @property
    def is_down(self) -> bool:
        return self.replica.metric("ouzel_store_down", store=f"s3://{self.bucket}") == 1


@pytest.fixture
def served(kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]) -> Iterator[Served]:
    topics, server, bucket = make_topics(), running_server(), f"photos-{uuid.uuid4().hex[:12]}"
    server.make_bucket(bucket, versions=True)
    versions = [
        server.put(bucket, f"birds/a b+é-{number}.jpg", path.read_bytes()) for number, path in enumerate(photographs)
    ]
    with FaultyProxy(server.port) as proxy:
        settings = {
            "OUZEL_STORES__S3__BUCKETS": f"photos-*,{bucket}/birds/",
            "OUZEL_STORES__S3__ENDPOINT_URL": proxy.url,
            "OUZEL_STORES__S3__REGION": REGION,
            "OUZEL_STORES__S3__ACCESS_KEY_ID": ACCESS_KEY,
            "OUZEL_STORES__S3__SECRET_ACCESS_KEY": SECRET_KEY,
            "OUZEL_STORES__FETCH_DEADLINE_MS": "2000",
            "OUZEL_RETRY__MAX_ATTEMPTS": "3",
            "OUZEL_RETRY__INITIAL_BACKOFF_MS": "20",
            "OUZEL_RETRY__MAX_BACKOFF_MS": "100",
            "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "5",  # an outage that made letters would trip it at once
        }
        with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
            replica.start().wait_ready()
            yield Served(kafka, topics, replica, answers, proxy, bucket, versions)
            wait_no_lag(kafka, topics)
            answers.read_to_end()
            assert replica.terminate() == 0
            assert SECRET_KEY not in replica.log_file.read_text()


def test_references_to_objects_are_labelled_with_the_version_that_was_seen(served: Served) -> None:
    uris = [served.uri(number) for number in range(12)]
    for number, answer in enumerate(served.answers.to_all(served.send(*uris))):
        assert (answer.event["uri"], answer.event["image"]["format"]) == (uris[number], "JPEG")
        assert served.versions[number] in json.dumps(answer.event)


def test_an_older_version_is_labelled_where_it_is_asked_for(served: Served, photographs: list[Path]) -> None:
    running_server().put(served.bucket, "birds/a b+é-0.jpg", b"no image any more")
    newest, older = served.send(served.uri(0), f"{served.uri(0)}?versionId={served.versions[0]}")
    assert served.answers.to(newest).error == "NotAnImage"
    assert served.versions[0] in json.dumps(served.answers.to(older).event)


def test_a_missing_object_is_one_letter_and_what_is_not_allowed_another(served: Served) -> None:
    absent, elsewhere, present = served.send(
        f"s3://{served.bucket}/birds/absent.jpg", "s3://private/birds/a.jpg", served.uri(1)
    )
    assert served.answers.to(absent).error == "ImageNotFound"
    assert served.answers.to(elsewhere).error == "ReferenceRefused"
    assert not served.answers.to(present).is_letter
    served.answers.read_to_end()
    assert len(served.answers.letters) == 2


@pytest.mark.parametrize("fault", ["slow-down", "stall", "reset"])
def test_while_the_store_fails_nothing_is_lost_and_nothing_is_a_letter(served: Served, fault: str) -> None:
    served.answers.to_all(served.send(served.uri(0)))
    served.proxy.fault = fault  # type: ignore[assignment]
    waiting = served.send(*(served.uri(number) for number in range(12)))
    served.replica.wait_for(lambda: served.is_down, 60, "the store to be presumed down")
    asked = len(served.proxy.heads)
    served.replica.wait_for(lambda: len(served.proxy.heads) > asked, 60, "another probe")
    assert served.replica.probe("livez")[0] == 200
    served.proxy.fault = "none"
    served.answers.to_all(waiting)
    served.replica.wait_for(lambda: not served.is_down, 20, "the store to be back")
    served.answers.read_to_end()
    assert served.answers.letters == []
