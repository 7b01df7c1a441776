"""Dead letters: what is read off them, which may go back, and how they are shown."""

from typing import Any

import pytest

from consumer import headers as names
from consumer.adapters.kafka_tools.letters import Letter, parse_position
from consumer.adapters.kafka_tools.reading import Record
from consumer.commands.dlq import Bucket, Selection, grouped, hex_dump, preview
from consumer.messages import Headers

ORIGIN: Headers = ((names.ORIGIN_TOPIC, b"images"), (names.ORIGIN_OFFSET, b"41"))


def letter(value: bytes | None = b"x", *headers: tuple[str, bytes | None], **more: Any) -> Letter:
    fields: dict[str, Any] = {"partition": 0, "offset": 7, "key": None, "timestamp_ms": 0, **more}
    return Letter(Record(value=value, headers=headers, **fields))


def refusal(one: Letter, *, force: bool = False) -> str | None:
    return one.refusal(["images"], max_replays=3, force=force)


def test_the_sender_and_the_origin_stay_and_our_errors_go() -> None:
    one = letter(
        b"x",
        ("a", b"1"),
        *ORIGIN,
        (names.ERROR_STAGE, b"decode"),
        ("kafka_dlt-original-topic", b"images"),
        (names.REPLAY_COUNT, b"1"),
        ("a", None),
    )
    assert one.original_headers() == (("a", b"1"), *ORIGIN, ("a", None), (names.REPLAY_COUNT, b"2"))


def test_the_record_of_a_message_goes_back_with_it() -> None:
    one = letter(b"x", *ORIGIN, (names.ORIGIN_RECORD_INDEX, b"2"))
    assert (names.ORIGIN_RECORD_INDEX, b"2") in one.original_headers()


@pytest.mark.parametrize(("count", "refused"), [(b"2", False), (b"3", True), (b"x", False), (b"\xff", False)])
def test_a_letter_goes_back_until_it_did_so_too_often(count: bytes, refused: bool) -> None:
    one = letter(b"x", *ORIGIN, (names.REPLAY_COUNT, count))
    assert bool(refusal(one)) is refused
    assert refusal(one, force=True) is None


def test_force_does_not_bring_back_a_value_or_open_another_topic() -> None:
    withheld = letter(None, *ORIGIN, (names.ORIGINAL_SIZE_BYTES, b"99"))
    assert "99 bytes" in (refusal(withheld, force=True) or "")
    elsewhere = letter(b"x", (names.ORIGIN_TOPIC, b"payments"))
    assert "payments" in (refusal(elsewhere, force=True) or "")
    assert refusal(letter(b"x"), force=True) is not None


def test_a_tombstone_may_go_back() -> None:
    assert refusal(letter(None, *ORIGIN)) is None


def test_an_image_is_known_by_its_header_its_key_and_its_json() -> None:
    event = b'{"specversion": "1.0", "data": {"image_id": "in-event"}}'
    assert letter(event, (names.IMAGE_ID, b"in-header"), key=b"in-key").image_ids() == {
        "in-event",
        "in-header",
        "in-key",
    }
    for broken in (b"{", b"{}", b'{"image_id": 4}', b'{"data": []}', b"", None, b"\xff\xd8"):
        assert letter(broken).image_ids() == frozenset()


def test_positions_are_partition_and_offset() -> None:
    assert parse_position("3:41") == (3, 41)
    assert [parse_position(text) for text in ("3", "3:", "a:1", "-1:2", "1:2:3")] == [None] * 5


def test_a_selection_of_nothing_is_everything_and_until_is_exclusive() -> None:
    one = letter(b"x", timestamp_ms=1000)
    assert Selection().takes(one)
    assert Selection(since_ms=1000, until_ms=1001).takes(one)
    assert not Selection(until_ms=1000).takes(one)
    assert not Selection(classes=frozenset({"NotAnImage"})).takes(one)
    assert Selection(classes=frozenset({"unknown"}), ids=frozenset({"0:7"})).takes(one)


def test_groups_are_counted_newest_first_and_know_what_went_back() -> None:
    letters = [letter(b"x", offset=number, timestamp_ms=number * 60_000) for number in (0, 1, 61)]
    rows = grouped(letters, Bucket.HOUR, "id", {b"id:0:1"})
    assert [(row["time"], row["letters"], row["replayed"], row["newest"]) for row in rows] == [
        ("1970-01-01T01", 1, 0, "0:61"),
        ("1970-01-01T00", 2, 1, "0:1"),
    ]


def test_a_preview_is_text_where_it_is_text_and_hex_where_it_is_not() -> None:
    assert preview(None) is None
    assert preview("häuser".encode()) == "häuser"
    assert preview(b"\xff\xd8\xff") == hex_dump(b"\xff\xd8\xff")
    assert preview(b"x" + "é".encode() * 9000) == "x" + "é" * 1999  # the cut goes through a character


def test_a_hex_dump_has_sixteen_bytes_a_line() -> None:
    assert hex_dump(b"0123456789abcdef\x00z").splitlines() == [
        "00000000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef",
        "00000010  00 7a                                            .z",
    ]
