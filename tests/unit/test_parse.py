"""Every form of input, and every refusal with what to do."""

import base64
import binascii
import hashlib
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consumer.errors import ImageTooLarge, MalformedMessage
from consumer.image_formats import image_format
from consumer.messages import Delivery, Headers, ImageJob
from consumer.stages.parse import Parser
from tests.contract.schema_files import SCHEMAS, is_valid
from tests.unit.deliveries import delivery

PARSE = Parser(max_metadata_bytes=64, max_image_bytes=4096)
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/camera",
    "type": "ouzel.image-reference.v1",
    "data": {"image_id": "a", "uri": "file:///a.jpg"},
}


def _job(message: Delivery) -> ImageJob:
    """The one image of a message."""
    found = PARSE(message)
    assert isinstance(found, ImageJob), found
    return found


def _reference(**fields: object) -> bytes:
    document = {"image_id": "a", "uri": "file:///a.jpg", **fields}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def _image(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format_)
    return buffer.getvalue()


def _refusal(value: bytes | None, headers: Headers = (), key: bytes | None = None) -> str:
    with pytest.raises(MalformedMessage) as caught:
        _job(delivery(value, headers=headers, key=key))
    return str(caught.value)


def test_a_reference_by_uri_keeps_every_field() -> None:
    job = _job(
        delivery(
            _reference(
                version=1,
                sha256="AB" * 32,
                content_type="image/jpeg",
                captured_at="2026-01-31T09:30:00Z",
                top_k=3,
                metadata={"camera": "garden"},
                later="unknown fields are accepted",
            )
        )
    )
    assert (job.image_id, job.uri, job.data) == ("a", "file:///a.jpg", None)
    assert job.sha256 == "ab" * 32
    assert job.top_k == 3
    assert job.metadata == {"camera": "garden"}


def test_inline_bytes_come_out_as_they_went_in() -> None:
    job = _job(delivery(_reference(uri=..., data=base64.b64encode(b"\x00\xffimage").decode())))
    assert (job.data, job.uri) == (b"\x00\xffimage", None)


def test_null_means_absent() -> None:
    job = _job(delivery(_reference(data=None, sha256=None, metadata=None, top_k=None, version=None)))
    assert (job.uri, job.sha256, job.metadata) == ("file:///a.jpg", None, {})


def test_a_byte_order_mark_and_blanks_before_json_do_no_harm() -> None:
    assert _job(delivery(b"\xef\xbb\xbf \r\n" + _reference())).image_id == "a"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image_id": ...}, "image_id"),
        ({"image_id": 7}, "image_id"),
        ({"image_id": ""}, "image_id"),
        ({"image_id": "x" * 1025}, "image_id"),
        ({"image_id": "line\nfeed"}, "image_id"),
        ({"uri": ...}, "exactly one of `uri` and `data`"),
        ({"data": "QQ=="}, "exactly one of `uri` and `data`"),
        ({"uri": "x" * 8193}, "uri"),
        ({"uri": ..., "data": "not base64!"}, "data"),
        ({"uri": ..., "data": ""}, "data"),
        ({"uri": ..., "data": "QUJD\nQUJD"}, "data"),
        ({"sha256": "abc"}, "sha256"),
        ({"captured_at": "yesterday"}, "captured_at"),
        ({"captured_at": "2026-02-30T00:00:00Z"}, "captured_at"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1001}, "top_k"),
        ({"top_k": "3"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": ["a"]}, "metadata"),
        ({"metadata": {"a": "x" * 64}}, "input.max_metadata_bytes"),
        ({"version": 2}, "version: unknown major version"),
        ({"version": "1"}, "version"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_do(fields: dict[str, object], named: str) -> None:
    text = _refusal(_reference(**fields))
    assert text.startswith(named) or named in text
    assert "send" in text


def test_several_wrong_fields_are_named_at_once() -> None:
    text = _refusal(_reference(top_k=0, sha256="x", captured_at="x"))
    assert all(name in text for name in ("top_k", "sha256", "captured_at"))


def test_refusals_never_repeat_what_the_message_holds() -> None:
    secret = "s3cr3t"
    for fields in (
        {"uri": f"https://host/a?token={secret}", "data": "QQ=="},
        {"uri": ..., "data": secret + "!"},
        {"metadata": {secret: 1}},
        {"image_id": secret + "\n"},
        {"sha256": secret},
        {"captured_at": secret},
    ):
        text = _refusal(_reference(**fields))
        assert secret not in text


@pytest.mark.parametrize("value", [b"{", b"[1]", b"[]", b'{"a":' * 100_000, b"[" * 100_000, b'{"image_id":"\xff"}'])
def test_what_is_not_a_json_object_is_malformed_however_deep(value: bytes) -> None:
    assert "JSON" in _refusal(value)


def test_a_tombstone_and_an_empty_value_ask_for_nothing() -> None:
    assert "null" in _refusal(None)
    assert "empty" in _refusal(b"")


def test_a_structured_cloudevent_is_its_data() -> None:
    value = json.dumps(EVENT).encode()
    for headers in ((), (("content-type", b"application/cloudevents+json; charset=UTF-8"),)):
        assert _job(delivery(value, headers=headers)).uri == "file:///a.jpg"


def test_a_binary_mode_cloudevent_is_a_reference_with_headers() -> None:
    headers = (("ce_specversion", b"1.0"), ("ce_type", b"x"), ("content-type", b"application/json"))
    assert _job(delivery(_reference(), headers=headers)).image_id == "a"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"id": ""}, "id"),
        ({"source": ...}, "source"),
        ({"type": 1}, "type"),
        ({"type": "ouzel.image-reference.v2"}, "type: unknown major version"),
        ({"data": ...}, "data"),
        ({"data": "text"}, "data"),
        ({"data": {"image_id": "a"}}, "exactly one of"),
        ({"data": {"image_id": "a", "uri": "u", "top_k": 0}}, "data.top_k"),
        ({"data": ..., "data_base64": "QQ=="}, "data_base64"),
        ({"datacontenttype": "image/png"}, "datacontenttype"),
    ],
)
def test_a_wrong_cloudevent_names_the_attribute(change: dict[str, object], named: str) -> None:
    document = {name: value for name, value in {**EVENT, **change}.items() if value is not ...}
    assert named in _refusal(json.dumps(document).encode())


def test_a_content_type_of_cloudevents_wants_one() -> None:
    assert "specversion" in _refusal(_reference(), (("content-type", b"application/cloudevents+json"),))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_an_image_alone_is_known_by_its_first_bytes(format_: str) -> None:
    body = _image(format_)
    job = _job(delivery(body))
    assert job.data == body
    assert job.image_id == "sha256:" + hashlib.sha256(body).hexdigest()
    assert image_format(body) == format_


def test_the_header_says_what_it_is_before_the_bytes_do() -> None:
    job = _job(delivery(b"{ not json, says the header", headers=(("Content-Type", b"IMAGE/HEIC; x=y"),)))
    assert job.data == b"{ not json, says the header"


@pytest.mark.parametrize("header", ["application/json", "application/cloudevents+json", "text/plain", "image/jpeg"])
def test_an_image_is_one_whatever_the_header_says(header: str) -> None:
    body = _image("PNG")
    job = _job(delivery(body, headers=(("content-type", header.encode()),)))
    assert job.data == body


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf", "AVIF"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00avifmif1miaf", "AVIF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIF"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "HEIF"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_newer_formats_are_known_by_their_first_bytes(start: bytes, name: str) -> None:
    body = start + bytes(40)
    assert (_job(delivery(body)).data, image_format(body)) == (body, name)


@pytest.mark.parametrize("start", [b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00mp42avc1", b"BMW and other makes of car"])
def test_what_only_looks_like_an_image_is_none(start: bytes) -> None:
    assert "first bytes" in _refusal(start)


def test_a_content_type_that_says_nothing_leaves_it_to_the_bytes() -> None:
    assert _job(delivery(_reference(), headers=(("content-type", b"application/octet-stream"),))).image_id == "a"


@pytest.mark.parametrize(
    ("header", "key", "image_id"),
    [
        (b"from the header", b"key", "from the header"),
        (None, "schlüssel".encode(), "schlüssel"),
        (None, b"\xff\x00", "ff00"),
        (None, b"\x00\x00\x00\x2a", "0000002a"),
        (None, b"", "sha256:" + hashlib.sha256(b"GIF89a").hexdigest()),
    ],
)
def test_the_id_of_an_image_is_header_then_key_then_digest(
    header: bytes | None, key: bytes | None, image_id: str
) -> None:
    headers = (("image-id", header),) if header is not None else ()
    assert _job(delivery(b"GIF89a", key=key, headers=headers)).image_id == image_id


@pytest.mark.parametrize("header", [b"", b"\xff", b"a\nb", b"x" * 1025])
def test_a_useless_image_id_header_is_refused(header: bytes) -> None:
    assert "image-id" in _refusal(b"GIF89a", (("image-id", header),))


def test_a_key_too_long_to_be_an_id_asks_for_a_header() -> None:
    assert "image-id" in _refusal(b"GIF89a", key=b"x" * 1025)


def test_images_beyond_the_bound_are_refused_before_they_are_decoded() -> None:
    for value in (b"GIF89a" + bytes(4091), _reference(uri=..., data="A" * 5464)):
        with pytest.raises(ImageTooLarge, match=r"stores\.max_image_bytes"):
            _job(delivery(value))
    assert _job(delivery(b"GIF89a" + bytes(4090))).data
    assert _job(delivery(_reference(uri=..., data=base64.b64encode(bytes(4096)).decode()))).data


def test_a_uri_list_has_comments_and_one_uri() -> None:
    headers = (("content-type", b"text/uri-list"),)
    job = _job(delivery(b"# the garden\r\n\r\nfile:///a%20b.jpg\r\n", headers=headers, key=b"k"))
    assert (job.uri, job.image_id) == ("file:///a%20b.jpg", "k")
    assert "2 URIs" in _refusal(b"file:///a\r\nfile:///b", headers)
    assert "0 URIs" in _refusal(b"# none", headers)
    assert "UTF-8" in _refusal(b"file:///\xff", headers)
    assert "characters" in _refusal(b"x:" + b"y" * 9000, headers)


def test_a_bare_uri_without_its_header_is_told_which_to_send() -> None:
    assert "text/uri-list" in _refusal(b"file:///a.jpg")
    assert "content-type" in _refusal(b"hello")


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "Content-Type", "image-id", "x"]),
        st.none()
        | st.binary(max_size=40)
        | st.sampled_from([b"application/json", b"application/cloudevents+json", b"text/uri-list", b"image/png"]),
    ),
    max_size=3,
).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*SCHEMAS["image-reference.v1.json"]["properties"], *EVENT, "data_base64"]) | st.text(),
            inner,
        )
    ),
    max_leaves=12,
).map(lambda document: json.dumps(document).encode())


@settings(max_examples=500)
@given(value=st.none() | st.binary() | JSON, headers=HEADERS, key=st.none() | st.binary(max_size=20))
def test_only_invalid_messages_ever_escape(value: bytes | None, headers: Headers, key: bytes | None) -> None:
    try:
        job = _job(delivery(value, headers=headers, key=key))
    except (MalformedMessage, ImageTooLarge):
        pass
    else:
        assert (job.uri is None) != (job.data is None)
        assert 0 < len(job.image_id) <= 1024


@settings(max_examples=300)
@given(
    document=st.fixed_dictionaries(
        {"image_id": st.text(max_size=5)},
        optional={
            "uri": st.none() | st.just("file:///a"),
            "data": st.sampled_from([None, "QQ==", "QQ"]),
            "top_k": st.integers(-1, 1002) | st.none(),
            "version": st.sampled_from([None, 1, 2]),
            "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
        },
    )
)
def test_the_parser_takes_exactly_what_the_schema_takes(document: dict[str, object]) -> None:
    try:
        Parser()(delivery(json.dumps(document).encode()))
    except MalformedMessage:
        assert not is_valid("image-reference.v1.json", document)
    else:
        assert is_valid("image-reference.v1.json", document)


@given(
    st.text("AZaz09+/=-_ \n\0é", max_size=40) | st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode())
)
def test_base64_is_as_strict_as_the_standard_library(text: str) -> None:
    try:
        expected = binascii.a2b_base64(text, strict_mode=True) if text and len(text) % 4 == 0 else None
    except ValueError:
        expected = None
    try:
        found = _job(delivery(_reference(uri=..., data=text))).data
    except MalformedMessage:
        found = None
    assert (found or None) == (expected or None)
