"""The published JSON Schemas in Avro's and Protobuf's words. `scripts/generate_schemas.py` writes them to `schemas/`.

| JSON Schema | Avro | Protobuf |
| --- | --- | --- |
| string, `enum`, `const` | string | string |
| string, `contentEncoding: base64` | bytes | bytes |
| integer, number, boolean | long, double, boolean | int64, double, bool |
| object with `properties` | record | nested message |
| object of text | map of string | map<string, string> |
| array | array | repeated |
| null allowed, or not required | union with null, which is the default | optional |

A field's Protobuf number is its place in the JSON Schema, from 1: new fields go to the end, none is ever taken out.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

NAMESPACE: Final = "ouzel.v1"
IMAGE_REFERENCE: Final = "image-reference.v1"
LABEL_EVENT: Final = "label-event.v1"
GENERATED: Final = (IMAGE_REFERENCE, LABEL_EVENT)
"""The schemas that have an `.avsc` and a `.proto` beside their `.json`."""

Scalar = Literal["string", "bytes", "integer", "number", "boolean"]
_AVRO: Mapping[Scalar, str] = {
    "string": "string",
    "bytes": "bytes",
    "integer": "long",
    "number": "double",
    "boolean": "boolean",
}
_PROTOBUF: Mapping[Scalar, str] = {**_AVRO, "integer": "int64", "boolean": "bool"}
_DESCRIPTOR_TYPE: Mapping[Scalar, int] = {"string": 9, "bytes": 12, "integer": 3, "number": 1, "boolean": 8}
"""`FieldDescriptorProto.Type`: https://github.com/protocolbuffers/protobuf/blob/main/src/google/protobuf/descriptor.proto"""
_LABEL_OPTIONAL, _LABEL_REPEATED, _TYPE_MESSAGE = 1, 3, 11
_COMMENT_CHARS = 116


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record."""

    name: str
    doc: str
    kind: "Scalar | Record"
    shape: Literal["one", "list", "map"]
    """`map` is text by text."""
    optional: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What all three languages have in common: named fields in an order."""

    name: str
    doc: str
    fields: tuple[Field, ...]


@cache
def json_schema_text(name: str) -> str:
    """A published JSON Schema, by its name without `.json`: from the wheel, or from a checkout's `schemas/`."""
    package = Path(__file__).resolve().parents[2]
    folder = next(each for each in (package / "_data" / "schemas", package.parent / "schemas") if each.is_dir())
    return (folder / f"{name}.json").read_text(encoding="utf-8")


@cache
def record(name: str) -> Record:
    """A published schema as a record, e.g. `LabelEvent` for `label-event.v1`.

    Raises:
        ValueError: it has a construct without a counterpart in Avro and Protobuf.
    """
    return _record(_capitalised(name.split(".", maxsplit=1)[0]), json.loads(json_schema_text(name)))


def _record(name: str, schema: Mapping[str, Any]) -> Record:
    required = schema.get("required", ())
    fields = (_field(each, found, each in required) for each, found in schema["properties"].items())
    return Record(name, schema["description"], tuple(fields))


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    said = schema.get("type", "string" if "enum" in schema or "const" in schema else "")
    types = [said] if isinstance(said, str) else said
    known = [each for each in types if each != "null"]
    if len(known) != 1:
        raise ValueError(f"{name}: of type {said!r}, which has no counterpart in Avro and Protobuf")
    kind, shape = _kind(name, known[0], schema)
    return Field(name, schema["description"], kind, shape, optional=not required or len(known) < len(types))


def _kind(name: str, of_type: str, schema: Mapping[str, Any]) -> tuple[Scalar | Record, Literal["one", "list", "map"]]:
    if of_type == "array":
        kind, shape = _kind(name.removesuffix("s"), schema["items"]["type"], schema["items"])
        if shape == "one":
            return kind, "list"
    elif of_type == "object" and "properties" in schema:
        return _record(_capitalised(name), schema), "one"
    elif of_type == "object" and schema.get("additionalProperties") == {"type": "string"}:
        return "string", "map"
    elif of_type == "string":
        return ("bytes" if schema.get("contentEncoding") == "base64" else "string"), "one"
    elif of_type in ("integer", "number", "boolean"):
        return of_type, "one"  # type: ignore[return-value]  # mypy does not narrow by `in`
    raise ValueError(f"{name}: {of_type} of this form has no counterpart in Avro and Protobuf")


def _capitalised(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace("-", "_").split("_"))


# --- Avro -----------------------------------------------------------------------------------------------------------


@cache
def avro_text(name: str) -> str:
    """The schema in Avro 1.12's JSON, with the descriptions as `doc`."""
    return json.dumps(_avro_record(record(name), ""), indent=2, ensure_ascii=False) + "\n"


def _avro_record(found: Record, above: str) -> dict[str, Any]:
    # Avro's names are not nested: those of inner records begin with the outer one's.
    full = above + found.name
    named = {"type": "record", "name": full} | ({} if above else {"namespace": NAMESPACE})
    return {**named, "doc": found.doc, "fields": [_avro_field(field, full) for field in found.fields]}


def _avro_field(field: Field, above: str) -> dict[str, Any]:
    of_type: Any = _avro_record(field.kind, above) if isinstance(field.kind, Record) else _AVRO[field.kind]
    if field.shape == "list":
        of_type = {"type": "array", "items": of_type}
    elif field.shape == "map":
        of_type = {"type": "map", "values": of_type}
    if not field.optional:
        return {"name": field.name, "doc": field.doc, "type": of_type}
    return {"name": field.name, "doc": field.doc, "type": ["null", of_type], "default": None}


# --- Protobuf -------------------------------------------------------------------------------------------------------


@cache
def proto_text(name: str) -> str:
    """The schema as a proto3 file of one message, with the descriptions as comments."""
    head = [
        f"// Written by scripts/generate_schemas.py from {name}.json: change that.",
        'syntax = "proto3";',
        "",
        f"package {NAMESPACE};",
        "",
    ]
    return "\n".join([*head, *_proto_message(record(name), 0)]) + "\n"


def _proto_message(found: Record, depth: int) -> Iterator[str]:
    indent = "  " * depth
    yield from _comment(found.doc, indent)
    yield f"{indent}message {found.name} {{"
    for field in found.fields:
        if isinstance(field.kind, Record):
            yield from _proto_message(field.kind, depth + 1)
            yield ""
    for number, field in enumerate(found.fields, start=1):
        yield from _comment(field.doc, indent + "  ")
        yield f"{indent}  {_proto_type(field)} {field.name} = {number};"
    yield indent + "}"


def _proto_type(field: Field) -> str:
    of_type = field.kind.name if isinstance(field.kind, Record) else _PROTOBUF[field.kind]
    if field.shape == "map":
        return f"map<string, {of_type}>"
    if field.shape == "list":
        return f"repeated {of_type}"
    return f"optional {of_type}" if field.optional else of_type


def _comment(text: str, indent: str) -> Iterator[str]:
    mark = f"{indent}// "
    yield from textwrap.wrap(text, _COMMENT_CHARS, initial_indent=mark, subsequent_indent=mark)


def descriptor(name: str) -> "FileDescriptorProto":
    """What protoc makes of `proto_text`: the same file, for the runtime, which reads no text."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=f"{name}.proto", package=NAMESPACE, syntax="proto3")
    _describe(record(name), file.message_type.add(), f".{NAMESPACE}")
    return file


def _describe(found: Record, message: "DescriptorProto", above: str) -> None:
    message.name = found.name
    full = f"{above}.{found.name}"
    for number, field in enumerate(found.fields, start=1):
        described = message.field.add(name=field.name, number=number)
        described.label = _LABEL_OPTIONAL if field.shape == "one" else _LABEL_REPEATED
        if field.shape == "map":
            # https://protobuf.dev/programming-guides/proto3/#backwards: a map is a list of these entries.
            entry = message.nested_type.add(name=f"{_capitalised(field.name)}Entry")
            entry.options.map_entry = True
            for place, part in enumerate(("key", "value"), start=1):
                entry.field.add(name=part, number=place, label=_LABEL_OPTIONAL, type=_DESCRIPTOR_TYPE["string"])
            described.type, described.type_name = _TYPE_MESSAGE, f"{full}.{entry.name}"
        elif isinstance(field.kind, Record):
            _describe(field.kind, message.nested_type.add(), full)
            described.type, described.type_name = _TYPE_MESSAGE, f"{full}.{field.kind.name}"
        else:
            described.type = _DESCRIPTOR_TYPE[field.kind]
    for field, described in zip(found.fields, message.field, strict=True):
        if field.optional and field.shape == "one":
            # A field with presence is the only one of a made-up group (proto3_optional).
            described.proto3_optional = True
            described.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")
