"""How an encoded image is put together, read without decoding it: where one ends early, and what would cost too much.

Pillow walks chunks, segments and tags in Python, holding the interpreter's lock, and sets no bound on their number:
32 MB of them stop every thread of the process for many seconds. Bounds are held here, before Pillow sees the bytes.
Each is far above what cameras and programs write.
"""

import re
import struct
from collections.abc import Callable, Iterator

from consumer.errors import CorruptImage

MAX_PIECES = 150_000
"""Chunks, blocks and stray bytes: a GIF of 32 MiB has 131,586 blocks of 255 bytes."""
MAX_JPEG_SEGMENTS = 4_096
MAX_JPEG_HEADER_BYTES = 1024 * 1024
"""Of the segments that Pillow parses in Python: Exif (64 KiB by its specification), Photoshop's, tables, comments."""
MAX_JPEG_SCANS = 100
"""A scan goes over all coefficients, however few bytes it has; encoders write about ten."""
MAX_TIFF_TAGS = 4_096
MAX_TIFF_VALUES = 262_144
"""Of one tag: strips, tiles, or a colour map, whose largest has 196,608."""
MAX_BMP_RLE_BYTES = 1024 * 1024
"""Run-length encoding in a BMP is decoded in Python, two bytes at a time."""

_NOT_FF = re.compile(rb"[^\xff]")
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length: TEM, RSTn, SOI
_SOS, _EOI, _STRAY = 0xDA, 0xD9, 0x00
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1})
# DHT is read by libjpeg alone; of the application segments, Pillow parses 1 (Exif) and 13 (Photoshop).
_PASSED_OVER = frozenset({0xC4, *range(0xE0, 0xF0)} - {0xE1, 0xED})
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_OPAQUE = frozenset({1, 2, 6, 7})  # bytes and text stay as they are; numbers become Python objects


class _EndsEarly(Exception):
    """A piece reaches past the last byte."""


def refuse_costly(body: bytes, kind: str) -> int:
    """Refuse what would hold up the process in parsing alone; `kind` is Pillow's name of the format.

    Returns:
        The scans of a JPEG; of more than one, libjpeg holds the coefficients of the whole image. Else 0.

    Raises:
        CorruptImage: more pieces than any real image has.
    """
    try:
        if kind == "JPEG":
            return _check_jpeg(body)
        if kind == "PNG":
            _check_png(body)
        elif kind == "GIF":
            for blocks, _at in enumerate(_gif_pieces(body), start=1):
                _check_count(blocks, MAX_PIECES, "blocks")
        elif kind == "TIFF":
            for _tag, kind_of_value, count, _size, _at in _tiff_tags(body):
                if kind_of_value not in _TIFF_OPAQUE:
                    _check_count(count, MAX_TIFF_VALUES, "values in one tag")
        elif kind == "BMP" and _is_run_length_encoded(body):
            _check_count(len(body), MAX_BMP_RLE_BYTES, "bytes of run-length encoding")
    except (_EndsEarly, struct.error):
        pass  # the decoder will say so
    return 0


def ends_early(body: bytes, kind: str) -> bool:
    """Whether the structure promises more bytes than there are; for images that could not be decoded."""
    try:
        return _WALKS.get(kind, _boxes_end_early)(body)
    except (_EndsEarly, struct.error):
        return True


def webp_size(body: bytes) -> tuple[int, int] | None:
    """(width, height) as the first chunk declares it: libwebp allocates its canvases while the file is opened. None
    where there is no such chunk. See https://developers.google.com/speed/webp/docs/riff_container."""
    kind, start = body[12:16], body[20:30]
    if len(start) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    return None


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise CorruptImage(f"the image has {count} {what} or more; real ones have at most {most}")


# --- JPEG: ISO/IEC 10918-1, annex B -----------------------------------------------------------------------------------


def _jpeg_segments(body: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of the payload, its size) up to the first scan; marker 0 for bytes that belong to none."""
    at, end = 2, len(body)
    while True:
        # Nearly always one piece follows the other.
        if at + 1 < end and body[at] == 0xFF and body[at + 1] != 0xFF:
            marker = body[at + 1]
            at += 2
        else:
            found = body.find(b"\xff", at)
            after = _NOT_FF.search(body, found) if found >= 0 else None
            if after is None:
                raise _EndsEarly
            marker, stray = body[after.start()], after.start() - 1 - at
            if stray:
                yield _STRAY, at, stray
            at = after.end()
        if marker == _STRAY or marker in _ALONE:
            yield marker, at, 0
        elif marker == _EOI:
            return
        else:
            size = body[at] << 8 | body[at + 1] if at + 1 < end else 0
            if size < 2 or at + size > end:
                raise _EndsEarly
            yield marker, at + 2, size - 2
            at += size
            if marker == _SOS:
                return


def _jpeg_ends_early(body: bytes) -> bool:
    end = max((start + size for _marker, start, size in _jpeg_segments(body)), default=2)
    return body.find(b"\xff\xd9", end) < 0


def _check_jpeg(body: bytes) -> int:
    """The scans of the first picture; others may stand behind it."""
    stray_bytes = header_bytes = planes = scan = 0
    for segments, (marker, start, size) in enumerate(_jpeg_segments(body), start=1):
        if marker == _STRAY:
            stray_bytes += size
        elif marker not in _PASSED_OVER:
            header_bytes += size
        if segments > MAX_JPEG_SEGMENTS or stray_bytes > MAX_PIECES or header_bytes > MAX_JPEG_HEADER_BYTES:
            _check_count(segments, MAX_JPEG_SEGMENTS, "segments")
            _check_count(stray_bytes, MAX_PIECES, "stray bytes between segments")
            _check_count(header_bytes, MAX_JPEG_HEADER_BYTES, "bytes of metadata and tables")
        if marker in _FRAMES:
            planes = body[start + 5] if marker in _SEQUENTIAL and size > 5 and not planes else -1
        elif marker == _SOS:
            scan = start
    if not scan:
        return 0
    if scan < len(body) and body[scan] == planes:
        # All planes at once and none in steps: libjpeg reads that scan alone, and takes another one for an error.
        return 1
    # In a scan's data 0xFF is followed by 0x00 or a restart marker, so this is a marker or stands in a table.
    end = body.find(b"\xff\xd9", scan)
    scans = 1 + body.count(b"\xff\xda", scan, len(body) if end < 0 else end)
    _check_count(scans, MAX_JPEG_SCANS, "scans")
    return scans


# --- PNG: https://www.w3.org/TR/png-3/#5Chunk-layout ------------------------------------------------------------------


def _png_chunks(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the data, its size), to IEND."""
    at, name = 8, b""
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", body, at)
        if at + size + 12 > len(body):
            raise _EndsEarly
        yield name, at + 8, size
        at += size + 12


def _check_png(body: bytes) -> None:
    profiles = 0
    for chunks, (name, _start, _size) in enumerate(_png_chunks(body), start=1):
        profiles += name == b"iCCP"
        _check_count(chunks, MAX_PIECES, "chunks")
        # Each is inflated as it is met, up to a megabyte.
        _check_count(profiles, 1, "colour profiles")


# --- GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt -------------------------------------------------------------


def _gif_pieces(body: bytes) -> Iterator[int]:
    """Where each block and each stray byte is, up to the second picture: Pillow looks whether there is one."""
    at, pictures = 13, 0
    if len(body) < at:
        raise _EndsEarly
    at += _gif_colours(body[10])
    while True:
        if at >= len(body):
            raise _EndsEarly
        yield at
        kind = body[at]
        at += 1
        if kind == 0x3B:  # trailer
            return
        if kind == 0x21:  # extension
            at += 1
        elif kind == 0x2C:  # picture
            pictures += 1
            if pictures > 1:
                return
            if at + 9 >= len(body):
                raise _EndsEarly
            at += 9 + _gif_colours(body[at + 8]) + 1
        else:
            continue
        while True:
            if at >= len(body):
                raise _EndsEarly
            yield at
            size = body[at]
            at += size + 1
            if size == 0:
                break


def _gif_colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# --- TIFF 6.0, and BigTIFF --------------------------------------------------------------------------------------------


def _tiff_tags(body: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(tag, type, count, bytes of the value, where it is) of the first directory."""
    order = "<" if body[:2] == b"II" else ">"
    big = body[2:4] in {b"+\x00", b"\x00+"}
    entry, inline = (order + "HHQ", 8) if big else (order + "HHI", 4)
    offset, number = (order + "Q", order + "Q") if big else (order + "I", order + "H")
    at = int(struct.unpack_from(offset, body, 8 if big else 4)[0])
    if at > len(body):
        raise _EndsEarly
    tags = int(struct.unpack_from(number, body, at)[0])
    _check_count(tags, MAX_TIFF_TAGS if big else 0xFFFF, "tags")
    at += struct.calcsize(number)
    for _ in range(tags):
        tag, kind, count = struct.unpack_from(entry, body, at)
        place = at + struct.calcsize(entry)
        size = count * _TIFF_SIZES.get(kind, 1)
        where = place if size <= inline else int(struct.unpack_from(offset, body, place)[0])
        yield tag, kind, count, size, where
        at = place + inline


def _tiff_ends_early(body: bytes) -> bool:
    order = "<" if body[:2] == b"II" else ">"
    found: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, size, where in _tiff_tags(body):
        if where + size > len(body):
            return True
        if tag in {273, 279, 324, 325} and kind in {3, 4, 16}:  # strips and tiles: offsets, byte counts
            code = {3: "H", 4: "I", 16: "Q"}[kind]
            found[tag] = struct.unpack_from(f"{order}{count}{code}", body, where)
    return any(
        start + size > len(body)
        for offsets, sizes in ((273, 279), (324, 325))
        for start, size in zip(found.get(offsets, ()), found.get(sizes, ()), strict=False)
    )


# --- BMP, and the boxes of AVIF and HEIF (ISO/IEC 14496-12, 4.2) ------------------------------------------------------


def _is_run_length_encoded(body: bytes) -> bool:
    header, compression = struct.unpack_from("<I", body, 14)[0], struct.unpack_from("<I", body, 30)[0]
    return header >= 40 and compression in {1, 2}


def _boxes_end_early(body: bytes) -> bool:
    at, names = 0, set[bytes]()
    while at < len(body):
        size, name = struct.unpack_from(">I4s", body, at)
        names.add(name)
        if size == 1:
            size = int(struct.unpack_from(">Q", body, at + 8)[0])
        if size < 8:  # 0: to the end; else no size at all
            break
        if at + size > len(body):
            return True
        at += size
    return not names & {b"mdat", b"meta"}


_WALKS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": _jpeg_ends_early,
    "PNG": lambda body: not any(name == b"IEND" for name, _start, _size in _png_chunks(body)),
    "GIF": lambda body: sum(1 for _ in _gif_pieces(body)) == 0,
    "TIFF": _tiff_ends_early,
    "WEBP": lambda body: int(struct.unpack_from("<I", body, 4)[0]) + 8 > len(body),
    "BMP": lambda body: int(struct.unpack_from("<I", body, 2)[0]) > len(body),
}
