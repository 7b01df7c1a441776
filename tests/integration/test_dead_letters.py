"""Messages that can never be labelled: one letter each, the original untouched, and nobody else bothered."""

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer import headers as names
from tests.answers import Answer, Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.contract.schema_files import check
from tests.faulty_replica import ENTRY, picture_of
from tests.kafka_broker import Cluster
from tests.kafka_clients import Headers, Record, Sent, send
from tests.replica import Replica
from tests.runs import inline_image

pytestmark = pytest.mark.kafka

KIB = 1024
MAX_IMAGE_BYTES = 200 * KIB
OUTPUT_MAX_BYTES = 6_000
NO_LIMIT = {"OUZEL_DEAD_LETTERS__MIN_SAMPLE": "100000", "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "100000"}


def noise(size: int) -> bytes:
    """Bytes that no compression makes smaller, the same each time."""
    return hashlib.shake_128(b"noise").digest(size)


def png(width: int, height: int, data: bytes, *, text: bytes = b"") -> bytes:
    """Of one bit a pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    texts = chunk(b"zTXt", b"x\0\0" + zlib.compress(text)) if text else b""
    return b"\x89PNG\r\n\x1a\n" + head + texts + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Bad:
    """A message, and the letter that it must become."""

    record: Record
    error: str
    stage: str
    says: str
    """Is in the letter's message: what is wrong, or what to do."""


def _json(document: Any, *headers: tuple[str, str | bytes | None]) -> Record:
    return Record(json.dumps(document).encode(), headers=list(headers))


def _malformed(record: Record, says: str) -> Bad:
    return Bad(record, "MalformedMessage", "parse", says)


def write_files(folder: Path, body: bytes) -> None:
    """What the references of `bad_messages` lead to."""
    (folder / "large.jpg").write_bytes(body + bytes(MAX_IMAGE_BYTES))
    (folder / "inside.jpg").write_bytes(body)
    (folder / "link.jpg").symlink_to(folder / "inside.jpg")


def bad_messages(folder: Path, body: bytes) -> dict[str, Bad]:
    """Every class of error, by what is wrong. `body` is a photograph."""
    data = base64.b64encode(body).decode()
    large, inside, link = folder / "large.jpg", folder / "inside.jpg", folder / "link.jpg"
    text = ("content-type", "text/uri-list")

    def file(path: Path) -> str:
        return path.as_uri()

    return {
        "bad json": _malformed(Record(b'{"image_id": "a", '), "JSON"),
        "a json array": _malformed(_json([{"image_id": "a", "data": data}]), "not an object"),
        "no image_id": _malformed(_json({"data": data}), "image_id"),
        "neither uri nor data": _malformed(_json({"image_id": "a"}), "uri"),
        "both uri and data": _malformed(_json({"image_id": "a", "uri": file(inside), "data": data}), "uri"),
        "a wrong type": _malformed(_json({"image_id": 7, "data": data}), "image_id"),
        "an unknown version": _malformed(_json({"version": 2, "image_id": "a", "data": data}), "version"),
        "data that is no base64": _malformed(_json({"image_id": "a", "data": "??"}), "data"),
        "top_k of 0": _malformed(_json({"image_id": "a", "data": data, "top_k": 0}), "top_k"),
        "metadata that is no text": _malformed(
            _json({"image_id": "a", "data": data, "metadata": {"a": 1}}), "metadata"
        ),
        "metadata beyond the bound": _malformed(
            _json({"image_id": "a", "data": data, "metadata": {"a": "x" * 9000}}), "input.max_metadata_bytes"
        ),
        "a bad checksum's form": _malformed(_json({"image_id": "a", "data": data, "sha256": "12"}), "sha256"),
        "neither json nor an image": _malformed(Record(b"good morning"), "content-type"),
        "a bare uri without its type": _malformed(Record(file(inside).encode()), "text/uri-list"),
        "two uris": _malformed(Record(f"{file(inside)}\r\n{file(inside)}\r\n".encode(), headers=[text]), "2 URIs"),
        "no uri": _malformed(Record(b"# nothing\r\n", headers=[text]), "0 URIs"),
        "an image-id header that is no text": _malformed(Record(body, headers=[("image-id", b"\xff\xfe")]), "image-id"),
        "a cloudevent of another specification": _malformed(
            _json({"specversion": "0.3", "id": "1", "source": "/a", "type": "b", "data": {"image_id": "a"}}),
            "specversion",
        ),
        "a cloudevent with bytes for data": _malformed(
            _json({"specversion": "1.0", "id": "1", "source": "/a", "type": "b", "data_base64": data}), "data_base64"
        ),
        "an empty value": _malformed(Record(b""), "empty"),
        "a scheme that nobody serves": Bad(
            _json({"image_id": "a", "uri": "gopher://example.org/a.jpg"}), "ReferenceRefused", "parse", "gopher"
        ),
        "a uri with a password": Bad(
            _json({"image_id": "a", "uri": "test://u:hunter2@host/a.jpg"}), "ReferenceRefused", "parse", "password"
        ),
        "a file outside the roots": Bad(
            _json({"image_id": "a", "uri": "file:///etc/passwd"}), "ReferenceRefused", "fetch", "stores.file.roots"
        ),
        "a path that climbs": Bad(
            _json({"image_id": "a", "uri": file(folder) + "/../a.jpg"}), "ReferenceRefused", "fetch", ".."
        ),
        "a link": Bad(_json({"image_id": "a", "uri": file(link)}), "ReferenceRefused", "fetch", "link"),
        "no such file": Bad(
            _json({"image_id": "a", "uri": file(folder / "none.jpg")}), "ImageNotFound", "fetch", "no such file"
        ),
        "a truncated jpeg": Bad(Record(body[: len(body) // 2]), "TruncatedImage", "decode", "cut short"),
        "a damaged png": Bad(Record(png(20, 20, b"no deflate")), "CorruptImage", "decode", "damaged"),
        "a format that is not decoded": Bad(
            Record(b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(99)), "UnsupportedFormat", "decode", "JPEG XL"
        ),
        "metadata that unpack to very much": Bad(
            Record(png(20, 20, zlib.compress(bytes(80)), text=bytes(20_000_000))),
            "DecompressionBomb",
            "decode",
            "unpack",
        ),
        "text that says it is a jpeg": Bad(
            Record(b"good morning", headers=[("content-type", "image/jpeg")]), "NotAnImage", "decode", "no image format"
        ),
        "too many bytes as they are": Bad(
            Record(body + bytes(MAX_IMAGE_BYTES)), "ImageTooLarge", "parse", "stores.max_image_bytes"
        ),
        "too many bytes inline": Bad(
            Record(inline_image("a", body + bytes(MAX_IMAGE_BYTES))), "ImageTooLarge", "parse", "stores.max_image_bytes"
        ),
        "too many bytes in a file": Bad(
            _json({"image_id": "a", "uri": file(large)}), "ImageTooLarge", "fetch", "stores.max_image_bytes"
        ),
        "too many pixels": Bad(
            Record(png(60_000, 60_000, zlib.compress(b"\0"))), "TooManyPixels", "decode", "input.max_pixels"
        ),
        "another checksum, inline": Bad(
            _json({"image_id": "a", "data": data, "sha256": "0" * 64}), "ChecksumMismatch", "parse", "sha256"
        ),
        "another checksum, by reference": Bad(
            _json({"image_id": "a", "uri": file(inside), "sha256": "0" * 64}), "ChecksumMismatch", "fetch", "sha256"
        ),
        "an event too large for its topic": Bad(
            _json({"image_id": "a", "data": data, "metadata": {"noise": base64.b64encode(noise(5900)).decode()}}),
            "EventTooLarge",
            "publish",
            "too large",
        ),
        "an image that the model fails on": Bad(
            Record(picture_of("magenta")), "InferenceFailed", "infer", "the seeded failure of the model"
        ),
        "an image whose scores are no numbers": Bad(
            Record(picture_of("cyan")), "InferenceFailed", "infer", "not numbers"
        ),
        "a defect of ours": Bad(Record(picture_of("yellow")), "ProcessingFailed", "decode", "the seeded defect"),
    }


@dataclass(frozen=True)
class Served:
    """A replica that has been sent all of the bad messages between good ones."""

    cluster: Cluster
    topics: Topics
    replica: Replica
    answers: Answers
    bad: dict[str, tuple[Bad, Sent]]
    good: list[Sent]


def _with_headers(record: Record, number: int) -> Record:
    """Headers of the sender's own, also some that Kafka allows and few expect."""
    own: Headers = [
        ("theirs", b"\x00\xff"),
        ("twice", "1"),
        ("twice", "2"),
        ("empty", b""),
        ("null", None),
        ("traceparent", "not one"),
    ]
    return Record(record.value, key=b"key-%d" % (number % 4), headers=[*own, *record.headers])


@pytest.fixture(scope="module")
def served(
    kafka: Cluster,
    make_module_topics: MakeTopics,
    photographs: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    topics = make_module_topics(predictions_config={"max.message.bytes": str(OUTPUT_MAX_BYTES)})
    folder = tmp_path_factory.mktemp("pictures")
    settings = NO_LIMIT | {
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(folder)]),
        "OUZEL_STORES__MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES),
        "OUZEL_TEST_STORE": str(folder),
    }
    body = photographs[0].read_bytes()
    write_files(folder, body)
    cases = bad_messages(folder, body)
    records: list[Record] = []
    for number, (_, bad) in enumerate(cases.items()):
        records.append(_with_headers(bad.record, number))
        photograph = photographs[number % len(photographs)].read_bytes()
        records.append(Record(inline_image(f"good-{number}", photograph), key=b"key-%d" % (number % 4)))
    sent = send(kafka, topics.images, records)
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        answers.to_all(sent)
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        bad_sent = {name: (case, where) for (name, case), where in zip(cases.items(), sent[::2], strict=True)}
        yield Served(kafka, topics, replica, answers, bad_sent, sent[1::2])
        assert replica.terminate() == 0


def original_headers(record: Record) -> list[tuple[str, bytes | None]]:
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in record.headers]


def check_letter(topics: Topics, record: Record, sent: Sent, letter: Answer) -> dict[str, str]:
    """The original untouched, and then ours: each once, bounded, and as the schema says. Returns ours."""
    theirs = [header for header in letter.headers if not header[0].startswith(names.OURS)]
    ours = [header for header in letter.headers if header[0].startswith(names.OURS)]
    assert [*letter.headers] == [*theirs, *ours]
    assert theirs == original_headers(record)
    assert letter.value == record.value
    assert letter.key == record.key
    if record.key is not None:
        assert letter.partition == sent.partition
    said = {name: (value or b"").decode() for name, value in ours}
    assert len(said) == len(ours)
    assert sum(len(name) + len(value or b"") for name, value in ours) < 32 * KIB
    check("dead-letter-headers.v1.json", said)
    assert said[names.ERROR_CONNECTOR_NAME] == topics.group
    assert "hunter2" not in " ".join(said.values())
    return said


@pytest.mark.parametrize("name", bad_messages(Path("/nowhere"), b""))
def test_a_bad_message_becomes_one_letter_with_its_bytes_key_and_headers(served: Served, name: str) -> None:
    bad, sent = served.bad[name]
    number = list(served.bad).index(name)
    assert served.answers.count(sent) == 1
    letter = served.answers.to(sent)
    assert letter.error == bad.error
    said = check_letter(served.topics, _with_headers(bad.record, number), sent, letter)
    assert said[names.ERROR_STAGE] == bad.stage
    assert bad.says in said[names.ERROR_EXCEPTION_MESSAGE]
    assert int(said[names.ORIGIN_OFFSET]) == sent.offset
    assert said[names.REPLAY_COUNT] == "0"


def test_the_good_neighbours_are_labelled_once(served: Served) -> None:
    for number, sent in enumerate(served.good):
        event = served.answers.to(sent).event
        assert event["image_id"] == f"good-{number}"
        assert served.answers.count(sent) == 1
    assert len(served.answers.all) == len(served.good) + len(served.bad)


def test_letters_are_counted_by_class(served: Served) -> None:
    errors = [bad.error for bad, _ in served.bad.values()]
    for error in set(errors):
        assert served.replica.metric("ouzel_dead_letters_total", **{"class": error}) == errors.count(error)
    assert served.replica.metric("ouzel_images_total", outcome="labelled") == len(served.good)
    assert served.replica.metric("ouzel_images_total", outcome="dead_letter") == len(served.bad)


def test_a_letter_that_comes_back_again_and_again_does_not_grow(served: Served) -> None:
    bad, first = served.bad["a truncated jpeg"]
    letter = served.answers.to(first)
    sizes = []
    for _ in range(5):
        back: Headers = [(name, value) for name, value in letter.headers]
        (sent,) = send(served.cluster, served.topics.images, [Record(letter.value, key=letter.key, headers=back)])
        letter = served.answers.to(sent)
        sizes.append(len(letter.headers))
        said = check_letter(
            served.topics,
            Record(letter.value, letter.key, [h for h in back if not h[0].startswith(names.OURS)]),
            sent,
            letter,
        )
        assert letter.value == bad.record.value
        assert int(said[names.ERROR_OFFSET]) == sent.offset
        # It still says where it came from first.
        assert (int(said[names.ORIGIN_PARTITION]), int(said[names.ORIGIN_OFFSET])) == (first.partition, first.offset)
    assert set(sizes) == {len(served.answers.to(first).headers)}


def test_the_stack_trace_of_a_defect_says_where_it_happened(served: Served) -> None:
    _, sent = served.bad["a defect of ours"]
    trace = served.answers.to(sent).text(names.ERROR_EXCEPTION_STACKTRACE)
    assert "ZeroDivisionError" in trace
    assert "faulty_replica.py" in trace


# --- sizes ----------------------------------------------------------------------------------------------------------


def _largest_value(cluster: Cluster, topic: str, max_bytes: int, first_bytes: bytes) -> tuple[bytes, Sent]:
    """The largest value that the topic takes, sent to it."""
    for framing in range(60, 140):  # what the broker counts beside the value
        value = first_bytes + noise(max_bytes)[: max_bytes - framing - len(first_bytes)]
        try:
            (sent,) = send(cluster, topic, [Record(value)], message_max_bytes=2 * max_bytes)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
        else:
            return value, sent
    raise AssertionError("the topic took no value near its limit")


@pytest.mark.parametrize("room", [64 * KIB, -500 * KIB])
def test_messages_at_the_limit_of_size(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], room: int
) -> None:
    """The dead-letter topic takes 64 KiB more than the input, as `ouzel topics create` makes it; or less."""
    most = 1024 * KIB
    topics = make_topics(
        partitions=1,
        images_config={"max.message.bytes": str(most)},
        dead_letters_config={"max.message.bytes": str(most + room)},
    )
    settings = NO_LIMIT | {"OUZEL_KAFKA__MAX_MESSAGE_BYTES": str(most)}
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        photograph, image = _largest_value(kafka, topics.images, most, photographs[0].read_bytes())
        event = answers.to(image).event
        assert event["image"]["sha256"] == hashlib.sha256(photograph).hexdigest()
        garbage, bad = _largest_value(kafka, topics.images, most, b"good morning")
        letter = answers.to(bad)
        assert letter.error == "MalformedMessage"
        if room > 0:
            assert letter.value == garbage
            assert not any(name == names.ORIGINAL_LEFT_OUT for name, _ in letter.headers)
        else:
            assert letter.value is None
            assert letter.text(names.ORIGINAL_LEFT_OUT) == "value"
            assert int(letter.text(names.ORIGINAL_SIZE_BYTES)) == len(garbage)
            assert letter.text(names.ORIGINAL_SHA256) == hashlib.sha256(garbage).hexdigest()
        check("dead-letter-headers.v1.json", {n: (v or b"").decode() for n, v in letter.headers})
        (small,) = send(kafka, topics.images, [Record(b"good morning")])
        assert answers.to(small).value == b"good morning"
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0


# --- tombstones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["skip", "forward", "dead_letter"])
def test_tombstones(kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], choice: str) -> None:
    topics = make_topics(partitions=2)
    photograph = Record(photographs[0].read_bytes(), key=b"gone")
    records = [photograph, Record(None, key=b"gone", headers=[("why", "erased")]), Record(None), photograph]
    with Answers(kafka, topics) as answers:
        with Replica(kafka, topics, settings=NO_LIMIT | {"OUZEL_INPUT__TOMBSTONES": choice}) as replica:
            replica.start().wait_ready()
            sent = send(kafka, topics.images, records)
            answers.to_all([sent[0], sent[3]])
            wait_no_lag(kafka, topics)
            assert replica.terminate() == 0
        answers.read_to_end()
    if choice == "dead_letter":
        for record, where in ((records[1], sent[1]), (records[2], sent[2])):
            letter = answers.to(where)
            assert letter.error == "MalformedMessage"
            check_letter(topics, record, where, letter)
    else:
        assert answers.letters == []
    # In the order of its key; one without a key deletes nothing, so it is not forwarded.
    under_the_key = [event.value is None for event in answers.events]
    assert under_the_key == ([False, True, False] if choice == "forward" else [False, False])
    if choice == "forward":
        (tombstone,) = [event for event in answers.events if event.value is None]
        assert tombstone.key == b"gone"
        assert tombstone.partition == sent[1].partition
