"""Images that were made to hurt: each is refused with a class that says what it is, before it costs anything.

Without the bounds, those of 4 MB here hold up every thread of the process for up to 7 s (a progressive JPEG of 40,000
scans) or take up to 1.5 GB (a TIFF with one tile of 1.6 gigapixels); stores.max_image_bytes lets eight times that in.
"""

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from consumer.adapters.image import MAX_SIDE, PillowDecoder
from consumer.adapters.image_structure import refuse_costly, webp_size
from consumer.adapters.thumbnails import thumbnail
from consumer.errors import CorruptImage, DecompressionBomb, InvalidMessage, TooManyPixels, TruncatedImage
from tests.contract.test_image_decoder import FORMATS, encode, photograph

SIZE = 4_000_000
JPEG, PNG, GIF = (encode(photograph(), kind) for kind in ("JPEG", "PNG", "GIF"))
IHDR_END, GIF_START = 33, 13 + 768
Exhibit = Callable[[], bytes]


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def in_jpeg(pieces: bytes) -> bytes:
    return JPEG[:2] + pieces + JPEG[2:]


def in_png(pieces: bytes) -> bytes:
    return PNG[:IHDR_END] + pieces + PNG[IHDR_END:]


def in_gif(pieces: bytes) -> bytes:
    return GIF[:GIF_START] + pieces + GIF[GIF_START:]


def scans() -> bytes:
    body = encode(photograph(), "JPEG", progressive=True)
    return body[:-2] + bytes.fromhex("ffda0008010100013f10") * (SIZE // 100) + b"\xff\xd9"


def plane_by_plane(extra: int = 0) -> bytes:
    """A sequential JPEG with a scan for each plane, put together from three grey ones; the last scan comes again
    `extra` times."""
    grey = [encode(plane, "JPEG") for plane in photograph().convert("YCbCr").split()]
    frame, scan = grey[0].index(b"\xff\xc0"), grey[0].index(b"\xff\xda")
    tables_end = frame + 2 + int.from_bytes(grey[0][frame + 2 : frame + 4])
    planes = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    frame_of_three = segment(0xC0, grey[0][frame + 4 : frame + 9] + b"\3" + planes)
    scans = [
        segment(0xDA, bytes([1, number, 0, 0, 63, 0])) + each[scan + 10 : -2]
        for number, each in enumerate(grey, start=1)
    ]
    whole = grey[0][:frame] + frame_of_three + grey[0][tables_end:scan] + b"".join(scans)
    return whole + scans[-1][:10] * extra + b"\xff\xd9"


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"", number: int | None = None) -> bytes:
    """Little-endian: (tag, type, count, value or place); what has no entry is 10 x 10 of 8-bit grey in LZW."""
    tags = {256: (4, 1, 10), 257: (4, 1, 10), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {tag: (kind, count, value) for tag, kind, count, value in entries}
    rows = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    count = len(tags) if number is None else number
    return b"II*\0" + struct.pack("<IH", 8, count) + rows + bytes(4) + data


def run_length_bmp(data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + header + bytes(1024) + data


def big_tiff_of_many_tags() -> bytes:
    entries = b"".join(struct.pack("<HHQQ", 256 + at % 60_000, 4, 1, 10) for at in range(5_000))
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 5_000) + entries + bytes(8)


COSTLY: dict[str, Exhibit] = {
    "stray bytes between a JPEG's segments": lambda: in_jpeg(segment(0xFE, b"") + bytes(SIZE)),
    "fill bytes before a JPEG's marker": lambda: in_jpeg(b"\xff" * SIZE),
    "many pieces of Exif": lambda: in_jpeg(segment(0xE1, b"Exif\0\0II*\0" + bytes(480)) * (SIZE // 500)),
    "many comments": lambda: in_jpeg(segment(0xFE, b"") * (SIZE // 4)),
    "many tables": lambda: in_jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * (SIZE // 65_000)),
    "many Photoshop resources": lambda: in_jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 16_000) * 40),
    "many scans": scans,
    "many scans, plane by plane": lambda: plane_by_plane(SIZE // 100),
    "many chunks": lambda: in_png(chunk(b"aaAa", b"") * (SIZE // 12)),
    "many colour profiles": lambda: in_png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 2),
    "stray bytes between a GIF's blocks": lambda: in_gif(bytes(SIZE)),
    "many extensions": lambda: in_gif(b"\x21\xfe\1a\0" * (SIZE // 5)),
    "one extension of many blocks": lambda: in_gif(b"\x21\xfe" + b"\1a" * (SIZE // 2) + b"\0"),
    "many strips": lambda: tiff((273, 4, 500_000, 122), (279, 4, 500_000, 122), (278, 4, 1, 1), data=bytes(SIZE)),
    "many numbers in a tag": lambda: tiff((258, 3, 2_000_000, 122), data=bytes(SIZE)),
    "many tags": big_tiff_of_many_tags,
    "run lengths decoded in Python": lambda: run_length_bmp(b"\1\1" * (SIZE // 2)),
}
BOMBS: dict[str, Exhibit] = {
    "text": lambda: in_png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000)))),
    "international text": lambda: in_png(chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(50_000_000)))),
    "profile": lambda: in_png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))),
    "many texts": lambda: in_png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 100),
}


def webp_canvas(width: int, height: int) -> bytes:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = (
        b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + b"VP8L" + struct.pack("<I", 6) + b"\x2f" + bytes(5)
    )
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def jpeg_sized(width: int, height: int) -> bytes:
    frame = JPEG.index(b"\xff\xc0")
    return JPEG[: frame + 5] + struct.pack(">HH", height, width) + JPEG[frame + 9 :]


def gif_screen(width: int, height: int) -> bytes:
    return GIF[:6] + struct.pack("<HH", width, height) + GIF[10:]


def avif_sized(width: int, height: int) -> bytes:
    body = encode(photograph(), "AVIF")
    place = body.index(b"ispe") + 8
    return body[:place] + struct.pack(">II", width, height) + body[place + 8 :]


def bmp_sized(width: int, height: int) -> bytes:
    body = encode(Image.new("RGB", (4, 4)), "BMP")
    return body[:18] + struct.pack("<ii", width, height) + body[26:]


LARGE: dict[str, Exhibit] = {
    "a JPEG of little data": lambda: jpeg_sized(65_000, 65_000),
    "a GIF's screen": lambda: gif_screen(65_535, 65_535),
    "a WebP's canvas": lambda: webp_canvas(16_384, 16_384),
    "a WebP's canvas of the largest": lambda: webp_canvas(1 << 24, 1 << 8),
    "a BMP": lambda: bmp_sized(60_000, 60_000),
    "a BMP from the top": lambda: bmp_sized(60_000, -60_000),
    "a TIFF": lambda: tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000), (273, 4, 1, 8), (279, 4, 1, 100)),
    "a TIFF's tile": lambda: tiff(
        (322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 100), data=bytes(100)
    ),
    "one column": lambda: encode(Image.new("L", (1, MAX_SIDE + 1)), "PNG"),
    "one row": lambda: encode(Image.new("1", (MAX_SIDE + 1, 1)), "TIFF"),
}


def refusal(body: bytes) -> InvalidMessage:
    """What `decode` raises; `measure` raises the same, or nothing where only the pixels show it."""
    decoder = PillowDecoder((64, 64), formats=FORMATS, icc="srgb")
    with pytest.raises(InvalidMessage) as refused:
        decoder.decode(body)
    with suppress(type(refused.value)):
        decoder.measure(body)
    return refused.value


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_hold_up_the_process_in_parsing_is_refused_before(name: str) -> None:
    body = COSTLY[name]()
    error = refusal(body)
    assert thumbnail(body) is None
    assert type(error) is CorruptImage
    assert "real ones have at most" in str(error)


def test_scans_are_counted_where_libjpeg_reads_more_than_one() -> None:
    for body in (JPEG, encode(photograph().convert("L"), "JPEG")):
        assert refuse_costly(body, "JPEG") == 1
    assert refuse_costly(encode(photograph(), "JPEG", progressive=True), "JPEG") > 3
    assert refuse_costly(plane_by_plane(), "JPEG") == 3
    assert refuse_costly(plane_by_plane()[:700], "JPEG") <= 1


def test_a_jpeg_plane_by_plane_is_decoded_as_one_of_all_planes() -> None:
    decoder = PillowDecoder((64, 64))
    one, other = (decoder.decode(body).pixels.astype(int) for body in (plane_by_plane(), JPEG))
    assert np.abs(one - other).mean() < 3
    header = PillowDecoder((64, 64)).measure(plane_by_plane())
    assert header.decode_bytes > decoder.measure(JPEG).decode_bytes  # all coefficients are held


def test_further_scans_behind_one_of_all_planes_are_read_by_nobody() -> None:
    """They are not counted: at the second, which is whole, libjpeg must give up."""
    scan = JPEG.index(b"\xff\xda")
    error = refusal(JPEG[:-2] + JPEG[scan:])
    assert type(error) is CorruptImage
    assert "broken data stream" in str(error)


@pytest.mark.parametrize("name", BOMBS)
def test_metadata_that_unpack_to_very_many_bytes_are_a_bomb(name: str) -> None:
    assert type(refusal(BOMBS[name]())) is DecompressionBomb


@pytest.mark.parametrize("name", LARGE)
def test_what_declares_too_much_is_refused_before_it_is_allocated(name: str) -> None:
    assert type(refusal(LARGE[name]())) is TooManyPixels


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"lossless": True, "exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_read_without_the_library(options: dict[str, object]) -> None:
    for size in ((1, 1), (451, 300), (7, 16_383)):
        assert webp_size(encode(photograph().resize(size), "WEBP", **options)) == size


def test_an_avif_that_declares_more_than_it_has_is_refused() -> None:
    assert type(refusal(avif_sized(30_000, 30_000))) in {TooManyPixels, CorruptImage}


def test_an_animation_of_a_million_frames_is_its_first() -> None:
    body = encode(photograph(), "PNG", save_all=True, append_images=[photograph("coffee").resize((451, 300))])
    place = body.index(b"acTL") + 4
    control = struct.pack(">II", 1_000_000, 0)
    body = body[:place] + control + struct.pack(">I", zlib.crc32(b"acTL" + control)) + body[place + 12 :]
    decoded = PillowDecoder((64, 64)).decode(body)
    assert decoded.facts.applied == ("first-frame",)
    one = GIF[:-1].replace(b"GIF87a", b"GIF89a")
    frame = one[GIF_START:]
    many = PillowDecoder((64, 64)).decode(one + frame * 200 + b";")
    assert many.facts.applied[0] == "first-frame"
    assert np.array_equal(many.pixels, PillowDecoder((64, 64)).decode(GIF).pixels)


def test_a_tiff_whose_directories_run_in_a_circle_is_its_first() -> None:
    body = bytearray(encode(photograph(), "TIFF"))
    at = int(struct.unpack_from("<I", body, 4)[0])
    end = at + 2 + 12 * int(struct.unpack_from("<H", body, at)[0])
    struct.pack_into("<I", body, end, at)
    assert PillowDecoder((64, 64)).decode(bytes(body)).facts.width == 451


def test_tags_that_all_point_at_the_same_bytes_take_no_more_memory() -> None:
    """Pillow bounds the values of a directory by the size of its block: without that, 65,535 times the whole."""
    entries = [(40_000 + each, 7, 900_000, 100) for each in range(5_000)]
    data = bytes(1_000_000)
    assert type(refusal(tiff(*entries, data=data))) in {CorruptImage, TruncatedImage}


def test_a_damaged_tiff_writes_nothing_into_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    body = bytearray(encode(photograph().convert("1"), "TIFF", compression="group4"))
    body[60:400] = b"\xa5" * 340
    with suppress(InvalidMessage):
        PillowDecoder((64, 64)).decode(bytes(body))
    assert capfd.readouterr().err == ""


def test_a_directory_beyond_all_bytes_is_cut_short() -> None:
    assert type(refusal(b"II+\0" + struct.pack("<HHQ", 8, 0, 2**63) + bytes(40))) is TruncatedImage


def test_large_and_honest_structure_is_not_refused() -> None:
    decoder = PillowDecoder((64, 64))
    profile = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([at + 1, 60]) + bytes(65_000)) for at in range(60))
    assert decoder.decode(in_jpeg(profile)).pixels.any()
    assert decoder.decode(in_png(chunk(b"aaAa", b"x") * 10_000)).pixels.any()
    assert decoder.decode(in_gif(b"\x21\xfe" + (b"\xff" + b"x" * 255) * 10_000 + b"\0")).pixels.any()
    noise = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)
    assert decoder.decode(encode(Image.fromarray(noise), "GIF")).pixels.any()
    assert decoder.decode(encode(Image.fromarray(noise), "TIFF", tiffinfo={278: 1})).pixels.any()
