"""Confluent's framing is taken off; of any other the dead letter says who likely wrote it, and what to do."""

import gzip
import io
import json
import pickle
import struct
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.contract import ImageReference
from consumer.errors import ImageTooLarge, MalformedMessage, SchemaNotLoaded
from consumer.messages import Headers, ImageJob
from consumer.stages.framing import VALUE_SCHEMA_ID, foreign_serializer, unframed
from consumer.stages.parse import Parser
from tests.unit.deliveries import delivery

GUID = uuid.UUID("89791762-2336-4186-9674-299b90a802e2")
REFERENCE = {"image_id": "a", "uri": "file:///a.jpg"}
AS_JSON = json.dumps(REFERENCE).encode()
FRAME = b"\0" + struct.pack(">I", 7)


class Records:
    """A registry's decoder that knows schema 7 and the GUID, and gives what it was told."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = dict(found)
        self.asked: list[tuple[int | str, bytes]] = []

    def decode(self, schema: int | str, payload: bytes) -> dict[str, Any]:
        self.asked.append((schema, payload))
        if schema not in (7, str(GUID)):
            raise SchemaNotLoaded(schema)
        return self.found

    def load(self, schema: int | str) -> bool:
        raise AssertionError("parse never asks a registry")


def _job(parser: Parser, value: bytes, headers: Headers = ()) -> ImageJob:
    job = parser(delivery(value, headers=headers))
    assert isinstance(job, ImageJob)
    return job


def _refusal(value: bytes, headers: Headers = ()) -> str:
    with pytest.raises(MalformedMessage) as caught:
        Parser()(delivery(value, headers=headers))
    return str(caught.value)


# --- Confluent's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [b"", b" \n"])
def test_framed_json_needs_no_registry(blank: bytes) -> None:
    job = _job(Parser(), FRAME + blank + AS_JSON, (("content-type", b"application/json"),))
    assert (job.image_id, job.uri) == ("a", "file:///a.jpg")


def test_json_with_its_schema_in_a_header_is_json() -> None:
    header = b"\x01" + GUID.bytes
    assert _job(Parser(), AS_JSON, ((VALUE_SCHEMA_ID, header),)).image_id == "a"


def test_a_framed_record_is_an_image_reference_with_bytes_for_its_data() -> None:
    records = Records({"image_id": "a", "uri": None, "data": b"the image", "metadata": {"k": "v"}})
    job = _job(Parser(schemas=records), FRAME + b"\x02a")
    assert (job.image_id, job.data, job.metadata) == ("a", b"the image", {"k": "v"})
    assert records.asked == [(7, b"\x02a")]


@pytest.mark.parametrize(
    ("header", "schema", "payload"),
    [
        (b"\x01" + GUID.bytes, str(GUID), b"BM payload"),
        (b"\x01" + GUID.bytes + b"\0", str(GUID), b"\0BM payload"),  # Protobuf's message indexes are in the header
        (FRAME, 7, b"BM payload"),
    ],
)
def test_a_schema_in_a_header_goes_before_what_the_first_bytes_look_like(
    header: bytes, schema: int | str, payload: bytes
) -> None:
    records = Records(REFERENCE)
    Parser(schemas=records)(delivery(b"BM payload", headers=((VALUE_SCHEMA_ID, header),)))
    assert records.asked == [(schema, payload)]


def test_an_unknown_schema_is_asked_for_and_no_letter() -> None:
    with pytest.raises(SchemaNotLoaded) as caught:
        Parser(schemas=Records({}))(delivery(b"\0\0\0\0\x08\x02a"))
    assert caught.value.schema == 8


def test_an_inline_image_of_a_record_has_the_same_bound() -> None:
    records = Records({"image_id": "a", "data": b"x" * 100})
    with pytest.raises(ImageTooLarge, match="100 bytes"):
        Parser(max_image_bytes=99, schemas=records)(delivery(FRAME + b"\x02a"))


def test_a_wrong_field_of_a_record_is_named() -> None:
    with pytest.raises(MalformedMessage, match="top_k: "):
        Parser(schemas=Records(REFERENCE | {"top_k": "3"}))(delivery(FRAME + b"\x02a"))


def test_without_a_registry_the_letter_says_what_is_missing() -> None:
    said = _refusal(FRAME + b"\x02a")
    assert "schema 7" in said
    assert "schema_registry.url" in said
    assert "the extra registry" in said


@pytest.mark.parametrize("value", [b"\0", FRAME, b"\0\0"])
def test_framing_cut_short_is_malformed(value: bytes) -> None:
    assert f"ends after {len(value)} bytes" in _refusal(value)


def test_a_schema_header_of_another_form_is_malformed() -> None:
    assert VALUE_SCHEMA_ID in _refusal(b"\x02a", ((VALUE_SCHEMA_ID, b"\x02short"),))


def test_an_image_that_begins_with_zeros_is_no_framing() -> None:
    avif = b"\0\0\0\x1cftypavif\0\0\0\0"
    assert _job(Parser(), avif, ()).data == avif
    assert _job(Parser(), avif, (("content-type", b"image/avif"),)).data == avif


# --- others' --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b"\0" + struct.pack(">q", 12) + b"\x02a", "Apicurio"),
        (b"\x03\x00" + GUID.bytes + b"\x02a", f"AWS Glue's serializers (schema version {GUID})"),
        (b"\x03\x05" + GUID.bytes + b"\x78\x9c", f"{GUID}, compressed"),
        (b"Obj\x01\x04\x14avro.codec\x08null", "Avro file"),
        (b"\xac\xed\x00\x05sr\x00\x0ecom.example.Image", "Java object"),
        (gzip.compress(AS_JSON, mtime=0), "gzip"),
        (bytes.fromhex("28b52ffd0458") + AS_JSON, "zstd"),
        (bytes.fromhex("ff060000734e61507059") + b"\x01", "snappy (its frame"),
        (b"\x82SNAPPY\x00\0\0\0\x01", "snappy-java"),
        (bytes.fromhex("04224d18") + b"\x60", "LZ4"),
        (b"PAR1\x15\x04", "Parquet"),
        (pickle.dumps(REFERENCE, protocol=4), "Python pickle"),
        (b"\x82\xa8image_id\xa1a\xa3uri\xafa", "MessagePack"),
        (b"\xa2\x68image_id\x61a\x63uri\x61b", "CBOR"),
        (b"\xbf\x68image_id\x61a\xff", "CBOR"),
        (b"\x0a\x01a\x1a\x0dfile:///a.jpg\x40\x03", "bare Protobuf"),
        ('{"image_id": "a"}'.encode("utf-16"), "UTF-16"),
        (b"<?xml version='1.0'?>", "XML"),
    ],
)
def test_the_letter_names_the_serializer_and_what_to_do(value: bytes, named: str) -> None:
    said = _refusal(value)
    assert named in said
    assert any(what in said for what in ("send ", "set "))


@pytest.mark.parametrize("value", [b"nothing known", b"\x01\x02\x03", b"\x80", b"\x03", b"\x82\xa8im", b"\x0a\xff"])
def test_of_bytes_that_say_nothing_nothing_is_guessed(value: bytes) -> None:
    assert foreign_serializer(value) is None
    assert "neither JSON nor those of an image" in _refusal(value)


def test_no_image_is_taken_for_a_serializers_bytes() -> None:
    from PIL import Image

    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, name)
        assert foreign_serializer(buffer.getvalue()) is None, name


@given(st.binary(min_size=1, max_size=64), st.none() | st.binary(max_size=24))
def test_whatever_the_bytes_framing_is_a_schema_or_malformed(value: bytes, header: bytes | None) -> None:
    foreign_serializer(value)
    try:
        framed = unframed(b"\0" + value, header)
    except MalformedMessage:
        return
    assert framed.payload.endswith(value[-1:])


def test_a_records_bytes_are_taken_and_text_is_still_base64() -> None:
    assert ImageReference.model_validate({"image_id": "a", "data": b"x"}).data == b"x"
    assert ImageReference.model_validate({"image_id": "a", "data": "eA=="}).data == b"x"
    with pytest.raises(ValueError, match="not standard base64"):
        ImageReference.model_validate({"image_id": "a", "data": b""})
