"""From an image in any of Pillow's modes to RGB, shrunk to the model's size on the way.

Whatever can be done to the few pixels of the small image is done there: resize first, then turn, convert and flatten.
Each function that changes pixels adds the name of what it did to `applied`; docs/models.md lists them.
"""

import io
import math
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""A colour profile larger than that is passed over; press profiles with their tables have about 2 MB."""

Box = tuple[float, float, float, float]

_AVERAGED = frozenset({"RGB", "L", "RGBA", "LA", "CMYK", "RGBX", "YCbCr", "LAB", "I;16", "F"})
"""Modes whose samples may be averaged as they are."""
_BY_INDEX = {"P": "palette-to-rgb", "PA": "palette-to-rgb", "1": "bilevel-to-grey"}
_PROFILE_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_TO_RGB = {"L": "grey-to-rgb", "CMYK": "cmyk-to-rgb", "YCbCr": "ycbcr-to-rgb", "LAB": "lab-to-rgb"}


def resizable(image: Image.Image, applied: list[str]) -> Image.Image:
    """In a mode whose samples may be averaged, at full size; most photographs pass through untouched."""
    mode = image.mode
    clear = mode == "PA" or "transparency" in image.info  # a colour, or palette entries, that stand for clear
    if mode in _BY_INDEX:
        applied.append(_BY_INDEX[mode])
        return image.convert("RGBA" if clear else "L" if mode == "1" else "RGB")
    if mode in {"RGB", "L"} and clear:
        return image.convert("RGBA")
    if mode in _AVERAGED:
        return image
    if mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    return image.convert("F" if mode == "I" else "RGB")


def shrunk(image: Image.Image, size: tuple[int, int], resample: Image.Resampling, box: Box) -> Image.Image:
    """Resized to `size` (width, height). Pillow goes across first; where that would widen, we go down first, so that a
    picture of one column never becomes a large one on the way."""
    width, height = size
    if box[2] - box[0] < width and box[3] - box[1] > height:
        image = image.resize((image.width, height), resample, box=(0, box[1], image.width, box[3]))
        box = (box[0], 0, box[2], height)
    return image.resize(size, resample, box=box)


def eight_bit(
    image: Image.Image, applied: list[str], *, bits: int, inverted: bool, samples: tuple[float, float]
) -> Image.Image:
    """Deeper grey as 8 bits.

    Args:
        image: small.
        applied: gets the name of what was done.
        bits: significant bits of an `I;16` image: 16, or 12.
        inverted: whether 0 is white.
        samples: the least and the greatest value of an `F` image, which become black and white: 32-bit and
            floating-point samples have no agreed white.
    """
    if image.mode == "I;16":
        applied.append("16-bit-to-8")
        scaled = np.asarray(image, np.float32) * np.float32(255 / ((1 << bits) - 1))
    elif image.mode == "F":
        applied.append("stretched-to-8")
        low, high = samples
        scaled = (np.asarray(image, np.float32) - np.float32(low)) * np.float32(255 / (high - low) if high > low else 0)
    else:
        return image
    grey = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


def finite(image: Image.Image) -> tuple[Image.Image, tuple[float, float]]:
    """An `F` image whose samples are all numbers, what was none being 0, with the least and the greatest of them."""
    values: npt.NDArray[np.float32] = np.array(image, np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(values), (low, high)


def rgb(
    image: Image.Image, applied: list[str], *, background: tuple[int, int, int], profile: bytes | None
) -> Image.Image:
    """A small image as RGB.

    Args:
        image: in a mode that `resizable` leaves.
        applied: gets the names of what was done.
        background: what shows where the image is clear.
        profile: the image's ICC profile where colours are to become sRGB by it; one that cannot be used is passed over.
    """
    alpha = image.getchannel("A") if image.mode in {"RGBA", "LA"} else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    managed = _by_profile(image, profile) if profile else None
    if managed is not None:
        applied.append("icc-to-srgb")
        image = managed
    if image.mode != "RGB":
        if image.mode in _TO_RGB:
            applied.append(_TO_RGB[image.mode])
        image = _lab_to_rgb(image) if image.mode == "LAB" else image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    applied.append("alpha-over-background")
    return Image.composite(image, Image.new("RGB", image.size, background), alpha)


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """None where the profile is broken, or is for other channels than the image has: it is the image that counts."""
    if len(profile) > MAX_PROFILE_BYTES or not _tables_are_whole(profile):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_SPACES.get(source.profile.xcolor_space) != image.mode:
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:
        return None


def _tables_are_whole(profile: bytes) -> bool:
    """Whether each table of a profile (ICC.1:2022, clause 10) has an entry's byte for every entry that it declares.

    Little CMS allocates what is declared, up to 512 MiB a table, before it looks at what is there. Two kinds whose
    tables are not looked through count as not whole, as no photograph has them: lists of named colours, and
    `multiProcessElementsType`, which has floating-point numbers.
    """
    if len(profile) < 132 or profile[12:16] == b"nmcl":
        return False
    (count,) = struct.unpack_from(">I", profile, 128)
    for at in range(132, 132 + 12 * min(count, len(profile) // 12), 12):
        if at + 12 > len(profile):
            return False
        (start,) = struct.unpack_from(">I", profile, at + 4)
        kind = profile[start : start + 4]
        grid = b""
        if kind == b"mpet":
            return False
        if kind in {b"mft1", b"mft2"}:
            grid = profile[start + 10 : start + 11] * 16
        elif kind in {b"mAB ", b"mBA "} and start + 28 <= len(profile):
            table = start + struct.unpack_from(">I", profile, start + 24)[0]
            grid = profile[table : table + 16] if table > start else b""
        if grid and math.prod(grid[: profile[start + 8]]) * profile[start + 9] > len(profile):
            return False
    return True


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return to_rgb.apply(image)
