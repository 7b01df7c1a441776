"""The typed models of buckets' own events, as their sources write them. `schemas/` has their published form; a test
holds the two together in both directions. Only what is read is described; all else is accepted."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from consumer.contract import Integer, Message, NotEmpty

MAX_KEY_BYTES = 1024
"""Of an object's key in UTF-8: the bound of S3 (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html)
and of Cloud Storage (https://cloud.google.com/storage/docs/objects#naming)."""

_DECIMAL = re.compile(r"[0-9]{1,19}")


def _number(value: object) -> object:
    # Cloud Storage writes its numbers as text, and so does Ceph's documentation.
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


Number = Annotated[Integer, Field(ge=0), BeforeValidator(_number)]
BucketName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")]
Text = Annotated[str, Field(max_length=256)]
Version = Annotated[str, Field(pattern=r"^[!-~]{0,1024}$")]


class Bucket(Message):
    """Where the object is."""

    name: BucketName


# --- S3: AWS, MinIO, Ceph ---------------------------------------------------------------------------------------------


class S3Object(Message):
    """What was written."""

    key: Annotated[str, Field(min_length=1, max_length=8192)]
    size: Number | None = None
    e_tag: Text | None = Field(default=None, alias="eTag")
    etag: Text | None = None
    version_id: Version | None = Field(default=None, alias="versionId")
    sequencer: Text | None = None


class S3Entity(Message):
    """Bucket and object."""

    bucket: Bucket
    object: S3Object


class S3EventRecord(Message):
    """One record of `schemas/s3-event.v1.json`."""

    event_name: Annotated[str, Field(min_length=1, max_length=256)] = Field(alias="eventName")
    event_source: Text | None = Field(default=None, alias="eventSource")
    event_time: Text | None = Field(default=None, alias="eventTime")
    s3: S3Entity


class S3Event(Message):
    """`schemas/s3-event.v1.json`: what AWS S3, MinIO and Ceph's RGW write."""

    event_name: Text | None = Field(default=None, alias="EventName")
    key: str | None = Field(default=None, alias="Key")
    records: list[S3EventRecord] = Field(alias="Records")


class SnsEnvelope(Message):
    """`schemas/sns-s3-event.v1.json`: what SNS puts around a notification."""

    type: Literal["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"] = Field(alias="Type")
    topic_arn: NotEmpty = Field(alias="TopicArn")
    message: NotEmpty = Field(alias="Message")


class EventBridgeObject(Message):
    """What was written, in EventBridge's spelling."""

    key: Annotated[str, Field(min_length=1, max_length=1024)]
    size: Number | None = None
    etag: Text | None = None
    version_id: Version | None = Field(default=None, alias="version-id")
    sequencer: Text | None = None


class EventBridgeDetail(Message):
    """Bucket and object."""

    bucket: Bucket
    object: EventBridgeObject


class EventBridgeEvent(Message):
    """`schemas/eventbridge-s3-event.v1.json`: what S3 sends to EventBridge."""

    source: Literal["aws.s3"]
    detail_type: Annotated[str, Field(min_length=1, max_length=256)] = Field(alias="detail-type")
    time: Text | None = None
    detail: EventBridgeDetail


# --- Google Cloud Storage ---------------------------------------------------------------------------------------------


class GcsObject(Message):
    """`schemas/gcs-object.v1.json`: an object's resource."""

    kind: Literal["storage#object"] | None = None
    bucket: BucketName
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    generation: Number | None = None
    size: Number | None = None
    time_created: Text | None = Field(default=None, alias="timeCreated")
    time_deleted: Text | None = Field(default=None, alias="timeDeleted")


class GcsCloudEvent(Message):
    """`schemas/gcs-cloudevent.v1.json`: what Eventarc sends."""

    specversion: Literal["1.0"]
    id: NotEmpty
    source: NotEmpty
    type: Annotated[str, Field(max_length=256, pattern=r"^google\.cloud\.storage\.object\.v1\.")]
    data: GcsObject


class PubSubAttributes(Message):
    """What Cloud Storage says of an event beside the payload."""

    event_type: Annotated[str, Field(min_length=1, max_length=256)] = Field(alias="eventType")
    bucket_id: BucketName = Field(alias="bucketId")
    object_id: Annotated[str, Field(min_length=1, max_length=1024)] = Field(alias="objectId")
    object_generation: Number | None = Field(default=None, alias="objectGeneration")
    event_time: Text | None = Field(default=None, alias="eventTime")


class PubSubMessage(Message):
    """A Pub/Sub message."""

    attributes: PubSubAttributes


class PubSubEnvelope(Message):
    """`schemas/gcs-pubsub-event.v1.json`: what a push subscription delivers, and a pull one for each message."""

    message: PubSubMessage
