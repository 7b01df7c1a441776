"""`ouzel send` against a real broker."""

import base64
import hashlib
import io
import socket
from pathlib import Path

import orjson
import pytest
from PIL import Image

from tests.integration.command_line import Topics, headers_of
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics(kafka: Cluster) -> Topics:
    found = Topics(kafka.bootstrap_servers, unique("cli"))
    kafka.create_topic(found.images, partitions=3)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("red.jpg", "red"), ("deep/green.PNG", "green"), ("deep/er/blue.webp", "blue")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def test_a_folder_is_sent_as_the_files_bytes_under_their_names(topics: Topics, folder: Path) -> None:
    answer = topics.ouzel("send", str(folder))
    assert answer.code == 0, answer.stderr
    sent = topics.read_all(topics.images)
    assert {message.key(): message.value() for message in sent} == {
        b"red.jpg": (folder / "red.jpg").read_bytes(),
        b"deep/green.PNG": (folder / "deep/green.PNG").read_bytes(),
        b"deep/er/blue.webp": (folder / "deep/er/blue.webp").read_bytes(),
    }
    for message in sent:
        assert headers_of(message)["image-id"] == message.key()
    assert {(m.partition(), m.offset()) for m in sent} == {(r["partition"], r["offset"]) for r in answer.rows}
    assert "sent 3 images" in answer.stderr


def test_inline_carries_the_bytes_labels_and_metadata_in_json(topics: Topics, folder: Path) -> None:
    answer = topics.ouzel(
        "send", "--as", "inline", "--top-k", "2", "--metadata", "camera=7", "--key", "k", str(folder / "red.jpg")
    )
    assert answer.code == 0, answer.stderr
    (message,) = topics.read_all(topics.images)
    assert message.key() == b"k"
    assert headers_of(message)["content-type"] == b"application/json"
    assert orjson.loads(message.value() or b"") == {
        "image_id": "red.jpg",
        "data": base64.b64encode((folder / "red.jpg").read_bytes()).decode(),
        "top_k": 2,
        "metadata": {"camera": "7"},
    }


def test_references_name_files_and_uris_without_their_secrets_in_the_id(topics: Topics, folder: Path) -> None:
    uri = "https://example.org/cat.jpg?token=secret"
    assert topics.ouzel("send", "--as", "reference", str(folder / "red.jpg"), uri).code == 0
    sent = [orjson.loads(message.value() or b"") for message in topics.read_all(topics.images)]
    assert sorted(sent, key=lambda each: each["image_id"]) == [
        {"image_id": "https://example.org/cat.jpg", "uri": uri},
        {"image_id": "red.jpg", "uri": (folder / "red.jpg").resolve().as_uri()},
    ]


def test_all_takes_every_file_whatever_its_suffix(topics: Topics, folder: Path) -> None:
    answer = topics.ouzel("send", "--all", "--dry-run", str(folder))
    assert answer.code == 0
    assert {row["image_id"] for row in answer.rows} == {"red.jpg", "deep/green.PNG", "deep/er/blue.webp", "notes.txt"}
    assert topics.read_all(topics.images) == []


def test_bad_lines_are_told_with_their_numbers_and_the_rest_is_sent(topics: Topics) -> None:
    lines = [
        b'{"image_id": "a", "uri": "file:///images/a.jpg"}',
        b"not json",
        b"",
        b'{"image_id": "b"}',
        b'{"image_id": "c", "uri": "file:///images/c.jpg", "metadata": {"own": "1"}}',
    ]
    answer = topics.ouzel("send", "--metadata", "batch=9", "-", stdin=b"\n".join(lines))
    assert answer.code == 1
    assert "line 2:" in answer.stderr
    assert "line 4:" in answer.stderr
    sent = {message.key(): orjson.loads(message.value() or b"") for message in topics.read_all(topics.images)}
    assert sent.keys() == {b"a", b"c"}
    assert sent[b"c"]["metadata"] == {"own": "1", "batch": "9"}


def test_a_line_is_sent_as_it_was_written(topics: Topics) -> None:
    line = b'{ "image_id":"a",  "uri":"file:///images/a.jpg" }'
    assert topics.ouzel("send", "-", stdin=line + b"\n").code == 0
    (message,) = topics.read_all(topics.images)
    assert message.value() == line


def test_paths_that_do_not_exist_are_one_error_and_nothing_is_sent(topics: Topics, folder: Path) -> None:
    answer = topics.ouzel("send", str(folder), "absent-one", "absent-two.jpg")
    assert answer.code == 2
    assert "absent-one" in answer.stderr
    assert "absent-two.jpg" in answer.stderr
    assert topics.read_all(topics.images) == []


def test_a_file_that_is_too_large_is_named_and_the_others_are_sent(topics: Topics, folder: Path) -> None:
    (folder / "huge.jpg").write_bytes(b"\xff\xd8\xff" + bytes(5000))
    answer = topics.ouzel("send", str(folder), more={"OUZEL_KAFKA__MAX_MESSAGE_BYTES": "4000"})
    assert answer.code == 1
    assert "huge.jpg" in answer.stderr
    assert "kafka.max_message_bytes" in answer.stderr
    assert {message.key() for message in topics.read_all(topics.images)} == {
        b"red.jpg",
        b"deep/green.PNG",
        b"deep/er/blue.webp",
    }


def test_a_file_that_the_broker_finds_too_large_is_not_taken_for_sent(
    kafka: Cluster, topics: Topics, folder: Path
) -> None:
    small = broker_topic(kafka, f"{topics.unique}-small", {"max.message.bytes": "2000"})
    (folder / "huge.jpg").write_bytes(b"\xff\xd8\xff" + bytes(5000))
    answer = topics.ouzel("send", "--topic", small, str(folder / "huge.jpg"))
    assert answer.code == 1
    assert "huge.jpg: too large" in answer.stderr
    assert answer.rows[0]["error"]


def test_more_than_the_producers_buffer_takes_is_sent_all_the_same(topics: Topics) -> None:
    lines = b"".join(b'{"image_id": "%d", "uri": "file:///images/%d.jpg"}\n' % (n, n) for n in range(3000))
    answer = topics.ouzel(
        "send", "-", stdin=lines, more={"OUZEL_KAFKA__PRODUCER": '{"queue.buffering.max.messages": 100}'}
    )
    assert answer.code == 0, answer.stderr
    assert {message.key() for message in topics.read_all(topics.images)} == {b"%d" % n for n in range(3000)}


def test_a_topic_that_is_missing_names_the_command_that_creates_it(topics: Topics, folder: Path) -> None:
    answer = topics.ouzel("send", "--topic", f"{topics.unique}-absent", str(folder))
    assert answer.code == 6
    assert f"{topics.unique}-absent" in answer.stderr
    assert "ouzel topics create" in answer.stderr


def test_no_broker_is_an_error_that_says_where(topics: Topics, folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
        more = {"OUZEL_KAFKA__BOOTSTRAP_SERVERS": nowhere, "OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "1000"}
        answer = topics.ouzel("send", str(folder), more=more)
    assert answer.code == 5
    assert "kafka.bootstrap_servers" in answer.stderr
    assert "refused" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_raw_photograph_goes_through_unchanged(topics: Topics, tmp_path: Path) -> None:
    body = io.BytesIO()
    Image.effect_noise((640, 480), 80).convert("RGB").save(body, "JPEG", quality=95)
    (tmp_path / "noise.jpg").write_bytes(body.getvalue())
    assert topics.ouzel("send", str(tmp_path / "noise.jpg")).code == 0
    (message,) = topics.read_all(topics.images)
    assert hashlib.sha256(message.value() or b"").digest() == hashlib.sha256(body.getvalue()).digest()


def broker_topic(kafka: Cluster, name: str, config: dict[str, str]) -> str:
    kafka.create_topic(name, partitions=1, config=config)
    return name
