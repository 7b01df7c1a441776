"""Avro, Protobuf and JSON Schema by Confluent's own serializers, over a real broker and a real registry."""

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from fastavro import parse_schema, schemaless_writer
from google.protobuf.json_format import MessageToDict

from consumer import headers as names
from consumer.adapters.schema_registry.encoders import message_class, open_encoder
from consumer.adapters.schema_registry.formats import IMAGE_REFERENCE, LABEL_EVENT
from tests.answers import Answers
from tests.conftest import MakeTopics, Topics
from tests.contract.schema_files import FOLDER, SCHEMAS, check
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, end_offsets, read_to_end, send
from tests.models import PHOTOGRAPHS
from tests.processes import free_port
from tests.replica import ROOT, Replica
from tests.schema_registry import RegistryServer, SchemaRegistry

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
        found: dict[str, Any] = MessageToDict(protobuf(value, context), preserving_proto_field_name=True)
        return found

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
            "OUZEL_KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
            "OUZEL_HEALTH__PORT": "0",
            "OUZEL_MODEL__RUNTIME": "null",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def topics(make_topics: MakeTopics) -> Topics:
    return make_topics(partitions=1)


@pytest.mark.parametrize("written_as", ["avro", "protobuf", "json-schema"])
def test_references_by_each_serializer_come_out_as_label_events_in_each_format(
    written_as: str,
    kafka: Cluster,
    topics: Topics,
    schema_registry: SchemaRegistry,
    client: SchemaRegistryClient,
) -> None:
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
        headers: Any = record.headers()
        types = [value for name, value in headers if name == "content-type"]
        assert types == [f"application/{written_as.removesuffix('-schema')}; framing=confluent".encode()]
        if written_as == "json-schema":
            check(f"{LABEL_EVENT}.json", event)

    tailed = ouzel(topics, kafka, variables, "tail", "--from-beginning", "--limit", "3")
    assert {json.loads(line)["image_id"] for line in tailed.stdout.splitlines()} == set(write), tailed.stderr


def _value(message: Message) -> bytes:
    value = message.value()
    assert isinstance(value, bytes)
    return value


def test_while_the_registry_is_away_messages_wait_and_others_go_on(kafka: Cluster, topics: Topics) -> None:
    with RegistryServer() as registry, Answers(kafka, topics) as answers:
        registry.schemas["7"] = {"schema": _published(f"{IMAGE_REFERENCE}.avsc")}
        registry.failing = (503, b"")
        avro = b"\0\0\0\0\x07" + _avro({"image_id": "waits", "data": PHOTO})
        unknown = b"\0\0\0\0\x08" + avro[5:]
        as_json = json.dumps({"image_id": "goes on", "data": b64encode(PHOTO).decode()}).encode()
        variables = {"OUZEL_SCHEMA_REGISTRY__URL": registry.url, "OUZEL_RETRY__MAX_BACKOFF_MS": "200"}
        waiting, never, going = send(kafka, topics.images, [Record(avro), Record(unknown), Record(as_json)])
        with Replica(kafka, topics, settings=variables).start() as replica:
            assert answers.to(going).event["image_id"] == "goes on"
            down = 'ouzel_store_down{store="schema-registry"} 1.0'
            replica.wait_for(lambda: down in replica.probe("metrics")[1], 30, "the registry to be presumed down")
            assert (answers.count(waiting), answers.count(never)) == (0, 0)
            registry.failing = None
            assert answers.to(waiting).event["image_id"] == "waits"
            letter = answers.to(never)
    assert letter.error == "MalformedMessage"
    assert "has no schema 8" in letter.text(names.ERROR_EXCEPTION_MESSAGE)
    assert letter.value == unknown


def _avro(fields: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, parse_schema(json.loads(_published(f"{IMAGE_REFERENCE}.avsc"))), fields)
    return out.getvalue()


def test_only_the_command_registers_and_without_it_the_service_says_so(
    kafka: Cluster, topics: Topics, schema_registry: SchemaRegistry, client: SchemaRegistryClient
) -> None:
    variables = settings(schema_registry, "avro")
    subject = f"{topics.predictions}-value"

    ended = ouzel(topics, kafka, variables, "run")
    assert ended.returncode == 6
    assert "ouzel schemas register" in ended.stderr
    shown = ouzel(topics, kafka, variables, "schemas", "show")
    assert (shown.returncode, json.loads(shown.stdout)["ours"]) == (1, "not registered")
    tried = ouzel(topics, kafka, variables, "schemas", "register", "--dry-run", "--input", "protobuf")
    assert [json.loads(line)["result"] for line in tried.stdout.splitlines()] == ["would be registered"] * 2
    assert subject not in client.get_subjects()

    first = json.loads(ouzel(topics, kafka, variables, "schemas", "register").stdout)
    again = json.loads(ouzel(topics, kafka, variables, "schemas", "register").stdout)
    assert (first["result"], again["result"]) == ("registered", "is registered, left as it is")
    assert first["id"] == again["id"]
    shown = ouzel(topics, kafka, variables, "schemas", "show")
    assert (shown.returncode, json.loads(shown.stdout)["compatibility"]) == (0, "compatible")


def test_a_schema_that_the_registry_finds_incompatible_is_not_registered(
    kafka: Cluster, topics: Topics, schema_registry: SchemaRegistry, client: SchemaRegistryClient
) -> None:
    subject = f"{topics.predictions}-value"
    other = {"type": "record", "name": "LabelEvent", "namespace": "ouzel.v1", "fields": []}
    client.register_schema(subject, Schema(json.dumps(other), "AVRO"))
    client.set_compatibility(subject, "BACKWARD")
    refused = ouzel(topics, kafka, settings(schema_registry, "avro"), "schemas", "register")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["result"] == "incompatible: not registered"
    assert "ouzel schemas show" in refused.stderr
    assert client.get_versions(subject) == [1]


def test_an_id_of_ours_is_used_whatever_was_registered_after_it(
    kafka: Cluster, topics: Topics, schema_registry: SchemaRegistry, client: SchemaRegistryClient
) -> None:
    ours = json.loads(ouzel(topics, kafka, settings(schema_registry, "avro"), "schemas", "register").stdout)["id"]
    later = json.loads(_published(f"{LABEL_EVENT}.avsc"))
    later["fields"].append({"name": "later", "type": ["null", "string"], "default": None})
    client.register_schema(f"{topics.predictions}-value", Schema(json.dumps(later), "AVRO"))
    encoder = open_encoder(client, topics.predictions, "avro")
    assert encoder.encode(SCHEMAS[f"{LABEL_EVENT}.json"]["examples"][0])[:5] == b"\0" + ours.to_bytes(4)


def test_without_an_answer_at_the_start_the_service_ends_and_says_where_it_asked(
    kafka: Cluster, topics: Topics
) -> None:
    nobody = {"OUZEL_SCHEMA_REGISTRY__URL": f"http://127.0.0.1:{free_port()}", "OUZEL_OUTPUT__FORMAT": "avro"}
    for words in (("run",), ("schemas", "show")):
        ended = ouzel(topics, kafka, nobody, *words)
        assert ended.returncode == 5, ended.stderr
        assert "schema_registry.url" in ended.stderr
