"""`decode.resizer = "simd"`: Pillow's pictures to within a grey level, where it is used at all."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from consumer.adapters.image import PillowDecoder, Resize
from consumer.bootstrap_model import load_model
from consumer.errors import SettingsError
from consumer.settings import Settings
from tests.models import PHOTOGRAPHS

SIZE = (96, 64)


@pytest.fixture
def _resizer() -> None:
    pytest.importorskip("cykooz_resizer", reason="cykooz-resizer is not installed: Linux on ARM has no wheels of it")


needs_resizer = pytest.mark.usefixtures("_resizer")


def _pixels(body: bytes, resizer: str, resize: Resize = "bilinear", crop: float = 1.0) -> npt.NDArray[np.int_]:
    decoder = PillowDecoder(SIZE, resize=resize, crop=crop, resizer=resizer)  # type: ignore[arg-type]
    return decoder.decode(body).pixels.astype(int)


def _photographs() -> list[Path]:
    return sorted(PHOTOGRAPHS.glob("*.jpg"))


@needs_resizer
@pytest.mark.parametrize("crop", [1.0, 0.7])
@pytest.mark.parametrize(("resize", "most"), [("bilinear", 1), ("bicubic", 8), ("lanczos", 16)])
def test_pictures_are_pillows_to_within_what_rounding_does(resize: Resize, most: int, crop: float) -> None:
    for path in _photographs():
        one, other = (_pixels(path.read_bytes(), resizer, resize, crop) for resizer in ("pillow", "simd"))
        assert np.abs(one - other).max() <= most
        assert np.abs(one - other).mean() < 0.3


@needs_resizer
def test_it_is_not_pillow_that_answers() -> None:
    bodies = [path.read_bytes() for path in _photographs()]
    assert any((_pixels(body, "pillow") != _pixels(body, "simd")).any() for body in bodies)


@needs_resizer
@pytest.mark.parametrize(
    ("mode", "size"), [("L", (300, 200)), ("RGB", (40, 30)), ("RGB", (40, 300)), ("RGBA", (300, 200))]
)
def test_grey_and_clear_pictures_and_those_that_grow_are_pillows(mode: str, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(file, "PNG")
    assert (_pixels(file.getvalue(), "pillow") == _pixels(file.getvalue(), "simd")).all()


@needs_resizer
def test_threads_that_share_it_have_the_same_pixels() -> None:
    decoder = PillowDecoder(SIZE, resizer="simd")
    bodies = [path.read_bytes() for path in _photographs()] * 8
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(lambda body: decoder.decode(body).pixels, bodies))
    assert all((found == decoder.decode(body).pixels).all() for found, body in zip(side_by_side, bodies, strict=True))


@needs_resizer
def test_it_is_part_of_the_digest_and_pillow_leaves_the_digest_as_it_was() -> None:
    def digest(**decode: str) -> str:
        return load_model(Settings.model_validate({"model": {"runtime": "null"}, "decode": decode})).runtime.info.digest

    assert digest() == digest(resizer="pillow")
    assert digest(resizer="simd") != digest()


def test_a_resizer_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    with pytest.raises(SettingsError, match=r"simd") as caught:
        PillowDecoder(SIZE, resizer="simd")
    assert ".[simd]" in str(caught.value.remedy)


@needs_resizer
def test_a_filter_that_it_has_not_is_refused() -> None:
    with pytest.raises(SettingsError, match="hamming"):
        PillowDecoder(SIZE, resize="hamming", resizer="simd")
