"""Label events back from what `encoders` wrote, for `ouzel tail`."""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.encoders import Format, message_class
from consumer.errors import SchemaNotLoaded
from consumer.ports import RecordDecoder

ReadEvent = Callable[[bytes], dict[str, Any]]
_PREFIX_BYTES = 5


def event_reader(records: RecordDecoder, written_as: Format) -> ReadEvent | None:
    """From the framed value of an event to its fields; None for JSON Schema, whose payload is JSON.

    Avro is read by the schema that the value names, which may be asked of the registry; Protobuf by ours, as it names
    its fields by number. The function raises MalformedMessage or SchemaUnavailable, and of Protobuf DecodeError.
    """
    if written_as == "protobuf":
        make = message_class(formats.LABEL_EVENT)
        return lambda value: _as_dict(make.FromString(value[_PREFIX_BYTES + 1 :]))
    if written_as == "avro":

        def read(value: bytes) -> dict[str, Any]:
            schema = int.from_bytes(value[1:_PREFIX_BYTES])
            try:
                return records.decode(schema, value[_PREFIX_BYTES:])
            except SchemaNotLoaded:
                records.load(schema)
            return records.decode(schema, value[_PREFIX_BYTES:])

        return read
    return None


def _as_dict(message: Message) -> dict[str, Any]:
    """As the event was in JSON: every field but those that may be absent and are."""
    found = {}
    for field in message.DESCRIPTOR.fields:
        if not field.has_presence or message.HasField(field.name):
            found[field.name] = _plain(field, getattr(message, field.name))
    return found


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        return dict(value.items())
    return [_as_dict(each) for each in value] if field.is_repeated else _as_dict(value)
