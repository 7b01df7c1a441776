"""Every form of input through the real broker and the real models: what goes in, and what comes out."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.answers import Answer, Answers, Group
from tests.conftest import MakeTopics, Topics
from tests.contract.schema_files import check
from tests.kafka_broker import Cluster
from tests.kafka_clients import Headers, Record, Sent, send, unique
from tests.models import PHOTOGRAPHS
from tests.observer import topic_ids
from tests.replica import ROOT, Replica

pytestmark = [pytest.mark.kafka, pytest.mark.tensorflow]

BIRD = Path(os.environ.get("OUZEL_TEST_BIRD", ROOT.parent / "shared" / "bird"))
LOSSLESS = {"JPEG", "PNG", "BMP", "TIFF", "WEBP"}
"""Formats that keep a decoded photograph's pixels as they are written here; GIF has 256 colours."""
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # the example of the W3C's Trace Context


@dataclass(frozen=True)
class Picture:
    """One photograph in each format, and what a model must see in it."""

    name: str
    files: dict[str, Path]
    indices: set[int]
    """Any of these class indices may be first."""
    label: str
    """Is in the first label's name."""
    score: float
    """Of the first label, within `tolerance`, where no pixel was changed."""
    tolerance: float

    def body(self, kind: str = "JPEG") -> bytes:
        return self.files[kind].read_bytes()


@dataclass(frozen=True)
class Served:
    """A warm replica with a real model."""

    cluster: Cluster
    topics: Topics
    stamped_by_broker: str
    """A second input topic, where the broker writes the timestamps."""
    replica: Replica
    answers: Answers
    pictures: list[Picture]
    model: dict[str, Any]
    """Fields that `model` of each event has."""


@dataclass(frozen=True)
class Form:
    """A message, and what its label event must say."""

    record: Record
    image_id: str
    kind: str = "JPEG"
    uri: str | None = None
    top_k: int = 5
    metadata: dict[str, str] = field(default_factory=dict)
    traceparent: str | None = None


def _in_all_formats(photograph: Path, folder: Path) -> dict[str, Path]:
    files = {"JPEG": folder / photograph.name}
    shutil.copy(photograph, files["JPEG"])
    with Image.open(photograph) as opened:
        pixels = opened.convert("RGB")
    for kind in ("PNG", "WEBP", "BMP", "GIF", "TIFF"):
        files[kind] = folder / f"{photograph.stem}.{kind.lower()}"
        pixels.save(files[kind], kind, **({"lossless": True} if kind == "WEBP" else {}))
    return files


def _default_model(folder: Path) -> tuple[list[Picture], dict[str, str], dict[str, Any]]:
    # ImageNet's class indices: 281 tabby, 282 tiger cat, 285 Egyptian cat, 967 espresso.
    known = [("chelsea", {281, 282, 285}, "cat", 0.382), ("coffee", {967}, "espresso", 0.954)]
    pictures = [
        Picture(name, _in_all_formats(PHOTOGRAPHS / f"{name}.jpg", folder), indices, label, score, 0.03)
        for name, indices, label, score in known
    ]
    return pictures, {"OUZEL_MODEL__RUNTIME": "tensorflow"}, {"name": "efficientnet-lite0", "runtime": "tensorflow"}


def _bird_model(folder: Path) -> tuple[list[Picture], dict[str, str], dict[str, Any]]:
    if not BIRD.is_dir():
        pytest.skip(f"bird data: {BIRD} is not there; OUZEL_TEST_BIRD says where it is")
    expected = json.loads((BIRD / "expected_top3.json").read_text())
    pictures = []
    for name, rows in expected.items():
        files = _in_all_formats(BIRD / "images" / name, folder)
        pictures.append(Picture(name, files, {rows[0]["index"]}, rows[0]["label"], rows[0]["score"], 0.002))
    settings = {
        "OUZEL_MODEL__RUNTIME": "tensorflow",
        "OUZEL_MODEL__SOURCE": str(BIRD / "model"),
        "OUZEL_MODEL__LABELS": str(BIRD / "labelmap.csv"),
        "OUZEL_MODEL__NAME": "birds",
        "OUZEL_MODEL__VERSION": "1",
    }
    return pictures, settings, {"name": "birds", "version": "1", "runtime": "tensorflow"}


@pytest.fixture(scope="module", params=["default", "bird"])
def served(
    request: pytest.FixtureRequest,
    kafka: Cluster,
    make_module_topics: MakeTopics,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    pictures, settings, model = (_default_model if request.param == "default" else _bird_model)(folder)
    topics = make_module_topics()
    stamped = kafka.create_topic(unique("stamped"), partitions=3, config={"message.timestamp.type": "LogAppendTime"})
    settings |= {
        "OUZEL_KAFKA__INPUT_TOPICS": json.dumps([topics.images, stamped]),
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(folder)]),
        "OUZEL_BATCH__MAX_SIZE": "4",
    }
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready(timeout_s=180)  # the default model may have to be built
        yield Served(kafka, topics, stamped, replica, answers, pictures, model)
        assert replica.terminate() == 0
    with Group(kafka, topics.group, topics.images, stamped) as group:
        assert group.lag() == {}


# --- the forms ------------------------------------------------------------------------------------------------------


def _reference(image_id: str, **fields: Any) -> dict[str, Any]:
    return {"image_id": image_id, **fields}


def _json(document: dict[str, Any], *, key: str | None, headers: Headers | None = None) -> Record:
    return Record(json.dumps(document).encode(), key=None if key is None else key.encode(), headers=headers or [])


def reference_to_a_file(picture: Picture) -> Form:
    image_id, uri = f"photos/{picture.name}", picture.files["JPEG"].as_uri()
    document = _reference(
        image_id,
        uri=uri,
        sha256=hashlib.sha256(picture.body()).hexdigest(),
        content_type="image/jpeg",
        captured_at="2026-01-31T09:30:00.125Z",
        top_k=3,
        metadata={"camera": "7", "Straße": "Größe ß"},
        a_field_of_tomorrow={"is": ["accepted"]},
    )
    headers: Headers = [("content-type", "application/json; charset=utf-8"), ("traceparent", TRACEPARENT)]
    metadata = document["metadata"]
    return Form(_json(document, key=picture.name, headers=headers), image_id, "JPEG", uri, 3, metadata, TRACEPARENT)


def reference_without_content_type(picture: Picture) -> Form:
    uri = picture.files["PNG"].as_uri()
    return Form(_json(_reference("plain", uri=uri), key="plain-json"), "plain", "PNG", uri)


def reference_with_data(picture: Picture) -> Form:
    data = base64.b64encode(picture.body()).decode()
    document = _reference("inline", data=data, top_k=1, metadata={"side": "left"})
    return Form(_json(document, key="inline"), "inline", top_k=1, metadata={"side": "left"})


def structured_cloudevent(picture: Picture) -> Form:
    uri = picture.files["JPEG"].as_uri()
    document = {
        "specversion": "1.0",
        "id": "a-1",
        "source": "/cameras/7",
        "type": "example.image",
        "datacontenttype": "application/json",
        "data": _reference("from-an-event", uri=uri, top_k=2, metadata={"a": "b"}),
    }
    headers: Headers = [("content-type", "application/cloudevents+json"), ("traceparent", TRACEPARENT)]
    record = _json(document, key="event", headers=headers)
    return Form(record, "from-an-event", "JPEG", uri, 2, {"a": "b"}, TRACEPARENT)


def binary_cloudevent(picture: Picture) -> Form:
    data = base64.b64encode(picture.body("PNG")).decode()
    headers: Headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "b-1"),
        ("ce_source", "/cameras/8"),
        ("ce_type", "example.image"),
        ("ce_subject", "theirs"),
        ("content-type", "application/json"),
    ]
    return Form(_json(_reference("in-binary-mode", data=data), key="binary", headers=headers), "in-binary-mode", "PNG")


def uri_list(picture: Picture) -> Form:
    uri = picture.files["JPEG"].as_uri()
    value = f"# one image\r\n{uri}\r\n".encode()
    return Form(Record(value, key=b"listed", headers=[("content-type", "text/uri-list")]), "listed", uri=uri)


def image_with_a_header_for_its_id(picture: Picture) -> Form:
    headers: Headers = [("content-type", "image/jpeg"), ("image-id", "by-header"), ("traceparent", TRACEPARENT)]
    return Form(Record(picture.body(), key=b"another-key", headers=headers), "by-header", traceparent=TRACEPARENT)


def image_alone(picture: Picture) -> Form:
    """As kcat sends it: no key, no header."""
    return Form(Record(picture.body()), "sha256:" + hashlib.sha256(picture.body()).hexdigest())


def image_under_a_key_of_bytes(picture: Picture) -> Form:
    return Form(Record(picture.body(), key=b"\x00\x00\x00\x07"), "00000007")


def _image_with_a_key(kind: str) -> Callable[[Picture], Form]:
    def form(picture: Picture) -> Form:
        key = f"{picture.name}-{kind}"
        return Form(Record(picture.body(kind), key=key.encode()), key, kind)

    form.__name__ = f"{kind.lower()}_with_a_key"
    return form


FORMS: list[Callable[[Picture], Form]] = [
    reference_to_a_file,
    reference_without_content_type,
    reference_with_data,
    structured_cloudevent,
    binary_cloudevent,
    uri_list,
    image_with_a_header_for_its_id,
    image_alone,
    image_under_a_key_of_bytes,
    *(_image_with_a_key(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")),
]


# --- what every event must be ---------------------------------------------------------------------------------------


def check_event(served: Served, picture: Picture, form: Form, sent: Sent, answer: Answer) -> None:
    event = answer.event
    check("label-event.v1.json", event)
    assert answer.key == form.record.key
    if form.record.key is not None:
        # Sent by murmur2_random to as many partitions: output and input join by key.
        assert answer.partition == sent.partition
    assert event["image_id"] == form.image_id
    assert event["uri"] == form.uri
    assert event["metadata"] == form.metadata
    assert {name: event["model"][name] for name in served.model} == served.model
    _check_labels(picture, form, event["labels"])
    _check_facts(picture, form, event["image"])
    assert {name: event["source"][name] for name in ("topic", "partition", "offset")} == {
        "topic": sent.topic,
        "partition": sent.partition,
        "offset": sent.offset,
    }
    _check_identity(served, sent, event)
    _check_headers(served, form, answer)
    assert set(event["timings_ms"]) == {"fetch", "decode", "queue", "infer"}
    assert (event["timings_ms"]["fetch"] > 0) == (form.uri is not None)
    assert event["timings_ms"]["decode"] > 0
    assert event["timings_ms"]["infer"] > 0


def _check_labels(picture: Picture, form: Form, labels: list[dict[str, Any]]) -> None:
    assert len(labels) == form.top_k
    scores = [label["score"] for label in labels]
    assert scores == sorted(scores, reverse=True)
    assert labels[0]["index"] in picture.indices
    assert picture.label in labels[0]["label"]
    if form.kind in LOSSLESS:
        assert labels[0]["score"] == pytest.approx(picture.score, abs=picture.tolerance)


def _check_facts(picture: Picture, form: Form, facts: dict[str, Any]) -> None:
    with Image.open(picture.files[form.kind]) as opened:
        width, height = opened.size
    assert facts == {
        "width": width,
        "height": height,
        "format": form.kind,
        "sha256": hashlib.sha256(picture.body(form.kind)).hexdigest(),
        "size_bytes": len(picture.body(form.kind)),
        "applied": ["palette-to-rgb"] if form.kind == "GIF" else [],
    }


def _check_identity(served: Served, sent: Sent, event: dict[str, Any]) -> None:
    """I7, by the published recipe and not by our code."""
    cluster_id = served.cluster.admin().describe_cluster().result(10).cluster_id
    topic_id = topic_ids(served.cluster, [sent.topic])[sent.topic]
    fields = ("ouzel-event-1", cluster_id, topic_id, sent.partition, sent.offset, 0, event["model"]["digest"])
    assert event["event_id"] == hashlib.sha256("".join(f"{each}\n" for each in fields).encode()).hexdigest()


def _check_headers(served: Served, form: Form, answer: Answer) -> None:
    event = answer.event
    trace = form.traceparent or answer.text("traceparent")
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", trace)
    assert {name: (value or b"").decode() for name, value in answer.headers} == {
        "ce_specversion": "1.0",
        "ce_id": event["event_id"],
        "ce_type": "ouzel.label-event.v1",
        "ce_source": f"/ouzel/{served.topics.group}",
        "ce_subject": form.image_id,
        "ce_time": event["published_at"],
        "content-type": "application/json",
        "traceparent": trace,
    }
    assert len(answer.headers) == 8  # each once
    published = datetime.fromisoformat(event["published_at"])
    assert abs((datetime.now(UTC) - published).total_seconds()) < 3600


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form_of", FORMS, ids=lambda form: form.__name__)
def test_each_form_is_labelled(served: Served, form_of: Callable[[Picture], Form]) -> None:
    pictures = served.pictures[:2]
    forms = [form_of(picture) for picture in pictures]
    sent = send(served.cluster, served.topics.images, [form.record for form in forms])
    for picture, form, one, answer in zip(pictures, forms, sent, served.answers.to_all(sent), strict=True):
        check_event(served, picture, form, one, answer)


def test_kcat_needs_nothing_but_the_file(served: Served, tmp_path: Path) -> None:
    picture = served.pictures[0]
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(picture.body() + unique("end").encode())  # bytes behind a JPEG's end mean nothing
    image_id = "sha256:" + hashlib.sha256(photo.read_bytes()).hexdigest()
    kcat = shutil.which("kcat") or shutil.which("kafkacat")
    if kcat is not None:
        command = [kcat, "-P", "-b", served.cluster.bootstrap_servers, "-t", served.topics.images, str(photo)]
        subprocess.run(command, check=True, timeout=30, capture_output=True)
    else:
        send(served.cluster, served.topics.images, [Record(photo.read_bytes())])
    answers = served.answers
    answers.wait(lambda: any(a.event["image_id"] == image_id for a in answers.events), "the event of kcat's message")
    (answer,) = [a for a in answers.events if a.event["image_id"] == image_id]
    source = answer.event["source"]
    sent = Sent(source["topic"], source["partition"], source["offset"], None, None)
    body = Picture(picture.name, {"JPEG": photo}, picture.indices, picture.label, picture.score, picture.tolerance)
    check_event(served, body, Form(Record(None), image_id), sent, answer)


def test_the_photographs_of_the_model_are_known(served: Served) -> None:
    """All of them at once, so that they share batches."""
    forms = [reference_to_a_file(picture) for picture in served.pictures]
    sent = send(served.cluster, served.topics.images, [form.record for form in forms])
    for picture, form, one, answer in zip(served.pictures, forms, sent, served.answers.to_all(sent), strict=True):
        check_event(served, picture, form, one, answer)
    if served.model["name"] != "birds":
        return
    expected = json.loads((BIRD / "expected_top3.json").read_text())
    for picture, answer in zip(served.pictures, served.answers.to_all(sent), strict=True):
        found, rows = answer.event["labels"], expected[picture.name]
        assert [(each["index"], each["label"]) for each in found] == [(row["index"], row["label"]) for row in rows]
        assert [each["score"] for each in found] == pytest.approx([row["score"] for row in rows], abs=0.002)


def test_timestamps_say_who_wrote_them(served: Served) -> None:
    picture = served.pictures[0]
    producer_ms = 1_700_000_000_123
    (by_producer,) = send(
        served.cluster, served.topics.images, [Record(picture.body(), key=b"timed", timestamp_ms=producer_ms)]
    )
    before = datetime.now(UTC)
    (by_broker,) = send(
        served.cluster, served.stamped_by_broker, [Record(picture.body(), key=b"timed", timestamp_ms=producer_ms)]
    )
    created, appended = (answer.event["source"] for answer in served.answers.to_all([by_producer, by_broker]))
    assert (created["timestamp"], created["timestamp_type"]) == ("2023-11-14T22:13:20.123Z", "create")
    assert appended["timestamp_type"] == "log_append"
    assert abs((datetime.fromisoformat(appended["timestamp"]) - before).total_seconds()) < 60
    assert appended["topic"] == served.stamped_by_broker
