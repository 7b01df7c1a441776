"""Buckets' own notifications: which object they tell of, which are skipped, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.errors import MalformedMessage
from consumer.headers import ORIGIN_RECORD_INDEX
from consumer.messages import Headers, ImageJob, Parsed, Records, Rejected, Skipped
from consumer.stages.fetch import check_uri
from consumer.stages.parse import MAX_SEVERAL_BYTES, Parser
from tests.contract.schema_files import SCHEMAS, check, is_valid
from tests.notifications import FOLDER, notification, s3_record
from tests.unit.deliveries import delivery

PARSE = Parser(max_records=5)
SCHEMA_OF = {
    "aws-s3": "s3-event.v1.json",
    "minio": "s3-event.v1.json",
    "ceph": "s3-event.v1.json",
    "ceph-quincy": "s3-event.v1.json",
    "aws-sns": "sns-s3-event.v1.json",
    "aws-sns-subscription": "sns-s3-event.v1.json",
    "aws-eventbridge": "eventbridge-s3-event.v1.json",
    "gcs-object": "gcs-object.v1.json",
    "gcs-cloudevent": "gcs-cloudevent.v1.json",
    "gcs-pubsub": "gcs-pubsub-event.v1.json",
    "gcs-pubsub-deleted": "gcs-pubsub-event.v1.json",
}


def _parse(document: object, headers: Headers = ()) -> Parsed:
    return PARSE(delivery(json.dumps(document).encode(), key=b"a key", headers=headers))


def _job(document: object, headers: Headers = ()) -> ImageJob:
    found = _parse(document, headers)
    assert isinstance(found, ImageJob), found
    return found


def _skipped(document: object, headers: Headers = ()) -> str:
    found = _parse(document, headers)
    assert isinstance(found, Skipped), found
    return found.reason


def _refusal(document: object, headers: Headers = ()) -> str:
    with pytest.raises(MalformedMessage) as caught:
        _parse(document, headers)
    return str(caught.value)


def _with_object(name: str, **fields: object) -> dict[str, Any]:
    document = notification(name)
    document["Records"][0]["s3"]["object"].update(fields)
    return document


# --- which object -----------------------------------------------------------------------------------------------------

IN_A_FOLDER = "photos/a folder/x+y.jpg"
S3_URI = "s3://photos/a%20folder/x%2By.jpg"


@pytest.mark.parametrize(
    ("name", "uri", "etag"),
    [
        ("aws-s3", f"{S3_URI}?versionId=096fKKXTRTtl3on89fVO.nfljtsv6qko", "d41d8cd98f00b204e9800998ecf8427e"),
        ("aws-sns", f"{S3_URI}?versionId=096fKKXTRTtl3on89fVO.nfljtsv6qko", "d41d8cd98f00b204e9800998ecf8427e"),
        ("minio", S3_URI, "5fc7298143efe1276d39a3466d4e255f-1"),
        ("ceph", S3_URI, "37b51d194a7513e45b56f6524f2d51f2"),
        ("ceph-quincy", S3_URI, "37b51d194a7513e45b56f6524f2d51f2"),
        ("gcs-object", "gs://photos/a%20folder/x%2By.jpg?generation=1769851800125318", None),
        ("gcs-cloudevent", "gs://photos/a%20folder/x%2By.jpg?generation=1769851800125318", None),
        ("gcs-pubsub", "gs://photos/a%20folder/x%2By.jpg?generation=1769851800125318", None),
    ],
)
def test_a_new_object_is_one_image_by_its_own_key_and_version(name: str, uri: str, etag: str | None) -> None:
    job = _job(notification(name))
    assert (job.image_id, job.uri, job.etag, job.record_index) == (IN_A_FOLDER, uri, etag, 0)
    assert job.metadata["key"] == "a folder/x+y.jpg"
    assert check_uri(uri) in {"s3", "gs"}


def test_eventbridge_takes_the_key_as_it_is() -> None:
    job = _job(notification("aws-eventbridge"))
    assert job.image_id == "photos/a folder/x+y%20.jpg"
    assert job.uri == "s3://photos/a%20folder/x%2By%2520.jpg?versionId=IYV3p45BT0ac8hjHg1houSdS1a.Mro8e"
    assert job.etag == "b1946ac92492d2347c6235b4d2611184"


def test_what_the_notification_says_goes_along_as_metadata() -> None:
    assert _job(notification("aws-s3")).metadata == {
        "bucket": "photos",
        "key": "a folder/x+y.jpg",
        "event": "ObjectCreated:Put",
        "event_time": "2026-01-31T09:30:00.125Z",
        "sequencer": "0055AED6DCD90281E5",
        "size_bytes": "1024",
    }
    assert _job(notification("minio")).metadata["event"] == "ObjectCreated:Put"  # MinIO's has `s3:` before it
    assert _job(notification("gcs-object")).metadata["size_bytes"] == "4154"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"key": "a%2Bb+c.jpg"}, "a+b c.jpg"),
        ({"key": "%E4%B8%AD%2F%C3%A9.jpg"}, "中/é.jpg"),
        ({"key": "100%25.jpg"}, "100%.jpg"),
        ({"key": "a/../b//c.jpg"}, "a/../b//c.jpg"),
        ({"key": "%00%5C%0A?#&.jpg"}, "\x00\\\n?#&.jpg"),
    ],
)
def test_a_form_encoded_key_is_decoded_and_every_character_reaches_the_store(
    fields: dict[str, str], expected: str
) -> None:
    job = _job(_with_object("minio", **fields))
    assert job.metadata["key"] == expected
    assert job.uri is not None
    check_uri(job.uri)
    assert not {"?", "#"} & set(job.uri)


@pytest.mark.parametrize("key", ["c++.jpg", "a%2Fb.jpg", "a b.jpg", "100%.jpg"])
def test_cephs_key_is_taken_as_it_is(key: str) -> None:
    """`rgw_notify.cc` writes the name that the object has."""
    assert _job(_with_object("ceph", key=key)).image_id == f"photos/{key}"


def test_an_etag_has_no_quotes_and_an_empty_version_is_none() -> None:
    job = _job(_with_object("aws-s3", eTag='"abc-2"', versionId=""))
    assert job.etag == "abc-2"
    assert "?" not in (job.uri or "")
    assert _job(_with_object("aws-s3", versionId="a&b=c")).uri == f"{S3_URI}?versionId=a%26b%3Dc"
    assert _job(_with_object("aws-s3", eTag=None, versionId=None)).etag is None


@pytest.mark.parametrize("key", ["x" * 1020, "a%0Ab.jpg"])
def test_an_object_whose_name_is_no_id_is_known_by_the_digest_of_it(key: str) -> None:
    job = _job(_with_object("minio", key=key))
    assert job.image_id.startswith("sha256:")
    assert len(job.image_id) == 7 + 64


def test_no_header_or_key_names_the_image_of_a_notification() -> None:
    """Several records would share it."""
    assert _job(notification("minio"), (("image-id", b"theirs"),)).image_id == IN_A_FOLDER


# --- what is skipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("aws-s3-removed", "removed"),
        ("aws-s3-test-event", "test_event"),
        ("aws-sns-subscription", "subscription"),
        ("aws-eventbridge-deleted", "removed"),
        ("minio-tagged", "other_event"),
        ("ceph-multipart-begun", "other_event"),
        ("gcs-pubsub-deleted", "removed"),
    ],
)
def test_what_tells_of_no_new_object_is_skipped(name: str, reason: str) -> None:
    assert _skipped(notification(name)) == reason


@pytest.mark.parametrize("prefix", ["", "s3:"])
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("ObjectRemoved:Delete", "removed"),
        ("LifecycleExpiration:DeleteMarkerCreated", "removed"),
        ("LifecycleDelMarkerExpiration:Delete", "removed"),
        ("ObjectLifecycle:Expiration:Current", "removed"),
        ("ObjectSynced:Delete", "removed"),
        ("ObjectTagging:Put", "other_event"),
        ("ObjectAcl:Put", "other_event"),
        ("ObjectRestore:Completed", "other_event"),
        ("ObjectCreated:PutRetention", "other_event"),
        ("ObjectAccessed:Get", "other_event"),
        ("Replication:OperationFailedReplication", "other_event"),
        ("TestEvent", "test_event"),
        ("something of tomorrow", "other_event"),
    ],
)
def test_an_s3_event_that_is_no_creation_is_skipped_whatever_else_the_record_has(
    event: str, reason: str, prefix: str
) -> None:
    assert _skipped({"Records": [{"eventName": prefix + event}]}) == reason


@pytest.mark.parametrize(
    "event",
    ["ObjectCreated:Put", "s3:ObjectCreated:Post", "ObjectCreated:Copy", "s3:ObjectCreated:CompleteMultipartUpload"],
)
def test_every_creation_is_an_image(event: str) -> None:
    assert _job({"Records": [s3_record(event=event)]}).uri == "s3://photos/1.jpg"


def test_a_synced_object_of_ceph_is_an_image() -> None:
    assert _job({"Records": [s3_record(event="ObjectSynced:Create")]}).image_id == "photos/1.jpg"


@pytest.mark.parametrize("size", [0, None, "0"])
def test_a_folder_is_no_image(size: object) -> None:
    assert _skipped(_with_object("minio", key="a+folder%2F", size=size)) == "folder"


def test_an_object_in_a_folders_name_that_has_bytes_is_an_image_and_so_is_an_empty_file() -> None:
    """The second is a dead letter once it is fetched: it should have been an image."""
    assert _job(_with_object("minio", key="odd%2F", size=3)).uri == "s3://photos/odd/"
    assert _job(_with_object("minio", key="empty.jpg", size=0)).uri == "s3://photos/empty.jpg"


@pytest.mark.parametrize("header", ["eventType", "ce_type"])
@pytest.mark.parametrize(
    ("event", "reason"),
    [("OBJECT_DELETE", "removed"), ("OBJECT_ARCHIVE", "removed"), ("OBJECT_METADATA_UPDATE", "other_event")],
)
def test_a_bare_resource_is_what_its_headers_say(header: str, event: str, reason: str) -> None:
    assert _skipped(notification("gcs-object"), ((header, event.encode()),)) == reason


def test_a_bare_resource_is_a_new_object_unless_something_says_otherwise() -> None:
    for headers in [(("eventType", b"OBJECT_FINALIZE"),), (("ce_type", b"google.cloud.storage.object.v1.finalized"),)]:
        assert _job(notification("gcs-object"), headers).image_id == IN_A_FOLDER
    assert _skipped(notification("gcs-object") | {"timeDeleted": "2026-02-01T00:00:00Z"}) == "removed"


@pytest.mark.parametrize(
    ("what", "reason"), [("deleted", "removed"), ("archived", "removed"), ("metadataUpdated", "other_event")]
)
def test_an_event_of_eventarc_that_is_no_finalization_is_skipped(what: str, reason: str) -> None:
    document = notification("gcs-cloudevent") | {"type": f"google.cloud.storage.object.v1.{what}"}
    assert _skipped(document, (("content-type", b"application/cloudevents+json"),)) == reason


def test_a_notification_without_records_is_skipped() -> None:
    assert _skipped({"Records": []}) == "no_records"


# --- several ----------------------------------------------------------------------------------------------------------


def test_each_record_has_a_delivery_of_its_own_and_a_bad_one_costs_no_other() -> None:
    message = delivery(json.dumps(notification("aws-s3-several")).encode(), headers=(("a", b"b"),))
    found = PARSE(message)
    assert isinstance(found, Records)
    first, removed, third, bad = found.entries
    assert isinstance(first, ImageJob)
    assert isinstance(third, ImageJob)
    assert [(first.image_id, first.record_index), (third.image_id, third.record_index)] == [
        ("photos/1.jpg", 0),
        ("photos/3.jpg", 2),
    ]
    assert isinstance(removed, Skipped)
    assert removed.reason == "removed"
    assert isinstance(bad, Rejected)
    assert isinstance(bad.error, MalformedMessage)
    assert "s3: Field required" in str(bad.error)
    parts = [entry.delivery for entry in found.entries]
    assert len(set(map(id, parts))) == 4
    assert all(part.message is message and part.value is message.value for part in parts)
    assert [part.headers for part in parts] == [
        (("a", b"b"), (ORIGIN_RECORD_INDEX, b"%d" % index)) for index in range(4)
    ]


def test_with_the_header_of_its_letter_only_that_record_is_taken() -> None:
    several = notification("aws-s3-several")
    job = _job(several, ((ORIGIN_RECORD_INDEX, b"2"),))
    assert (job.image_id, job.record_index, job.delivery.part_of) == ("photos/3.jpg", 2, None)
    assert _skipped(several, ((ORIGIN_RECORD_INDEX, b"1"),)) == "removed"
    assert "s3: Field required" in _refusal(several, ((ORIGIN_RECORD_INDEX, b"3"),))
    assert _job(notification("aws-s3"), ((ORIGIN_RECORD_INDEX, b"0"),)).image_id == IN_A_FOLDER


@pytest.mark.parametrize("index", [b"4", b"-1", b"x", b"", b"9" * 40])
def test_a_header_that_names_no_record_is_refused(index: bytes) -> None:
    assert "the message has 4 records" in _refusal(notification("aws-s3-several"), ((ORIGIN_RECORD_INDEX, index),))


def test_more_records_than_the_setting_are_refused() -> None:
    assert isinstance(_parse({"Records": [s3_record()] * 5}), Records)
    assert "input.max_records" in _refusal({"Records": [s3_record()] * 6})
    inner = json.dumps({"Records": [s3_record()] * 6})
    assert "input.max_records" in _refusal(notification("aws-sns") | {"Message": inner})


def test_several_records_in_a_large_message_are_refused() -> None:
    """Each that fails would be a letter as large."""
    padded = {"padding": "x" * MAX_SEVERAL_BYTES}
    assert "dead letter" in _refusal({"Records": [s3_record()] * 2, **padded})
    assert _job({"Records": [s3_record()], **padded}).image_id == "photos/1.jpg"


def test_metadata_beyond_the_setting_is_refused_as_any_other() -> None:
    with pytest.raises(MalformedMessage, match=r"input\.max_metadata_bytes"):
        Parser(max_metadata_bytes=20)(delivery(json.dumps(notification("minio")).encode()))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("text", "no object"),
        ({}, "eventName: Field required"),
        ({"eventName": 3}, "eventName"),
        ({"eventName": "ObjectCreated:Put", "s3": {}}, "s3.bucket: Field required"),
        (s3_record(bucket="a/b"), "s3.bucket.name"),
        (s3_record(bucket="user@host"), "s3.bucket.name"),
        (s3_record(key=""), "s3.object.key"),
        (s3_record(key="%FF"), "not UTF-8"),
        (s3_record(key="x" * 1025), "1024 bytes"),
        (s3_record(key="%C3%A9" * 513), "1024 bytes"),
    ],
)
def test_a_record_that_cannot_be_understood_says_what_to_do(record: object, says: str) -> None:
    assert says in _refusal({"Records": [record]})


@pytest.mark.parametrize("message", ["not JSON", "[]", "{}", '{"image_id": "a", "uri": "file:///a"}', '"x"'])
def test_an_sns_envelope_around_something_else_is_refused(message: str) -> None:
    assert _refusal(notification("aws-sns") | {"Message": message}).startswith("Message: ")


def test_an_sns_envelope_in_another_is_refused() -> None:
    inner = json.dumps(notification("aws-sns"))
    assert _refusal(notification("aws-sns") | {"Message": inner}).startswith("Message: ")


def test_errors_repeat_nothing_of_the_message() -> None:
    record = s3_record(bucket="a secret/bucket", key="")
    record["s3"]["object"]["size"] = "a secret size"
    said = _refusal({"Records": [record]})
    assert "secret" not in said
    assert "s3.object.size" in said


def test_a_message_with_an_image_id_is_a_reference_whatever_else_it_has() -> None:
    assert _job(notification("minio") | {"image_id": "a", "uri": "file:///a.jpg"}).uri == "file:///a.jpg"


# --- the published schemas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_notifications_are_valid_by_their_schema(name: str) -> None:
    if name in SCHEMA_OF:
        check(SCHEMA_OF[name], notification(name))


@pytest.mark.parametrize("schema", sorted(set(SCHEMA_OF.values())))
def test_every_example_of_a_schema_is_understood(schema: str) -> None:
    for example in SCHEMAS[schema]["examples"]:
        # A resource without its kind stands in an envelope only.
        if schema != "gcs-object.v1.json" or "kind" in example:
            assert isinstance(_parse(example), ImageJob | Skipped)


NAMES = [
    *("Records", "s3", "bucket", "object", "key", "name", "eventName", "versionId", "eTag", "size", "data", "message"),
    *("Type", "TopicArn", "Message", "Event", "source", "detail-type", "detail", "kind", "type", "attributes"),
    *("eventType", "bucketId", "objectId", "objectGeneration"),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=10,
)
PIECES = ANYTHING | st.sampled_from(
    [
        *("Notification", "aws.s3", "s3:TestEvent", "Object Created", "storage#object", "ObjectCreated:Put"),
        *("OBJECT_FINALIZE", "photos", "a/b.jpg", "x" * 1024, "%C3%A9" * 512, "é" * 512, "\U0001f426" * 256),
    ]
)


@st.composite
def _mutated(draw: st.DrawFn) -> Any:
    document = notification(draw(st.sampled_from(sorted(path.stem for path in FOLDER.glob("*.json")))))
    for _ in range(draw(st.integers(0, 3))):
        holder: Any = document
        while True:
            members = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not members:
                break
            place = draw(st.sampled_from(members))
            if isinstance(holder[place], dict | list) and draw(st.booleans()):
                holder = holder[place]
                continue
            holder[place] = draw(PIECES)
            break
    return document


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(document=_mutated() | st.dictionaries(st.sampled_from(NAMES), PIECES))
def test_no_notification_however_odd_brings_out_more_than_a_refusal(document: Any) -> None:
    try:
        found = _parse(document)
    except MalformedMessage:
        return
    entries = found.entries if isinstance(found, Records) else (found,)
    for entry in entries:
        if isinstance(entry, ImageJob) and entry.uri is not None:
            check_uri(entry.uri)
            entry.image_id.encode()
            assert 0 < len(entry.image_id) <= 1024
            assert len(entry.uri) <= 8192


@settings(max_examples=200)
@given(record=_mutated())
def test_a_creation_is_understood_exactly_where_the_schema_takes_it_and_its_key_can_be(record: Any) -> None:
    records = record.get("Records") if isinstance(record, dict) else None
    if not isinstance(records, list) or len(records) != 1 or not isinstance(records[0], dict) or "Type" in record:
        return
    records = json.loads(json.dumps(records), parse_constant=lambda _: None)  # JSON has no infinity
    said = ""
    try:
        understood = isinstance(_parse({"Records": records}), ImageJob)
    except MalformedMessage as error:
        understood, said = False, str(error)
    if understood:
        assert is_valid("s3-event.v1.json", {"Records": records})
    elif said and "key" not in said:  # one that is not UTF-8, or too long once decoded, is more than a schema can tell
        assert not is_valid("s3-event.v1.json", {"Records": records})
