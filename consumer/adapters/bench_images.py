"""The photographs of `ouzel bench`: real ones brought to a size, or noise that looks like them to a decoder."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError


def jpeg_of_size(source: bytes, *, megapixels: float, quality: int, variant: int = 0) -> bytes | None:
    """A JPEG of about so many megapixels, in the source's proportions; None where the source is no image.

    A source that is smaller is continued in its mirror image, so that a pixel keeps as much detail as it had: blown up,
    it would be decoded more cheaply than a real photograph of that size. `variant` cuts a little off the edges: other
    bytes, the same motif.
    """
    try:
        with Image.open(io.BytesIO(source)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None
    inset = min(8 * variant, picture.width // 4, picture.height // 4)
    picture = picture.crop((inset, inset, picture.width - inset, picture.height - inset))
    wanted = megapixels * 1e6
    factor = math.sqrt(wanted / (picture.width * picture.height))
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.LANCZOS) if factor <= 1 else _continued(picture, size)
    return _encoded(picture, quality)


def noise_jpeg(seed: int, *, megapixels: float, quality: int) -> bytes:
    """A JPEG of 1/f noise: in each octave as much contrast, as photographs have it on average."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(height * 4 / 3)
    dice = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(dice.standard_normal((height, width))) / frequency
        spectrum[0, 0] = 0
        plane = np.fft.irfft2(spectrum, s=(height, width))
        channels.append(np.clip(127 + 50 * plane / plane.std(), 0, 255))
    return _encoded(Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)), quality)


def _continued(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture tiled, every other tile mirrored, and cut to the size."""
    whole = Image.new("RGB", size)
    mirrored = {
        (0, 0): picture,
        (1, 0): picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        (0, 1): picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        (1, 1): picture.transpose(Image.Transpose.ROTATE_180),
    }
    for column in range(math.ceil(size[0] / picture.width)):
        for row in range(math.ceil(size[1] / picture.height)):
            whole.paste(mirrored[column % 2, row % 2], (column * picture.width, row * picture.height))
    return whole


def _encoded(picture: Image.Image, quality: int) -> bytes:
    body = io.BytesIO()
    picture.save(body, "JPEG", quality=quality)
    return body.getvalue()
