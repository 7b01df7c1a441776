"""What the fault tests share: small photographs."""

from pathlib import Path

import pytest

from tests.models import PHOTOGRAPHS

_SIDES_PX = (64, 80, 96, 112, 128, 144, 160)


@pytest.fixture(scope="session")
def small_photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Cuts of real photographs, 64 to 160 pixels wide and high, as JPEG: about 4 KB each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("small-photographs")
    found = sorted(PHOTOGRAPHS.glob("*.jpg"))
    paths = []
    for number, side_px in enumerate(_SIDES_PX):
        path = folder / f"photograph-{number}.jpg"
        with Image.open(found[number % len(found)]) as whole:
            left, top = (whole.width - side_px) // 2, (whole.height - side_px) // 2
            whole.convert("RGB").crop((left, top, left + side_px, top + side_px)).save(path, quality=85)
        paths.append(path)
    return paths
