"""Pillow: from encoded bytes to the model's pixels. The bytes are a stranger's, and are treated so.

* Only the allowed formats are tried (never EPS, which would start Ghostscript).
* The declared size is checked by ourselves before any pixel is allocated, against this decoder's own bound: Pillow's
  `MAX_IMAGE_PIXELS` is one value for the whole process and raises at twice that only. It is kept at the highest bound
  of any decoder here, for the sizes that Pillow meets further inside a file (frames, tiles).
* The whole image is decoded, without JPEG's scaled decoding (`draft`): that would be two to six times faster and moves
  scores (0.417 became 0.363 on a bird).
* A photograph is turned as its EXIF orientation says: cameras store the sensor's rows, and people look at it upright.
* Transparency is laid over white, as a page shows it, once the image is small. Grey, palette and CMYK become RGB;
  16-bit grey keeps its high byte; 32-bit and floating-point samples, which have no agreed white, are stretched from
  their least to their greatest value.
* Anything that Pillow raises about the bytes is `NotAnImage`, and its warnings are silenced, not raised.
"""

import hashlib
import importlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from consumer.errors import ImageTooLarge, InvalidMessage, NotAnImage
from consumer.messages import ImageFacts

Resize = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]

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

_PLUGINS = {
    "JPEG": "PIL.MpoImagePlugin",  # imports JPEG's; an MPO is a telephone's JPEG with more pictures behind it
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
}

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
        formats: Sequence[str] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"),
    ) -> None:
        """
        Args:
            input_size: (height, width) that the model takes.
            resize: the filter; all but `nearest` are antialiased.
            crop: 1.0 squeezes the whole image into the input size. Below it, that share of the largest centred box of
                the input's aspect is kept (for a square input: of the shorter side).
            max_pixels: width times height that an image may declare.
            formats: Pillow's names of the formats to try.
        """
        self._height, self._width = input_size
        self._filter = _FILTERS[resize]
        self._crop = crop
        self._max_pixels = max_pixels
        self._formats = tuple(formats)
        _prepare_pillow(max_pixels, self._formats)

    def measure(self, body: bytes) -> ImageFacts:
        """Size, format and SHA-256; reads the header alone, and allocates no pixels.

        Width and height are those that are stored, before the EXIF orientation.

        Raises:
            NotAnImage: no allowed format.
            ImageTooLarge: declares more pixels than the settings allow.
        """
        with self._opened(body) as image:
            width, height = image.size
            kind = "JPEG" if image.format == "MPO" else str(image.format)
        digest = hashlib.sha256(body).hexdigest()
        return ImageFacts(width=width, height=height, format=kind, sha256=digest, size_bytes=len(body))

    def decode(self, body: bytes) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB at the model's input size; contiguous, and the caller's own.

        Raises:
            NotAnImage: cut short or corrupt.
            ImageTooLarge: declares more pixels than the settings allow.
        """
        with self._opened(body) as image:
            image.load()
            # A file may say another size once it is read.
            self._check_size(image)
            orientation = _orientation(image)
            sideways = orientation in _SIDEWAYS
            width, height = (self._height, self._width) if sideways else (self._width, self._height)
            # Resize first, then turn, flatten and convert: these then touch the few pixels that the model sees.
            small = _resizable(image).resize((width, height), self._filter, box=self._box(image.size, width, height))
            if orientation in _UPRIGHT:
                small = small.transpose(_UPRIGHT[orientation])
            return np.array(_rgb(small), dtype=np.uint8)

    def _box(self, size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
        """The part of the image that is kept: left, top, right, bottom."""
        image_width, image_height = size
        if self._crop >= 1.0:
            return (0, 0, image_width, image_height)
        scale = self._crop * min(image_width / width, image_height / height)
        margin_x, margin_y = (image_width - scale * width) / 2, (image_height - scale * height) / 2
        return (margin_x, margin_y, image_width - margin_x, image_height - margin_y)

    @contextmanager
    def _opened(self, body: bytes) -> Iterator[Image.Image]:
        """The image with its header read and its size checked; whatever Pillow raises inside is our error."""
        try:
            with Image.open(io.BytesIO(body), formats=self._formats) as image:
                self._check_size(image)
                yield image
        except InvalidMessage:
            raise
        except UnidentifiedImageError:
            names = ", ".join(self._formats)
            raise NotAnImage(f"{len(body)} bytes that are none of {names}") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
            raise ImageTooLarge(
                f"the image needs too much memory, and input.max_pixels allows {self._max_pixels}: {_one_line(error)}"
            ) from error
        except Exception as error:
            # Pillow's plugins raise nearly anything on broken bytes, from struct.error to RecursionError.
            raise NotAnImage(f"the image is cut short or corrupt: {_one_line(error)}") from error

    def _check_size(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self._max_pixels:
            raise ImageTooLarge(
                f"{width} x {height} is {width * height} pixels; input.max_pixels allows {self._max_pixels}"
            )
        if width < 1 or height < 1:
            raise NotAnImage(f"{width} x {height} pixels")


def _prepare_pillow(max_pixels: int, formats: tuple[str, ...]) -> None:
    """What is one for the whole process. It only ever widens, so that decoders do not disturb each other."""
    global _highest_max_pixels  # noqa: PLW0603
    with _process:
        _highest_max_pixels = max(_highest_max_pixels, max_pixels)
        Image.MAX_IMAGE_PIXELS = _highest_max_pixels
        # Plugins are registered now, not by the first images on several threads at once.
        for name in formats:
            importlib.import_module(_PLUGINS[name])
        # About odd metadata and palettes; every sender could flood the log with them. A filter for good, because
        # `warnings.catch_warnings` is not thread-safe.
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where there is none or it cannot be read: broken metadata makes no broken image."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _resizable(image: Image.Image) -> Image.Image:
    """In a mode whose samples may be averaged, at full size; most photographs pass through untouched."""
    mode = image.mode
    if mode in {"RGB", "L", "P", "PA"}:
        clear = mode == "PA" or "transparency" in image.info  # a colour, or palette entries, that stand for clear
        mode_for = "RGBA" if clear else "RGB"
        return image if mode in {"RGB", "L"} and not clear else image.convert(mode_for)
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in {"I", "F"}:
        return Image.fromarray(_stretched(np.asarray(image, dtype=np.float32)))
    if mode in {"RGBA", "LA", "CMYK", "RGBX", "YCbCr"}:
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _stretched(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if high <= low:
        return np.zeros(finite.shape, np.uint8)
    stretched: npt.NDArray[np.uint8] = np.rint((finite - low) * (255.0 / (high - low))).astype(np.uint8)
    return stretched


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in {"RGBA", "LA"}:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
