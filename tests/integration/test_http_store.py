"""Images by reference from HTTP servers that stall, refuse, throttle and come back, through the whole service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.answers import Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.http_server import Exchange, HttpServer, answer, stall
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, Sent, send
from tests.replica import Replica

pytestmark = pytest.mark.kafka

SECRET = "Bearer 9f8e7d6c5b4a"


@pytest.fixture
def topics(make_topics: MakeTopics) -> Topics:
    return make_topics()


@pytest.fixture
def servers(photographs: list[Path]) -> Iterator[tuple[HttpServer, HttpServer]]:
    """Two hosts with the same images."""
    with HttpServer() as one, HttpServer() as other:
        for server in (one, other):
            for number in range(30):
                body = photographs[number % len(photographs)].read_bytes()
                server.routes[f"/{number}.jpg"] = answer(body, ETag=f'"v{number}"')
        yield one, other


@pytest.fixture
def replica(kafka: Cluster, topics: Topics, servers: tuple[HttpServer, HttpServer]) -> Iterator[Replica]:
    hosts = [f"127.0.0.1:{server.port}" for server in servers]
    settings = {
        "OUZEL_STORES__HTTP__HOSTS": json.dumps(hosts),
        "OUZEL_STORES__HTTP__SCHEMES": "http",
        "OUZEL_STORES__HTTP__ALLOW_NETWORKS": "127.0.0.1/32",
        "OUZEL_STORES__HTTP__HEADERS": json.dumps({hosts[0]: {"Authorization": SECRET}}),
        "OUZEL_STORES__HTTP__MAX_CONNECTIONS_PER_HOST": "4",
        "OUZEL_STORES__FETCH_DEADLINE_MS": "60000",  # what stalls, stalls for good
        "OUZEL_RETRY__MAX_ATTEMPTS": "3",
        "OUZEL_RETRY__INITIAL_BACKOFF_MS": "20",
        "OUZEL_RETRY__MAX_BACKOFF_MS": "200",
        "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "5",  # an outage that made letters would trip it at once
    }
    with Replica(kafka, topics, settings=settings) as running:
        yield running.start().wait_ready()
        assert running.terminate() == 0
        assert SECRET not in running.log_file.read_text()


def _send(kafka: Cluster, topics: Topics, server: HttpServer, *names: str) -> list[Sent]:
    documents = [{"image_id": name, "uri": f"{server.origin}/{name}?X-Amz-Signature=pw"} for name in names]
    return send(kafka, topics.images, [Record(json.dumps(each).encode()) for each in documents])


NAMES = [f"{number}.jpg" for number in range(30)]


def test_images_of_one_host_are_labelled_while_another_stalls(
    kafka: Cluster, topics: Topics, servers: tuple[HttpServer, HttpServer], replica: Replica
) -> None:
    one, other = servers
    other.routes["/slow.jpg"] = stall
    with Answers(kafka, topics) as answers:
        waiting = _send(kafka, topics, other, *["slow.jpg"] * 60)  # twice as many as there are threads
        for _ in range(4):
            assert other.stalled.acquire(timeout=30)
        sent = _send(kafka, topics, one, *NAMES)
        labelled = answers.to_all(sent)
        assert [each.event["image_id"] for each in labelled] == NAMES
        assert not any(answers.count(each) for each in waiting)
        # The very bytes of the host, its credentials sent to it alone, and no secret told.
        assert {request.headers.get("authorization") for request in one.requests} == {SECRET}
        assert {request.headers.get("authorization") for request in other.requests} == {None}
        assert b"pw" not in b"".join(each.value or b"" for each in labelled)
        other.routes["/slow.jpg"] = other.routes["/0.jpg"]
        other.released.set()
        assert not any(each.is_letter for each in answers.to_all(waiting))
        wait_no_lag(kafka, topics)


def test_an_image_that_is_not_there_is_one_letter(
    kafka: Cluster, topics: Topics, servers: tuple[HttpServer, HttpServer], replica: Replica
) -> None:
    one, _ = servers
    with Answers(kafka, topics) as answers:
        (absent,) = _send(kafka, topics, one, "absent.jpg")
        (refused,) = send(kafka, topics.images, [Record(_reference("http://127.1:80/a.jpg"))])
        present = _send(kafka, topics, one, *NAMES[:3])
        assert answers.to(absent).error == "ImageNotFound"
        assert answers.to(refused).error == "ReferenceRefused"
        assert not any(each.is_letter for each in answers.to_all(present))
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert len(answers.letters) == 2
        for letter in answers.letters:
            said = b"".join(value or b"" for name, value in letter.headers if not name.startswith("traceparent"))
            assert b"X-Amz-Signature" not in said
            assert SECRET.encode() not in said
        assert one.targets().count("/absent.jpg?X-Amz-Signature=pw") == 1


def test_a_host_that_is_away_pauses_and_its_images_are_labelled_afterwards(
    kafka: Cluster, topics: Topics, servers: tuple[HttpServer, HttpServer], replica: Replica
) -> None:
    one, _ = servers
    served = dict(one.routes)

    def away(exchange: Exchange) -> None:
        answer(b"maintenance", 503, Retry_After="0")(exchange)

    one.routes |= dict.fromkeys(served, away)
    with Answers(kafka, topics) as answers:
        sent = _send(kafka, topics, one, *NAMES)
        replica.wait_for(
            lambda: replica.metric("ouzel_store_down", store=one.origin) == 1, 30, "the host to be presumed down"
        )
        assert replica.probe("livez")[0] == 200
        asked = len(one.requests)
        replica.wait_for(lambda: len(one.requests) > asked + 5, 30, "more probes")
        answers.read_to_end()
        assert answers.all == []
        one.routes |= served
        assert [each.event["image_id"] for each in answers.to_all(sent)] == NAMES
        replica.wait_for(lambda: replica.metric("ouzel_store_down", store=one.origin) == 0, 30, "the host to be back")
        assert len([line for line in replica.log_lines() if "presumed down" in line.get("message", "")]) == 1
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert answers.letters == []


def _reference(uri: str) -> bytes:
    return json.dumps({"image_id": uri, "uri": uri}).encode()
