"""Avro, Protobuf and JSON Schema by Confluent's own serializers, over a real broker and a real registry."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.json_format import MessageToDict

from consumer.adapters.schema_registry.encoders import message_class
from consumer.adapters.schema_registry.formats import IMAGE_REFERENCE, LABEL_EVENT
from tests.conftest import MakeTopics, Topics
from tests.contract.schema_files import FOLDER, check
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, end_offsets, read_to_end, send
from tests.models import PHOTOGRAPHS
from tests.replica import ROOT, Replica
from tests.schema_registry import SchemaRegistry

pytestmark = pytest.mark.kafka

TOPIC_NAME = {"subject.name.strategy": topic_subject_name_strategy}
PHOTO = min(PHOTOGRAPHS.glob("*.jpg")).read_bytes()
Serialize = Callable[[Mapping[str, Any]], bytes]
Read = Callable[[bytes], dict[str, Any]]


def _published(file: str) -> str:
    return (FOLDER / file).read_text()


@pytest.fixture
def client(schema_registry: SchemaRegistry) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": schema_registry.url}) as opened:
        yield opened


def senders(client: SchemaRegistryClient, topic: str) -> dict[str, Serialize]:
    """Confluent's serializers, which register the published files as they would their own."""

    def context(name: str) -> SerializationContext:
        return SerializationContext(f"{topic}.{name}", MessageField.VALUE)  # a subject each

    avro = AvroSerializer(client, _published(f"{IMAGE_REFERENCE}.avsc"), conf=TOPIC_NAME)
    as_json = JSONSerializer(_published(f"{IMAGE_REFERENCE}.json"), client, conf=TOPIC_NAME)
    reference = message_class(IMAGE_REFERENCE)
    protobuf = ProtobufSerializer(reference, client, conf=TOPIC_NAME)
    return {
        "avro": lambda fields: avro(fields, context("avro")),
        "json-schema": lambda fields: as_json(fields, context("json")),
        "protobuf": lambda fields: protobuf(reference(**fields), context("protobuf")),
    }


def readers(client: SchemaRegistryClient, topic: str) -> dict[str, Read]:
    """Confluent's deserializers, given nothing of ours but the published files."""
    context = SerializationContext(topic, MessageField.VALUE)
    avro = AvroDeserializer(client, conf=TOPIC_NAME)
    as_json = JSONDeserializer(_published(f"{LABEL_EVENT}.json"), schema_registry_client=client, conf=TOPIC_NAME)
    # With no client: it asks for descriptors, which Apicurio does not give, and reads by its class either way.
    protobuf = ProtobufDeserializer(message_class(LABEL_EVENT), {})

    def plain(value: bytes) -> dict[str, Any]:
        return MessageToDict(protobuf(value, context), preserving_proto_field_name=True)

    return {
        "avro": lambda value: dict(avro(value, context)),
        "json-schema": lambda value: dict(as_json(value, context)),
        "protobuf": plain,
    }


def settings(registry: SchemaRegistry, written_as: str) -> dict[str, str]:
    return {"OUZEL_SCHEMA_REGISTRY__URL": registry.url, "OUZEL_OUTPUT__FORMAT": written_as}


def ouzel(
    topics: Topics, kafka: Cluster, variables: Mapping[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consumer", *words],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "OUZEL_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "OUZEL_KAFKA__INPUT_TOPICS": topics.images,
            "OUZEL_KAFKA__OUTPUT_TOPIC": topics.predictions,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("written_as", ["avro", "protobuf", "json-schema"])
def test_references_by_each_serializer_come_out_as_label_events_in_each_format(
    written_as: str,
    kafka: Cluster,
    make_topics: MakeTopics,
    schema_registry: SchemaRegistry,
    client: SchemaRegistryClient,
) -> None:
    topics = make_topics(partitions=1)
    variables = settings(schema_registry, written_as)
    registered = ouzel(topics, kafka, variables, "schemas", "register")
    assert registered.returncode == 0, registered.stderr
    write, read = senders(client, topics.images), readers(client, topics.predictions)
    inline: dict[str, Any] = {"avro": PHOTO, "protobuf": PHOTO, "json-schema": b64encode(PHOTO).decode()}
    values = [
        serialize({"image_id": name, "data": inline[name], "top_k": 2, "metadata": {"camera": "7"}})
        for name, serialize in write.items()
    ]
    send(kafka, topics.images, [Record(value) for value in values])

    with Replica(kafka, topics, settings=variables).start() as replica:
        replica.wait_for(lambda: sum(end_offsets(kafka, topics.predictions).values()) == 3, 60, "three events")
    records = read_to_end(kafka, topics.predictions)
    events = {event["image_id"]: (event, record) for record in records for event in [read[written_as](_value(record))]}
    assert set(events) == set(write)
    for event, record in events.values():
        assert event["metadata"] == {"camera": "7"}
        assert len(event["labels"]) == 2
        assert (event["source"]["topic"], event["image"]["format"]) == (topics.images, "JPEG")
        assert dict(record.headers() or [])["content-type"].endswith(b"; framing=confluent")
        if written_as == "json-schema":
            check(f"{LABEL_EVENT}.json", event)

    tailed = ouzel(topics, kafka, variables, "tail", "--from-beginning", "--limit", "3")
    assert {json.loads(line)["image_id"] for line in tailed.stdout.splitlines()} == set(write), tailed.stderr


def _value(message: Message) -> bytes:
    value = message.value()
    assert isinstance(value, bytes)
    return value
