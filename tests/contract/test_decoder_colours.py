"""Every mode, orientation and colour space that a file may have gives the pixels that a person would see.

Images are made here, small and of flat colours, so that each pixel can be said beforehand.
"""

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from consumer.adapters.image import PillowDecoder
from consumer.messages import Decoded
from tests.contract.test_image_decoder import encode, mean_difference, photograph, plain

ALL = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
Pixels = npt.NDArray[np.uint8]


def decoded(body: bytes, size: tuple[int, int] = (16, 16), **options: Any) -> Decoded:
    """At `size`, nearest, so that flat areas stay as they are."""
    return PillowDecoder(size, **{"formats": ALL, "resize": "nearest"} | options).decode(body)


def colour_of(body: bytes, **options: Any) -> tuple[int, ...]:
    """The colour of an image that has one only."""
    pixels = decoded(body, **options).pixels
    assert (pixels == pixels[0, 0]).all()
    return tuple(int(each) for each in pixels[0, 0])


def near(one: tuple[int, ...], other: tuple[int, ...], by: int = 2) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= by


# --- orientation ----------------------------------------------------------------------------------------------------

QUARTERS = np.zeros((32, 48, 3), np.uint8)  # red, green over blue, white: every turn shows
QUARTERS[:16, :24], QUARTERS[:16, 24:], QUARTERS[16:, :24], QUARTERS[16:, 24:] = (
    (250, 10, 10),
    (10, 250, 10),
    (10, 10, 250),
    (240, 240, 240),
)
STORED = {  # https://exiftool.org/TagNames/EXIF.html, 0x0112: what is done to the upright picture to store it so
    1: QUARTERS,
    2: QUARTERS[:, ::-1],
    3: QUARTERS[::-1, ::-1],
    4: QUARTERS[::-1],
    5: QUARTERS.transpose(1, 0, 2),
    6: np.rot90(QUARTERS, 1),
    7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(QUARTERS, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "MPO"])
def test_all_eight_orientations_of_every_format_give_the_same_pixels(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options: dict[str, Any] = {"exif": exif.tobytes()}
    if kind in {"JPEG", "MPO"}:
        options |= {"quality": 95, "subsampling": 0}
    if kind in {"AVIF", "HEIF"}:
        options |= {"quality": 100, "chroma": 444} if kind == "HEIF" else {"quality": 100, "subsampling": "4:4:4"}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [image]}
    found = decoded(encode(image, kind, **options), (32, 48), resize="bilinear")
    assert np.abs(found.pixels.astype(int) - QUARTERS).mean() < 3
    assert (found.facts.width, found.facts.height) == (48, 32)
    # HEIF's turns are its own, and are made by its decoder
    assert ("exif-orientation" in found.facts.applied) == (orientation != 1 and kind != "HEIF")


def test_an_orientation_that_does_not_exist_is_passed_over() -> None:
    for orientation in (0, 9, 255):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = decoded(encode(Image.fromarray(QUARTERS), "PNG", exif=exif), (32, 48))
        assert np.array_equal(found.pixels, QUARTERS)
        assert found.facts.applied == ()


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_becomes_its_colours(kind: str) -> None:
    image = Image.new("P", (20, 20), 3)
    image.putpalette([0] * 9 + [10, 20, 30] + [0] * 756)
    assert colour_of(encode(image, kind)) == (10, 20, 30)
    assert decoded(encode(image, kind)).facts.applied == ("palette-to-rgb",)


def test_a_palette_whose_entries_are_half_clear_is_laid_over_the_background() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 200, 100, 0] + [0] * 762)
    body = encode(image, "PNG", transparency=bytes([255, 128]))
    assert near(colour_of(body), (227, 177, 127))
    assert near(colour_of(body, background="#000000"), (100, 50, 0))
    assert decoded(body).facts.applied == ("palette-to-rgb", "alpha-over-background")


@pytest.mark.parametrize(("mode", "clear"), [("L", 77), ("RGB", (7, 8, 9)), ("1", 1)])
def test_a_colour_that_stands_for_clear_shows_the_background(mode: str, clear: Any) -> None:
    image = Image.new(mode, (20, 20), clear)
    key = 1 if mode == "1" else clear
    assert colour_of(encode(image, "PNG", transparency=key), background="#0a141e") == (10, 20, 30)


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (200, 100, 50, 0)), ("LA", (200, 0))])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_what_is_clear_shows_the_background_that_is_set(kind: str, mode: str, value: Any) -> None:
    if mode == "LA" and kind in {"WEBP", "AVIF"}:
        value, mode = (200, 200, 200, 0), "RGBA"  # these have no grey
    body = encode(Image.new(mode, (32, 32), value), kind)
    assert colour_of(body) == (255, 255, 255)
    assert colour_of(body, background="#102030") == (16, 32, 48)
    assert decoded(body).facts.applied[-1] == "alpha-over-background"


def test_alpha_that_hides_nothing_is_not_said_to_be_applied() -> None:
    assert decoded(encode(Image.new("RGBA", (20, 20), (1, 2, 3, 255)), "PNG")).facts.applied == ()


@pytest.mark.parametrize("value", [0, 1, 128, 200, 255])
def test_sixteen_bit_grey_is_scaled(value: int) -> None:
    deep = Image.fromarray(np.full((20, 20), value * 257, np.uint16))
    for kind in ("PNG", "TIFF"):
        assert colour_of(encode(deep, kind)) == (value,) * 3
        assert decoded(encode(deep, kind)).facts.applied == ("16-bit-to-8", "grey-to-rgb")


def test_sixteen_bit_grey_in_the_other_byte_order_is_the_same() -> None:
    for order in ("<", ">"):
        assert colour_of(_sixteen_bit_tiff(0xC8C9, order=order)) == (200, 200, 200)


def _sixteen_bit_tiff(value: int, *, order: str, photometric: int = 1, samples: int = 1) -> bytes:
    """20 x 20 uncompressed pixels of one 16-bit value each."""
    pixels = struct.pack(order + "H", value) * (400 * samples)
    entries = [  # tag, type, count, value
        (256, 3, 1, 20),
        (257, 3, 1, 20),
        (258, 3, samples, 16 if samples == 1 else 200),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 300),
        (277, 3, 1, samples),
        (278, 3, 1, 20),
        (279, 4, 1, len(pixels)),
    ]
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, number in entries:
        inline = struct.pack(order + ("HH" if kind == 3 else "I"), *((number, 0) if kind == 3 else (number,)))
        found = inline if count == 1 else struct.pack(order + "I", number)
        directory += struct.pack(order + "HHI", tag, kind, count) + found
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + directory + bytes(4)
    return (head.ljust(200, b"\0") + struct.pack(order + "H", 16) * samples).ljust(300, b"\0") + pixels


def test_sixteen_bit_grey_whose_zero_is_white_is_turned_about() -> None:
    assert colour_of(_sixteen_bit_tiff(0, order="<", photometric=0)) == (255, 255, 255)
    assert colour_of(_sixteen_bit_tiff(0xFFFF, order="<", photometric=0)) == (0, 0, 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_colours_become_eight(order: str) -> None:
    found = decoded(_sixteen_bit_tiff(0x6464, order=order, photometric=2, samples=3))
    assert (found.pixels == 0x64).all()
    assert found.facts.applied == ("16-bit-to-8",)


def test_sixteen_bit_colours_of_a_png_become_eight() -> None:
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + struct.pack(">HHH", 0x1010, 0x8080, 0xF0F0) * 9) * 9
    header = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert colour_of(body) == (0x10, 0x80, 0xF0)
    assert decoded(body).facts.applied == ("16-bit-to-8",)


def test_black_and_white_is_black_and_white() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        for value, colour in ((0, 0), (1, 255)):
            body = encode(Image.new("1", (20, 20), value), kind)
            assert colour_of(body) == (colour,) * 3, kind
    assert decoded(body).facts.applied[-1] == "grey-to-rgb"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_become_colours(kind: str) -> None:
    # cyan and half black; a JPEG is stored inverted, as Adobe does
    body = encode(Image.new("CMYK", (32, 32), (255, 0, 0, 128)), kind)
    assert near(colour_of(body), (0, 127, 127), by=3)
    assert decoded(body).facts.applied == ("cmyk-to-rgb",)


def test_inks_stored_as_luminance_and_chroma_become_colours() -> None:
    """YCCK: Adobe's marker with transform 2 says that the first three inks are stored as YCbCr."""
    # Red is no cyan, all magenta and all yellow. Adobe's YCbCr are those of the inks, as if they were red, green, blue.
    y, cb, cr = Image.new("RGB", (1, 1), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    # Pillow writes inks inverted, so what is to be stored as it is goes in inverted.
    inks = Image.new("CMYK", (32, 32), (255 - y, 255 - cb, 255 - cr, 0))
    body = bytearray(encode(inks, "JPEG", quality=100, subsampling=0))
    marker = body.index(b"Adobe")
    body[marker + 11] = 2
    assert near(colour_of(bytes(body)), (255, 0, 0), by=4)


def test_lab_becomes_colours() -> None:
    """CIE 1976 L*a*b* under D50, as profiles have it: (54.3, 80.8, 69.9) is sRGB's red; a*, b* from 128."""
    body = encode(Image.new("LAB", (32, 32), (138, 209, 198)), "TIFF")
    assert near(colour_of(body), (255, 0, 0), by=6)
    assert decoded(body).facts.applied == ("lab-to-rgb",)


def test_a_progressive_jpeg_is_the_same_picture() -> None:
    for options in ({"progressive": True}, {"progressive": True, "subsampling": 0}, {"restart_marker_rows": 1}):
        found = decoded(encode(photograph(), "JPEG", quality=95, **options), (64, 64), resize="bilinear").pixels
        assert mean_difference(found, plain(photograph())) < 2


# --- ICC ------------------------------------------------------------------------------------------------------------


def wide_gamut() -> bytes:
    """A profile with its red and blue swapped: what it does cannot be taken for anything else."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_profile_is_followed_only_where_that_is_set(kind: str) -> None:
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    body = encode(Image.new("RGB", (32, 32), (220, 30, 30)), kind, icc_profile=wide_gamut(), **options)
    assert near(colour_of(body), (220, 30, 30), by=4)
    assert "icc-to-srgb" not in decoded(body).facts.applied
    assert near(colour_of(body, icc="srgb"), (30, 30, 220), by=6)
    assert "icc-to-srgb" in decoded(body, icc="srgb").facts.applied


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_profile_is_followed_whatever_the_mode(mode: str) -> None:
    image = Image.new("RGB", (32, 32), (220, 30, 30))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert near(colour_of(encode(image, "PNG", icc_profile=wide_gamut()), icc="srgb"), (30, 30, 220), by=6)


def test_a_profile_that_is_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    body = encode(photograph(), "PNG", icc_profile=profile)
    assert mean_difference(decoded(body, icc="srgb").pixels, decoded(body).pixels) < 1


@pytest.mark.parametrize(
    "profile",
    [b"no profile at all", wide_gamut()[:200], b"\0" * 4096, wide_gamut().replace(b"RGB ", b"CMYK"), b"x" * 5_000_000],
    ids=["text", "cut short", "zeros", "of other channels", "huge"],
)
def test_a_broken_profile_does_not_make_a_broken_image(profile: bytes) -> None:
    body = encode(photograph(), "TIFF", icc_profile=profile)
    found = decoded(body, icc="srgb")
    assert np.array_equal(found.pixels, decoded(body).pixels)
    assert found.facts.applied == ()


TABLE_MEMORY = """
import io, resource, struct, sys
from PIL import Image, ImageCms
from consumer.adapters.image import PillowDecoder
kind = sys.argv[1].encode()
decoder = PillowDecoder((32, 32), icc="srgb")
profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
def followed():
    file = io.BytesIO()
    Image.new("LAB", (60, 40)).save(file, "TIFF", icc_profile=bytes(profile))
    return "icc-to-srgb" in decoder.decode(file.getvalue()).facts.applied
def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(followed())
before_kb, start, grid = peak_kb(), profile.index(b"mft2"), bytes([255] * 3 + [0] * 13)
if kind == b"mft2":
    profile[start + 10] = 255
elif kind == b"mAB ":
    table = grid + bytes([2] + [0] * 11)
    profile[start : start + 60] = kind + struct.pack(">IBBHIIIII", 0, 3, 3, 0, 0, 0, 0, 32, 0) + table
else:
    profile[profile.index(b"A2B0") : profile.index(b"A2B0") + 4] = b"D2B0"
    element = b"clut" + struct.pack(">IHH", 0, 3, 3) + grid
    profile[start : start + 52] = kind + struct.pack(">IHHIII", 0, 3, 3, 1, 24, 28) + element
print(followed(), peak_kb() - before_kb)
"""


@pytest.mark.parametrize("kind", ["mft2", "mAB ", "mpet"])
def test_a_profile_that_declares_a_table_it_does_not_have_takes_no_memory(kind: str) -> None:
    answer = subprocess.run([sys.executable, "-c", TABLE_MEMORY, kind], capture_output=True, text=True, check=True)
    whole, hollow, grown_kb = answer.stdout.split()
    assert (whole, hollow) == ("True", "False")
    assert int(grown_kb) < 8 * 1024


# --- scaled decoding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "step"),
    [(127, ()), (128, ()), (255, ()), (256, ("draft-1/2",)), (512, ("draft-1/4",)), (1024, ("draft-1/8",))],
)
def test_a_jpeg_is_scaled_only_while_twice_the_input_is_left(side: int, step: tuple[str, ...]) -> None:
    body = encode(photograph().resize((side, side)), "JPEG")
    found = decoded(body, (64, 64), jpeg_scaled=True, resize="bilinear")
    assert found.facts.applied == step
    assert (found.facts.width, found.facts.height) == (side, side)
    assert decoded(body, (64, 64)).facts.applied == ()


def test_the_part_that_a_crop_keeps_is_what_must_be_left() -> None:
    body = encode(photograph().resize((300, 300)), "JPEG")
    assert decoded(body, (64, 64), jpeg_scaled=True).facts.applied == ("draft-1/2",)
    assert decoded(body, (64, 64), jpeg_scaled=True, crop=0.5).facts.applied == ()


@pytest.mark.parametrize("size", [(1021, 1019), (2053, 1531)])
def test_scaled_decoding_shows_the_same_picture(size: tuple[int, int]) -> None:
    body = encode(photograph().resize(size), "JPEG", quality=92)
    for options in ({}, {"crop": 0.7}):
        full = decoded(body, (96, 96), resize="bilinear", **options).pixels
        scaled = decoded(body, (96, 96), resize="bilinear", jpeg_scaled=True, **options)
        assert scaled.facts.applied[0].startswith("draft-")
        assert mean_difference(scaled.pixels, full) < 1.5


def test_a_sideways_jpeg_is_scaled_and_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photograph().resize((900, 600)).rotate(90, expand=True)
    body = encode(stored, "JPEG", exif=exif, quality=92)
    found = decoded(body, (96, 144), resize="bilinear", jpeg_scaled=True)
    assert found.facts.applied == ("draft-1/2", "exif-orientation")
    assert mean_difference(found.pixels, plain(photograph().resize((900, 600)), (144, 96))) < 2.5


def test_only_jpegs_are_scaled() -> None:
    for kind in ("PNG", "WEBP", "TIFF", "HEIF"):
        body = encode(photograph().resize((1024, 1024)), kind)
        assert decoded(body, jpeg_scaled=True).facts.applied == (), kind


# --- the bytes decide -----------------------------------------------------------------------------------------------


def test_a_column_of_one_pixel_is_an_image_too() -> None:
    column = Image.new("RGB", (1, 40_000), (9, 8, 7))
    assert colour_of(encode(column, "PNG"), resize="bilinear") == (9, 8, 7)
    assert colour_of(encode(column.transpose(Image.Transpose.ROTATE_90), "PNG"), resize="lanczos") == (9, 8, 7)


def test_both_ways_of_resizing_a_narrow_image_agree() -> None:
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (4_000, 20, 3), np.uint8))
    found = decoded(encode(noise, "PNG"), (64, 64), resize="bilinear").pixels
    assert mean_difference(found, plain(noise)) < 1


def test_bmp_with_run_lengths() -> None:
    palette = b"".join(struct.pack("<BBBB", 3 * each, 2 * each, each, 0) for each in range(8))
    rows = b"".join(bytes([20, 7, 0, 0]) for _ in range(20)) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 20, 20, 1, 8, 1, len(rows), 0, 0, 8, 8)
    offset = 14 + len(header) + len(palette)
    body = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + header + palette + rows
    assert colour_of(body) == (7, 14, 21)


def test_facts_are_of_the_bytes() -> None:
    file = io.BytesIO()
    photograph().save(file, "PNG")
    assert decoded(file.getvalue()).facts.format == "PNG"
