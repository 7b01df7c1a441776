"""Pillow: from encoded bytes to the model's pixels. The bytes are a stranger's, and are treated so.

* Only the allowed formats are tried (never EPS, which would start Ghostscript); the bytes say which one it is.
* What would hold up the process in parsing alone is refused before Pillow parses (`image_structure`).
* The declared size is checked by ourselves before any pixel is allocated, against this decoder's own bound: Pillow's
  `MAX_IMAGE_PIXELS` is one value for the whole process and raises at twice that only. It is kept at the highest bound
  of any decoder here, for the sizes that Pillow meets further inside a file (frames, tiles).
* The whole image is decoded unless `jpeg_scaled` is set: scaled decoding moves scores (docs/models.md has figures).
* A photograph is turned as its EXIF orientation says: cameras store the sensor's rows, and people look at it upright.
* Anything that Pillow raises about the bytes is one of our classes, and its warnings are silenced, not raised.
"""

import ctypes
import hashlib
import importlib
import io
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError, features

from consumer.adapters import image_colours as colours
from consumer.adapters.image_structure import ends_early, refuse_costly, webp_size
from consumer.adapters.simd_resize import SimdResize
from consumer.errors import (
    CorruptImage,
    DecompressionBomb,
    InvalidMessage,
    NotAnImage,
    SettingsError,
    TooManyPixels,
    TruncatedImage,
    UnsupportedFormat,
)
from consumer.image_formats import image_format
from consumer.messages import Decoded, ImageFacts, ImageHeader, OpenedImage

Resize = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]

MAX_SIDE = 65_535
"""Pixels of the longest side, JPEG's own bound. Pillow's resize takes up to 48 bytes for each row and column, whatever
the other side is, so that 50 million rows of one pixel would take 2 GB."""

SCALED_MARGIN = 2
"""Scaled decoding leaves at least so many times the model's input on each side, for the filter to work on."""

_FILTERS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
# https://exiftool.org/TagNames/EXIF.html, 0x0112: what turns the stored rows upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
_TIFF_BITS, _TIFF_COLOURS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 258, 262, 322, 323

_PLUGINS = {
    "JPEG": "PIL.MpoImagePlugin",  # imports JPEG's; an MPO is a telephone's JPEG with more pictures behind it
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
}

# What a plugin holds of an image while it decodes, in bytes a pixel, beside the image itself. Measured, and held by
# tests/contract/test_decode_memory.py.
_WEBP_BYTES = 12  # libwebp's two canvases, and what it hands over
_AVIF_BYTES = 10
_HEIF_BYTES = 12
_OTHER_BYTES_A_PIXEL = {"WEBP": _WEBP_BYTES, "AVIF": _AVIF_BYTES, "HEIF": _HEIF_BYTES}

# What Pillow says of compressed metadata that unpack to too much (PngImagePlugin).
_BOMB_TEXTS = ("Decompressed data too large", "Too much memory used in text chunks")

_FIXED_BYTES = 256 * 1024
"""Tables and buffers, whatever the size."""

_process = threading.Lock()
_highest_max_pixels = 0


class PillowDecoder:
    """Fulfils `ports.ImageDecoder`. Thread-safe: holds nothing but its settings."""

    def __init__(
        self,
        input_size: tuple[int, int],
        *,
        resize: Resize = "bilinear",
        crop: float = 1.0,
        max_pixels: int = 50_000_000,
        formats: Sequence[str] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"),
        background: str = "#ffffff",
        icc: Literal["ignore", "srgb"] = "ignore",
        jpeg_scaled: bool = False,
        resizer: Literal["pillow", "simd"] = "pillow",
    ) -> None:
        """
        Args:
            input_size: (height, width) that the model takes.
            resize: the filter; all but `nearest` are antialiased.
            crop: 1.0 squeezes the whole image into the input size. Below it, that share of the largest centred box of
                the input's aspect is kept (for a square input: of the shorter side).
            max_pixels: width times height that an image may declare.
            formats: Pillow's names of the formats to try.
            background: `#rrggbb`, what shows where an image is clear.
            icc: whether colours become sRGB by the image's own profile.
            jpeg_scaled: whether JPEGs are decoded at a half, a quarter or an eighth where that leaves `SCALED_MARGIN`
                times the input size.
            resizer: who shrinks colour pictures.

        Raises:
            SettingsError: a format's decoder, or the resizer, is not installed.
        """
        self._height, self._width = input_size
        self._filter = _FILTERS[resize]
        self._crop = crop
        self._max_pixels = max_pixels
        self._formats = tuple(formats)
        red, green, blue, *_ = ImageColor.getrgb(background)
        self._background = (red, green, blue)
        self._icc = icc == "srgb"
        self._jpeg_scaled = jpeg_scaled
        self._simd = SimdResize(self._filter) if resizer == "simd" else None
        _prepare_pillow(max_pixels, self._formats)

    def measure(self, body: bytes) -> ImageHeader:
        """See the port. Reads the header alone."""
        image, header = self._opened(body)
        image.close()
        return header

    def open(self, body: bytes) -> OpenedImage:
        """See the port."""
        image, header = self._opened(body)
        if image.format in _OTHER_BYTES_A_PIXEL:  # opened, these hold memory already: nothing while room is waited for
            image.close()
            return OpenedImage(header, partial(self.decode, body))
        return OpenedImage(header, partial(self._decoded, image, body))

    def decode(self, body: bytes) -> Decoded:
        """See the port. The pixels are contiguous, and the caller's own."""
        image, _header = self._opened(body)
        return self._decoded(image, body)

    def _decoded(self, image: Image.Image, body: bytes) -> Decoded:
        """What is opened; it lets go of all its pixels then, whoever still holds it."""
        try:
            return self._shrunk(image, body)
        except InvalidMessage:
            raise
        except Exception as error:
            raise self._verdict(error, body) from error
        finally:
            image.close()

    def _shrunk(self, image: Image.Image, body: bytes) -> Decoded:
        applied: list[str] = []
        stored = image.size
        if getattr(image, "is_animated", False):
            applied.append("first-frame")
        turned = _turned_by_pillow(image)
        size = self._scale(image, applied) if self._jpeg_scaled else stored
        bits, inverted = _depth(image, applied)
        image.load()
        self._check_size(image)  # a file may say another size once it is read
        orientation = 1 if turned else _orientation(image)
        full = colours.resizable(image, applied)
        samples = (0.0, 0.0)
        if full.mode == "F":
            full, samples = colours.finite(full)
        target = self._target(orientation)
        small = self._resized(full, target, self._box(size, *target))
        small = colours.eight_bit(small, applied, bits=bits, inverted=inverted, samples=samples)
        if orientation in _UPRIGHT:
            small = small.transpose(_UPRIGHT[orientation])
        if turned or orientation in _UPRIGHT:
            applied.append("exif-orientation")
        profile = image.info.get("icc_profile") if self._icc else None
        small = colours.rgb(small, applied, background=self._background, profile=profile)
        width, height = (stored[1], stored[0]) if orientation in _SIDEWAYS else stored
        return Decoded(
            pixels=np.array(small, dtype=np.uint8),
            facts=ImageFacts(
                width=width,
                height=height,
                format=_name(image),
                sha256=hashlib.sha256(body).hexdigest(),
                size_bytes=len(body),
                applied=tuple(applied),
            ),
        )

    def _resized(self, image: Image.Image, size: tuple[int, int], box: colours.Box) -> Image.Image:
        across, down = box[2] - box[0], box[3] - box[1]
        if self._simd is not None and image.mode == "RGB" and across >= size[0] and down >= size[1]:
            return self._simd(image, size, box)
        return colours.shrunk(image, size, self._filter, box)

    def _target(self, orientation: int) -> tuple[int, int]:
        """Width and height to shrink to, before the image is turned."""
        return (self._height, self._width) if orientation in _SIDEWAYS else (self._width, self._height)

    def _box(self, size: tuple[float, float], width: int, height: int) -> colours.Box:
        """The part of the image that is kept: left, top, right, bottom."""
        image_width, image_height = size
        if self._crop >= 1.0:
            return (0, 0, image_width, image_height)
        scale = self._crop * min(image_width / width, image_height / height)
        margin_x, margin_y = (image_width - scale * width) / 2, (image_height - scale * height) / 2
        return (margin_x, margin_y, image_width - margin_x, image_height - margin_y)

    def _scale(self, image: Image.Image, applied: list[str]) -> tuple[float, float]:
        """Have a JPEG decoded at a fraction where that leaves enough; the size that the picture then has, in pixels
        and parts of one: the last row and column may stand for less than the others."""
        if image.format not in {"JPEG", "MPO"}:
            return image.size
        width, height = self._target(_orientation(image))
        left, top, right, bottom = self._box(image.size, width, height)
        most = min((right - left) / (SCALED_MARGIN * width), (bottom - top) / (SCALED_MARGIN * height))
        scale = next((each for each in (8, 4, 2) if each <= most), 1)
        stored_width, stored_height = image.size
        if scale == 1 or image.draft(None, (stored_width // scale, stored_height // scale)) is None:
            return stored_width, stored_height
        applied.append(f"draft-1/{scale}")
        return stored_width / scale, stored_height / scale

    def _decode_bytes(self, image: Image.Image, body: bytes, scans: int) -> int:
        """The most that `decode` holds at once; see tests/contract/test_decode_memory.py."""
        width, height = image.size
        # What is shrunk across and not yet down, 4 bytes a pixel.
        side = max(self._width, self._height)
        between = 4 * min(width, side) * max(height, side)
        copies = 2 * len(body) if image.format in _OTHER_BYTES_A_PIXEL else 0  # these libraries keep the encoded bytes
        return int(width * height * _bytes_a_pixel(image, scans)) + between + copies + _FIXED_BYTES

    def _opened(self, body: bytes) -> tuple[Image.Image, ImageHeader]:
        """The image with its header read and its size checked; whatever Pillow raises is our error."""
        found = image_format(body)
        if found is None:
            raise NotAnImage(f"{len(body)} bytes that are of no image format known here")
        if found not in self._formats:
            names = ", ".join(self._formats)
            raise UnsupportedFormat(f"the image is {found}, and input.formats allows {names}")
        scans = refuse_costly(body, found)
        if found == "WEBP" and (size := webp_size(body)) is not None:
            self._check_sides(*size)
        try:
            image = Image.open(io.BytesIO(body), formats=(found,))
            self._check_size(image)
            width, height = image.size
            return image, ImageHeader(width, height, _name(image), self._decode_bytes(image, body, scans))
        except InvalidMessage:
            raise
        except Exception as error:
            raise self._verdict(error, body) from error

    def _verdict(self, error: Exception, body: bytes) -> InvalidMessage:
        """Our error for what Pillow raised: its plugins raise nearly anything on broken bytes, from struct.error to
        RecursionError."""
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
            return TooManyPixels(
                f"the image needs too much memory, and input.max_pixels allows {self._max_pixels}: {_one_line(error)}"
            )
        return _broken(error, body, image_format(body) or "")

    def _check_size(self, image: Image.Image) -> None:
        self._check_sides(*image.size)
        tags = getattr(image, "tag_v2", {})
        tile = int(tags.get(_TIFF_TILE_WIDTH, 0)) * int(tags.get(_TIFF_TILE_HEIGHT, 0))
        if tile > self._max_pixels:
            raise TooManyPixels(f"tiles of {tile} pixels; input.max_pixels allows {self._max_pixels}")

    def _check_sides(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise CorruptImage(f"{width} x {height} pixels")
        if width * height > self._max_pixels:
            raise TooManyPixels(
                f"{width} x {height} is {width * height} pixels; input.max_pixels allows {self._max_pixels}"
            )
        if max(width, height) > MAX_SIDE:
            raise TooManyPixels(f"{width} x {height} pixels; a side may have {MAX_SIDE}")


def _prepare_pillow(max_pixels: int, formats: tuple[str, ...]) -> None:
    """What is one for the whole process. It only ever widens, so that decoders do not disturb each other."""
    global _highest_max_pixels  # noqa: PLW0603
    with _process:
        _highest_max_pixels = max(_highest_max_pixels, max_pixels)
        Image.MAX_IMAGE_PIXELS = _highest_max_pixels
        # Plugins are registered now, not by the first images on several threads at once.
        for name in formats:
            _register(name)
        # About odd metadata and palettes; every sender could flood the log with them. A filter for good, because
        # `warnings.catch_warnings` is not thread-safe.
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _register(name: str) -> None:
    if name == "HEIF":
        try:
            pillow_heif = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise SettingsError(
                f"input.formats has HEIF, and its decoder is not installed ({error})",
                remedy="pip install '.[heif]', or leave HEIF out of input.formats",
            ) from error
        # Threads are ours: pipeline.decode_threads. Thumbnails and the like are parsed for nothing.
        pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
        return
    plugin = importlib.import_module(_PLUGINS[name])
    if name == "TIFF":
        _silence_libtiff()
    if name == "AVIF":
        if not features.check("avif"):
            raise SettingsError(
                "input.formats has AVIF, and this build of Pillow cannot decode it",
                remedy="install Pillow's own wheel, or leave AVIF out of input.formats",
            )
        setattr(plugin, "DEFAULT_MAX_THREADS", 1)  # noqa: B010  threads are ours


def _silence_libtiff() -> None:
    """libtiff writes a line to stderr for each bad row: thousands for an image, into the midst of the log. Pillow has
    no switch for it; the library itself has. Nothing happens where Pillow was built otherwise."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    for path in {line.split(maxsplit=5)[5] for line in lines if "/libtiff" in line}:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _broken(error: Exception, body: bytes, kind: str) -> InvalidMessage:
    """What to call an image that Pillow gave up on."""
    text = _one_line(error)
    if any(each in text for each in _BOMB_TEXTS):
        return DecompressionBomb(f"the image's metadata unpack to too much: {text}")
    if isinstance(error, UnidentifiedImageError):
        text = "its header cannot be read"
    if ends_early(body, kind):
        return TruncatedImage(f"the {kind} image is cut short, {len(body)} bytes are not all of it: {text}")
    return CorruptImage(f"the {kind} image is damaged: {text}")


def _name(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where there is none or it cannot be read: broken metadata makes no broken image."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _turned_by_pillow(image: Image.Image) -> bool:
    """Whether the plugin itself turns the image by its EXIF tag, its size being the upright one already. HEIF's turns
    are properties of the picture, and part of decoding it."""
    return image.format == "TIFF" and _orientation(image) in _UPRIGHT


def _depth(image: Image.Image, applied: list[str]) -> tuple[int, bool]:
    """Significant bits of a 16-bit image, and whether its 0 is white. Call it before the image is loaded: Pillow keeps
    the high byte of 16-bit colours then, and forgets that there was another."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_TIFF_BITS, (16,))[0]
        return (bits if 8 < bits <= 16 else 16), tags.get(_TIFF_COLOURS) == 0
    for tile in getattr(image, "tile", ())[:1]:
        raw_mode = tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0])
        if ";16" in raw_mode and image.mode not in {"I", "F"}:
            applied.append("16-bit-to-8")
    return 16, False


def _bytes_a_pixel(image: Image.Image, scans: int) -> float:
    """Of the image itself, of what its plugin holds beside it, and of the copies that make it ready to be resized."""
    mode, kind = image.mode, image.format
    stored = 1 if mode in {"1", "L", "P"} else 2 if mode.startswith("I;16") else 4
    return stored + _copied(image) + _held_by_plugin(image, scans, stored, str(kind))


def _copied(image: Image.Image) -> float:
    mode = image.mode
    if mode == "PA" or "transparency" in image.info:
        return 8  # RGBA, and with its colours multiplied by alpha
    if mode in {"RGBA", "LA", "P"}:
        return 4
    if mode in {"I", "F"}:
        return 12
    return {"1": 1.0, "I;16B": 6.0, "I;16L": 6.0}.get(mode, 0.0)


def _held_by_plugin(image: Image.Image, scans: int, stored: int, kind: str) -> float:
    if kind in {"JPEG", "MPO"}:
        if not (image.info.get("progressive") or scans > 1):
            return 0
        # Two bytes for each coefficient of the whole image. `layer`: (id, horizontal, vertical sampling, table).
        sampling: list[int] = [across * down for _id, across, down, _table in getattr(image, "layer", ())] or [
            1,
            1,
            1,
            1,
        ]
        return 2 * sum(sampling) / max(1, *sampling) + 0.1
    if kind == "TIFF":
        tags = getattr(image, "tag_v2", {})
        strip = float(sum(tags.get(_TIFF_BITS, (8,)))) / 8  # the whole image may be one strip
        return min(strip, 32.0) + (stored if _turned_by_pillow(image) else 0)
    if kind == "BMP":
        return 3 if "bmp_rle" in str(getattr(image, "tile", "")) else 0
    return _OTHER_BYTES_A_PIXEL.get(kind, 0)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
