"""Avro and Protobuf in: a record by the schema that its writer registered, kept by id for ever."""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable
from typing import Any

from confluent_kafka.schema_registry import (
    RegisteredSchema,
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    SchemaRegistryError,
)
from fastavro import parse_schema, schemaless_reader
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.client import NOT_FOUND, described
from consumer.errors import MalformedMessage, SchemaNotLoaded, SchemaUnavailable

_Read = Callable[[bytes], Any]
_MAX_INDEXES = 16  # messages within messages


class RegistryRecords:
    """Fulfils `ports.RecordDecoder`.

    Args:
        client: asks for schemas as text.
        descriptors: another, which asks for Protobuf as descriptors: a client's cache holds one form of a schema.
    """

    def __init__(self, client: SchemaRegistryClient, descriptors: SchemaRegistryClient) -> None:
        self._client = client
        self._descriptors = descriptors
        self._readers: dict[int | str, _Read] = {}  # one assignment each, so any thread may look

    def decode(self, schema: int | str, payload: bytes) -> dict[str, object]:
        read = self._readers.get(schema)
        if read is None:
            raise SchemaNotLoaded(schema)
        try:
            found = read(payload)
        except MalformedMessage:
            raise
        except Exception as error:  # whatever a reader makes of bytes that are not of its schema
            raise MalformedMessage(
                f"the payload is not of the schema {schema} that it names ({type(error).__name__}): "
                "send what the serializer wrote, with that schema's id"
            ) from None
        if not isinstance(found, dict):
            raise MalformedMessage(f"schema {schema} is no record: send an image reference ({formats.IMAGE_REFERENCE})")
        return found

    def load(self, schema: int | str) -> bool:
        if schema in self._readers:
            return False
        try:
            self._readers[schema] = self._reader(schema)
        except (MalformedMessage, SchemaUnavailable):
            raise
        except Exception as error:  # whatever the parsers make of a schema, which is a stranger's text too
            raise MalformedMessage(
                f"schema {schema} cannot be read ({type(error).__name__}: {error}): register one that can, "
                f"such as {formats.IMAGE_REFERENCE}"
            ) from None
        return True

    def _reader(self, schema: int | str) -> _Read:
        found = self._schema(schema, serialized=False)
        if found.schema_type == "PROTOBUF":
            return self._protobuf_reader(schema, found)
        if found.schema_type == "AVRO":
            return self._avro_reader(found)
        raise MalformedMessage(
            f"schema {schema} is of type {found.schema_type}, and the payload is not JSON: send what the schema says"
        )

    # --- questions --------------------------------------------------------------------------------------------------

    def _schema(self, schema: int | str, *, serialized: bool) -> Schema:
        client, written_as = (self._descriptors, "serialized") if serialized else (self._client, None)
        what = f"schema {schema}"
        if isinstance(schema, str):
            found: Schema = self._ask(what, client.get_schema_by_guid, schema, written_as)
        else:
            found = self._ask(what, client.get_schema, schema, None, written_as)
        return found

    def _referred(self, reference: SchemaReference, *, serialized: bool) -> Schema:
        client, written_as = (self._descriptors, "serialized") if serialized else (self._client, None)
        subject, version = str(reference.subject), int(reference.version or 0)
        what = f"schema {subject} version {version}"
        found: RegisteredSchema = self._ask(what, client.get_version, subject, version, True, written_as)
        return found.schema

    def _ask(self, what: str, question: Callable[..., Any], *args: Any) -> Any:
        """Raises MalformedMessage where the registry has none such, SchemaUnavailable where it cannot say."""
        try:
            return question(*args)
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and error.error_code in NOT_FOUND:
                raise MalformedMessage(
                    f"the schema registry has no {what}: the sender uses another registry, or another serializer "
                    "framed the value (Apicurio's count in ids of their own): register the schema here, or send JSON"
                ) from None
            raise SchemaUnavailable(f"the schema registry answers {described(error)} for {what}") from None
        except Exception as error:  # of the HTTP client, which Confluent's passes on as they are
            raise SchemaUnavailable(f"the schema registry does not answer: {described(error)}") from None

    # --- Avro -------------------------------------------------------------------------------------------------------

    def _avro_reader(self, schema: Schema) -> _Read:
        named: dict[str, Any] = {}
        self._parse_references(schema, named, set())
        parsed = parse_schema(json.loads(schema.schema_str or ""), named_schemas=named)
        return lambda payload: schemaless_reader(io.BytesIO(payload), parsed, None)

    def _parse_references(self, schema: Schema, named: dict[str, Any], seen: set[tuple[str, int]]) -> None:
        """What the schema refers to by name, before it."""
        for reference in schema.references or ():
            place = (str(reference.subject), int(reference.version or 0))
            if place not in seen:
                seen.add(place)
                referred = self._referred(reference, serialized=False)
                self._parse_references(referred, named, seen)
                parse_schema(json.loads(referred.schema_str or ""), named_schemas=named)

    # --- Protobuf ---------------------------------------------------------------------------------------------------

    def _protobuf_reader(self, schema: int | str, as_text: Schema) -> _Read:
        as_descriptor = self._schema(schema, serialized=True)
        file = _file_descriptor(as_descriptor.schema_str or "")
        pool = DescriptorPool()
        if file is None:  # Apicurio and Karapace give the text alone
            _check_text(schema, as_text.schema_str or "")
            file = formats.descriptor(formats.IMAGE_REFERENCE)
        else:
            self._add_references(as_descriptor, pool, set())
        file.name = "writer.proto"
        pool.Add(file)
        messages = list(pool.FindFileByName(file.name).message_types_by_name.values())

        def read(payload: bytes) -> dict[str, Any]:
            indexes, start = _message_indexes(payload)
            found = _message_at(messages, indexes)
            message = GetMessageClass(found)()
            message.ParseFromString(payload[start:])
            return {field.name: _plain(field, value) for field, value in message.ListFields()}

        return read

    def _add_references(self, schema: Schema, pool: DescriptorPool, seen: set[str]) -> None:
        """The files that a file imports, before it: other schemas, and those that come with Protobuf."""
        for reference in schema.references or ():
            name = str(reference.name)
            if name in seen or name.startswith("google/protobuf/"):
                continue
            seen.add(name)
            referred = self._referred(reference, serialized=True)
            self._add_references(referred, pool, seen)
            file = _file_descriptor(referred.schema_str or "")
            if file is None:
                raise ValueError(f"{name}, which it imports, is given as text")
            file.name = name
            _add_imports(file, pool)
            pool.Add(file)
        file = _file_descriptor(schema.schema_str or "")
        if file is not None:
            _add_imports(file, pool)


def _add_imports(file: FileDescriptorProto, pool: DescriptorPool) -> None:
    """The files that come with Protobuf, such as google/protobuf/timestamp.proto."""
    from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2

    del duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # importing them puts them into the default pool
    for name in file.dependency:
        if name.startswith("google/protobuf/"):
            known = FileDescriptorProto()
            Default().FindFileByName(name).CopyToProto(known)
            pool.Add(known)


def _file_descriptor(text: str) -> FileDescriptorProto | None:
    """What a registry gives for `format=serialized`; None where it gave the text, as it does not know the word."""
    try:
        return FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
    except Exception as error:
        if type(error).__name__ == "DecodeError":
            return None
        raise


def _check_text(schema: int | str, text: str) -> None:
    """A registry that gives no descriptor leaves us our own: the text must number its fields as we do.

    Raises:
        MalformedMessage: it does not.
    """
    bare = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    numbers = {name: int(number) for name, number in re.findall(r"\b(\w+)\s*=\s*(\d+)\s*[;\[]", bare)}
    ours = {field.name: field.number for field in formats.descriptor(formats.IMAGE_REFERENCE).message_type[0].field}
    taken = {number: name for name, number in ours.items()}
    strange = [
        name for name, number in numbers.items() if ours.get(name, number) != number or taken.get(number, name) != name
    ]
    first = re.search(r"\bmessage\s+(\w+)", bare)
    if strange or "image_id" not in numbers or first is None or first[1] != "ImageReference":
        raise MalformedMessage(
            f"schema {schema} is a Protobuf message that does not number its fields as "
            f"{formats.IMAGE_REFERENCE}.proto, and this registry gives no descriptor to read others by: "
            "send messages of that file"
        )


def _message_indexes(payload: bytes) -> tuple[list[int], int]:
    """Which message of its file a payload is, and where it begins: a count and so many numbers, zigzag varints; a lone
    0 stands for the first message. https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/
    """
    count, place = _zigzag(payload, 0)
    if count == 0:
        return [0], place
    if not 0 < count <= _MAX_INDEXES:
        raise ValueError("no message indexes")
    indexes = []
    for _ in range(count):
        index, place = _zigzag(payload, place)
        indexes.append(index)
    return indexes, place


def _zigzag(payload: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = payload[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), place
        shift += 7
        if shift > 63:
            raise ValueError("no varint")


def _message_at(messages: list[Descriptor], indexes: list[int]) -> Descriptor:
    for depth, index in enumerate(indexes):
        if index < 0:
            raise ValueError("no message index")
        found = messages[index]
        if depth == len(indexes) - 1:
            return found
        messages = list(found.nested_types)
    raise ValueError("no message indexes")


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """A set field's value; a map as a dict. What an image reference does not have is left for its checks to refuse."""
    of_message = field.message_type
    if of_message is not None and of_message.GetOptions().map_entry:
        return dict(value.items())
    return value
