"""Bucket events: what a bucket's own notification tells of. Pure.

Recognised by what is in them, whichever topic they come from:

* `Records[].s3...` as AWS S3, MinIO and Ceph's RGW write them, bare or as the `Message` of an SNS envelope;
* S3's events on EventBridge;
* Cloud Storage's object resource, bare, in a CloudEvent, or told of by the attributes of a Pub/Sub message.

Only a new object is an image. What else happens to one is skipped, with its reason; so is a "folder", the empty object
whose key ends in a slash that consoles make.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_plus

import orjson

from consumer.bucket_contract import (
    MAX_KEY_BYTES,
    EventBridgeEvent,
    EventBridgeObject,
    GcsCloudEvent,
    GcsObject,
    PubSubEnvelope,
    S3EventRecord,
    S3Object,
    SnsEnvelope,
)
from consumer.errors import MalformedMessage
from consumer.messages import SkipReason
from consumer.stages.validate import validated

_GCS_CLOUDEVENT = "google.cloud.storage.object.v1."
_SNS_TYPES = ("Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation")

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-how-to-event-types-and-destinations.html,
# https://docs.ceph.com/en/latest/radosgw/s3-notification-compatibility/ and MinIO's internal/event/name.go.
_S3_CREATED = ("ObjectCreated:", "ObjectSynced:Create")
_S3_REMOVED = (
    "ObjectRemoved:",
    "ObjectDelete",
    "LifecycleExpiration:",
    "LifecycleDelMarkerExpiration:",
    "ObjectLifecycle:Expiration:",
    "ObjectSynced:Delet",
)
_MINIO_NOT_CREATED = frozenset(
    f"ObjectCreated:{what}" for what in ("PutRetention", "PutLegalHold", "PutTagging", "DeleteTagging")
)
"""MinIO files changes of an object's lock and tags under its creation."""

# https://cloud.google.com/storage/docs/pubsub-notifications#events; the second name of each is that of its CloudEvent.
_GCS_CREATED = frozenset({"OBJECT_FINALIZE", "finalized"})
_GCS_REMOVED = frozenset({"OBJECT_DELETE", "OBJECT_ARCHIVE", "deleted", "archived"})

_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("eventName", "s3", "detail", "object", "data", "message", "attributes", "detail-type"), ""),
    **dict.fromkeys(("source", "type", "kind", "Type", "specversion", "id", "TopicArn", "Message"), ""),
    **dict.fromkeys(("sequencer", "eTag", "etag", "versionId", "version-id", "generation", "objectGeneration"), ""),
    **dict.fromkeys(("size", "time", "eventTime", "eventSource", "eventType", "timeCreated", "timeDeleted"), ""),
    **dict.fromkeys(("name", "bucket", "bucketId"), "a bucket's name has letters, digits, `.`, `_` and `-`"),
    **dict.fromkeys(("key", "objectId"), "an object's key has 1 to 1024 bytes of UTF-8"),
}


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object that a notification tells of."""

    uri: str
    """`s3://bucket/key?versionId=...` or `gs://bucket/name?generation=...`: the key percent-encoded but for its
    slashes, the query only where the notification has a version."""
    bucket: str
    key: str
    """As its writer named it."""
    etag: str | None
    """Without quotes; None where the notification has none that the bytes' own can be held against."""
    metadata: dict[str, str]


Found = NewObject | SkipReason | MalformedMessage
"""What a record comes to; one that cannot be understood costs no other."""


def read(document: Mapping[str, object], *, event_type: str | None = None, max_records: int) -> list[Found] | None:
    """What each record of a notification comes to; None where the document is no bucket's notification.

    Args:
        document: the message's JSON.
        event_type: what a header says has happened, where a bridge leaves that out of the value: Pub/Sub's `eventType`
            or a binary CloudEvent's `ce_type`.
        max_records: more is refused.

    Raises:
        MalformedMessage: more records than that, or an envelope that cannot be understood.
    """
    if document.get("Type") in _SNS_TYPES and "TopicArn" in document:
        return _in_sns(document, max_records)
    found = _unwrapped(document, max_records)
    if found is not None:
        return found
    kind = document.get("type")
    if isinstance(kind, str) and kind.startswith(_GCS_CLOUDEVENT):
        return [_gcs_cloudevent(document, kind)]
    if document.get("kind") == "storage#object":
        return [_gcs_object(document, event_type)]
    if _has_gcs_attributes(document.get("message")):
        return [_gcs_attributes(document)]
    return None


def _unwrapped(document: Mapping[str, object], max_records: int) -> list[Found] | None:
    """S3's own forms, as they also stand in an SNS envelope."""
    records = document.get("Records")
    if isinstance(records, list):
        if len(records) > max_records:
            raise MalformedMessage(
                f"Records: {len(records)} records, and {max_records} are the most: "
                "send fewer in each message, or raise input.max_records"
            )
        return [_s3_record(record) for record in records] or ["no_records"]
    if document.get("Event") == "s3:TestEvent":
        return ["test_event"]
    if document.get("source") == "aws.s3" and "detail-type" in document:
        return [_eventbridge(document)]
    return None


def _in_sns(document: Mapping[str, object], max_records: int) -> list[Found]:
    envelope = validated(SnsEnvelope, document, _REMEDIES)
    if envelope.type != "Notification":
        return ["subscription"]
    try:
        inner = orjson.loads(envelope.message)
    except orjson.JSONDecodeError:
        inner = None
    found = _unwrapped(inner, max_records) if isinstance(inner, dict) else None
    if found is None:
        raise MalformedMessage("Message: the SNS envelope is not around a notification of S3: send nothing else by it")
    return found


# --- S3 ---------------------------------------------------------------------------------------------------------------


def _s3_record(record: object) -> Found:
    if not isinstance(record, dict):
        return MalformedMessage("Records: a record that is no object")
    name = record.get("eventName")
    reason = _s3_skipped(name.removeprefix("s3:")) if isinstance(name, str) else None
    if reason is not None:
        return reason
    try:
        return _s3_object(validated(S3EventRecord, record, _REMEDIES))
    except MalformedMessage as error:
        return error


def _s3_skipped(event: str) -> SkipReason | None:
    if event.startswith(_S3_CREATED):
        return "other_event" if event in _MINIO_NOT_CREATED else None
    if event.startswith(_S3_REMOVED):
        return "removed"
    return "test_event" if event == "TestEvent" else "other_event"


def _s3_object(record: S3EventRecord) -> Found:
    bucket, found = record.s3.bucket.name, record.s3.object
    # AWS and MinIO form-encode the key. RGW's rgw_notify.cc writes it as it is, and a plus in it is a plus.
    by_ceph = record.event_source == "ceph:s3"
    key = found.key if by_ceph else _form_decoded(found.key)
    etag = _unquoted(found.e_tag or found.etag)  # `etag` in RGW before Reef
    event = record.event_name.removeprefix("s3:")
    if by_ceph and event == "ObjectCreated:Post" and not found.size and etag is None:
        return "other_event"  # RGW says so when a multipart upload begins; there is no object yet
    return _s3(found, bucket, key, etag, _facts(event, record.event_time, found.sequencer))


def _form_decoded(key: str) -> str:
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise MalformedMessage("s3.object.key: its percent-encoded bytes are not UTF-8") from None


def _eventbridge(document: Mapping[str, object]) -> Found:
    what = document.get("detail-type")
    if what != "Object Created" and isinstance(what, str):
        return "removed" if what == "Object Deleted" else "other_event"
    try:
        event = validated(EventBridgeEvent, document, _REMEDIES)
        found = event.detail.object
        facts = _facts(event.detail_type, event.time, found.sequencer)
        return _s3(found, event.detail.bucket.name, found.key, _unquoted(found.etag), facts)
    except MalformedMessage as error:
        return error


def _s3(found: S3Object | EventBridgeObject, bucket: str, key: str, etag: str | None, facts: dict[str, str]) -> Found:
    query = f"?versionId={quote(found.version_id, safe='')}" if found.version_id else ""
    return _new_object("s3", bucket, key, found.size, query=query, etag=etag, facts=facts)


# --- Cloud Storage ----------------------------------------------------------------------------------------------------


def _gcs_skipped(event: str) -> SkipReason | None:
    event = event.removeprefix(_GCS_CLOUDEVENT)
    if event in _GCS_CREATED:
        return None
    return "removed" if event in _GCS_REMOVED else "other_event"


def _gcs_cloudevent(document: Mapping[str, object], kind: str) -> Found:
    reason = _gcs_skipped(kind)
    if reason is not None:
        return reason
    try:
        event = validated(GcsCloudEvent, document, _REMEDIES)
        return _gcs_resource(event.data, event.type)
    except MalformedMessage as error:
        return error


def _gcs_object(document: Mapping[str, object], event_type: str | None) -> Found:
    reason = _gcs_skipped(event_type) if event_type is not None else None
    if reason is not None:
        return reason
    try:
        return _gcs_resource(validated(GcsObject, document, _REMEDIES), event_type)
    except MalformedMessage as error:
        return error


def _gcs_resource(found: GcsObject, event: str | None) -> Found:
    if found.time_deleted:
        return "removed"
    facts = _facts(event, found.time_created, None)
    return _gcs(found.bucket, found.name, found.generation, found.size, facts)


def _has_gcs_attributes(message: object) -> bool:
    attributes = message.get("attributes") if isinstance(message, dict) else None
    return isinstance(attributes, dict) and "eventType" in attributes and "bucketId" in attributes


def _gcs_attributes(document: Mapping[str, object]) -> Found:
    """The attributes say all that is needed, with a payload (`JSON_API_V1`) or without (`NONE`)."""
    try:
        found = validated(PubSubEnvelope, document, _REMEDIES).message.attributes
        reason = _gcs_skipped(found.event_type)
        if reason is not None:
            return reason
        facts = _facts(found.event_type, found.event_time, None)
        return _gcs(found.bucket_id, found.object_id, found.object_generation, None, facts)
    except MalformedMessage as error:
        return error


def _gcs(bucket: str, name: str, generation: int | None, size: int | None, facts: dict[str, str]) -> Found:
    # No ETag: the resource's is the JSON API's, and the bytes come with that of the XML API. The generation is pinned.
    query = f"?generation={generation}" if generation is not None else ""
    return _new_object("gs", bucket, name, size, query=query, etag=None, facts=facts)


# --- both -------------------------------------------------------------------------------------------------------------


def _new_object(
    scheme: str, bucket: str, key: str, size: int | None, *, query: str, etag: str | None, facts: dict[str, str]
) -> Found:
    """Raises MalformedMessage."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:  # half a surrogate pair
        size_bytes = 0
    if not 0 < size_bytes <= MAX_KEY_BYTES:
        raise MalformedMessage(f"the object's key is not 1 to {MAX_KEY_BYTES} bytes of UTF-8: no object has such a key")
    if key.endswith("/") and not size:
        return "folder"
    metadata = {"bucket": bucket, "key": key, **facts}
    if size is not None:
        metadata["size_bytes"] = str(size)
    return NewObject(f"{scheme}://{bucket}/{quote(key, safe='/')}{query}", bucket, key, etag, metadata)


def _facts(event: str | None, event_time: str | None, sequencer: str | None) -> dict[str, str]:
    named = {"event": event, "event_time": event_time, "sequencer": sequencer}
    return {name: value for name, value in named.items() if value}


def _unquoted(etag: str | None) -> str | None:
    return (etag.strip('"') or None) if etag else None
