"""The images of a bucket, for `ouzel send`: by listing it, or by its inventory. Each with the place it is at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from consumer.commands._sendable import Image
from consumer.errors import ReferenceRefused
from consumer.names import object_id

if TYPE_CHECKING:
    from consumer.adapters.stores.s3_inventory import Inventory
    from consumer.adapters.stores.s3_listing import S3Listing

Takes = Callable[[str], bool]
"""Whether a key is an image's, by its suffix."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at one place of a bucket: an image to send, a reason why there is none, or neither (not an image)."""

    place: Any
    name: str
    image: Image | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A bucket, and how its keys begin."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, uri: str) -> "Prefix | None":
        """What `s3://bucket`, `s3://bucket/folder/` and `s3://bucket/beginning*` name; None for a single object."""
        if not uri.lower().startswith("s3://"):
            return None
        bucket, _, path = uri[5:].partition("/")
        if path and not path.endswith(("/", "*")):
            return None
        return cls(bucket, unquote(path.removesuffix("*"), errors="strict"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{quote(self.prefix, safe='/')}"


def listed(listing: "S3Listing", where: Prefix, takes: Takes, *, after: str | None) -> Iterator[Found]:
    """The objects under a prefix, after a key. Raises `BucketFailed`."""
    for key in listing.keys(where.bucket, where.prefix, after=after):
        yield _found(key, where.bucket, key, None, takes)


def inventoried(inventory: "Inventory", takes: Takes, *, after: Any, versions: bool) -> Iterator[Found]:
    """The objects of an inventory, after a place in it. Raises `BucketFailed`.

    Delete markers are none. Of an object's versions the latest is sent, as what there is under its key; with
    `versions` each is, by its version id.
    """
    for row in inventory.rows(after=None if after is None else (int(after[0]), int(after[1]))):
        place = list(row.place)
        if row.is_delete_marker or not (versions or row.is_latest):
            yield Found(place, row.key)
        else:
            yield _found(place, row.bucket, row.key, row.version_id if versions else None, takes)


def _found(place: Any, bucket: str, key: str, version_id: str | None, takes: Takes) -> Found:
    name = f"{bucket}/{key}"
    if not takes(key):
        return Found(place, name)
    query = f"?versionId={quote(version_id, safe='')}" if version_id else ""
    uri = f"s3://{bucket}/{quote(key, safe='/')}{query}"
    refused = _refusal(bucket, uri)
    if refused:
        return Found(place, name, refused=refused)
    return Found(place, name, Image(object_id(bucket, key), uri=uri))


def _refusal(bucket: str, uri: str) -> str:
    """Why the service could not fetch it, whatever its settings; empty where it can."""
    from consumer.adapters.stores.buckets import BucketRules

    rules = BucketRules("s3", [bucket], setting="stores.s3.buckets", version_parameter="versionId")
    try:
        rules.address(uri)
    except ReferenceRefused as error:
        return str(error)
    return ""
