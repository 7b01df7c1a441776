"""The typed models of the messages of version 1. `schemas/` is their published form and the truth; a test holds the
two together in both directions. Unknown fields are accepted everywhere, so that senders may be newer than we are."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

import pybase64
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from consumer import headers

IMAGE_REFERENCE_FAMILY = "ouzel.image-reference.v"
IMAGE_REFERENCE_TYPE = IMAGE_REFERENCE_FAMILY + "1"
LABEL_EVENT_TYPE = "ouzel.label-event.v1"
MAX_IMAGE_ID_CHARS = 1024
MAX_URI_CHARS = 8192
MAX_TOP_K = 1000

# RFC 3339, with `T` as the separator and no leap second.
_RFC3339 = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


def _integral(value: object) -> object:
    # JSON Schema counts 5.0 as an integer, and some senders write it so.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_major(version: int) -> int:
    if version != 1:
        raise ValueError("unknown major version; send 1 or upgrade the consumer")
    return version


def _decode_base64(value: object) -> object:
    if value is None or (isinstance(value, bytes) and value):
        return value  # bytes are an Avro or a Protobuf record's: JSON has none
    if not isinstance(value, str) or not value or len(value) % 4:
        raise ValueError("not standard base64; send the image's bytes in it, with padding and without line breaks")
    try:
        # Of the same strictness as binascii's strict mode, and for an inline image of 60 kB 31 us of CPU against 183.
        return pybase64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError(
            "not standard base64; send the image's bytes in it, with padding and without line breaks"
        ) from None


def _rfc3339(value: str) -> str:
    if _RFC3339.fullmatch(value):
        try:
            datetime.fromisoformat(value.upper())  # refuses 30 February
        except ValueError:
            pass
        else:
            return value
    raise ValueError("not an RFC 3339 time; send one such as 2026-01-31T09:30:00.125Z")


Integer = Annotated[int, BeforeValidator(_integral)]
Time = Annotated[str, AfterValidator(_rfc3339)]
NotEmpty = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NotNegative = Annotated[float, Field(ge=0.0)]


class Message(BaseModel):
    """Strict: a number in quotes is no number. Values never show in errors, for they may be secrets or images."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


class ImageReference(Message):
    """`schemas/image-reference.v1.json`: one image to label, by reference or inline. Null means absent."""

    image_id: Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_ID_CHARS, pattern=r"^[^\x00-\x1f\x7f]*$")]
    version: Annotated[Integer, AfterValidator(_known_major)] | None = None
    uri: Annotated[str, Field(min_length=1, max_length=MAX_URI_CHARS)] | None = None
    data: Annotated[bytes | None, BeforeValidator(_decode_base64)] = Field(default=None, repr=False)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    content_type: Annotated[str, Field(max_length=256)] | None = None
    captured_at: Time | None = None
    top_k: Annotated[Integer, Field(ge=1, le=MAX_TOP_K)] | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _exactly_one_image(self) -> Self:
        if (self.uri is None) == (self.data is None):
            raise ValueError("exactly one of `uri` and `data` is needed: send a URI, or the image's bytes as base64")
        return self


class ImageReferenceCloudEvent(Message):
    """`schemas/cloudevent-image-reference.v1.json`: CloudEvents 1.0 around an image reference."""

    specversion: Literal["1.0"]
    id: NotEmpty
    source: NotEmpty
    type: NotEmpty
    subject: NotEmpty | None = None
    time: Time | None = None
    datacontenttype: NotEmpty | None = None
    dataschema: NotEmpty | None = None
    data: ImageReference

    @model_validator(mode="after")
    def _known_type(self) -> Self:
        if self.type.startswith(IMAGE_REFERENCE_FAMILY) and self.type != IMAGE_REFERENCE_TYPE:
            raise ValueError(f"type: unknown major version; send {IMAGE_REFERENCE_TYPE} or upgrade the consumer")
        return self


class EventLabel(Message):
    """One class of the model's answer."""

    index: Annotated[Integer, Field(ge=0)]
    label: str
    score: Annotated[float, Field(ge=0.0, le=1.0)]


class EventModel(Message):
    """Which model made the labels."""

    name: str
    version: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    runtime: NotEmpty
    precision: NotEmpty


class EventSource(Message):
    """The message that asked for the labels; of a replayed one, its first delivery."""

    topic: NotEmpty
    partition: Annotated[Integer, Field(ge=0)]
    offset: Annotated[Integer, Field(ge=0)]
    timestamp: Time | None
    timestamp_type: Literal["create", "log_append", "none"]


class EventImage(Message):
    """The image as it was decoded, the right way up."""

    width: Annotated[Integer, Field(ge=1)]
    height: Annotated[Integer, Field(ge=1)]
    format: NotEmpty
    sha256: Sha256
    size_bytes: Annotated[Integer, Field(ge=0)] | None = None
    applied: list[NotEmpty] | None = None
    etag: str | None = None
    version_id: str | None = None
    stale_reference: bool | None = None


class EventTimings(Message):
    """How long each stage took, in milliseconds."""

    fetch: NotNegative
    decode: NotNegative
    queue: NotNegative
    infer: NotNegative


class LabelEvent(Message):
    """`schemas/label-event.v1.json`: what `consumer.stages.events.label_event` writes and readers parse."""

    event_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    image_id: Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_ID_CHARS)]
    uri: str | None
    labels: list[EventLabel]
    model: EventModel
    source: EventSource
    image: EventImage
    timings_ms: EventTimings
    published_at: Time
    metadata: dict[str, str]


Number = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]


class DeadLetterHeaders(Message):
    """`schemas/dead-letter-headers.v1.json`: our headers on a letter, decoded from UTF-8; absent ones are empty."""

    model_config = ConfigDict(populate_by_name=False)

    origin_cluster_id: str = Field(alias=headers.ORIGIN_CLUSTER_ID)
    origin_topic_id: str = Field(alias=headers.ORIGIN_TOPIC_ID)
    origin_topic: NotEmpty = Field(alias=headers.ORIGIN_TOPIC)
    origin_partition: Number = Field(alias=headers.ORIGIN_PARTITION)
    origin_offset: Number = Field(alias=headers.ORIGIN_OFFSET)
    origin_timestamp_ms: Annotated[str, Field(pattern=r"^-?[0-9]{1,19}$")] = Field(
        default="", alias=headers.ORIGIN_TIMESTAMP_MS
    )
    origin_timestamp_type: Literal["create", "log_append", "none"] = Field(alias=headers.ORIGIN_TIMESTAMP_TYPE)
    origin_record_index: Number = Field(default="", alias=headers.ORIGIN_RECORD_INDEX)
    replay_count: Number = Field(alias=headers.REPLAY_COUNT)
    topic: NotEmpty = Field(alias=headers.ERROR_TOPIC)
    partition: Number = Field(alias=headers.ERROR_PARTITION)
    offset: Number = Field(alias=headers.ERROR_OFFSET)
    connector_name: str = Field(alias=headers.ERROR_CONNECTOR_NAME)
    task_id: str = Field(alias=headers.ERROR_TASK_ID)
    stage: NotEmpty = Field(alias=headers.ERROR_STAGE)
    class_name: NotEmpty = Field(alias=headers.ERROR_CLASS_NAME)
    exception_class: NotEmpty = Field(alias=headers.ERROR_EXCEPTION_CLASS)
    exception_message: str = Field(alias=headers.ERROR_EXCEPTION_MESSAGE)
    exception_stacktrace: str = Field(alias=headers.ERROR_EXCEPTION_STACKTRACE)
    original_size_bytes: Number = Field(default="", alias=headers.ORIGINAL_SIZE_BYTES)
    original_sha256: Sha256 = Field(default="", alias=headers.ORIGINAL_SHA256)
    original_left_out: NotEmpty = Field(default="", alias=headers.ORIGINAL_LEFT_OUT)
