"""Small pictures for a page."""

import io

from PIL import Image, ImageOps

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def thumbnail(body: bytes, *, max_px: int = 640) -> bytes | None:
    """WebP of at most `max_px` on its longer side, the right way up; None where `body` is no image."""
    try:
        with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
            # A JPEG is decoded at a fraction of its size, which is most of the time saved.
            image.draft("RGB", (max_px, max_px))
            upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((max_px, max_px))
        small = io.BytesIO()
        upright.save(small, "WEBP", quality=80)
        return small.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
