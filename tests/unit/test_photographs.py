"""Which images are taken for one photograph."""

import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumer.adapters.image import PillowDecoder
from consumer.stages.photographs import ALIKE_BITS, difference_hash, photograph_ids
from tests.models import PHOTOGRAPHS

ALL = sorted(PHOTOGRAPHS.glob("*.jpg"))


def hash_of(body: bytes) -> int:
    return difference_hash(PillowDecoder((96, 96)).decode(body).pixels)


def encoded(path: Path, *, quality: int, scale: float = 1.0) -> bytes:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    small = image.resize((int(image.width * scale), int(image.height * scale)))
    body = io.BytesIO()
    small.save(body, "JPEG", quality=quality)
    return body.getvalue()


def ids(names: list[str], bodies: list[bytes], **options: str) -> list[str]:
    return photograph_ids(
        names, [hashlib.sha256(b).hexdigest() for b in bodies], [hash_of(b) for b in bodies], **options
    )


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
@pytest.mark.parametrize(("quality", "scale"), [(30, 1.0), (95, 1.0), (60, 0.5)])
def test_a_photograph_encoded_anew_looks_alike(path: Path, quality: int, scale: float) -> None:
    again = hash_of(encoded(path, quality=quality, scale=scale))
    assert (hash_of(path.read_bytes()) ^ again).bit_count() <= 2


def test_other_photographs_do_not() -> None:
    hashes = [hash_of(path.read_bytes()) for path in ALL]
    assert all((one ^ other).bit_count() > 4 * ALIKE_BITS for one, other in itertools.combinations(hashes, 2))


def test_the_same_bytes_and_other_encodings_are_one_photograph() -> None:
    first, second = ALL[:2]
    bodies = [first.read_bytes(), second.read_bytes(), first.read_bytes(), encoded(second, quality=50)]
    found = ids(["a", "b", "c", "d"], bodies)
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]


def test_names_that_are_equal_up_to_a_text_are_one_photograph() -> None:
    bodies = [path.read_bytes() for path in ALL]
    assert len(bodies) == 4
    names = ["birds/a__1.jpg", "birds/a__2.jpg", "birds/b__1.jpg", "birds/plain.jpg"]
    assert len(set(ids(names, bodies))) == 4
    found = ids(names, bodies, cluster_by="__")
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_what_hangs_together_by_name_and_by_looks_is_one() -> None:
    first, second, third, _ = ALL
    bodies = [first.read_bytes(), second.read_bytes(), encoded(first, quality=40), third.read_bytes()]
    found = ids(["x__1", "x__2", "y__1", "y__2"], bodies, cluster_by="__")
    assert len(set(found)) == 1


def test_an_id_does_not_depend_on_the_order() -> None:
    bodies = [path.read_bytes() for path in ALL] + [encoded(ALL[0], quality=50)]
    names = [str(number) for number in range(len(bodies))]
    assert ids(names[::-1], bodies[::-1]) == ids(names, bodies)[::-1]


@pytest.mark.parametrize("side", [1, 5, 8, 300])
def test_pictures_of_any_size_have_a_hash(side: int) -> None:
    assert 0 <= difference_hash(np.full((side, 2 * side, 3), 90, np.uint8)) < 2**64
