"""`--images kafka://TOPIC?last=N` against a real broker: the service's own forms, stores and refusals."""

from pathlib import Path

import orjson
import pytest

from consumer.adapters.image import PillowDecoder
from consumer.commands.model._images import read_images
from consumer.errors import SettingsError, TopicMissing
from consumer.settings import Settings
from tests.conftest import MakeTopics
from tests.http_server import HttpServer, answer
from tests.integration.command_line import Topics
from tests.kafka_broker import Cluster

pytestmark = pytest.mark.kafka

DECODERS = [PillowDecoder((32, 32))]


def settings_for(kafka: Cluster, **tables: object) -> Settings:
    return Settings.model_validate({"kafka": {"bootstrap_servers": kafka.bootstrap_servers}, **tables})


def test_the_last_messages_of_a_topic_in_every_form(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topic = make_topics(partitions=2).images
    bodies = [path.read_bytes() for path in photographs]
    producer = Topics(kafka.bootstrap_servers, topic).producer()

    def send(value: bytes | None, name: str, content_type: str = "") -> None:
        headers: list[tuple[str, str | bytes | None]] = [
            ("image-id", name.encode()),
            ("content-type", content_type.encode()),
        ]
        producer.produce(topic, value, name.encode(), headers=headers, partition=0)

    for number in range(5):
        send(bodies[0], f"too-old-{number}")  # before the last ones
    with HttpServer() as server:
        server.routes["/a.jpg"] = answer(bodies[2])
        send(bodies[1], "raw")
        send(orjson.dumps({"image_id": "by-reference", "uri": f"{server.origin}/a.jpg"}), "", "application/json")
        send(orjson.dumps({"image_id": "refused", "uri": "https://example.org/b.jpg"}), "", "application/json")
        send(orjson.dumps({"image_id": "gone", "uri": f"{server.origin}/none.jpg"}), "", "application/json")
        send(b"neither JSON nor an image", "junk")
        send(None, "tombstone")
        send(bodies[3][:900], "torn")
        assert producer.flush(20) == 0
        http = {
            "hosts": [server.origin.removeprefix("http://")],
            "schemes": ["http"],
            "allow_networks": ["127.0.0.0/8"],
        }
        settings = settings_for(kafka, stores={"http": http})
        found = read_images(settings, f"kafka://{topic}?last=7", DECODERS, limit=1)
    assert [image.name for image in found.images] == ["raw", "by-reference"]
    assert sum(found.passed_over.values()) == 4
    assert {"ReferenceRefused", "ImageNotFound", "MalformedMessage", "TruncatedImage"} == set(found.passed_over)
    assert len({image.photograph for image in found.images}) == 2


def test_a_topic_that_is_not_there_is_said_to_be(kafka: Cluster) -> None:
    with pytest.raises(TopicMissing):
        read_images(settings_for(kafka), "kafka://nobody-made-this?last=5", DECODERS, limit=1)


def test_a_topic_without_a_message_is_an_error(kafka: Cluster, make_topics: MakeTopics) -> None:
    with pytest.raises(SettingsError, match="no image in it"):
        read_images(settings_for(kafka), f"kafka://{make_topics().images}?last=5", DECODERS, limit=1)
