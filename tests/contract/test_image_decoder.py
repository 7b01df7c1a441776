"""What every `ports.ImageDecoder` must do, on real photographs in all formats and on damaged bytes.

Colours are in test_decoder_colours.py, what was made to hurt in test_decoder_hostile.py."""

import hashlib
import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from consumer.adapters.decode_sandbox import SandboxedDecoder
from consumer.adapters.image import PillowDecoder
from consumer.errors import (
    CorruptImage,
    InvalidMessage,
    NotAnImage,
    SettingsError,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
)
from consumer.ports import ImageDecoder
from tests.models import PHOTOGRAPHS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
Make = Callable[..., ImageDecoder]


_sandboxes: dict[str, SandboxedDecoder] = {}


def in_a_sandbox(input_size: tuple[int, int], **options: Any) -> ImageDecoder:
    """The same decoder in a child process, which is kept from test to test."""
    arguments = {"input_size": input_size, **options}
    found = _sandboxes.get(repr(arguments))
    if found is None:
        found = _sandboxes[repr(arguments)] = SandboxedDecoder(
            "consumer.adapters.image:PillowDecoder",
            arguments,
            input_size=input_size,
            memory_bytes=2 * 1024**3,
            deadline_s=60.0,
        )
    return found


# An implementation is listed here to be held to this suite.
DECODERS: dict[str, Make] = {
    "pillow": partial(PillowDecoder, formats=FORMATS),
    "sandbox": partial(in_a_sandbox, formats=FORMATS),
}


@pytest.fixture(scope="module", autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    while _sandboxes:
        _sandboxes.popitem()[1].close()


@pytest.fixture(params=DECODERS)
def make(request: pytest.FixtureRequest) -> Make:
    return DECODERS[request.param]


@pytest.fixture
def decoder(make: Make) -> ImageDecoder:
    return make((64, 64))


pytest.importorskip("pillow_heif").register_heif_opener()  # so that tests can write HEIF


def photograph(name: str = "chelsea") -> Image.Image:
    return Image.open(PHOTOGRAPHS / f"{name}.jpg")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == "WEBP":
        options.setdefault("lossless", True)
    if kind in {"AVIF", "HEIF"}:
        options.setdefault("quality", 90)
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(body: bytes, **options: Any) -> npt.NDArray[np.uint8]:
    return PillowDecoder((64, 64), **options).decode(body).pixels


def plain(image: Image.Image, size: tuple[int, int] = (64, 64)) -> npt.NDArray[np.uint8]:
    """What a plain script does: the whole image, RGB, bilinear. `size` is (width, height)."""
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def mean_difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


# --- what is an image -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_photograph(decoder: ImageDecoder, kind: str) -> None:
    image = decoder.decode(encode(photograph(), kind)).pixels
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # GIF has 256 colours; JPEG loses a little
    assert mean_difference(image, plain(photograph())) < (8 if kind == "GIF" else 2.5)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_facts_of_every_format_are_read_from_its_header(decoder: ImageDecoder, kind: str) -> None:
    body = encode(photograph(), kind)
    header = decoder.measure(body)
    assert (header.width, header.height, header.format) == (451, 300, kind)
    facts = decoder.decode(body).facts
    assert (facts.width, facts.height, facts.format) == (451, 300, kind)
    assert (facts.sha256, facts.size_bytes) == (hashlib.sha256(body).hexdigest(), len(body))
    assert facts.applied == (("palette-to-rgb",) if kind == "GIF" else ())


@pytest.mark.parametrize("kind", FORMATS)
def test_an_opened_image_says_what_measuring_says_and_becomes_what_decoding_makes(
    decoder: ImageDecoder, kind: str
) -> None:
    body = encode(photograph(), kind)
    image, another = decoder.open(body), decoder.open(encode(photograph("camera"), kind))
    assert image.header == decoder.measure(body)
    assert another.header != image.header
    decoded, expected = image.decode(), decoder.decode(body)
    assert np.array_equal(decoded.pixels, expected.pixels)
    assert decoded.facts == expected.facts


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_is_cut_short_is_refused_alike_where_it_was_opened_first(
    decoder: ImageDecoder, kind: str
) -> None:
    body = encode(photograph(), kind)
    cut = body[: len(body) // 2]
    with pytest.raises(TruncatedImage) as expected:
        decoder.decode(cut)
    with pytest.raises(TruncatedImage) as refused:
        decoder.open(cut).decode()
    assert str(refused.value) == str(expected.value)


@pytest.mark.parametrize("name", ["camera", "chelsea", "coffee", "rocket"])
def test_a_plain_photograph_is_exactly_what_a_plain_script_sees(make: Make, name: str) -> None:
    body = (PHOTOGRAPHS / f"{name}.jpg").read_bytes()
    assert np.array_equal(make((48, 80)).decode(body).pixels, plain(photograph(name), (80, 48)))


def test_the_input_size_is_height_then_width(make: Make) -> None:
    assert make((20, 50)).decode(encode(photograph(), "PNG")).pixels.shape == (20, 50, 3)


def test_the_pixels_are_the_callers_own(decoder: ImageDecoder) -> None:
    body = encode(photograph(), "PNG")
    decoder.decode(body).pixels[:] = 0
    assert decoder.decode(body).pixels.any()


def test_a_crop_keeps_the_centre_of_the_shorter_side(make: Make) -> None:
    image = Image.new("RGB", (400, 200), "red")
    image.paste((0, 255, 0), (125, 25, 275, 175))  # the centred square of 0.75 of the shorter side
    inside = make((32, 32), crop=0.75, resize="nearest").decode(encode(image, "PNG")).pixels
    assert (inside == (0, 255, 0)).all()
    whole = make((32, 32), resize="nearest").decode(encode(image, "PNG")).pixels
    assert (whole[0, 0] == (255, 0, 0)).all()


def test_a_crop_has_the_aspect_of_the_input(make: Make) -> None:
    image = Image.new("RGB", (400, 400), "red")
    image.paste((0, 255, 0), (0, 100, 400, 300))
    assert (make((50, 100), crop=0.999, resize="nearest").decode(encode(image, "PNG")).pixels == (0, 255, 0)).all()


# --- modes and metadata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(make: Make, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encode(photograph(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    assert mean_difference(make((40, 72)).decode(body).pixels, plain(upright, (72, 40))) < 0.5


def test_broken_exif_does_not_make_a_broken_image(decoder: ImageDecoder) -> None:
    for exif in (
        b"Exif\x00\x00MM\x00*\xff\xff\xff\xff",
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff",
    ):
        body = encode(photograph(), "JPEG", exif=exif)
        assert mean_difference(decoder.decode(body).pixels, plain(photograph())) < 2


def test_what_is_clear_is_white(decoder: ImageDecoder) -> None:
    clear = Image.new("RGBA", (100, 100), (200, 0, 0, 0))
    assert (decoder.decode(encode(clear, "PNG")).pixels == 255).all()
    half = Image.new("RGBA", (100, 100), (0, 0, 0, 128))
    assert abs(int(decoder.decode(encode(half, "PNG")).pixels[5, 5, 0]) - 127) <= 1


def test_colour_under_what_is_clear_does_not_bleed(decoder: ImageDecoder) -> None:
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 33, 100))
    assert (decoder.decode(encode(image, "PNG")).pixels >= 254).all()


def test_a_palette_with_a_clear_entry_is_laid_over_white(decoder: ImageDecoder) -> None:
    image = Image.new("P", (100, 100), 1)
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 750)
    assert (decoder.decode(encode(image, "PNG")).pixels == (10, 20, 30)).all()
    assert (decoder.decode(encode(image, "PNG", transparency=1)).pixels == 255).all()


def test_opaque_alpha_changes_nothing(decoder: ImageDecoder) -> None:
    image = photograph()
    image.putalpha(255)
    assert np.array_equal(decoder.decode(encode(image, "PNG")).pixels, plain(photograph()))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_other_modes_become_rgb(decoder: ImageDecoder, mode: str) -> None:
    image = photograph().convert(mode)
    body = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    assert mean_difference(decoder.decode(body).pixels, plain(image.convert("RGB"))) < 1.5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(decoder: ImageDecoder, kind: str) -> None:
    grey = np.asarray(photograph().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert mean_difference(decoder.decode(encode(deep, kind)).pixels, plain(photograph().convert("L"))) < 1


def test_floating_point_samples_are_stretched(decoder: ImageDecoder) -> None:
    ramp = np.tile(np.linspace(-3.0, 9.0, 64, dtype=np.float32), (64, 1))
    ramp[0, 0] = np.nan
    image = decoder.decode(encode(Image.fromarray(ramp), "TIFF")).pixels
    assert (int(image[5, 0, 0]), int(image[5, 63, 0])) == (0, 255)
    flat = Image.fromarray(np.full((64, 64), 4.0, np.float32))
    assert (decoder.decode(encode(flat, "TIFF")).pixels == 0).all()


def test_an_animation_is_its_first_frame(decoder: ImageDecoder) -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("lime", "red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "HEIF"):
        body = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        decoded = decoder.decode(body)
        assert np.abs(decoded.pixels[30, 30].astype(int) - (0, 255, 0)).max() <= 2, kind
        assert decoded.facts.applied[0] == "first-frame", kind


def test_a_telephones_jpeg_with_more_pictures_behind_it_is_a_jpeg(decoder: ImageDecoder) -> None:
    body = encode(photograph(), "MPO", save_all=True, append_images=[photograph("coffee")])
    assert decoder.measure(body).format == "JPEG"
    assert mean_difference(decoder.decode(body).pixels, plain(photograph())) < 2


def test_trailing_garbage_is_passed_over(decoder: ImageDecoder) -> None:
    for kind in FORMATS:
        body = encode(photograph(), kind)
        assert np.array_equal(decoder.decode(body + b"<script>" * 99).pixels, decoder.decode(body).pixels), kind


# --- what is not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"BM",
        b"BMW, Mercedes, and others" * 9,
        b"hello, this is text" * 50,
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\n",
        bytes(range(256)) * 64,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bytes_that_are_no_image_are_said_to_be_none(decoder: ImageDecoder, body: bytes) -> None:
    with pytest.raises(NotAnImage):
        decoder.measure(body)
    with pytest.raises(NotAnImage):
        decoder.decode(body)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "PCX", "TGA"])
def test_a_format_that_nothing_here_decodes_is_refused(decoder: ImageDecoder, kind: str) -> None:
    with pytest.raises(NotAnImage):
        decoder.decode(encode(photograph(), kind))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"8BPS\x00\x01" + bytes(40), "Photoshop"),
    ],
)
def test_a_format_that_is_known_and_not_decoded_is_said_by_name(decoder: ImageDecoder, body: bytes, name: str) -> None:
    for what in (decoder.measure, decoder.decode):
        with pytest.raises(UnsupportedFormat, match=name):
            what(body)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "PNG"])
def test_only_the_formats_of_the_settings_are_taken(make: Make, kind: str) -> None:
    only_png = make((64, 64), formats=["PNG"])
    assert only_png.decode(encode(photograph(), "PNG")).pixels.shape == (64, 64, 3)
    for what in (only_png.measure, only_png.decode):
        with pytest.raises(UnsupportedFormat, match=f"is {kind}, and input.formats allows PNG"):
            what(encode(photograph(), kind))


def test_a_format_whose_decoder_is_not_installed_is_an_error_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(SettingsError, match=r"input\.formats") as refused:
        PillowDecoder((64, 64), formats=["HEIF"])
    assert ".[heif]" in refused.value.remedy


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_an_image_that_is_cut_short_is_said_to_be(decoder: ImageDecoder, kind: str, share: float) -> None:
    body = encode(photograph(), kind)
    with pytest.raises(TruncatedImage, match="cut short"):
        decoder.decode(body[: int(len(body) * share)])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_which_there_is_only_the_beginning_is_cut_short(decoder: ImageDecoder, kind: str) -> None:
    body = encode(photograph(), kind)
    for what in (decoder.measure, decoder.decode):
        with pytest.raises(TruncatedImage):
            what(body[:24])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF"])
def test_an_image_that_is_whole_and_damaged_is_said_to_be(decoder: ImageDecoder, kind: str) -> None:
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    body = bytearray(encode(photograph(), kind, **options))
    if kind == "JPEG":
        damaged = body.index(b"\xff\xc0") + 4
        body[damaged : damaged + 13] = b"\xee" * 13
    elif kind == "GIF":
        body[body.index(b"\x2c", 13 + 768) + 10] = 0x77  # the first code's size
    else:
        middle = 60 if kind in {"AVIF", "HEIF"} else len(body) // 2
        body[middle : middle + 90] = b"\xa5" * 90
    with pytest.raises(CorruptImage, match="damaged"):
        decoder.decode(bytes(body))


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"),
    [(10_001, 10_000), (13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)],
    ids=["just over", "under twice", "gigapixels", "the largest there is"],
)
def test_a_bomb_is_refused_by_its_declared_size(make: Make, width: int, height: int) -> None:
    decoder = make((64, 64), max_pixels=100_000_000)
    with pytest.raises(TooManyPixels):
        decoder.measure(png_that_declares(width, height))
    with pytest.raises(TooManyPixels):
        decoder.decode(png_that_declares(width, height))


def test_a_bomb_is_refused_as_such_where_warnings_are_errors(make: Make) -> None:
    make((64, 64), max_pixels=200_000_000)  # so that Pillow itself is content
    decoder = make((64, 64), max_pixels=1_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TooManyPixels):
            decoder.decode(png_that_declares(20_000, 15_000))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_held_to_the_same_number_of_pixels(make: Make, kind: str) -> None:
    body = encode(photograph(), kind)
    make((64, 64), max_pixels=451 * 300).decode(body)
    with pytest.raises(TooManyPixels, match="451 x 300"):
        make((64, 64), max_pixels=451 * 300 - 1).decode(body)


def test_decoders_with_different_bounds_do_not_disturb_each_other(make: Make) -> None:
    body = encode(photograph(), "PNG")
    wide, narrow = make((64, 64), max_pixels=200_000_000), make((64, 64), max_pixels=100)
    wide.measure(png_that_declares(14_000, 14_000))
    wide.decode(body)
    with pytest.raises(TooManyPixels):
        narrow.decode(body)


def test_a_gif_whose_frame_is_larger_than_it_declares_is_held_too(make: Make) -> None:
    body = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    frame = body.index(b"\x2c")
    body[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(InvalidMessage):
        make((64, 64), max_pixels=1_000_000).decode(bytes(body))


@pytest.mark.filterwarnings("error")
def test_warnings_do_not_leak(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    decoder = make((64, 64), max_pixels=200_000_000)
    palette = Image.new("P", (50, 50), 1)
    decoder.decode(encode(palette, "PNG", transparency=bytes([0, 128])))
    decoder.decode(encode(photograph(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00garbage"))
    with pytest.raises(TooManyPixels):
        decoder.decode(png_that_declares(15_000, 15_000))
    assert not [str(warning.message) for warning in recwarn]


_BODIES = {kind: encode(photograph().resize((90, 60)), kind) for kind in FORMATS}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corruption_never_raises_anything_else(data: st.DataObject) -> None:
    decoder = DECODERS["pillow"]((64, 64), max_pixels=1_000_000)
    body = bytearray(_BODIES[data.draw(st.sampled_from(FORMATS))])
    # Headers are where the surprises are.
    places = st.one_of(st.integers(0, min(120, len(body) - 1)), st.integers(0, len(body) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(places)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    for what in (decoder.measure, decoder.decode):
        try:
            what(bytes(body[:cut]))
        except InvalidMessage as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 500  # noqa: PT017


def test_many_threads_decode_at_once(decoder: ImageDecoder) -> None:
    bodies = [encode(photograph(name), kind) for name in ("chelsea", "coffee") for kind in FORMATS]
    expected = [decoder.decode(body).pixels for body in bodies]
    wrong: list[int] = []

    def work() -> None:
        for number, body in enumerate(bodies):
            if not np.array_equal(decoder.decode(body).pixels, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
