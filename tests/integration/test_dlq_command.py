"""`ouzel dlq` against a real broker: what it shows, what it sends back, and that it does so once."""

import signal
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest
from confluent_kafka import TopicPartition

from consumer import headers as names
from tests.integration.command_line import Topics, headers_of
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique

pytestmark = pytest.mark.kafka

DYING = (sys.executable, "-m", "tests.integration.replay_that_dies")
NOON_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z

Pairs = list[tuple[str, str | bytes | None]]


@pytest.fixture
def topics(kafka: Cluster) -> Topics:
    found = Topics(kafka.bootstrap_servers, unique("cli"))
    configs = {found.images: {"max.message.bytes": "100000"}, found.letters: {"retention.ms": "-1"}}
    kafka.create_topics(configs, partitions=2)
    kafka.create_topic(found.markers, partitions=1, config={"cleanup.policy": "compact"})
    return found


def letter_headers(
    topics: Topics, number: int, error: str = "NotAnImage", count: int | None = None, origin: str | None = None
) -> Pairs:
    headers: Pairs = [
        ("content-type", b"image/jpeg"),
        ("traceparent", b"00-11111111111111111111111111111111-2222222222222222-01"),
        ("content-type", b"image/jpeg; again"),  # headers repeat and keep their order
        ("empty", None),
        (names.ORIGIN_CLUSTER_ID, b"cluster"),
        (names.ORIGIN_TOPIC_ID, b"an-id-of-long-ago"),
        (names.ORIGIN_TOPIC, (origin or topics.images).encode()),
        (names.ORIGIN_PARTITION, b"1"),
        (names.ORIGIN_OFFSET, str(1000 + number).encode()),
        (names.ERROR_TOPIC, (origin or topics.images).encode()),
        (names.ERROR_STAGE, b"decode"),
        (names.ERROR_EXCEPTION_CLASS, error.encode()),
        (names.ERROR_EXCEPTION_MESSAGE, b"no decoder takes it"),
        (names.ERROR_EXCEPTION_STACKTRACE, b"one line\nanother line"),
    ]
    if count is not None:
        headers.append((names.REPLAY_COUNT, str(count).encode()))
    return headers


def write_letter(
    topics: Topics,
    value: bytes | None,
    headers: Pairs,
    *,
    key: bytes | None = None,
    hours: float = 0,
    partition: int = 0,
) -> None:
    producer = topics.producer(message_max_bytes=2_000_000)
    written_ms = NOON_MS + round(hours * 3_600_000)
    producer.produce(topics.letters, value, key, headers=headers, partition=partition, timestamp=written_ms)
    assert producer.flush(20) == 0


def write_letters(topics: Topics, count: int) -> None:
    producer = topics.producer()
    for number in range(count):
        producer.produce(
            topics.letters,
            b"\xff\xd8 image %d" % number,
            b"key-%d" % number,
            headers=letter_headers(topics, number),
            partition=number % 2,
        )
    assert producer.flush(20) == 0


def assert_each_went_back_once(topics: Topics, count: int) -> None:
    sent = Counter(message.value() for message in topics.read_all(topics.images))
    assert sent == {b"\xff\xd8 image %d" % number: 1 for number in range(count)}
    marked = Counter(message.key() for message in topics.read_all(topics.markers))
    assert len(marked) == count
    assert set(marked.values()) == {1}


def test_ls_counts_by_time_and_class_newest_first(topics: Topics) -> None:
    for number, (error, hours) in enumerate(
        [("NotAnImage", 0.1), ("NotAnImage", 0.2), ("StoreFailed", 0.3), ("NotAnImage", 1)]
    ):
        write_letter(topics, b"x", letter_headers(topics, number, error), hours=hours)
    answer = topics.ouzel("dlq", "ls")
    assert answer.code == 0, answer.stderr
    assert [(row["time"], row["class"], row["letters"], row["newest"]) for row in answer.rows] == [
        ("2026-01-31T13", "NotAnImage", 1, "0:3"),
        ("2026-01-31T12", "NotAnImage", 2, "0:1"),
        ("2026-01-31T12", "StoreFailed", 1, "0:2"),
    ]
    between = topics.ouzel(
        "dlq", "ls", "--since", "2026-01-31T12:10:00Z", "--until", "2026-01-31T13:00:00Z", "--class", "NotAnImage"
    )
    assert [(row["letters"], row["newest"]) for row in between.rows] == [(1, "0:1")]
    newest = topics.ouzel("dlq", "ls", "--limit", "1")
    assert len(newest.rows) == 1
    assert "2 older rows" in newest.stderr


def test_show_tells_why_and_saves_the_exact_bytes(topics: Topics, tmp_path: Path) -> None:
    body = bytes(range(256)) * 3
    write_letter(topics, b"first", letter_headers(topics, 0))
    write_letter(topics, body, letter_headers(topics, 1), key=b"cat.jpg")
    answer = topics.ouzel("dlq", "show", "0:1", "--save", str(tmp_path / "cat.jpg"))
    assert answer.code == 0, answer.stderr
    (row,) = answer.rows
    assert (row["class"], row["stage"], row["message"]) == ("NotAnImage", "decode", "no decoder takes it")
    assert row["stack"] == "one line\nanother line"
    assert row["headers"][names.ORIGIN_OFFSET] == "1001"
    assert row["preview"].startswith("00000000  00 01 02 03")
    assert (tmp_path / "cat.jpg").read_bytes() == body


def test_show_of_a_letter_that_is_not_there_says_so(topics: Topics) -> None:
    write_letter(topics, b"x", letter_headers(topics, 0))
    for position in ("0:1", "1:0", "7:0"):
        answer = topics.ouzel("dlq", "show", position)
        assert answer.code == 1, position
        assert f"no letter {position}" in answer.stderr
    assert topics.ouzel("dlq", "show", "first").code == 2


def test_replay_is_a_dry_run_until_told_otherwise(topics: Topics) -> None:
    write_letters(topics, 3)
    answer = topics.ouzel("dlq", "replay")
    assert answer.code == 0, answer.stderr
    assert [row["status"] for row in answer.rows] == ["would_replay"] * 3
    assert "dry run" in answer.stderr
    assert topics.read_all(topics.images) == []
    assert topics.read_all(topics.markers) == []


def test_replay_sends_the_original_with_its_origin_and_a_marker(topics: Topics) -> None:
    write_letter(topics, b"\xff\xd8 cut", letter_headers(topics, 0, count=1), key=b"cat.jpg")
    answer = topics.ouzel("dlq", "replay", "--execute")
    assert answer.code == 0, answer.stderr
    (message,) = topics.read_all(topics.images)
    assert (message.value(), message.key()) == (b"\xff\xd8 cut", b"cat.jpg")
    kept = [pair for pair in letter_headers(topics, 0) if not pair[0].startswith(names.ERROR_PREFIX)]
    assert message.headers() == [*kept, (names.REPLAY_COUNT, b"2")]
    (marker,) = topics.read_all(topics.markers)
    assert (marker.key() or b"").endswith(b":0:0")
    assert orjson.loads(marker.value() or b"")["count"] == 2
    again = topics.ouzel("dlq", "replay", "--execute")
    assert [row["status"] for row in again.rows] == ["skipped"]
    assert len(topics.read_all(topics.images)) == 1
    assert topics.ouzel("dlq", "ls").rows[0]["replayed"] == 1


def test_letters_are_chosen_by_class_time_image_id_and_position(topics: Topics) -> None:
    by_json = orjson.dumps({"image_id": "in-json", "uri": "file:///a.jpg"})
    write_letter(topics, b"0", letter_headers(topics, 0, "StoreFailed"), key=b"by-key")
    write_letter(topics, by_json, letter_headers(topics, 1), hours=1)
    write_letter(topics, b"2", [*letter_headers(topics, 2), (names.IMAGE_ID, b"by-header")], hours=2, partition=1)
    for chosen, expected in (
        (["--class", "StoreFailed"], ["0:0"]),
        (["--id", "by-key"], ["0:0"]),
        (["--id", "in-json"], ["0:1"]),
        (["--id", "by-header", "--id", "0:0"], ["0:0", "1:0"]),
        (["--since", "2026-01-31T12:30:00Z", "--until", "2026-01-31T13:30:00Z"], ["0:1"]),
        (["--id", "nothing"], []),
    ):
        answer = topics.ouzel("dlq", "replay", *chosen)
        assert sorted(row["position"] for row in answer.rows) == expected, chosen


def test_what_cannot_go_back_is_listed_and_the_rest_goes(topics: Topics) -> None:
    write_letter(topics, b"good", letter_headers(topics, 0))
    write_letter(topics, b"often", letter_headers(topics, 1, count=3))
    write_letter(topics, None, [*letter_headers(topics, 2), (names.ORIGINAL_SIZE_BYTES, b"99999999")])
    write_letter(topics, b"elsewhere", letter_headers(topics, 3, origin="someone-elses"))
    write_letter(topics, b"nowhere", [("a", b"b")])
    write_letter(topics, bytes(99_990), letter_headers(topics, 5))  # with its headers more than the topic takes
    write_letter(topics, b"also good", letter_headers(topics, 6))
    answer = topics.ouzel("dlq", "replay", "--execute")
    assert answer.code == 1
    reasons = {row["position"]: row["reason"] for row in answer.rows if row["status"] == "refused"}
    assert reasons.keys() == {"0:1", "0:2", "0:3", "0:4", "0:5"}
    assert "--force" in reasons["0:1"]
    assert "99999999 bytes" in reasons["0:2"]
    assert "someone-elses is not one of kafka.input_topics" in reasons["0:3"]
    assert "larg" in reasons["0:5"].lower()
    assert sorted(message.value() or b"" for message in topics.read_all(topics.images)) == [b"also good", b"good"]
    forced = topics.ouzel("dlq", "replay", "--execute", "--force", "--id", "0:1")
    assert forced.code == 0, forced.stderr
    (often,) = (message for message in topics.read_all(topics.images) if message.value() == b"often")
    assert headers_of(often)[names.REPLAY_COUNT] == b"4"


def test_a_tombstones_letter_goes_back_as_a_tombstone(topics: Topics) -> None:
    write_letter(topics, None, letter_headers(topics, 0), key=b"k")
    assert topics.ouzel("dlq", "replay", "--execute").code == 0
    (message,) = topics.read_all(topics.images)
    assert (message.value(), message.key()) == (None, b"k")


def test_without_its_marker_topic_nothing_is_sent(kafka: Cluster) -> None:
    topics = Topics(kafka.bootstrap_servers, unique("cli"))
    kafka.create_topic(topics.images, partitions=1)
    kafka.create_topic(topics.letters, partitions=2)
    write_letters(topics, 1)
    for arguments in ([], ["--execute"]):
        answer = topics.ouzel("dlq", "replay", *arguments)
        assert answer.code == 6
        assert topics.markers in answer.stderr
        assert "ouzel topics create" in answer.stderr
    assert topics.read_all(topics.images) == []
    assert topics.ouzel("dlq", "ls").rows[0]["replayed"] == 0


def test_an_input_topic_that_is_gone_is_a_clear_error(kafka: Cluster, topics: Topics) -> None:
    write_letters(topics, 1)
    kafka.delete_topic(topics.images)
    answer = topics.ouzel("dlq", "replay", "--execute")
    assert answer.code == 6, answer.stderr
    assert topics.read_all(topics.markers) == []


def test_letters_of_an_open_transaction_are_not_waited_for(topics: Topics) -> None:
    write_letters(topics, 2)
    producer = topics.producer(transactional_id=topics.unique)
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topics.letters, b"open", headers=letter_headers(topics, 9), partition=0)
    producer.flush(20)
    answer = topics.ouzel("dlq", "replay", "--execute")
    assert answer.code == 0, answer.stderr
    producer.abort_transaction(30)
    assert_each_went_back_once(topics, 2)


@pytest.mark.parametrize(
    "deaths",
    [
        [("before", 2), ("after", 1), ("before", 1), ("after", 3)],
        [("during", 1), ("during", 3), ("during", 2), ("before", 2)],
    ],
    ids=["before-and-after", "during"],
)
def test_killed_at_its_commits_each_letter_goes_back_once(topics: Topics, deaths: list[tuple[str, int]]) -> None:
    write_letters(topics, 40)
    for moment, nth in deaths:
        dying = topics.start_ouzel(moment, str(nth), "dlq", "replay", "--execute", "--batch", "4", program=DYING)
        _, complaints = dying.communicate(timeout=60)
        assert dying.returncode == -signal.SIGKILL, complaints.decode()
    last = topics.ouzel("dlq", "replay", "--execute")
    assert last.code == 0, last.stderr
    assert {row["status"] for row in last.rows} == {"skipped", "replayed"}
    assert_each_went_back_once(topics, 40)


@pytest.mark.parametrize("seen", [1, 5, 18])
def test_killed_after_it_told_of_some_each_letter_goes_back_once(topics: Topics, seen: int) -> None:
    write_letters(topics, 30)
    replay = topics.start_ouzel("dlq", "replay", "--execute", "--batch", "2")
    assert replay.stdout is not None
    for _ in range(seen):
        assert orjson.loads(replay.stdout.readline())["status"] == "replayed"
    replay.kill()
    replay.communicate(timeout=30)
    assert topics.ouzel("dlq", "replay", "--execute").code == 0
    assert_each_went_back_once(topics, 30)


def test_of_two_at_once_the_second_fences_the_first_and_each_letter_goes_back_once(topics: Topics) -> None:
    write_letters(topics, 30)
    first = topics.start_ouzel("dlq", "replay", "--execute", "--rate", "4")
    assert first.stdout is not None
    assert orjson.loads(first.stdout.readline())["status"] == "replayed"
    second = topics.ouzel("dlq", "replay", "--execute")
    assert second.code == 0, second.stderr
    _, complaints = first.communicate(timeout=60)
    assert first.returncode == 11
    assert b"another replay" in complaints
    assert b"Traceback" not in complaints
    assert_each_went_back_once(topics, 30)


def test_after_ctrl_c_readers_of_the_input_topic_do_not_wait_for_a_time_out(topics: Topics) -> None:
    write_letters(topics, 30)
    replay = topics.start_ouzel("dlq", "replay", "--execute", "--rate", "2")
    assert replay.stdout is not None
    replay.stdout.readline()
    replay.send_signal(signal.SIGINT)
    replay.communicate(timeout=30)
    assert replay.returncode not in {0, 11}
    committed, all_there_is = (
        len(topics.read_all(topics.images, isolation=isolation)) for isolation in ("read_committed", "read_uncommitted")
    )
    assert committed == all_there_is
    assert topics.ouzel("dlq", "replay", "--execute").code == 0
    assert_each_went_back_once(topics, 30)


def test_it_does_not_read_past_retention(kafka: Cluster, topics: Topics) -> None:
    write_letters(topics, 6)
    gone = TopicPartition(topics.letters, 0, 2)
    for future in kafka.admin().delete_records([gone]).values():
        future.result(20)
    answer = topics.ouzel("dlq", "replay")
    assert sorted(row["position"] for row in answer.rows) == ["0:2", "1:0", "1:1", "1:2"]
    assert topics.ouzel("dlq", "show", "0:0").code == 1
