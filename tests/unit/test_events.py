"""What goes out: the id that stays, values that validate, letters that do not grow."""

import hashlib
import json
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import headers as names
from consumer.errors import InvalidMessage, MalformedMessage, NotAnImage
from consumer.kafka_properties import HEADROOM_BYTES
from consumer.messages import (
    Delivery,
    Headers,
    ImageFacts,
    ImageJob,
    Label,
    Labelled,
    ModelInfo,
    OutputRecord,
    Rejected,
)
from consumer.stages.events import (
    MAX_OWN_HEADERS_BYTES,
    EventContext,
    Origin,
    dead_letter,
    event_id,
    label_event,
    tombstone_forward,
    without_value,
)
from tests.contract.schema_files import check
from tests.unit.deliveries import delivery

CONTEXT = EventContext(
    cluster_id="cluster",
    group_id="ouzel",
    replica="replica-0",
    output_topic="predictions",
    dead_letter_topic="images.dlq",
    max_message_bytes=1024 * 1024,
)
MODEL = ModelInfo("lite0", "1", "sha256:" + "ab" * 32, "tensorflow", "f32")
FACTS = ImageFacts(640, 480, "JPEG", "cd" * 32)
NOW = "2026-01-31T09:30:00.412Z"
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _labelled(source: Delivery, *, uri: str | None = "file:///photos/a.jpg") -> Labelled:
    job = ImageJob(source, "finch", uri=uri, data=None if uri else b"image", metadata={"camera": "garden"})
    timings = {"fetch": 1.23456, "decode": 3.1, "queue": 4.0, "infer": 9.8}
    return Labelled(job, (Label(12, "house finch", 0.9300000071525574),), FACTS, MODEL, timings)


def _event(source: Delivery, *, uri: str | None = "file:///photos/a.jpg") -> tuple[dict[str, object], dict[str, str]]:
    record = label_event(_labelled(source, uri=uri), CONTEXT, NOW)
    assert record.value is not None
    return json.loads(record.value), _text(record.headers)


def _text(headers: Headers) -> dict[str, str]:
    assert len({name for name, _ in headers}) == len(headers), "a header stands twice"
    return {name: (value or b"").decode() for name, value in headers}


def _ours(headers: Headers) -> Headers:
    return tuple(header for header in headers if header[0].startswith(names.OURS))


def _bytes(headers: Headers) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def _raised(error: InvalidMessage) -> InvalidMessage:
    try:
        raise error
    except InvalidMessage as caught:
        return caught


def _rejected(source: Delivery, text: str = "no decoder takes it") -> Rejected:
    return Rejected(source, _raised(NotAnImage(text)), "decode")


def _sent_back(letter: OutputRecord, offset: int, count: int) -> Delivery:
    """The letter as a replay sends it: the original with the origin's headers and one more replay."""
    kept = tuple(
        (name, value)
        for name, value in letter.headers
        if not name.startswith(names.OURS) or name.startswith("ouzel-origin-")
    )
    return delivery(
        letter.value, key=letter.key, headers=(*kept, (names.REPLAY_COUNT, str(count).encode())), offset=offset
    )


# --- label events ---------------------------------------------------------------------------------------------------


def test_the_event_id_is_the_documented_recipe_and_never_changes() -> None:
    # Golden: a reader that dropped duplicates by it before an upgrade must still know it afterwards.
    origin = Origin.of(delivery(b"x"), CONTEXT)
    found = event_id(origin, record_index=0, model_digest=MODEL.digest)
    recipe = f"ouzel-event-1\ncluster\ntopic-id\n3\n41\n0\n{MODEL.digest}\n"
    assert found == hashlib.sha256(recipe.encode()).hexdigest()
    assert found == "990f1636061a0ad929c06359be6c7fea52ae4944077740a0a62382884635eae0"


def test_the_event_id_depends_on_each_of_its_parts() -> None:
    origin = Origin.of(delivery(b"x"), CONTEXT)
    ids = {
        event_id(each, record_index=index, model_digest=digest)
        for each, index, digest in [
            (origin, 0, "a"),
            (origin, 1, "a"),
            (origin, 0, "b"),
            (replace(origin, cluster_id="other"), 0, "a"),
            (replace(origin, topic_id="other"), 0, "a"),
            (replace(origin, partition=4), 0, "a"),
            (replace(origin, offset=42), 0, "a"),
        ]
    }
    assert len(ids) == 7


def test_without_a_topic_id_the_name_of_the_topic_stands_for_it() -> None:
    one, other = (Origin.of(delivery(b"x", topic=topic, topic_id=""), CONTEXT) for topic in ("images", "others"))
    assert event_id(one, record_index=0, model_digest="m") != event_id(other, record_index=0, model_digest="m")


def test_a_label_event_validates_and_says_what_the_contract_says() -> None:
    value, headers = _event(delivery(b"x", key=b"k"))
    check("label-event.v1.json", value)
    assert list(value) == [
        *("event_id", "image_id", "uri", "labels", "model", "source", "image", "timings_ms", "published_at", "metadata")
    ]
    assert value["labels"] == [{"index": 12, "label": "house finch", "score": 0.93}]
    assert value["source"] == {
        "topic": "images",
        "partition": 3,
        "offset": 41,
        "timestamp": "2026-01-31T09:30:00.125Z",
        "timestamp_type": "create",
    }
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": value["event_id"],
        "ce_type": "ouzel.label-event.v1",
        "ce_source": "/ouzel/ouzel",
        "ce_subject": "finch",
        "ce_time": NOW,
        "content-type": "application/json",
        "traceparent": headers["traceparent"],
    }


@pytest.mark.parametrize("key", [None, b"", b"k", b"\xff\x00"])
def test_the_key_is_the_inputs_key(key: bytes | None) -> None:
    record = label_event(_labelled(delivery(b"x", key=key)), CONTEXT, NOW)
    assert (record.topic, record.key) == ("predictions", key)


def test_secrets_in_a_uri_stay_out_of_the_event_and_inline_bytes_have_none() -> None:
    value, _ = _event(delivery(b"x"), uri="https://user:pw@host/a.jpg?token=s3cr3t#f")
    assert value["uri"] == "https://host/a.jpg"
    inline, _ = _event(delivery(b"x"), uri=None)
    assert inline["uri"] is None
    check("label-event.v1.json", inline)


@pytest.mark.parametrize("timestamp_ms", [None, 0, -1, 2**63 - 1, -(2**63), 253_402_300_799_999])
def test_any_timestamp_of_kafka_makes_a_valid_event(timestamp_ms: int | None) -> None:
    value, _ = _event(delivery(b"x", timestamp_ms=timestamp_ms))
    check("label-event.v1.json", value)


def test_a_trace_is_carried_through() -> None:
    for sent in (TRACE, b"01" + TRACE[2:] + b"-later"):
        _, headers = _event(delivery(b"x", headers=(("traceparent", sent),)))
        assert headers["traceparent"].encode() == sent[:55]


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b"nonsense", b"ff" + TRACE[2:], TRACE.upper(), TRACE + b"-more", TRACE + b"\n"),
        *(b"00-" + b"0" * 32 + TRACE[35:], TRACE[:36] + b"0" * 16 + b"-01"),
    ],
)
def test_a_trace_that_is_none_is_begun_anew_and_the_same_for_a_redelivery(sent: bytes) -> None:
    begun = [_event(delivery(b"x", headers=(("traceparent", sent),)))[1]["traceparent"] for _ in range(2)]
    assert begun[0] == begun[1]
    assert begun[0][3:35] == _event(delivery(b"x"))[1]["ce_id"][:32]


def test_a_group_of_any_name_makes_a_uri_reference() -> None:
    context = replace(CONTEXT, group_id="a group/ü")
    assert (
        dict(label_event(_labelled(delivery(b"x")), context, NOW).headers)["ce_source"] == b"/ouzel/a%20group%2F%C3%BC"
    )


# --- dead letters ---------------------------------------------------------------------------------------------------


def test_a_letter_is_the_message_untouched_with_headers_that_validate() -> None:
    theirs = (("content-type", b"image/jpeg"), ("x", None), ("x", b"\xff\x00"), ("traceparent", TRACE))
    letter = dead_letter(_rejected(delivery(b"\xffnot an image", key=b"k", headers=theirs)), CONTEXT)
    assert (letter.topic, letter.value, letter.key) == ("images.dlq", b"\xffnot an image", b"k")
    assert letter.headers[: len(theirs)] == theirs
    ours = _text(letter.headers[len(theirs) :])
    check("dead-letter-headers.v1.json", ours)
    assert ours[names.ERROR_EXCEPTION_CLASS] == "NotAnImage"
    assert ours[names.ERROR_EXCEPTION_MESSAGE] == "no decoder takes it"
    assert ours[names.ERROR_CLASS_NAME] == "consumer.stages.decode"
    assert "in _raised" in ours[names.ERROR_EXCEPTION_STACKTRACE]
    assert (ours[names.ERROR_TOPIC], ours[names.ERROR_PARTITION], ours[names.ERROR_OFFSET]) == ("images", "3", "41")
    assert ours[names.REPLAY_COUNT] == "0"


def test_five_hops_leave_a_letter_as_large_as_the_first_and_its_origin_as_it_was() -> None:
    theirs = (("a", b"1"), ("b", b"2"))
    source = delivery(b"not an image", key=b"k", headers=theirs)
    first = dead_letter(_rejected(source), CONTEXT)
    letter = first
    for hop in range(1, 6):
        letter = dead_letter(_rejected(_sent_back(letter, 1000 + hop, hop)), CONTEXT)
        assert letter.headers[:2] == theirs
        assert [name for name, _ in letter.headers] == [name for name, _ in first.headers]
        assert _text(_ours(letter.headers))[names.ORIGIN_OFFSET] == "41"
        assert _text(_ours(letter.headers))[names.ERROR_OFFSET] == str(1000 + hop)
        assert _text(_ours(letter.headers))[names.REPLAY_COUNT] == str(hop)
    assert (letter.value, letter.key) == (b"not an image", b"k")


def test_a_replayed_message_has_the_event_id_and_source_of_its_first_delivery() -> None:
    source = delivery(b"x")
    again = _sent_back(dead_letter(_rejected(source), CONTEXT), offset=9_999, count=1)
    value, headers = _event(again)
    first, _ = _event(source)
    assert (value["event_id"], value["source"]) == (first["event_id"], first["source"])
    assert not [name for name in headers if name.startswith(names.OURS)]


def test_a_letter_of_one_record_says_which_one_through_every_hop() -> None:
    part = delivery(b"x", headers=(("a", b"1"), (names.ORIGIN_RECORD_INDEX, b"2")))
    first = dead_letter(_rejected(part), CONTEXT)
    assert first.headers[0] == ("a", b"1")
    again = _sent_back(first, 9_999, 1)
    for letter in (first, dead_letter(_rejected(again), CONTEXT)):
        assert _text(_ours(letter.headers))[names.ORIGIN_RECORD_INDEX] == "2"
        check("dead-letter-headers.v1.json", _text(_ours(letter.headers)))
    assert Origin.of(again, CONTEXT).offset == 41
    assert not [name for name in _event(again)[1] if name.startswith(names.OURS)]


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"2147483648", None])
def test_a_record_index_that_we_would_not_have_written_is_none(value: bytes | None) -> None:
    letter = dead_letter(_rejected(delivery(b"x", headers=((names.ORIGIN_RECORD_INDEX, value),))), CONTEXT)
    assert names.ORIGIN_RECORD_INDEX not in dict(letter.headers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (names.ORIGIN_OFFSET, b"-1"),
        (names.ORIGIN_OFFSET, b"9" * 19),
        (names.ORIGIN_OFFSET, b"x"),
        (names.ORIGIN_PARTITION, b"2147483648"),
        (names.ORIGIN_PARTITION, None),
        (names.ORIGIN_TOPIC, b""),
        (names.ORIGIN_TOPIC, b"x" * 250),
        (names.ORIGIN_TOPIC_ID, b"\xff"),
        (names.ORIGIN_CLUSTER_ID, b"x" * 100_000),
        (names.ORIGIN_TIMESTAMP_TYPE, b"never"),
    ],
)
def test_origin_headers_that_we_would_not_have_written_are_no_origin(name: str, value: bytes | None) -> None:
    again = _sent_back(dead_letter(_rejected(delivery(b"x")), CONTEXT), offset=9_999, count=1)
    forged = replace(again, headers=tuple((each, value if each == name else old) for each, old in again.headers))
    assert Origin.of(forged, CONTEXT).offset == 9_999


def test_headers_stay_bounded_whatever_went_wrong() -> None:
    for text in (
        "x" * 100_000,
        "é " * 5_000_000,
        "\ud800" * 100_000,
        "https://h/?" + "s" * 10_000_000,
        "{}\n" * 100_000,
    ):
        letter = dead_letter(_rejected(delivery(b"v"), text), CONTEXT)
        assert _bytes(_ours(letter.headers)) < MAX_OWN_HEADERS_BYTES
        check("dead-letter-headers.v1.json", _text(letter.headers))


def test_long_names_of_groups_and_hosts_stay_bounded() -> None:
    context = replace(CONTEXT, group_id="g" * 100_000, replica="é" * 100_000, cluster_id="c" * 100_000)
    letter = dead_letter(_rejected(delivery(b"v", topic_id="t" * 100_000)), replace(context, spring_headers=True))
    assert _bytes(_ours(letter.headers)) < MAX_OWN_HEADERS_BYTES


def test_a_chain_of_causes_is_told_and_bounded() -> None:
    def fail(depth: int) -> None:
        if depth == 0:
            raise ValueError("the root of it")
        try:
            fail(depth - 1)
        except ValueError as error:
            raise ValueError("x" * 50_000) from error

    try:
        try:
            fail(200)
        except ValueError as error:
            raise MalformedMessage("outermost") from error
    except MalformedMessage as caught:
        letter = dead_letter(Rejected(delivery(b"v"), caught, "parse"), CONTEXT)
    stack = _text(letter.headers)[names.ERROR_EXCEPTION_STACKTRACE]
    assert "outermost" in stack
    assert "caused by" in stack
    assert _bytes(_ours(letter.headers)) < MAX_OWN_HEADERS_BYTES


def test_secrets_in_uris_and_inline_bytes_stay_out_of_letters_headers() -> None:
    text = (
        "GET https://user:pw1@h/a?token=pw2 failed, s3://k:pw3@b/c#pw4, data:image/png;base64,pw5 'http://a:pw6/b@c/'"
    )
    try:
        try:
            raise OSError(text)
        except OSError as error:
            raise MalformedMessage(text) from error
    except MalformedMessage as caught:
        letter = dead_letter(Rejected(delivery(b"v"), caught, "fetch"), replace(CONTEXT, spring_headers=True))
    for name, value in letter.headers:
        assert b"pw" not in (value or b""), name
    assert "https://h/a failed" in _text(letter.headers)[names.ERROR_EXCEPTION_MESSAGE]


def test_a_letter_without_its_value_says_how_large_it_was_and_its_digest() -> None:
    letter = dead_letter(_rejected(delivery(b"large", key=b"k", headers=(("a", b"1"),))), CONTEXT)
    cut = without_value(letter)
    assert (cut.value, cut.key, cut.headers[0]) == (None, b"k", ("a", b"1"))
    ours = _text(_ours(cut.headers))
    check("dead-letter-headers.v1.json", ours)
    assert ours[names.ORIGINAL_SIZE_BYTES] == "5"
    assert ours[names.ORIGINAL_SHA256] == hashlib.sha256(b"large").hexdigest()
    assert ours[names.ORIGINAL_LEFT_OUT] == "value"
    assert without_value(cut) == cut


def test_a_message_of_the_largest_size_fits_its_letter_whole_and_a_larger_one_is_cut_at_once() -> None:
    most = CONTEXT.max_message_bytes
    assert dead_letter(_rejected(delivery(bytes(most), headers=()), "x" * 100_000), CONTEXT).value is not None
    assert dead_letter(_rejected(delivery(bytes(most + HEADROOM_BYTES))), CONTEXT).value is None


def test_even_a_monstrous_key_and_headers_leave_a_letter_that_can_be_written() -> None:
    source = delivery(b"v", key=bytes(10**6), headers=(("a", bytes(10**6)),))
    letter = dead_letter(_rejected(source), CONTEXT)
    assert (letter.value, letter.key) == (None, None)
    assert _text(letter.headers)[names.ORIGINAL_LEFT_OUT] == "value,headers,key"
    assert _bytes(letter.headers) < MAX_OWN_HEADERS_BYTES


def test_springs_headers_are_there_when_asked_for_and_as_java_reads_them() -> None:
    source = delivery(b"v", offset=2**40)
    assert not [name for name, _ in dead_letter(_rejected(source), CONTEXT).headers if name.startswith("kafka_dlt")]
    found = dict(dead_letter(_rejected(source), replace(CONTEXT, spring_headers=True)).headers)
    assert found["kafka_dlt-original-topic"] == b"images"
    assert found["kafka_dlt-original-partition"] == struct.pack(">i", 3)
    assert found["kafka_dlt-original-offset"] == struct.pack(">q", 2**40)
    assert found["kafka_dlt-exception-fqcn"] == b"consumer.errors.NotAnImage"
    assert found["kafka_dlt-exception-message"] == b"no decoder takes it"


def test_a_tombstone_goes_on_under_its_key_and_has_nothing_to_delete_without_one() -> None:
    record = tombstone_forward(delivery(None, key=b"k", headers=(("traceparent", TRACE),)), CONTEXT)
    assert record == OutputRecord("predictions", None, b"k", (("traceparent", TRACE),))
    assert tombstone_forward(delivery(None, key=b""), CONTEXT) is not None
    assert tombstone_forward(delivery(None), CONTEXT) is None


OUR_NAMES = [value for name, value in vars(names).items() if isinstance(value, str) and value.startswith(names.OURS)]


@settings(max_examples=300)
@given(
    headers=st.lists(
        st.tuples(st.sampled_from(OUR_NAMES) | st.text(max_size=5), st.none() | st.binary(max_size=30)), max_size=6
    ).map(tuple),
    value=st.none() | st.binary(max_size=20),
    key=st.none() | st.binary(max_size=20),
    text=st.text(max_size=50),
)
def test_any_headers_make_a_letter_that_validates_with_theirs_kept_in_order(
    headers: Headers, value: bytes | None, key: bytes | None, text: str
) -> None:
    letter = dead_letter(_rejected(delivery(value, key=key, headers=headers), text), CONTEXT)
    theirs = tuple(header for header in headers if not header[0].startswith(names.OURS))
    assert (letter.value, letter.key, letter.headers[: len(theirs)]) == (value, key, theirs)
    check("dead-letter-headers.v1.json", _text(letter.headers[len(theirs) :]))
