"""Crops and mirrored copies of the few real photographs: many images that are not independent, and said to be so."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tests.models import PHOTOGRAPHS

SEPARATOR = "__"
"""Between the photograph's name and the crop's: `--cluster-by __`."""


_SMALL_SIDES_PX = (64, 80, 96, 112, 128, 144, 160)


def write_small(folder: Path) -> list[Path]:
    """Cuts of the photographs, 64 to 160 pixels wide and high, as JPEG: about 4 KB each."""
    found = sorted(PHOTOGRAPHS.glob("*.jpg"))
    paths = []
    for number, side_px in enumerate(_SMALL_SIDES_PX):
        path = folder / f"photograph-{number}.jpg"
        with Image.open(found[number % len(found)]) as whole:
            left, top = (whole.width - side_px) // 2, (whole.height - side_px) // 2
            whole.convert("RGB").crop((left, top, left + side_px, top + side_px)).save(path, quality=85)
        paths.append(path)
    return paths


def write_crops(folder: Path, *, each: int, photographs: Iterable[Path] | None = None) -> Path:
    """Write `each` crops of each photograph into `folder`, every other one mirrored, and return it. The first is the
    whole picture; the others keep 95 % of each side down to 70 %, from one corner or the middle after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")) if photographs is None else photographs:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        for number in range(each):
            share = 1.0 - 0.05 * (number // 2 % 7)
            width, height = int(whole.width * share), int(whole.height * share)
            left, top = (whole.width - width) * (number % 3) // 2, (whole.height - height) * (number % 4) // 3
            crop = whole.crop((left, top, left + width, top + height))
            if number % 2:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            body = io.BytesIO()
            crop.save(body, "JPEG", quality=92)
            (folder / f"{path.stem}{SEPARATOR}{number}.jpg").write_bytes(body.getvalue())
    return folder
