"""Records by the schemas of a registry: what it knows, does not know, and cannot say for now."""

import io
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.client import asked, open_client
from consumer.adapters.schema_registry.encoders import message_class
from consumer.adapters.schema_registry.records import RegistryRecords
from consumer.errors import MalformedMessage, NotAuthorized, RegistryUnreachable, SchemaNotLoaded, SchemaUnavailable
from tests.schema_registry import RegistryServer

GUID = "89791762-2336-4186-9674-299b90a802e2"
REFERENCE: dict[str, Any] = {"image_id": "a", "data": b"bytes", "top_k": 3, "metadata": {"k": "v"}}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def records(server: RegistryServer) -> Iterator[RegistryRecords]:
    with open_client(server.url, timeout_ms=5_000) as client, open_client(server.url, timeout_ms=5_000) as second:
        yield RegistryRecords(client, second)


def _avro(fields: dict[str, Any], schema: Any = None) -> bytes:
    out = io.BytesIO()
    schemaless_writer(out, parse_schema(schema or json.loads(formats.avro_text(formats.IMAGE_REFERENCE))), fields)
    return out.getvalue()


def _protobuf(**fields: Any) -> bytes:
    message: bytes = message_class(formats.IMAGE_REFERENCE)(**fields).SerializeToString()
    return b"\0" + message


def _read(records: RegistryRecords, schema: int | str, payload: bytes) -> dict[str, Any]:
    with pytest.raises(SchemaNotLoaded):
        records.decode(schema, payload)
    records.load(schema)
    return records.decode(schema, payload)


# --- Avro -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [7, GUID])
def test_avro_is_read_by_its_writers_schema_which_is_asked_for_once(
    server: RegistryServer, records: RegistryRecords, schema: int | str
) -> None:
    server.schemas[str(schema)] = {"schema": formats.avro_text(formats.IMAGE_REFERENCE)}  # AVRO is not said
    found = _read(records, schema, _avro(REFERENCE))
    assert {name: value for name, value in found.items() if value is not None} == REFERENCE
    records.load(schema)
    records.decode(schema, _avro(REFERENCE))
    assert len(server.asked) == 1


def test_avro_with_a_schema_of_the_senders_own_is_read_with_what_it_refers_to(
    server: RegistryServer, records: RegistryRecords
) -> None:
    name = {"type": "record", "name": "Name", "namespace": "theirs", "fields": [{"name": "text", "type": "string"}]}
    main = {
        "type": "record",
        "name": "Photo",
        "fields": [
            {"name": "uri", "type": "string"},
            {"name": "image_id", "type": "string"},
            {"name": "by", "type": "theirs.Name"},
        ],
    }
    reference = {"name": "theirs.Name", "subject": "names", "version": 2}
    server.schemas["9"] = {"schema": json.dumps(main), "references": [reference]}
    server.schemas["2"] = {"subject": "names", "version": 2, "id": 8, "schema": json.dumps(name)}
    whole = main | {"fields": [*main["fields"][:2], {"name": "by", "type": name}]}
    fields = {"uri": "file:///a", "image_id": "a", "by": {"text": "x"}}
    assert _read(records, 9, _avro(fields, whole)) == fields


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x02", b"\xfe\xff\xff\xff\x0f"])
def test_a_payload_of_another_schema_is_malformed(
    server: RegistryServer, records: RegistryRecords, payload: bytes
) -> None:
    server.schemas["7"] = {"schema": formats.avro_text(formats.IMAGE_REFERENCE)}
    with pytest.raises(MalformedMessage, match="not of the schema 7"):
        _read(records, 7, payload)


def test_a_schema_that_is_no_record_is_malformed(server: RegistryServer, records: RegistryRecords) -> None:
    server.schemas["7"] = {"schema": '"string"'}
    with pytest.raises(MalformedMessage, match="no record"):
        _read(records, 7, b"\x02a")


def test_a_schema_that_cannot_be_read_is_malformed(server: RegistryServer, records: RegistryRecords) -> None:
    server.schemas["7"] = {"schema": '{"type": "record", "name": "A", "fields": [{"name": "b", "type": "nothing"}]}'}
    with pytest.raises(MalformedMessage, match="schema 7 cannot be read"):
        records.load(7)


def test_a_payload_that_is_not_json_under_a_json_schema_is_malformed(
    server: RegistryServer, records: RegistryRecords
) -> None:
    server.schemas["7"] = {"schema": "{}", "schemaType": "JSON"}
    with pytest.raises(MalformedMessage, match="of type JSON"):
        records.load(7)


# --- Protobuf -------------------------------------------------------------------------------------------------------


def _theirs() -> FileDescriptorProto:
    """Other numbers, an import, and the image reference as the second message, within another."""
    file = FileDescriptorProto(name="x", syntax="proto3", dependency=["google/protobuf/timestamp.proto"])
    file.message_type.add(name="Other")
    inner = file.message_type.add(name="Outer").nested_type.add(name="Photo")
    inner.field.add(name="uri", number=5, label=1, type=9)
    inner.field.add(name="image_id", number=6, label=1, type=9)
    inner.field.add(name="at", number=7, label=1, type=11, type_name=".google.protobuf.Timestamp")
    return file


def test_protobuf_is_read_by_its_writers_descriptor_at_its_index(
    server: RegistryServer, records: RegistryRecords
) -> None:
    server.schemas["7"] = {"schema": "text", "schemaType": "PROTOBUF"}
    server.serialized["7"] = _theirs().SerializeToString()
    payload = b"\x04\x02\x00" + b"\x32\x01a" + b"\x2a\x08file:///"  # indexes [1, 0]; image_id; uri
    assert _read(records, 7, payload) == {"image_id": "a", "uri": "file:///"}
    for wrong in (b"\x04\x02\x02\x32\x01a", b"\x06\x02\x00\x00\x32\x01a", b"\x02\x01\x32\x01a", b"\x7e", b""):
        with pytest.raises(MalformedMessage):
            records.decode(7, wrong)


def test_protobuf_as_text_is_read_where_it_numbers_its_fields_as_we_do(
    server: RegistryServer, records: RegistryRecords
) -> None:
    server.schemas["7"] = {"schema": formats.proto_text(formats.IMAGE_REFERENCE), "schemaType": "PROTOBUF"}
    assert _read(records, 7, _protobuf(**REFERENCE)) == REFERENCE


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("string image_id = 1;", "string image_id = 20;"),
        lambda text: text.replace("string image_id = 1;", "string name = 1;"),
        lambda text: text.replace("message ImageReference", "message Photo"),
    ],
)
def test_protobuf_as_text_with_other_numbers_is_malformed(
    server: RegistryServer, records: RegistryRecords, change: Callable[[str], str]
) -> None:
    server.schemas["7"] = {"schema": change(formats.proto_text(formats.IMAGE_REFERENCE)), "schemaType": "PROTOBUF"}
    with pytest.raises(MalformedMessage, match="does not number its fields"):
        records.load(7)


# --- a registry that does not know, or does not answer --------------------------------------------------------------


def test_a_schema_that_the_registry_does_not_have_is_malformed(records: RegistryRecords) -> None:
    with pytest.raises(MalformedMessage, match="has no schema 404"):
        records.load(404)


@pytest.mark.parametrize(
    "failing",
    [
        (503, b"busy"),
        (500, b'{"error_code": 50001, "message": "the backend data store"}'),
        (429, b""),
        (401, b'{"error_code": 401, "message": "Unauthorized"}'),
        (404, b"<html>a proxy that knows no such path</html>"),
        (200, b"<html>a page</html>"),
    ],
)
def test_a_registry_that_cannot_say_is_asked_again(
    server: RegistryServer, records: RegistryRecords, failing: tuple[int, bytes]
) -> None:
    server.schemas["7"] = {"schema": formats.avro_text(formats.IMAGE_REFERENCE)}
    server.failing = failing
    with pytest.raises(SchemaUnavailable):
        records.load(7)
    server.failing = None
    records.load(7)


def test_a_registry_that_is_not_there_or_says_nothing_is_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with open_client(address, timeout_ms=50) as client, pytest.raises(SchemaUnavailable):
            RegistryRecords(client, client).load(7)
    with open_client(address, timeout_ms=5_000) as client, pytest.raises(SchemaUnavailable, match="does not answer"):
        RegistryRecords(client, client).load(7)


def test_a_user_and_a_password_go_along_and_into_no_error(server: RegistryServer) -> None:
    server.failing = (401, b'{"error_code": 401, "message": "Unauthorized"}')
    with open_client(server.url, username="me", password="hunter:2", timeout_ms=5_000) as client:
        with pytest.raises(NotAuthorized) as caught:
            asked(client.get_schema, 7)
        with pytest.raises(SchemaUnavailable) as waiting:
            RegistryRecords(client, client).load(7)
    assert server.credentials == ["Basic bWU6aHVudGVyOjI="] * 2
    assert "hunter" not in f"{caught.value} {caught.value.remedy} {waiting.value}"


def test_a_command_is_told_who_does_not_answer(server: RegistryServer) -> None:
    with open_client(server.url, timeout_ms=5_000) as client:
        assert asked(client.get_schema, 7) is None
        server.failing = (404, b"<html></html>")
        with pytest.raises(RegistryUnreachable) as caught:
            asked(client.get_schema, 7)
    assert caught.value.exit_code == 5
    assert "schema_registry.url" in caught.value.remedy
