"""Label events out, framed with the id under which their schema is registered."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import orjson
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from fastavro import parse_schema, schemaless_writer
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.client import asked
from consumer.errors import SchemaMissing

Format = Literal["json-schema", "avro", "protobuf"]
_TYPES: Mapping[Format, str] = {"json-schema": "JSON", "avro": "AVRO", "protobuf": "PROTOBUF"}
_CONTENT_TYPES: Mapping[Format, bytes] = {
    "json-schema": b"application/json; framing=confluent",
    "avro": b"application/avro; framing=confluent",
    "protobuf": b"application/protobuf; framing=confluent",
}
_FIRST_MESSAGE = b"\x00"  # Protobuf's message indexes, in the short form for the first message of the file


def value_subject(topic: str) -> str:
    """TopicNameStrategy: the subject of a topic's values."""
    return f"{topic}-value"


def schema_of(name: str, written_as: Format) -> Schema:
    """A published schema (`formats.GENERATED`) as it is registered."""
    texts: Mapping[Format, Callable[[str], str]] = {
        "json-schema": formats.json_schema_text,
        "avro": formats.avro_text,
        "protobuf": formats.proto_text,
    }
    return Schema(texts[written_as](name), _TYPES[written_as])


class FramedEncoder:
    """Fulfils `ports.EventEncoder`."""

    def __init__(self, written_as: Format, schema_id: int) -> None:
        self.content_type = _CONTENT_TYPES[written_as]
        self._prefix = b"\x00" + schema_id.to_bytes(4)
        self._payload = _PAYLOADS[written_as]()

    def encode(self, event: Mapping[str, Any]) -> bytes:
        return self._prefix + self._payload(event)


def open_encoder(client: SchemaRegistryClient, topic: str, written_as: Format) -> FramedEncoder:
    """An encoder with the id of exactly our schema under the topic's subject, whatever was registered there after it.

    Raises:
        SchemaMissing: it is not registered.
        RegistryUnreachable, NotAuthorized: the registry does not answer, or not to us.
    """
    subject = value_subject(topic)
    found = asked(client.lookup_schema, subject, schema_of(formats.LABEL_EVENT, written_as), True)
    if found is None or found.schema_id is None:
        raise SchemaMissing(
            f"the schema of label events ({formats.LABEL_EVENT} as {written_as}) is not registered under {subject}",
            remedy="ouzel schemas register (a person's step: the service itself registers nothing)",
        )
    return FramedEncoder(written_as, found.schema_id)


def _avro() -> Callable[[Mapping[str, Any]], bytes]:
    parsed = parse_schema(json.loads(formats.avro_text(formats.LABEL_EVENT)))

    def written(event: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        schemaless_writer(out, parsed, event)
        return out.getvalue()

    return written


def _protobuf() -> Callable[[Mapping[str, Any]], bytes]:
    make = message_class(formats.LABEL_EVENT)
    return lambda event: _FIRST_MESSAGE + make(**event).SerializeToString()


def message_class(name: str) -> type[Message]:
    """The class that protoc would make of a published `.proto`."""
    pool = DescriptorPool()
    file = formats.descriptor(name)
    pool.Add(file)
    message: type[Message] = GetMessageClass(pool.FindFileByName(file.name).message_types_by_name[_only(file)])
    return message


def _only(file: Any) -> str:
    return str(file.message_type[0].name)


_PAYLOADS: Mapping[Format, Callable[[], Callable[[Mapping[str, Any]], bytes]]] = {
    "json-schema": lambda: orjson.dumps,
    "avro": _avro,
    "protobuf": _protobuf,
}
