"""Parse: from a message's bytes to what it asks for: one image, several, or nothing.

Five forms, recognised by the `content-type` header, else by the first bytes (those of Confluent's framing before all):

* JSON, an image reference (`schemas/image-reference.v1.json`);
* a CloudEvents 1.0 structured JSON whose `data` is one (binary-mode CloudEvents are the form above);
* the encoded image itself, whatever the header says;
* `text/uri-list` with one URI;
* a bucket's own notification in JSON (see `bucket_events`), the one form that may ask for several images or for none.

An image reference may also come by Confluent's serializers, as JSON, Avro or Protobuf (see `framing`).

The id of a notification's image is `bucket/key`, or `sha256:` and the digest of that where it is no id (over 1024
characters, or with control characters). Of the other forms that carry no id, it is the `image-id` header, else the key,
else `sha256:` and the value's digest. Errors name the field and what to do; they never repeat what the message holds.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

import orjson

from consumer.contract import MAX_IMAGE_ID_CHARS, MAX_URI_CHARS, ImageReference, ImageReferenceCloudEvent
from consumer.errors import ImageTooLarge, MalformedMessage
from consumer.headers import CONTENT_TYPE, IMAGE_ID, ORIGIN_RECORD_INDEX
from consumer.image_formats import image_format
from consumer.messages import Delivery, ImageJob, Parsed, Records, Rejected, Skipped
from consumer.names import object_id
from consumer.ports import RecordDecoder
from consumer.stages import bucket_events
from consumer.stages.framing import MAGIC, VALUE_SCHEMA_ID, foreign_serializer, is_json, unframed
from consumer.stages.validate import validated

Form = Literal["json", "cloudevent", "image", "uri-list"]

MAX_SEVERAL_BYTES: Final = 1024 * 1024
"""Of a message with several records. Each of them that fails is a letter with the whole message in it, so that a large
one would fill the dead-letter topic a hundredfold. AWS bounds a notification, of one record, to 64 KB."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_URI_START = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]{0,31}://")
# Google's connector for Kafka Connect makes Pub/Sub's attributes headers; the other is a CloudEvent's in binary mode.
_EVENT_TYPES = ("eventType", "ce_type")
_DECIMAL = re.compile(rb"[0-9]{1,10}")

_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys([*ImageReference.model_fields, *ImageReferenceCloudEvent.model_fields], ""),
    "image_id": "send a text of 1 to 1024 characters, without control characters, that names the image",
    "uri": "send a URI of 1 to 8192 characters",
    "data": "send an image reference as the event's data",
    "sha256": "send 64 hex digits, or leave it out",
    "captured_at": "send an RFC 3339 time such as 2026-01-31T09:30:00.125Z, or leave it out",
    "top_k": "send an integer from 1 to 1000, or leave it out",
    "metadata": "send an object of text to text",
    "version": "send 1, or leave it out",
    "specversion": 'send "1.0"',
}


class Parser:
    """Fulfils `ports.MessageParser`. Holds only its bounds, so any thread may call it.

    Args:
        max_metadata_bytes: most bytes of UTF-8 in all names and values of `metadata` together.
        max_image_bytes: most bytes of an image that comes inline; of a longer one nothing is decoded.
        max_records: most records of a bucket's notification.
        schemas: reads framed Avro and Protobuf; None where no schema registry is set.
    """

    def __init__(
        self,
        *,
        max_metadata_bytes: int = 8 * 1024,
        max_image_bytes: int = 32 * 1024 * 1024,
        max_records: int = 100,
        schemas: RecordDecoder | None = None,
    ) -> None:
        self._max_metadata_bytes = max_metadata_bytes
        self._max_image_bytes = max_image_bytes
        self._max_records = max_records
        self._schemas = schemas

    def __call__(self, delivery: Delivery) -> Parsed:
        """What this message asks for.

        Raises:
            MalformedMessage: none of the five forms, or one with a field that is missing or wrong.
            ImageTooLarge: inline bytes beyond `max_image_bytes`.
            SchemaNotLoaded: framed, and its schema is not known yet.
        """
        value = delivery.value
        if value is None:
            raise MalformedMessage("the value is null: a tombstone asks for no image; send an image or a reference")
        if not value:
            raise MalformedMessage("the value is empty: send an image, a JSON image reference or a URI")
        media_type, schema_header = _headers_read(delivery)
        # AVIF, HEIF and JPEG XL begin with a zero, too.
        if (value[0] == MAGIC and not image_format(value)) or schema_header is not None:
            document = self._framed(media_type, value, schema_header)
            if document is not None:
                return self._document(delivery, document, enveloped=False)
        form = _form_of(media_type, value)
        if form == "image":
            return self._image(delivery, value)
        if form == "uri-list":
            return _uri_job(delivery, value)
        return self._document(delivery, _json_object(value), enveloped=form == "cloudevent")

    def _document(self, delivery: Delivery, document: dict[str, object], *, enveloped: bool) -> Parsed:
        if "image_id" not in document:
            found = bucket_events.read(document, event_type=_event_type(delivery), max_records=self._max_records)
            if found is not None:
                return self._notification(delivery, found)
        return self._reference(delivery, document, enveloped=enveloped)

    def _notification(self, delivery: Delivery, found: list[bucket_events.Found]) -> Parsed:
        if len(found) > 1 and len(delivery.value or b"") > MAX_SEVERAL_BYTES:
            raise MalformedMessage(
                f"{len(found)} records in more than {MAX_SEVERAL_BYTES} bytes: each that fails is a dead letter with "
                "all of them in it; send fewer records in each message"
            )
        wanted = delivery.header(ORIGIN_RECORD_INDEX)
        if wanted is None and len(found) > 1:
            parts = [_part(delivery, index) for index in range(len(found))]
            entries = tuple(
                self._entry(part, index, each) for index, (part, each) in enumerate(zip(parts, found, strict=True))
            )
            return Records(delivery, entries)
        index = 0 if wanted is None else _record_index(wanted, len(found))
        entry = self._entry(delivery, index, found[index])
        if isinstance(entry, Rejected):
            raise entry.error
        return entry

    def _entry(self, delivery: Delivery, index: int, found: bucket_events.Found) -> ImageJob | Rejected | Skipped:
        """What one record asks for, under the delivery that is its own."""
        if isinstance(found, str):
            return Skipped(delivery, found)
        try:
            if isinstance(found, MalformedMessage):
                raise found
            self._check_metadata_size(found.metadata)
        except MalformedMessage as error:
            return Rejected(delivery, error, stage="parse")
        return ImageJob(
            delivery=delivery,
            image_id=object_id(found.bucket, found.key),
            uri=found.uri,
            etag=found.etag,
            metadata=found.metadata,
            record_index=index,
        )

    def _framed(self, media_type: str, value: bytes, header: bytes | None) -> dict[str, object] | None:
        """The record in a value that Confluent's serializers wrote; None where it is an image or bare JSON."""
        if header is None and (media_type.startswith("image/") or value[4:8] == b"ftyp"):
            return None  # AVIF and HEIC begin with their first box: its size in four bytes, and its name
        if header is not None and is_json(value):
            return None
        schema, payload = unframed(value, header)
        if is_json(payload):
            return _json_object(payload)
        if self._schemas is None:
            raise MalformedMessage(
                f"the value is framed by Confluent's serializers (schema {schema}) and is not JSON: to read Avro and "
                "Protobuf set schema_registry.url and install the extra registry, or send JSON"
            )
        return self._schemas.decode(schema, payload)

    def _reference(self, delivery: Delivery, document: dict[str, object], *, enveloped: bool) -> ImageJob:
        if enveloped or "specversion" in document:
            _check_cloudevent_data(document)
            self._check_inline_size(document.get("data"))
            reference = validated(ImageReferenceCloudEvent, document, _REMEDIES).data
        else:
            self._check_inline_size(document)
            reference = validated(ImageReference, document, _REMEDIES)
        metadata = reference.metadata or {}
        if metadata:
            self._check_metadata_size(metadata)
        return ImageJob(
            delivery=delivery,
            image_id=reference.image_id,
            uri=reference.uri,
            data=reference.data,
            sha256=reference.sha256.lower() if reference.sha256 else None,
            top_k=reference.top_k,
            metadata=metadata,
        )

    def _image(self, delivery: Delivery, value: bytes) -> ImageJob:
        if len(value) > self._max_image_bytes:
            raise ImageTooLarge(_too_large(len(value), self._max_image_bytes))
        return ImageJob(delivery=delivery, image_id=_image_id(delivery, value), data=value)

    def _check_inline_size(self, reference: object) -> None:
        data = reference.get("data") if isinstance(reference, dict) else None
        if isinstance(data, str | bytes):
            size = len(data) if isinstance(data, bytes) else len(data) // 4 * 3 - data[-2:].count("=")
            if size > self._max_image_bytes:
                raise ImageTooLarge(f"data: {_too_large(size, self._max_image_bytes)}")

    def _check_metadata_size(self, metadata: Mapping[str, str]) -> None:
        size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
        if size > self._max_metadata_bytes:
            raise MalformedMessage(
                f"metadata: {size} bytes of names and values, and {self._max_metadata_bytes} are the most: "
                "send less, or raise input.max_metadata_bytes"
            )


def _part(delivery: Delivery, index: int) -> Delivery:
    """One record as a delivery of its own. The header goes into its dead letter, and comes back with it."""
    return replace(delivery, headers=(*delivery.headers, (ORIGIN_RECORD_INDEX, str(index).encode())), part_of=delivery)


def _record_index(header: bytes, count: int) -> int:
    index = int(header) if _DECIMAL.fullmatch(header) else count
    if index >= count:
        raise MalformedMessage(f"{ORIGIN_RECORD_INDEX} header: the message has {count} records; leave the header out")
    return index


def _event_type(delivery: Delivery) -> str | None:
    """What the headers say has happened to an object, where the value does not."""
    for name, value in delivery.headers:
        if name in _EVENT_TYPES and value:
            return value[:256].decode("utf-8", "replace")
    return None


def _headers_read(delivery: Delivery) -> tuple[str, bytes | None]:
    """The last `content-type` header without its parameters, lower case, empty where there is none; and the schema id
    that serializers put into a header."""
    found, schema = b"", None
    for name, value in delivery.headers:
        if value and name.lower() == CONTENT_TYPE:
            found = value
        elif value and name == VALUE_SCHEMA_ID:
            schema = value
    media_type = found[:256].split(b";", 1)[0].strip().lower().decode("ascii", "replace") if found else ""
    return media_type, schema


def _form_of(media_type: str, value: bytes) -> Form:
    if media_type != "text/uri-list" and image_format(value):
        return "image"  # whatever the header says: no JSON begins like an image
    if media_type == "application/cloudevents+json":
        return "cloudevent"
    if media_type == "text/uri-list":
        return "uri-list"
    if media_type.startswith("image/"):
        return "image"
    if media_type == "application/json" or media_type.endswith("+json"):
        return "json"
    # No header, or one that says nothing of the form (application/octet-stream): the bytes decide.
    if value.removeprefix(_BYTE_ORDER_MARK)[:256].lstrip()[:1] in {b"{", b"["}:
        return "json"
    if _URI_START.match(value):
        raise MalformedMessage("the value looks like a bare URI: send it with the header `content-type: text/uri-list`")
    raise MalformedMessage(
        foreign_serializer(value)
        or "the first bytes are neither JSON nor those of an image (JPEG, PNG, WebP, AVIF, HEIF, GIF, TIFF, BMP): "
        "send one of these, or say what it is in a `content-type` header"
    )


def _json_object(value: bytes) -> dict[str, object]:
    # orjson refuses nesting beyond 1024 levels, so no value can exhaust the stack.
    try:
        document = orjson.loads(value.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(
            f"the value is not JSON in UTF-8 (line {error.lineno}, column {error.colno}): send a JSON object"
        ) from None
    if not isinstance(document, dict):
        raise MalformedMessage("the JSON is not an object: send one image reference in each message")
    return document


def _check_cloudevent_data(document: Mapping[str, object]) -> None:
    if "data" not in document and "data_base64" in document:
        raise MalformedMessage("data_base64: the event's `data` must be a JSON image reference; send it as `data`")
    content_type = document.get("datacontenttype")
    if isinstance(content_type, str):
        media_type = content_type.split(";", 1)[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise MalformedMessage("datacontenttype: `data` must be a JSON image reference; send application/json")


def _image_id(delivery: Delivery, value: bytes) -> str:
    """The id of an image whose message carries none in its value."""
    header = delivery.header(IMAGE_ID)
    if header is not None:
        try:
            return _bounded_id(header.decode(), IMAGE_ID)
        except UnicodeDecodeError:
            raise MalformedMessage(f"{IMAGE_ID} header: not UTF-8; {_REMEDIES['image_id']}") from None
    key = delivery.key
    if not key:
        return "sha256:" + hashlib.sha256(value).hexdigest()
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = key.hex()
    # A number as bytes often is UTF-8 by chance, and is no text for all that.
    return _bounded_id(key.hex() if _CONTROL.search(text) else text, "key")


def _bounded_id(text: str, where: str) -> str:
    if not text or len(text) > MAX_IMAGE_ID_CHARS or _CONTROL.search(text):
        raise MalformedMessage(f"{where}: no id for an image; {_REMEDIES['image_id']}, in an `{IMAGE_ID}` header")
    return text


def _uri_job(delivery: Delivery, value: bytes) -> ImageJob:
    """RFC 2483: one URI a line, lines end in CRLF (or LF), those that begin with # are comments."""
    try:
        lines = [line.strip() for line in value.decode().splitlines()]
    except UnicodeDecodeError:
        raise MalformedMessage("the URI list is not UTF-8: percent-encode other bytes") from None
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) != 1:
        raise MalformedMessage(f"the URI list has {len(uris)} URIs: send exactly one in each message")
    if len(uris[0]) > MAX_URI_CHARS:
        raise MalformedMessage(f"the URI has {len(uris[0])} characters: {_REMEDIES['uri']}")
    return ImageJob(delivery=delivery, image_id=_image_id(delivery, value), uri=uris[0])


def _too_large(size: int, most: int) -> str:
    return f"the image has {size} bytes, and {most} are the most (stores.max_image_bytes)"
