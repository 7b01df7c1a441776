"""What a server's answer means for the image: its status, its wish to be asked later, its version."""

import math
import re
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

from consumer.errors import ImageNotFound, OuzelError, StoreUnavailable
from consumer.messages import StoredVersion

SERVED = frozenset({200, 203})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_LATER = frozenset({408, 425, 429})
_NO_RIGHTS = frozenset({401, 403})
_SECONDS = re.compile(r"[0-9]{1,9}")
# RFC 9110, 8.8.3: opaque between quotes, W/ before it where two bodies of one tag may differ.
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e]{1,256})"')


def failure(status: int, said: str, retry_after: str | None, *, wall_s: Callable[[], float]) -> OuzelError:
    """The error that a status other than `SERVED` and `REDIRECTS` is.

    Args:
        status: of the answer.
        said: the URI, redacted.
        retry_after: the header of that name, None where there is none.
        wall_s: seconds since the epoch.
    """
    if status in _LATER or status >= 500 or status < 200:
        return StoreUnavailable(
            f"{said}: the server answers {status}", retry_after_s=retry_after_s(retry_after, wall_s())
        )
    if status == 407:
        # Ours to mend, and no image comes through until then: the store pauses.
        return StoreUnavailable(f"{said}: the proxy asks for a password: set it in stores.http.proxy")
    if status in {404, 410}:
        return ImageNotFound(f"{said}: the server answers {status}: no such image")
    if status in _NO_RIGHTS:
        # Not the sender's fault, and waiting mends it no more than an absent image: counted like one.
        return ImageNotFound(
            f"{said}: the server answers {status}: let it serve this image, or set what it asks for in "
            "stores.http.headers"
        )
    return ImageNotFound(f"{said}: the server answers {status}, and no image")


def retry_after_s(header: str | None, wall_s: float) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3), seconds or a date, in seconds from now; None where it says neither."""
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        # A date without a zone is GMT, the only one that the standard knows.
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - wall_s
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def version_of(etag: str | None) -> StoredVersion:
    """The version that an `ETag` names, without its quotes, weak ones as `W/...`; none where it is no ETag."""
    found = _ETAG.fullmatch(etag.strip()) if etag is not None and len(etag) <= 512 else None
    return StoredVersion(etag=(found[1] or "") + found[2]) if found else StoredVersion()
