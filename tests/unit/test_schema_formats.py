"""The Avro and Protobuf forms of the schemas are current, never renumber a field, and carry every event there is."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_reader

from consumer.adapters.schema_registry import formats
from consumer.adapters.schema_registry.encoders import Format, FramedEncoder, message_class
from consumer.adapters.schema_registry.reading import event_reader
from consumer.messages import ImageFacts, ImageJob, Label, Labelled, ModelInfo, StoredVersion
from consumer.stages.events import EventContext, label_event
from tests.contract.schema_files import FOLDER, SCHEMAS, check
from tests.unit.deliveries import delivery

EVENT: dict[str, Any] = SCHEMAS["label-event.v1.json"]["examples"][0]

NUMBERS = {
    "ImageReference": "image_id version uri data sha256 content_type captured_at top_k metadata",
    "LabelEvent": "event_id image_id uri labels model source image timings_ms published_at metadata",
    "LabelEvent.Label": "index label score",
    "LabelEvent.Model": "name version digest runtime precision",
    "LabelEvent.Source": "topic partition offset timestamp timestamp_type",
    "LabelEvent.Image": "width height format sha256 size_bytes applied etag version_id stale_reference",
    "LabelEvent.TimingsMs": "fetch decode queue infer",
}
"""Fields by their numbers, from 1. A line here only ever grows at its end: readers know fields by number alone."""


def _numbers(message: Any, above: str = "") -> dict[str, str]:
    name = f"{above}.{message.name}" if above else message.name
    found = {name: " ".join(field.name for field in sorted(message.field, key=lambda each: each.number))}
    assert [field.number for field in message.field] == list(range(1, len(message.field) + 1))
    for inner in message.nested_type:
        if not inner.options.map_entry:
            found |= _numbers(inner, name)
    return found


def test_no_field_has_another_number_than_it_had() -> None:
    found: dict[str, str] = {}
    for name in formats.GENERATED:
        found |= _numbers(formats.descriptor(name).message_type[0])
    assert found == NUMBERS


@pytest.mark.parametrize("name", formats.GENERATED)
def test_the_generated_files_are_current(name: str) -> None:
    said = "run .venv/bin/python scripts/generate_schemas.py"
    assert (FOLDER / f"{name}.avsc").read_text(encoding="utf-8") == formats.avro_text(name), said
    assert (FOLDER / f"{name}.proto").read_text(encoding="utf-8") == formats.proto_text(name), said


@pytest.mark.parametrize("name", formats.GENERATED)
def test_avro_takes_the_schema_and_every_field_has_its_description(name: str) -> None:
    schema = json.loads(formats.avro_text(name))
    parse_schema(schema)
    described = SCHEMAS[f"{name}.json"]["properties"]
    assert {field["name"]: field["doc"] for field in schema["fields"]} == {
        field: described[field]["description"] for field in described
    }


@pytest.mark.parametrize("name", formats.GENERATED)
def test_protoc_makes_of_the_file_what_the_runtime_is_given(name: str, tmp_path: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    out = tmp_path / "descriptors"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", f"{name}.proto"]
    subprocess.run(command, check=True)
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    _forget_json_names(file.message_type[0])
    assert file == formats.descriptor(name)


def _forget_json_names(message: Any) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for inner in message.nested_type:
        _forget_json_names(inner)


def test_what_has_no_counterpart_is_refused_by_name() -> None:
    either = {"description": "", "type": ["string", "integer"]}
    with pytest.raises(ValueError, match="either: of type"):
        formats._record("A", {"description": "", "properties": {"either": either}})
    anything = {"description": "", "type": "object"}
    with pytest.raises(ValueError, match="anything: object of this form"):
        formats._record("A", {"description": "", "properties": {"anything": anything}})


# --- events ---------------------------------------------------------------------------------------------------------

IMAGE = EVENT["image"] | {"size_bytes": 1, "applied": ["exif-orientation", "icc-srgb"]}
EVENTS: dict[str, dict[str, Any]] = {
    "the published example": EVENT | {"image": IMAGE},
    "as little as there can be": EVENT
    | {"uri": None, "labels": [], "metadata": {}, "image": IMAGE | {"applied": []}}
    | {"source": EVENT["source"] | {"partition": 0, "offset": 0, "timestamp": None}},
    "as much as there can be": EVENT
    | {"image": IMAGE | {"etag": "e", "version_id": "v", "stale_reference": True}}
    | {"labels": [{"index": n, "label": "é" * n, "score": n / 1000} for n in range(1000)]},
}


def _written(event: dict[str, Any], written_as: Format) -> bytes:
    encoder = FramedEncoder(written_as, 0x01020304)
    value = encoder.encode(event)
    assert value[:5] == b"\0\1\2\3\4"
    return value


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_protobuf_carries_an_event_whole(event: dict[str, Any]) -> None:
    read = event_reader(None, "protobuf")  # type: ignore[arg-type]  # it asks no registry
    assert read is not None
    found = read(_written(event, "protobuf"))
    # Null and absent are one to Protobuf.
    assert (
        found
        | {"uri": found.get("uri")}
        | {"source": found["source"] | {"timestamp": found["source"].get("timestamp")}}
        == event
    )


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_avro_carries_an_event_whole(event: dict[str, Any]) -> None:
    schema = parse_schema(json.loads(formats.avro_text(formats.LABEL_EVENT)))
    found: Any = schemaless_reader(io.BytesIO(_written(event, "avro")[5:]), schema, None)
    image = {name: value for name, value in found["image"].items() if value is not None or name in event["image"]}
    assert found | {"image": image} == event


def test_json_schema_is_the_event_behind_its_frame() -> None:
    check("label-event.v1.json", json.loads(_written(EVENT, "json-schema")[5:]))


def test_a_field_that_the_schema_does_not_have_is_no_event() -> None:
    with pytest.raises(ValueError, match="no_such"):
        _written(EVENT | {"no_such": 1}, "protobuf")


def test_a_message_class_is_the_published_one() -> None:
    assert message_class(formats.IMAGE_REFERENCE).DESCRIPTOR.full_name == "ouzel.v1.ImageReference"


@pytest.mark.parametrize("written_as", ["avro", "protobuf", "json-schema"])
def test_what_the_service_makes_of_an_image_can_be_written(written_as: Format) -> None:
    """Not an event from a file: the values are of the types that the stages give."""
    facts = ImageFacts(640, 480, "JPEG", "cd" * 32, size_bytes=9, applied=("exif-orientation", "icc-srgb"))
    model = ModelInfo("lite0", "1", "sha256:" + "ab" * 32, "tensorflow", "f32")
    job = ImageJob(delivery(b"", timestamp_ms=None, timestamp_type="none"), "finch", uri="file:///a.jpg", etag="old")
    labelled = Labelled(job, (Label(12, "finch", 0.93),), facts, model, {"fetch": 1.0}, StoredVersion("new", "v1"))
    context = EventContext("cluster", "ouzel", "replica-0", "predictions", "images.dlq", 1024)
    in_json = label_event(labelled, context, "2026-01-31T09:30:00.412Z")
    framed = label_event(labelled, replace(context, encoder=FramedEncoder(written_as, 7)), "2026-01-31T09:30:00.412Z")
    assert framed.value is not None
    assert in_json.value is not None
    expected = json.loads(in_json.value)
    if written_as == "avro":
        schema = parse_schema(json.loads(formats.avro_text(formats.LABEL_EVENT)))
        found: Any = schemaless_reader(io.BytesIO(framed.value[5:]), schema, None)
    elif written_as == "protobuf":
        read = event_reader(None, "protobuf")  # type: ignore[arg-type]  # it asks no registry
        assert read is not None
        found = read(framed.value)
        expected["source"].pop("timestamp")  # null and absent are one to Protobuf
    else:
        found = json.loads(framed.value[5:])
    assert found == expected
    changed = dict(framed.headers).items() ^ dict(in_json.headers).items()
    assert {name for name, _ in changed} == {"content-type"}
