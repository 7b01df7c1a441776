"""What goes out: label events, dead letters and forwarded tombstones, as records ready to produce. Pure.

The event id (I7) is the SHA-256, as 64 lower-case hex digits, of these fields in UTF-8, each followed by a line feed:

    ouzel-event-1, cluster id, topic id (the topic's name where the broker gives no id), partition, offset,
    record index, model digest

numbers in decimal. A message that comes back, by a redelivery or by a replay of its dead letter, has the same id as
long as the model is the same.
"""

import hashlib
import re
import struct
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

import orjson

from consumer import headers as names
from consumer.contract import LABEL_EVENT_TYPE
from consumer.kafka_properties import HEADROOM_BYTES
from consumer.messages import Delivery, Headers, Labelled, OutputRecord, Partition, Rejected, TimestampType
from consumer.ports import EventEncoder
from consumer.redact import cut_text, redact_text, redact_uri

MAX_OWN_HEADERS_BYTES: Final = 32 * 1024
"""Our headers on a letter are less than this, whatever went wrong: half of what its topic takes beyond the input's."""

_MAX_NAME_BYTES = 512
_MAX_TOPIC_CHARS = 249  # Kafka's own bound on a topic's name
_MAX_MESSAGE_BYTES = 4 * 1024
_MAX_STACK_BYTES = 8 * 1024
_MAX_FRAMES = 20
_MAX_CAUSES = 5
_MAX_INT32, _MAX_INT64 = 2**31 - 1, 2**63 - 1
_RECORD_OVERHEAD_BYTES = 1024  # more than the framing of one record and its batch

_CE_TYPE = LABEL_EVENT_TYPE.encode()
_TIMESTAMP_TYPES: Mapping[bytes, TimestampType] = {b"create": "create", b"log_append": "log_append", b"none": "none"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags; ff is no version.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_SIGNED_DECIMAL = re.compile(rb"-?[0-9]{1,19}")


class JsonEncoder:
    """`output.format = "json"`: the event as it is."""

    content_type = b"application/json"

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """UTF-8, on one line."""
        return orjson.dumps(event)


@dataclass(frozen=True, slots=True)
class EventContext:
    """What all records of one process have in common."""

    cluster_id: str
    """The Kafka cluster's id; empty where the broker gives none."""
    group_id: str
    replica: str
    """This process: its host name."""
    output_topic: str
    dead_letter_topic: str
    max_message_bytes: int
    """What the input topic takes; the dead-letter topic takes `HEADROOM_BYTES` more."""
    spring_headers: bool = False
    """Whether letters also carry Spring's headers."""
    encoder: EventEncoder = field(default_factory=JsonEncoder)
    """Writes the values of label events."""
    ce_source: bytes = field(init=False)
    """`/ouzel/GROUP`, percent-encoded: the `ce_source` of every event."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ce_source", b"/ouzel/" + quote(self.group_id, safe="").encode())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from first: its own place, or, of a replayed letter, that of the first delivery."""

    cluster_id: str
    topic_id: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    timestamp_type: TimestampType
    replay_count: int = 0
    """How often it was sent back from the dead letters."""
    record_index: int | None = None
    """Which record of the message it is; None for the whole message."""

    @classmethod
    def of(cls, delivery: Delivery, context: EventContext) -> "Origin":
        """From the origin headers where there are whole and valid ones, else from the delivery's own place."""
        # One pass; most messages have no such header.
        found = {name: value for name, value in delivery.headers if value is not None and name.startswith("ouzel-")}
        count = _number(found.get(names.REPLAY_COUNT), _MAX_INT32) or 0
        record = _number(found.get(names.ORIGIN_RECORD_INDEX), _MAX_INT32)
        return _replayed(found, count, record) or cls(
            cluster_id=context.cluster_id,
            topic_id=delivery.lease.topic_id,
            topic=delivery.partition.topic,
            partition=delivery.partition.number,
            offset=delivery.offset,
            timestamp_ms=delivery.timestamp_ms,
            timestamp_type=delivery.timestamp_type,
            replay_count=count,
            record_index=record,
        )


def event_id(origin: Origin, *, record_index: int, model_digest: str) -> str:
    """64 hex digits; the module's text has the recipe."""
    recipe = (
        f"ouzel-event-1\n{origin.cluster_id}\n{origin.topic_id or origin.topic}\n{origin.partition}\n{origin.offset}\n"
        f"{record_index}\n{model_digest}\n"
    )
    return hashlib.sha256(recipe.encode("utf-8", "replace")).hexdigest()


def model_answer(labelled: Labelled) -> dict[str, Any]:
    """What a label event says of the image, its labels and the model, whatever message it answers."""
    model, facts, timings, version = labelled.model, labelled.facts, labelled.timings_ms, labelled.version
    image: dict[str, Any] = {
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "sha256": facts.sha256,
        "size_bytes": facts.size_bytes,
        "applied": list(facts.applied),
    }
    if version.etag is not None:
        image["etag"] = version.etag
    if version.version_id is not None:
        image["version_id"] = version.version_id
    if labelled.job.etag is not None and version.etag is not None and labelled.job.etag != version.etag:
        image["stale_reference"] = True
    return {
        "labels": [
            {"index": each.index, "label": each.label, "score": round(each.score, 6)} for each in labelled.labels
        ],
        "image": image,
        "model": {
            "name": model.name,
            "version": model.version,
            "digest": model.digest,
            "runtime": model.runtime,
            "precision": model.precision,
        },
        "timings_ms": {stage: round(timings.get(stage, 0.0), 3) for stage in ("fetch", "decode", "queue", "infer")},
    }


def label_event(labelled: Labelled, context: EventContext, published_at: str) -> OutputRecord:
    """The event of `schemas/label-event.v1.json`, with the input's key.

    Args:
        labelled: an image with its labels.
        context: this process.
        published_at: RFC 3339 UTC, from `ports.Clock.utc_now`.
    """
    job, answer = labelled.job, model_answer(labelled)
    delivery = job.delivery
    origin = Origin.of(delivery, context)
    identity = event_id(origin, record_index=job.record_index, model_digest=labelled.model.digest)
    value = context.encoder.encode(
        {
            "event_id": identity,
            "image_id": job.image_id,
            "uri": None if job.uri is None else redact_uri(job.uri),
            "labels": answer["labels"],
            "model": answer["model"],
            "source": {
                "topic": origin.topic,
                "partition": origin.partition,
                "offset": origin.offset,
                "timestamp": _rfc3339(origin.timestamp_ms),
                "timestamp_type": origin.timestamp_type,
            },
            "image": answer["image"],
            "timings_ms": answer["timings_ms"],
            "published_at": published_at,
            "metadata": job.metadata,
        }
    )
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", identity.encode()),
        ("ce_type", _CE_TYPE),
        ("ce_source", context.ce_source),
        ("ce_subject", job.image_id.encode()),
        ("ce_time", published_at.encode()),
        (names.CONTENT_TYPE, context.encoder.content_type),
        (names.TRACEPARENT, _traceparent(delivery, identity)),
    )
    return OutputRecord(topic=context.output_topic, value=value, key=delivery.key, headers=headers)


def shadow_event(labelled: Labelled, context: EventContext, topic: str, published_at: str) -> OutputRecord:
    """`label_event` of a model that is only compared with the one that labels, marked by a header (of CloudEvents an
    extension attribute), for a topic of its own."""
    event = label_event(labelled, context, published_at)
    return replace(event, topic=topic, headers=(*event.headers, (names.SHADOW, b"true")))


def dead_letter(rejected: Rejected, context: EventContext) -> OutputRecord:
    """The message as it came, its bytes, key and headers untouched, with what went wrong in headers of ours.

    Headers that an earlier hop put on are taken off first, so letters do not grow. Ours are less than
    `MAX_OWN_HEADERS_BYTES`. A message that could not be written back whole leaves out its value, see `without_value`.
    """
    delivery = rejected.delivery
    kept = tuple(header for header in delivery.headers if not header[0].startswith(names.OURS))
    letter = OutputRecord(
        topic=context.dead_letter_topic,
        value=delivery.value,
        key=delivery.key,
        headers=(*kept, *_origin_headers(Origin.of(delivery, context)), *_error_headers(rejected, context)),
    )
    most = context.max_message_bytes + HEADROOM_BYTES - _RECORD_OVERHEAD_BYTES
    return letter if _size_bytes(letter) <= most else without_value(letter)


def without_value(letter: OutputRecord) -> OutputRecord:
    """The letter for a broker that refused it as too large: no value, but its size and SHA-256 in headers.

    Original headers, and then the key, go too where even they are larger than `HEADROOM_BYTES`; the header
    `ouzel-original-left-out` says what is missing. Idempotent.
    """
    if any(name == names.ORIGINAL_LEFT_OUT for name, _ in letter.headers):
        return letter
    value, key = letter.value or b"", letter.key
    theirs = tuple(header for header in letter.headers if not header[0].startswith(names.OURS))
    ours = tuple(header for header in letter.headers if header[0].startswith(names.OURS))
    left_out = ["value"]
    if _headers_bytes(theirs) > HEADROOM_BYTES:
        left_out.append("headers")
        theirs = ()
    if key is not None and len(key) > HEADROOM_BYTES:
        left_out.append("key")
        key = None
    facts = (
        (names.ORIGINAL_SIZE_BYTES, str(len(value)).encode()),
        (names.ORIGINAL_SHA256, hashlib.sha256(value).hexdigest().encode()),
        (names.ORIGINAL_LEFT_OUT, ",".join(left_out).encode()),
    )
    return OutputRecord(topic=letter.topic, value=None, key=key, headers=(*theirs, *ours, *facts))


def tombstone_forward(delivery: Delivery, context: EventContext) -> OutputRecord | None:
    """A null value under the same key on the output topic, for `input.tombstones = "forward"`.

    None where the key is null: there is nothing that it could delete, and a compacted topic refuses it.
    """
    if delivery.key is None:
        return None
    headers = ((names.TRACEPARENT, carried),) if (carried := _carried_traceparent(delivery)) else ()
    return OutputRecord(topic=context.output_topic, value=None, key=delivery.key, headers=headers)


def _replayed(found: dict[str, bytes], count: int, record: int | None) -> Origin | None:
    """The origin that a replay sent along; None where it is missing, not whole, or not one we would have written."""
    if names.ORIGIN_TOPIC not in found:
        return None
    topic = _text(found.get(names.ORIGIN_TOPIC), _MAX_TOPIC_CHARS)
    cluster_id = _text(found.get(names.ORIGIN_CLUSTER_ID), _MAX_NAME_BYTES)
    topic_id = _text(found.get(names.ORIGIN_TOPIC_ID), _MAX_NAME_BYTES)
    partition = _number(found.get(names.ORIGIN_PARTITION), _MAX_INT32)
    offset = _number(found.get(names.ORIGIN_OFFSET), _MAX_INT64)
    timestamp_type = _TIMESTAMP_TYPES.get(found.get(names.ORIGIN_TIMESTAMP_TYPE, b""))
    if not topic or cluster_id is None or topic_id is None or partition is None or offset is None:
        return None
    if timestamp_type is None:
        return None
    timestamp = found.get(names.ORIGIN_TIMESTAMP_MS, b"")
    return Origin(
        cluster_id=cluster_id,
        topic_id=topic_id,
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=int(timestamp) if _SIGNED_DECIMAL.fullmatch(timestamp) else None,
        timestamp_type=timestamp_type,
        replay_count=count,
        record_index=record,
    )


def _origin_headers(origin: Origin) -> Headers:
    headers: list[tuple[str, bytes | None]] = [
        (names.ORIGIN_CLUSTER_ID, _cut(origin.cluster_id)),
        (names.ORIGIN_TOPIC_ID, _cut(origin.topic_id)),
        (names.ORIGIN_TOPIC, _cut(origin.topic)),
        (names.ORIGIN_PARTITION, str(origin.partition).encode()),
        (names.ORIGIN_OFFSET, str(origin.offset).encode()),
        (names.ORIGIN_TIMESTAMP_TYPE, origin.timestamp_type.encode()),
        (names.REPLAY_COUNT, str(origin.replay_count).encode()),
    ]
    if origin.timestamp_ms is not None:
        headers.append((names.ORIGIN_TIMESTAMP_MS, str(origin.timestamp_ms).encode()))
    if origin.record_index is not None:
        headers.append((names.ORIGIN_RECORD_INDEX, str(origin.record_index).encode()))
    return tuple(headers)


def _error_headers(rejected: Rejected, context: EventContext) -> Headers:
    delivery, error = rejected.delivery, rejected.error
    kind = type(error).__name__
    message = _cut(_message(error), _MAX_MESSAGE_BYTES)
    headers: Headers = (
        (names.ERROR_TOPIC, _cut(delivery.partition.topic)),
        (names.ERROR_PARTITION, str(delivery.partition.number).encode()),
        (names.ERROR_OFFSET, str(delivery.offset).encode()),
        (names.ERROR_CONNECTOR_NAME, _cut(context.group_id)),
        (names.ERROR_TASK_ID, _cut(context.replica)),
        (names.ERROR_STAGE, _cut(rejected.stage)),
        (names.ERROR_CLASS_NAME, _cut(f"consumer.stages.{rejected.stage}")),
        (names.ERROR_EXCEPTION_CLASS, _cut(kind)),
        (names.ERROR_EXCEPTION_MESSAGE, message),
        (names.ERROR_EXCEPTION_STACKTRACE, _cut(_stack_trace(error), _MAX_STACK_BYTES)),
    )
    return (
        headers + _spring_headers(delivery.partition, delivery.offset, kind, message)
        if context.spring_headers
        else headers
    )


def _spring_headers(partition: Partition, offset: int, kind: str, message: bytes) -> Headers:
    # As DeadLetterPublishingRecoverer writes them: numbers big-endian, a Java int and a Java long.
    return (
        (names.SPRING_ORIGINAL_TOPIC, _cut(partition.topic)),
        (names.SPRING_ORIGINAL_PARTITION, struct.pack(">i", partition.number)),
        (names.SPRING_ORIGINAL_OFFSET, struct.pack(">q", offset)),
        (names.SPRING_EXCEPTION_CLASS, _cut(f"consumer.errors.{kind}")),
        (names.SPRING_EXCEPTION_MESSAGE, message),
    )


def _message(error: BaseException) -> str:
    """An error's text, redacted and bounded."""
    return redact_text(str(error), max_bytes=_MAX_MESSAGE_BYTES)


def _stack_trace(error: BaseException) -> str:
    """The error, what caused it, and where, innermost last; bounded before it is put together."""
    parts = []
    for each in _with_causes(error):
        frames = traceback.format_tb(each.__traceback__, limit=-_MAX_FRAMES)
        parts.append("".join(frames) + f"{type(each).__name__}: {_message(each)}\n")
    return redact_text("caused by:\n".join(parts), max_bytes=_MAX_STACK_BYTES)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if current is None:
            return
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _traceparent(delivery: Delivery, identity: str) -> bytes:
    """The trace that the message is part of, or a new one whose id is the event's: a redelivery continues it."""
    return _carried_traceparent(delivery) or f"00-{identity[:32]}-{identity[32:48]}-01".encode()


def _carried_traceparent(delivery: Delivery) -> bytes | None:
    header = delivery.header(names.TRACEPARENT)
    if header is None:
        return None
    if header[:2] > b"00" and header[55:56] == b"-":
        header = header[:55]  # a later version may say more; what we know of it is the first four fields
    return header if _TRACEPARENT.fullmatch(header) else None


def _rfc3339(timestamp_ms: int | None) -> str | None:
    """UTC with milliseconds; None for none, and for one beyond the years that RFC 3339 can write."""
    if timestamp_ms is None:
        return None
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def _cut(text: str, max_bytes: int = _MAX_NAME_BYTES) -> bytes:
    return cut_text(text, max_bytes=max_bytes).encode()


def _text(value: bytes | None, max_bytes: int) -> str | None:
    if value is None or len(value) > max_bytes:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _number(value: bytes | None, most: int) -> int | None:
    if value is None or not _DECIMAL.fullmatch(value):
        return None
    number = int(value)
    return number if number <= most else None


def _headers_bytes(headers: Headers) -> int:
    # Names as UTF-8; five bytes of length prefix at most for a name and as many for a value.
    return sum(len(name.encode()) + len(value or b"") + 10 for name, value in headers)


def _size_bytes(record: OutputRecord) -> int:
    return len(record.value or b"") + len(record.key or b"") + _headers_bytes(record.headers)
