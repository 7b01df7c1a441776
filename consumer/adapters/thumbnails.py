"""Small pictures for a page."""

import io

from PIL import Image, ImageOps

from consumer.adapters.image_structure import refuse_costly
from consumer.errors import CorruptImage
from consumer.image_formats import image_format

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")


def thumbnail(body: bytes, *, max_px: int = 640) -> bytes | None:
    """WebP of at most `max_px` on its longer side, the right way up; None where `body` is no image."""
    found = image_format(body)
    if found is None or found not in _FORMATS:
        return None
    try:
        refuse_costly(body, found)
        with Image.open(io.BytesIO(body), formats=(found,)) as image:
            # A JPEG is decoded at a fraction of its size, which is most of the time saved.
            image.draft("RGB", (max_px, max_px))
            upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((max_px, max_px))
        small = io.BytesIO()
        upright.save(small, "WEBP", quality=80)
        return small.getvalue()
    except (CorruptImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
