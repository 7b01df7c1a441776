"""Thumbnails of what may or may not be an image."""

import io

import pytest
from PIL import Image

from consumer.adapters.thumbnails import thumbnail


def encoded(size: tuple[int, int], form: str, *, orientation: int | None = None) -> bytes:
    body = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size, (200, 30, 30)).save(body, form, exif=exif)
    return body.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_becomes_a_small_webp_of_its_proportions(form: str) -> None:
    small = thumbnail(encoded((1600, 800), form), max_px=320)
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (320, 160))


def test_a_photograph_taken_sideways_stands_upright() -> None:
    small = thumbnail(encoded((400, 200), "JPEG", orientation=6), max_px=100)
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (50, 100)


@pytest.mark.parametrize("body", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_has_no_thumbnail(body: bytes) -> None:
    assert thumbnail(body) is None


def test_an_image_that_is_cut_short_has_no_thumbnail() -> None:
    assert thumbnail(encoded((64, 64), "PNG")[:60]) is None
