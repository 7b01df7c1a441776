"""Shrinking pictures by SIMD (cykooz-resizer, extra `simd`): Pillow's filters and windows, at a fifth of its cost.

Not its pixels: Pillow and this round between their two passes each in its own way, so that one sample in eight is
another by a grey level (bilinear). It is a setting of its own, therefore, and part of the model's digest.
"""

import importlib
import threading
from typing import Any

from PIL import Image

from consumer.errors import SettingsError

Box = tuple[float, float, float, float]
_FILTERS = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "catmull_rom",  # Pillow's bicubic has a = -0.5
    Image.Resampling.LANCZOS: "lanczos3",
    Image.Resampling.BOX: "box",
}


class SimdResize:
    """Of RGB pictures, by one filter. Thread-safe."""

    def __init__(self, resample: Image.Resampling) -> None:
        """Raises SettingsError where it is not installed, or has no such filter."""
        try:
            self._library: Any = importlib.import_module("cykooz_resizer")
        except ImportError as error:
            raise SettingsError(
                f'decode.resizer is "simd", and that is not installed ({error})',
                remedy="pip install '.[simd]', or set decode.resizer = \"pillow\"",
            ) from error
        if resample not in _FILTERS:
            raise SettingsError(
                f'decode.resizer is "simd", which has no filter {resample.name.lower()}',
                remedy='set decode.resizer = "pillow", or model.resize to bilinear, bicubic, lanczos or box',
            )
        self._algorithm = self._library.ResizeAlg.convolution(getattr(self._library.FilterType, _FILTERS[resample]))
        self._own = threading.local()  # a resizer keeps buffers

    def __call__(self, image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
        """What is in `box` of an RGB image, as `size` (width, height)."""
        library = self._library
        if not hasattr(self._own, "resizer"):
            self._own.resizer = library.Resizer()
        left, top, right, bottom = box
        options = library.ResizeOptions(
            resize_alg=self._algorithm, crop_box=library.CropBox(left, top, right - left, bottom - top)
        )
        small = Image.new("RGB", size)
        self._own.resizer.resize_pil(image, small, options)
        return small
