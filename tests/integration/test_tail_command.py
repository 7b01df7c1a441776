"""`ouzel tail` against a real broker."""

import os
import pty
import re
import signal
import subprocess

import orjson
import pytest

from consumer import headers as names
from tests.integration.command_line import OUZEL, REPOSITORY, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics(kafka: Cluster) -> Topics:
    found = Topics(kafka.bootstrap_servers, unique("cli"))
    kafka.create_topic(found.predictions, partitions=2)
    kafka.create_topic(found.letters, partitions=1)
    return found


def event(image_id: str) -> bytes:
    return orjson.dumps(
        {
            "event_id": "e" * 64,
            "image_id": image_id,
            "labels": [
                {"index": 12, "label": "house finch", "score": 0.93},
                {"index": 1, "label": "[b]", "score": 0.01},
            ],
            "model": {"name": "birds", "version": "1"},
            "timings_ms": {"fetch": 1.0, "decode": 2.0, "queue": 3.0, "infer": 4.0},
        }
    )


def publish(topics: Topics, *image_ids: str) -> None:
    producer = topics.producer()
    for image_id in image_ids:
        producer.produce(topics.predictions, event(image_id), image_id.encode())
    assert producer.flush(20) == 0


def test_from_the_beginning_it_gives_every_event_with_its_place(topics: Topics) -> None:
    publish(topics, "a", "b", "c")
    answer = topics.ouzel("tail", "--from-beginning", "--limit", "3")
    assert answer.code == 0, answer.stderr
    assert {row["image_id"]: row["key"] for row in answer.rows} == {"a": "a", "b": "b", "c": "c"}
    places = {(message.partition(), message.offset()) for message in topics.read_all(topics.predictions)}
    assert {(row["partition"], row["offset"]) for row in answer.rows} == places
    assert answer.rows[0]["labels"][0]["label"] == "house finch"


def test_from_the_end_it_gives_only_what_comes_and_ctrl_c_is_no_failure(topics: Topics) -> None:
    publish(topics, "before")
    tail = topics.start_ouzel("tail")
    assert tail.stdout is not None
    assert tail.stderr is not None
    assert b"following" in tail.stderr.readline()
    publish(topics, "after")
    assert orjson.loads(tail.stdout.readline())["image_id"] == "after"
    tail.send_signal(signal.SIGINT)
    rest, complaints = tail.communicate(timeout=30)
    assert (tail.returncode, rest, complaints) == (0, b"", b"")


def test_events_of_an_aborted_transaction_are_not_shown(topics: Topics) -> None:
    producer = topics.producer(transactional_id=topics.unique)
    producer.init_transactions(30)
    for image_id, commit in (("gone", False), ("kept", True)):
        producer.begin_transaction()
        producer.produce(topics.predictions, event(image_id), partition=0)
        producer.flush(20)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    answer = topics.ouzel("tail", "--from-beginning", "--timeout", "2")
    assert answer.code == 0
    assert [row["image_id"] for row in answer.rows] == ["kept"]


def test_fewer_than_the_limit_is_exit_code_1(topics: Topics) -> None:
    publish(topics, "a")
    answer = topics.ouzel("tail", "--from-beginning", "--limit", "2", "--timeout", "1")
    assert answer.code == 1
    assert len(answer.rows) == 1
    assert "1 of 2" in answer.stderr


def test_a_reader_that_goes_away_ends_it_quietly(topics: Topics) -> None:
    publish(topics, *(str(number) for number in range(200)))
    tail = topics.start_ouzel("tail", "--from-beginning")
    assert tail.stdout is not None
    assert tail.stderr is not None
    tail.stdout.readline()
    tail.stdout.close()
    publish(topics, "one more")
    complaints = tail.stderr.read()
    tail.stderr.close()
    assert tail.wait(30) == 0
    assert b"Broken pipe" not in complaints
    assert b"Traceback" not in complaints


def test_dead_letters_are_followed_with_their_error(topics: Topics) -> None:
    producer = topics.producer()
    headers: list[tuple[str, str | bytes | None]] = [
        (names.IMAGE_ID, b"cat"),
        (names.ERROR_EXCEPTION_CLASS, b"NotAnImage"),
        (names.ERROR_EXCEPTION_MESSAGE, b"cut short"),
    ]
    producer.produce(topics.letters, b"\xff\xd8", b"\xff\xfe", headers=headers)
    assert producer.flush(20) == 0
    answer = topics.ouzel("tail", "--dead-letters", "--from-beginning", "--limit", "1")
    (row,) = answer.rows
    assert (row["position"], row["error"], row["message"]) == ("0:0", "NotAnImage", "cut short")
    assert "cat" in row["image_ids"]
    assert row["key"] == "base64://4="


def test_in_a_terminal_it_is_a_table_that_others_cannot_steer(topics: Topics) -> None:
    publish(topics, "cat\x1b]0;evil\x07")
    ours, theirs = pty.openpty()
    tail = subprocess.Popen(
        [*OUZEL, "tail", "--from-beginning", "--limit", "1"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=topics.environment({"TERM": "xterm", "COLUMNS": "140", "LINES": "30"}),
        cwd=REPOSITORY,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert tail.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "\x1b]0;" not in text
    for word in ("cat\\x1b]0;evil\\x07", "house finch, [b]", "0.930", "birds", "10 ms"):
        assert word in text
