"""Framing: what serializers put before a payload, so that it can be taken off, or its dead letter can name its writer.

Confluent's, which we read (https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/):

    value   00 | schema id, 4 bytes, big-endian | Protobuf alone: message indexes | payload
    header  `__value_schema_id`: 01 | schema GUID, 16 bytes | Protobuf alone: message indexes;  the value is the payload
"""

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

from consumer.errors import MalformedMessage

MAGIC: Final = 0
HEADER_MAGIC: Final = 1
VALUE_SCHEMA_ID: Final = "__value_schema_id"
_PREFIX_BYTES, _GUID_BYTES = 5, 16

SchemaId = int | str
"""A schema's id in its registry: its number, or its GUID as text."""


class Framed(NamedTuple):
    """A value without its framing."""

    schema: SchemaId
    payload: bytes
    """Of Protobuf with the message indexes before it."""


def unframed(value: bytes, header: bytes | None) -> Framed:
    """The schema id and the payload of a value that Confluent's serializers framed.

    Args:
        value: the message's; begins with `MAGIC` where there is no header.
        header: `VALUE_SCHEMA_ID`, if the message has it.

    Raises:
        MalformedMessage: cut short, another version of the framing, or Apicurio's, which looks alike.
    """
    if header is None:
        if len(value) <= _PREFIX_BYTES:
            raise MalformedMessage(
                f"the value begins like Confluent's framing and ends after {len(value)} bytes: send the payload too"
            )
        number = int.from_bytes(value[1:_PREFIX_BYTES])
        if number == 0:  # Confluent's ids begin at 1
            raise MalformedMessage(_APICURIO)
        return Framed(number, value[_PREFIX_BYTES:])
    if len(header) >= 1 + _GUID_BYTES and header[0] == HEADER_MAGIC:
        indexes = header[1 + _GUID_BYTES :]
        return Framed(str(uuid.UUID(bytes=header[1 : 1 + _GUID_BYTES])), indexes + value if indexes else value)
    if len(header) >= _PREFIX_BYTES and header[0] == MAGIC:
        return Framed(int.from_bytes(header[1:_PREFIX_BYTES]), header[_PREFIX_BYTES:] + value)
    raise MalformedMessage(
        f"{VALUE_SCHEMA_ID} header: neither byte 01 and a GUID of 16 bytes nor byte 00 and an id of 4: "
        "send what Confluent's serializers write"
    )


def is_json(payload: bytes) -> bool:
    """Whether a framed payload is a JSON object. To Avro and Protobuf `{` in the first place is a negative length,
    branch or index, but for an Avro record that begins with a number."""
    return payload[:64].lstrip()[:1] == b"{"


# --- framing that is not ours to read -------------------------------------------------------------------------------

_ASK = "send JSON, or Avro or Protobuf by Confluent's serializers (schema_registry.url)"
_APICURIO = (
    "the value looks framed by Apicurio's serializers with an id of 8 bytes (byte 00, then the id): set "
    "apicurio.registry.id-handler to the handler with 4 bytes at the sender, which is Confluent's framing"
)
_COMPRESSED = (
    "the sender compressed the value itself: send it plain, and set compression.type at the producer, which "
    "compresses whole batches and is undone by the client"
)

# First bytes, and what is said of them.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"Obj\x01", f"the value is a whole Avro file (an object container): send each record by itself; {_ASK}"),
    (b"\xac\xed\x00\x05", f"the value is a Java object (ObjectOutputStream), which is read by nobody else: {_ASK}"),
    (b"\x1f\x8b", f"the value is compressed by gzip: {_COMPRESSED}"),
    (b"\x28\xb5\x2f\xfd", f"the value is compressed by zstd: {_COMPRESSED}"),
    (b"\xff\x06\x00\x00sNaPpY", f"the value is compressed by snappy (its frame format): {_COMPRESSED}"),
    (b"\x82SNAPPY\x00", f"the value is compressed by snappy (as snappy-java writes it): {_COMPRESSED}"),
    (b"\x04\x22\x4d\x18", f"the value is compressed by LZ4: {_COMPRESSED}"),
    (b"BZh", f"the value is compressed by bzip2: {_COMPRESSED}"),
    (b"PK\x03\x04", "the value is a ZIP archive: send each image by itself"),
    (b"PAR1", "the value is a Parquet file: send each record by itself, as a JSON image reference"),
    (b":)\n", f"the value is Smile, Jackson's binary JSON: {_ASK}"),
    (b"\xd9\xd9\xf7", f"the value is CBOR: {_ASK}"),
    (b"\xff\xfe", "the value begins like text in UTF-16: send UTF-8"),
    (b"\xfe\xff", "the value begins like text in UTF-16: send UTF-8"),
    (b"<?xml", f"the value is XML: {_ASK}"),
)
_GLUE_BYTES = 18
_GLUE_COMPRESSION = {0: "", 5: ", compressed"}


def foreign_serializer(value: bytes) -> str | None:
    """Who likely wrote these bytes, and what to do; None where nothing is known of them.

    The surest first: the guesses at the end ask for more than a first byte.
    """
    for signature, said in _SIGNATURES:
        if value.startswith(signature):
            return said
    # awslabs/aws-glue-schema-registry, SerializationDataEncoder: version 3, compression 0 or 5, a UUID.
    if value[:1] == b"\x03" and len(value) > _GLUE_BYTES and value[1] in _GLUE_COMPRESSION:
        schema = uuid.UUID(bytes=value[2:_GLUE_BYTES])
        return (
            f"the value is framed by AWS Glue's serializers (schema version {schema}{_GLUE_COMPRESSION[value[1]]}), "
            f"which are not read: {_ASK}"
        )
    guesses: tuple[tuple[Callable[[bytes], bool], str], ...] = (
        (_like_pickle, "a Python pickle, which is never read, as it is a program"),
        (_like_message_pack, "MessagePack"),
        (_like_cbor, "CBOR"),
        (_like_protobuf, "bare Protobuf, without a schema id"),
    )
    for looks_like, name in guesses:
        if looks_like(value):
            return f"the value looks like {name}: {_ASK}"
    return None


def _like_pickle(value: bytes) -> bool:
    return value[:1] == b"\x80" and value[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"} and value.endswith(b".")


def _like_message_pack(value: bytes) -> bool:
    # A map of 1 to 15 entries whose first key is a text of 1 to 31 bytes (https://github.com/msgpack/msgpack/blob/master/spec.md).
    return 0x81 <= value[0] <= 0x8F and len(value) > 2 and 0xA1 <= value[1] <= 0xBF and _name(value, 2, value[1] & 0x1F)


def _like_cbor(value: bytes) -> bool:
    # A map of 1 to 23 entries, or of any number, whose first key is a text of 1 to 23 bytes (RFC 8949, 3).
    begins = 0xA1 <= value[0] <= 0xB7 or value[0] == 0xBF
    return begins and len(value) > 2 and 0x61 <= value[1] <= 0x77 and _name(value, 2, value[1] & 0x1F)


def _name(value: bytes, start: int, size: int) -> bool:
    """Whether there is a name of that many bytes, as people give them to fields."""
    name = value[start : start + size]
    return len(name) == size and name.isascii() and name.replace(b"_", b"").replace(b"-", b"").isalnum()


_PROTOBUF_FIELDS_READ = 32
_FIXED_BYTES = {1: 8, 5: 4}


def _like_protobuf(value: bytes) -> bool:
    """Whether the bytes are whole Protobuf fields with small numbers, one of them text or a message."""
    place, fields, has_text = 0, 0, False
    while place < len(value) and fields < _PROTOBUF_FIELDS_READ:
        tag, place = _varint(value, place)
        wire_type = tag & 7
        if not 1 <= tag >> 3 <= 64:
            return False
        if wire_type == 2:
            size, place = _varint(value, place)
            place += size
            has_text = has_text or size > 0
        elif wire_type in _FIXED_BYTES:
            place += _FIXED_BYTES[wire_type]
        elif wire_type == 0:
            _, place = _varint(value, place)
        else:
            return False
        fields += 1
    return has_text and (place == len(value) or fields == _PROTOBUF_FIELDS_READ)


def _varint(value: bytes, place: int) -> tuple[int, int]:
    """The number, and the place after it; past the end of the value where it is cut short."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(value):
            return 0, len(value) + 1
        byte = value[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    return 0, len(value) + 1
