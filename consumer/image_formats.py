"""Which image format the first bytes say: the bytes decide, never a file's name or a header."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
    # Known, and decoded by nothing here: said by name in the dead letter.
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS\x00\x01", "Photoshop"),
)
_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))
# https://www.iana.org/assignments/media-types: brands of the ISO base media file format's `ftyp` box.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})
"""Say no codec; the compatible brands behind them do."""


def image_format(body: bytes) -> str | None:
    """The format of encoded bytes, by Pillow's name where it has one; None where they are of no known image.

    Looks at the first 256 bytes at most.
    """
    for magic, found in _MAGIC:
        if body.startswith(magic):
            return found
    if body[:2] == b"BM" and body[14:18] in _BMP_HEADERS:  # two letters alone begin many a text
        return "BMP"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    return _of_brands(body[:256]) if body[4:8] == b"ftyp" else None


def _of_brands(start: bytes) -> str | None:
    major = start[8:12]
    size = int.from_bytes(start[:4], "big")
    brands = {major, *(start[at : at + 4] for at in range(16, min(size, len(start)), 4))}
    if major in _AVIF_BRANDS or (major in _GENERAL_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    if major in _HEIF_BRANDS:
        return "HEIF"
    return "HEIF" if major in _GENERAL_BRANDS else None
