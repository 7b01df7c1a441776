"""What each format costs: an image reference to parse, a label event to write. No registry, no broker.

.venv/bin/python benchmarks/formats.py
"""

import json
import sys
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from confluent_kafka.schema_registry import Schema

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.encoders import FramedEncoder, message_class, schema_of
from consumer.adapters.schema_registry.records import RegistryRecords
from consumer.messages import Delivery, Lease, Partition
from consumer.ports import EventEncoder
from consumer.stages.events import JsonEncoder
from consumer.stages.parse import Parser

LEASE = Lease(Partition("images", 0), epoch=1, topic_id="")
REFERENCE = {
    "image_id": "photos/2026/finch-0412",
    "uri": "file:///photos/2026/finch-0412.jpg",
    "top_k": 3,
    "metadata": {"camera": "garden-2"},
}


class Known:
    """A registry that has our schemas: 1 in Avro, 2 in Protobuf."""

    def get_schema(self, schema: int, _subject: None, _written_as: str | None) -> Schema:
        return schema_of(formats.IMAGE_REFERENCE, "avro" if schema == 1 else "protobuf")


def _best_us(work: Callable[[], object]) -> float:
    """Of 40 rounds, in microseconds a call."""
    return min(timeit.repeat(work, number=2_000, repeat=40)) / 2_000 * 1e6


def _avro(fields: dict[str, Any]) -> bytes:
    import io

    from fastavro import parse_schema, schemaless_writer

    out = io.BytesIO()
    schemaless_writer(out, parse_schema(json.loads(formats.avro_text(formats.IMAGE_REFERENCE))), fields)
    return out.getvalue()


def main() -> None:
    """Print a Markdown table."""
    known: Any = Known()
    records = RegistryRecords(known, known)
    records.load(1)
    records.load(2)
    parse = Parser(schemas=records)
    as_json = json.dumps(REFERENCE).encode()
    protobuf = message_class(formats.IMAGE_REFERENCE)(**REFERENCE).SerializeToString()
    values = {
        "json": as_json,
        "json-schema": b"\0\0\0\0\1" + as_json,
        "avro": b"\0\0\0\0\1" + _avro(REFERENCE),
        "protobuf": b"\0\0\0\0\2\0" + protobuf,
    }
    event = json.loads(formats.json_schema_text(formats.LABEL_EVENT))["examples"][0]
    event = event | {"labels": event["labels"] * 5}
    encoders: dict[str, EventEncoder] = {
        "json": JsonEncoder(),
        "json-schema": FramedEncoder("json-schema", 1),
        "avro": FramedEncoder("avro", 1),
        "protobuf": FramedEncoder("protobuf", 1),
    }
    print("| format | parse, µs | bytes | write, µs | bytes |\n| --- | --- | --- | --- | --- |")
    for name, value in values.items():
        delivery, encoder = Delivery(LEASE, 0, value), encoders[name]
        read_us, write_us = _best_us(partial(parse, delivery)), _best_us(partial(encoder.encode, event))
        print(f"| `{name}` | {read_us:.1f} | {len(value)} | {write_us:.1f} | {len(encoder.encode(event))} |")


if __name__ == "__main__":
    main()
