"""Which object a bucket's URI means, and whether the settings allow it."""

import pytest

from consumer.adapters.stores.buckets import BucketRules, ObjectAddress
from consumer.errors import ReferenceRefused


def rules(*buckets: str) -> BucketRules:
    return BucketRules("s3", buckets, setting="stores.s3.buckets", version_parameter="versionId")


@pytest.mark.parametrize(
    ("uri", "bucket", "key", "version"),
    [
        ("s3://photos/a.jpg", "photos", "a.jpg", None),
        ("S3://photos/a.jpg", "photos", "a.jpg", None),
        ("s3://photos/2026/01/a%20b+c%25%3F%23&=/%C3%A9.jpg", "photos", "2026/01/a b+c%?#&=/é.jpg", None),
        ("s3://photos/日本.jpg", "photos", "日本.jpg", None),
        ("s3://photos/a%2Fb", "photos", "a/b", None),
        ("s3://photos/a%252Fb", "photos", "a%2Fb", None),
        ("s3://photos/a?versionId=3%2FL4.x", "photos", "a", "3/L4.x"),
    ],
)
def test_a_uri_is_bucket_key_and_version(uri: str, bucket: str, key: str, version: str | None) -> None:
    assert rules("photos").address(uri) == ObjectAddress(bucket, key, version)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://photos",
        "s3://photos/",
        "s3:///a",
        "s3:photos/a",
        "gs://photos/a",
        "s3://photos/a#b",
        "s3://photos/a?",
        "s3://photos/a?versionId=",
        "s3://photos/a?versionId=a&versionId=b",
        "s3://photos/a?versionId=a%0Ab",
        "s3://photos/a?X-Amz-Signature=1",
        "s3://photos:443/a",
        "s3://user@photos/a",
        "s3://photos//a",
        "s3://photos/%2Fa",
        "s3://photos/a//b",
        "s3://photos/a/",
        "s3://photos/./a",
        "s3://photos/b/%2E%2E/a",
        "s3://photos/a%00",
        "s3://photos/a%0D%0AHost:%20b",
        "s3://photos/%FF",
        "s3://photos/\udcff",
        "s3://photos/" + "é" * 513,
    ],
)
def test_what_is_no_plain_key_is_refused(uri: str) -> None:
    if uri.endswith("?"):
        assert rules("photos").address(uri).key == "a"  # an empty query says nothing
        return
    with pytest.raises(ReferenceRefused):
        rules("photos").address(uri)


@pytest.mark.parametrize(
    ("allowed", "uri"),
    [
        ("photos", "s3://photos/a"),
        ("photos-*", "s3://photos-1/a"),
        ("photos-*", "s3://photos-eu.1/a"),
        ("*-photos", "s3://eu-photos/a"),
        ("*", "s3://anything/a"),
        ("photos/2026/", "s3://photos/2026/a"),
        ("photos-*/2026/", "s3://photos-1/2026/a"),
    ],
)
def test_the_list_allows(allowed: str, uri: str) -> None:
    assert rules("other", allowed).address(uri)


@pytest.mark.parametrize(
    ("allowed", "uri"),
    [
        ("photos", "s3://photos2/a"),
        ("photos", "s3://Photos/a"),
        ("photos", "s3://myphotos/a"),
        ("photos-*", "s3://photos/a"),
        ("photos.x", "s3://photosyx/a"),
        ("photos/2026/", "s3://photos/2025/a"),
        ("photos/2026/", "s3://photos/2026"),
        ("photos/a*", "s3://photos/ab"),  # a wild card is for the bucket only
    ],
)
def test_the_list_does_not_allow(allowed: str, uri: str) -> None:
    with pytest.raises(ReferenceRefused, match=r"stores\.s3\.buckets"):
        rules(allowed).address(uri)


def test_without_a_list_everything_is_refused() -> None:
    with pytest.raises(ReferenceRefused):
        rules().address("s3://photos/a")


def test_only_a_bucket_without_a_wild_card_is_named() -> None:
    both = rules("photos-*", "archive/2026/")
    assert both.names_bucket("archive")
    assert not both.names_bucket("photos-1")


def test_what_fails_together_is_a_bucket_or_all_that_a_wild_card_allows() -> None:
    both = rules("photos-*", "photos-1")
    assert both.place_of("s3://photos-1/not//a/key") == "photos-1"
    assert both.place_of("s3://photos-2/a") == both.place_of("s3://photos-3/a") == "photos-*"
    assert both.place_of("s3://secret/a") is None


@pytest.mark.parametrize("entry", ["", "/2026/", "s3://photos", "pho tos", "photos?"])
def test_what_is_no_bucket_is_no_entry(entry: str) -> None:
    with pytest.raises(ValueError, match="bucket"):
        rules(entry)
