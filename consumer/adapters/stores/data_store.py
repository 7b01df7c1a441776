"""`data:` URIs (RFC 2397): the image is in the reference itself."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from consumer.errors import ImageTooLarge, ReferenceRefused
from consumer.messages import StoredImage

_HEAD = re.compile(r"data:([^,#]{0,1024}),", re.IGNORECASE)
_BLANKS = b"\t\n\f\r "


class DataStore:
    """Fulfils `ports.ImageStore` for `data:`. Asks nobody, so it is on as inline bytes are."""

    schemes = frozenset({"data"})

    def health_key(self, uri: str) -> str:
        """One for all: it never fails."""
        del uri
        return "data:"

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`. The bound holds before anything is decoded."""
        del deadline_s
        head = _HEAD.match(uri)
        if not head:
            raise ReferenceRefused("data: no comma after the media type: send data:image/jpeg;base64,...")
        text = uri[head.end() :].partition("#")[0]
        encoded_bytes = len(text) - 2 * text.count("%")
        if head[1].lower().endswith(";base64"):
            # Four characters are three bytes, and the last four may be fewer.
            if encoded_bytes // 4 * 3 - 2 > max_bytes:
                raise _too_large(max_bytes)
            body = _base64(_percent_decoded(text))
        else:
            if encoded_bytes > max_bytes:
                raise _too_large(max_bytes)
            body = _percent_decoded(text)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return StoredImage(body)


def _percent_decoded(text: str) -> bytes:
    try:
        return unquote_to_bytes(text.encode("ascii"))
    except UnicodeEncodeError:
        raise ReferenceRefused("data: other characters than ASCII: percent-encode them") from None


def _base64(encoded: bytes) -> bytes:
    encoded = encoded.translate(None, _BLANKS)
    try:
        # Padding may be left out, as browsers allow (https://infra.spec.whatwg.org/#forgiving-base64-decode).
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        raise ReferenceRefused("data: what follows ;base64, is not base64: send it in the standard alphabet") from None


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"data: the image has more than {max_bytes} bytes (stores.max_image_bytes)")
