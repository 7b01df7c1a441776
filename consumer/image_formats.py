"""Which image format the first bytes say: the bytes decide, never a file's name or a header."""

from typing import NamedTuple


class ImageFormat(NamedTuple):
    """A format by Pillow's name, and its media type."""

    name: str
    media_type: str


DECODABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
"""Names that `input.formats` may have."""

_MAGIC: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", ImageFormat("JPEG", "image/jpeg")),
    (b"\x89PNG\r\n\x1a\n", ImageFormat("PNG", "image/png")),
    (b"GIF87a", ImageFormat("GIF", "image/gif")),
    (b"GIF89a", ImageFormat("GIF", "image/gif")),
    (b"II*\x00", ImageFormat("TIFF", "image/tiff")),
    (b"MM\x00*", ImageFormat("TIFF", "image/tiff")),
    (b"II+\x00", ImageFormat("TIFF", "image/tiff")),  # BigTIFF
    (b"MM\x00+", ImageFormat("TIFF", "image/tiff")),
    # Known, and decoded by nothing here: said by name in the dead letter.
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", ImageFormat("JPEG XL", "image/jxl")),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", ImageFormat("JPEG 2000", "image/jp2")),
    (b"\xff\x4f\xff\x51", ImageFormat("JPEG 2000", "image/j2c")),
    (b"8BPS\x00\x01", ImageFormat("Photoshop", "image/vnd.adobe.photoshop")),
)
_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))
# https://www.iana.org/assignments/media-types: brands of the ISO base media file format's `ftyp` box.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})
"""Say no codec; the compatible brands behind them do."""


def image_format(body: bytes) -> ImageFormat | None:
    """The format of encoded bytes; None where they are of no known image. Looks at the first 256 bytes at most."""
    for magic, found in _MAGIC:
        if body.startswith(magic):
            return found
    if body[:2] == b"BM" and body[14:18] in _BMP_HEADERS:  # two letters alone begin many a text
        return ImageFormat("BMP", "image/bmp")
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return ImageFormat("WEBP", "image/webp")
    return _of_brands(body[:256]) if body[4:8] == b"ftyp" else None


def _of_brands(start: bytes) -> ImageFormat | None:
    major = start[8:12]
    size = int.from_bytes(start[:4], "big")
    brands = {major, *(start[at : at + 4] for at in range(16, min(size, len(start)), 4))}
    if major in _AVIF_BRANDS or (major in _GENERAL_BRANDS and brands & _AVIF_BRANDS):
        return ImageFormat("AVIF", "image/avif")
    if major in _HEIF_BRANDS:
        return ImageFormat("HEIF", "image/heic")
    return ImageFormat("HEIF", "image/heif") if major in _GENERAL_BRANDS else None
