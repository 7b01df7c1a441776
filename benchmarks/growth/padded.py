"""A small JPEG, and the same picture in a message of any size."""

import io
import random

import numpy as np
from PIL import Image

_LONGEST = 65_533
"""Bytes of a comment at most: its length, two bytes, counts itself (ISO/IEC 10918-1, B.2.4.5)."""
_MARKER = b"\xff\xfe"


def tiny_jpeg(seed: int = 0) -> bytes:
    """32 x 24 pixels, below 900 bytes."""
    dice = np.random.default_rng(seed)
    coarse = Image.fromarray(dice.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    body = io.BytesIO()
    coarse.resize((32, 24), Image.Resampling.BICUBIC).save(body, "JPEG", quality=50, optimize=True)
    return body.getvalue()


def padded(body: bytes, size: int, *, seed: int = 0) -> bytes:
    """The same JPEG in exactly `size` bytes, by comments that no compression makes smaller. Its pixels stay.

    Raises ValueError for what is no JPEG, or where `size` leaves no room for a comment.
    """
    if body[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    missing = size - len(body)
    if missing == 0:
        return body
    if missing < 4:
        raise ValueError(f"{len(body)} bytes do not become {size}: a comment has at least 4")
    dice = random.Random(seed)  # noqa: S311  (padding, and no secret)
    comments = bytearray()
    while missing:
        length = min(missing - 4, _LONGEST)
        if 0 < missing - 4 - length < 4:  # so that the next has room for its own marker and length
            length -= 4
        comments += _MARKER + (length + 2).to_bytes(2, "big") + dice.randbytes(length)
        missing -= 4 + length
    return body[:2] + bytes(comments) + body[2:]
