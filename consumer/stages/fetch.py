"""Fetch: from a job to its image's encoded bytes. This part is pure: which store, and whether the bytes are right."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from consumer.errors import ChecksumMismatch, ImageTooLarge, ReferenceRefused
from consumer.messages import ImageJob
from consumer.ports import ImageStore
from consumer.redact import redact_uri

SETTING_OF_SCHEME: Mapping[str, str] = {
    "file": "stores.file.roots",
    "http": "stores.http.hosts",
    "https": "stores.http.hosts",
    "s3": "stores.s3.buckets",
    "gs": "stores.gcs.buckets",
    "az": "stores.azure.containers",
}
"""What to set for a scheme to be served. A new store adds its line here."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,31}):")
# Control characters and blanks, which parsers of URIs drop or stop at, each at another place; and the backslash, which
# some of them take for a slash: `http://127.0.0.1\@example.org/` is two hosts to two parsers.
_NOT_IN_A_URI = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_AUTHORITY = re.compile(r"[^:]*://([^/?#]*)")


def check_uri(uri: str) -> str:
    """The URI's scheme, lower case, if it is one that every parser reads alike.

    Raises:
        ReferenceRefused: no scheme, a backslash, a blank or control character, or user-info.
    """
    if _NOT_IN_A_URI.search(uri):
        raise ReferenceRefused(
            "the URI has a backslash, a blank or a control character in it: percent-encode it (a blank is %20)"
        )
    scheme = _SCHEME.match(uri)
    if not scheme:
        raise ReferenceRefused("the URI does not begin with a scheme: send it whole, such as file:///photos/a.jpg")
    authority = _AUTHORITY.match(uri)
    if authority and "@" in authority[1]:
        raise ReferenceRefused(
            f"{redact_uri(uri)}: the URI carries a user name or password: send it without, and set the credentials "
            "of the store in the consumer's settings"
        )
    return scheme[1].lower()


def choose_store(stores: Iterable[ImageStore], uri: str) -> ImageStore:
    """The store that serves the URI's scheme.

    Raises:
        ReferenceRefused: the URI is ambiguous (see `check_uri`), or no store that is on serves its scheme; the message
            names the setting that would allow it.
    """
    scheme = check_uri(uri)
    for store in stores:
        if scheme in store.schemes:
            return store
    setting = SETTING_OF_SCHEME.get(scheme)
    if setting:
        raise ReferenceRefused(f"{scheme}: URIs are off: allow them with the setting {setting}")
    served = ", ".join(sorted({each for store in stores for each in store.schemes} | set(SETTING_OF_SCHEME)))
    raise ReferenceRefused(
        f"{scheme}: URIs are served by no store: send the image inline, or as one of: {served} (settings [stores])"
    )


def verify(job: ImageJob, body: bytes, *, max_bytes: int) -> None:
    """Hold the bytes, inline or fetched, against what is allowed and what the message promised.

    Args:
        job: what the message asked for.
        body: the image's encoded bytes.
        max_bytes: the most that an image may have.

    Raises:
        ImageTooLarge: more than `max_bytes`.
        ChecksumMismatch: the message has a `sha256`, and these bytes another.
    """
    if len(body) > max_bytes:
        raise ImageTooLarge(f"the image has {len(body)} bytes, and {max_bytes} are the most (stores.max_image_bytes)")
    if job.sha256 is None:
        return
    found = hashlib.sha256(body).hexdigest()
    if found != job.sha256.lower():
        raise ChecksumMismatch(
            f"sha256: the message promises {job.sha256}, and the image's {len(body)} bytes have {found}: "
            "the image has changed since, or the message is wrong; send it again with the right digest"
        )
