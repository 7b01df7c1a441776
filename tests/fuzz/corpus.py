"""A corpus made by code: real photographs in every format and mode, small, and messages of every form."""

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.models import PHOTOGRAPHS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
SIZE = (60, 40)
Sample = tuple[str, bytes]
_TIMES = re.compile(rb"((?:mvhd|tkhd|mdhd)\x01.{3}).{16}", re.DOTALL)


def images() -> list[Sample]:
    """(name, encoded bytes); the same ones in the same order each time."""
    _register_heif()
    photograph = Image.open(PHOTOGRAPHS / "coffee.jpg").convert("RGB").resize(SIZE)
    grey = photograph.convert("L")
    clear = photograph.copy()
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    profile = _undated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    lab = photograph.convert("LAB")
    if "icc_profile" in lab.info:  # Pillow's own
        lab.info["icc_profile"] = _undated(lab.info["icc_profile"])
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    known: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": profile}

    def frames() -> dict[str, Any]:  # new ones each time: a plugin leaves its settings on an image
        return {"save_all": True, "append_images": [photograph.rotate(90), photograph.rotate(180)]}

    written: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", photograph, {}),
        ("JPEG", photograph, known),
        ("JPEG", photograph, {"progressive": True}),
        ("JPEG", photograph, {"restart_marker_rows": 1, "comment": b"a comment"}),
        ("JPEG", grey, {}),
        ("JPEG", photograph.convert("CMYK"), {}),
        ("MPO", photograph, frames()),
        ("PNG", photograph, {}),
        ("PNG", photograph, known),
        ("PNG", grey, {"transparency": 20}),
        ("PNG", clear, {}),
        ("PNG", grey.convert("LA"), {}),
        ("PNG", photograph.quantize(64), {"transparency": 1}),
        ("PNG", grey.convert("1"), {"bits": 1}),
        ("PNG", deep, {}),
        ("PNG", photograph, frames()),
        ("WEBP", photograph, known),
        ("WEBP", clear, {"lossless": True}),
        ("WEBP", clear, frames()),
        ("BMP", photograph, {}),
        ("BMP", photograph.quantize(16), {}),
        ("BMP", clear, {}),
        ("GIF", photograph.quantize(64), {"comment": b"a comment"}),
        ("GIF", photograph.quantize(64), frames()),
        ("TIFF", photograph, known),
        ("TIFF", photograph, {"compression": "tiff_lzw", "tiffinfo": {274: 6}}),
        ("TIFF", photograph, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", photograph, {"compression": "jpeg"}),
        ("TIFF", grey.convert("1"), {"compression": "group4"}),
        ("TIFF", photograph, {"compression": "packbits"}),
        ("TIFF", photograph, {"big_tiff": True}),
        ("TIFF", deep, {}),
        ("TIFF", grey.convert("F"), {}),
        ("TIFF", photograph.convert("CMYK"), {}),
        ("TIFF", lab, {}),
        ("TIFF", clear, {}),
        ("TIFF", photograph, frames()),
        ("AVIF", photograph, known | {"speed": 10}),
        ("AVIF", clear, {"speed": 10}),
        ("AVIF", photograph, frames() | {"speed": 10}),
        ("HEIF", photograph, known),
        ("HEIF", clear, {}),
    ]
    return [
        (f"{kind} {image.mode} {sorted(options)}", _encoded(image, kind, options)) for kind, image, options in written
    ]


def messages() -> Iterator[Sample]:
    """(name, a message's value) of every form but the bare image."""
    reference = {
        "image_id": "a picture",
        "uri": "file:///srv/a%20picture.jpg",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "content_type": "image/jpeg",
        "captured_at": "2026-01-31T09:30:00.125Z",
        "top_k": 3,
        "metadata": {"camera": "7", "ä": "\u2028"},
        "version": 1,
    }
    small = _encoded(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG", {})
    inline = {"image_id": "b", "data": base64.b64encode(small).decode()}
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "ouzel.image-reference.v1", "data": reference}
    yield "reference", json.dumps(reference).encode()
    yield "inline", json.dumps(inline).encode()
    yield "event", json.dumps(event).encode()
    yield "inline event", json.dumps(event | {"data": inline, "datacontenttype": "application/json"}).encode()
    yield "uri list", b"# a comment\r\nfile:///srv/a.jpg\r\n"
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "b"}, "object": {"key": "a+folder%2Fx%2By", "eTag": "d41d8cd98f00b204", "size": 7}},
    }
    yield "bucket's event", json.dumps({"Records": [record]}).encode()
    yield "bucket's events", json.dumps({"Records": [record, record | {"eventName": "ObjectRemoved:Delete"}]}).encode()


def _undated(profile: bytes) -> bytes:
    """Without the time at which it was made, which ICC.1 has in bytes 24 to 35: the corpus is the same each time."""
    return profile[:24] + bytes(12) + profile[36:]


def _untimed(body: bytes) -> bytes:
    """Without the times of making and of the last change, which the boxes of a sequence (AVIF) have after their version
    (ISO/IEC 14496-12: mvhd, tkhd and mdhd; 8 bytes each in version 1, as here)."""
    return _TIMES.sub(lambda found: found[1] + bytes(16), body)


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)
    return _untimed(file.getvalue()) if kind == "AVIF" else file.getvalue()
