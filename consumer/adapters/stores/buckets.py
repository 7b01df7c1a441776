"""Which object a bucket's URI means, and whether the settings allow it. Opens nothing."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from consumer.errors import ReferenceRefused
from consumer.names import is_bucket_pattern
from consumer.redact import redact_uri

# The widest of the three: S3 and Azure take 63 characters, GCS 222 with dots; only S3's oldest buckets have capitals.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{1,220}[A-Za-z0-9]")
_VERSION = re.compile(r"[\x21-\x7e]{1,1024}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html; GCS and Azure: the same


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """One object, or one version of it."""

    bucket: str
    key: str
    """As the store knows it: decoded, without a slash before it."""
    version: str | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    bucket: re.Pattern[str]
    prefix: str
    names_one: bool


class BucketRules:
    """The allow-list of a scheme.

    Args:
        scheme: lower case, such as `s3`.
        buckets: `photos`, `photos-*` (`*` stands for any part of the name), each also with a literal beginning of the
            key after a slash: `photos/2026/`. With none, every URI is refused.
        setting: the name of the list in the settings, for error messages.
        version_parameter: what a URI's query may have: `versionId=...`.

    Raises:
        ValueError: an entry that is no such pattern.
    """

    def __init__(self, scheme: str, buckets: Iterable[str], *, setting: str, version_parameter: str) -> None:
        self.scheme = scheme
        self._rules = [_rule(entry) for entry in buckets]
        self._setting = setting
        self._version_parameter = version_parameter

    def place_of(self, uri: str) -> str | None:
        """The bucket if the settings name it, else the entry with a wild card that allows it, else None; whatever the
        rest of the URI is. A sender may own one of the buckets below a wild card: were it judged alone, its images
        could be waited for without limit."""
        try:
            bucket, _, _ = self._split(uri)
        except ReferenceRefused:
            return None
        if self.names_bucket(bucket):
            return bucket
        return next((rule.name for rule in self._rules if rule.bucket.fullmatch(bucket)), None)

    def names_bucket(self, bucket: str) -> bool:
        """Whether the settings name this very bucket, and not only by a wild card."""
        return any(rule.names_one and rule.bucket.fullmatch(bucket) for rule in self._rules)

    def address(self, uri: str) -> ObjectAddress:
        """The object that the URI means.

        Raises:
            ReferenceRefused: not a URI of this scheme, a bucket or key that the settings do not allow, or a key that
                cannot be asked for.
        """
        bucket, path, query = self._split(uri)
        key = _key(uri, path)
        if not any(rule.bucket.fullmatch(bucket) and key.startswith(rule.prefix) for rule in self._rules):
            raise ReferenceRefused(
                f"{redact_uri(uri)}: the bucket is not allowed, or not under this beginning of the key: add it to the "
                f"setting {self._setting}"
            )
        return ObjectAddress(bucket, key, self._version(uri, query))

    def _split(self, uri: str) -> tuple[str, str, str]:
        """(bucket, path still encoded, query)"""
        scheme, colon, rest = uri.partition("://")
        if not colon or scheme.lower() != self.scheme:
            raise ReferenceRefused(f"{redact_uri(uri)}: not a URI of the form {self.scheme}://bucket/key")
        if "#" in rest:
            raise ReferenceRefused(f"{redact_uri(uri)}: such a URI has no fragment: write # in a key as %23")
        rest, _, query = rest.partition("?")
        bucket, _, path = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ReferenceRefused(f"{redact_uri(uri)}: no name of a bucket after {self.scheme}://")
        return bucket, path, query

    def _version(self, uri: str, query: str) -> str | None:
        if not query:
            return None
        asked = parse_qsl(query, keep_blank_values=True)
        if [name for name, _ in asked] != [self._version_parameter] or not _VERSION.fullmatch(asked[0][1]):
            raise ReferenceRefused(
                f"{redact_uri(uri)}: the query may have one {self._version_parameter} and nothing else: write ? in a "
                "key as %3F; a presigned link is sent as the https:// URI that it is"
            )
        return asked[0][1]


def _rule(entry: str) -> _Rule:
    bucket, _, prefix = entry.partition("/")
    if not is_bucket_pattern(entry):
        raise ValueError(f"{entry!r} is not the name of a bucket, such as photos, photos-* or photos/2026/")
    pattern = "[A-Za-z0-9._-]*".join(re.escape(part) for part in bucket.split("*"))
    return _Rule(bucket, re.compile(pattern), prefix, "*" not in bucket)


def _key(uri: str, path: str) -> str:
    try:
        key = unquote_to_bytes(path).decode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise ReferenceRefused(f"{redact_uri(uri)}: the key is not UTF-8: percent-encode its UTF-8 bytes") from None
    if not key:
        raise ReferenceRefused(f"{redact_uri(uri)}: no key after the bucket")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise ReferenceRefused(f"the key is longer than the {_MAX_KEY_BYTES} bytes that a bucket takes")
    # The client takes slashes off the ends without a word and would fetch another object: a/ is not a.
    if {"", ".", ".."}.intersection(key.split("/")) or _CONTROL.search(key):
        raise ReferenceRefused(
            f"{redact_uri(uri)}: keys with a slash at an end, two in a row, a part that is . or .., or control "
            "characters cannot be fetched: copy the object to another key, or send its bytes inline"
        )
    return key
