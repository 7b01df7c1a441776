"""What is labelled: distinct JPEGs of one size, of others for the decode terms, and the messages that carry them."""

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from consumer.adapters.bench_clients import Record
from consumer.adapters.bench_images import jpeg_of_size, noise_jpeg
from consumer.demo.session import PHOTOGRAPHS, find_images
from consumer.errors import SettingsError
from consumer.headers import CONTENT_TYPE, IMAGE_ID

Form = Literal["raw", "inline", "reference"]
FORMS: tuple[Form, ...] = ("raw", "inline", "reference")
"""As `ouzel send --as` has them; its own default is the first."""
SIZES_MP = (0.1, 0.3, 2.0, 12.0)
"""Megapixels at which decoding is measured."""
QUALITY = 90
DISTINCT = 16
_DISTINCT_OF_OTHER_SIZES = 4
_AT_MOST_FILES = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """Images in a folder, by size."""

    folder: Path
    source: str
    """Where they are from, for people."""
    megapixels: float
    bodies: Sequence[bytes] = field(repr=False)
    """JPEGs of `megapixels`."""
    sizes: Sequence[float]
    """All sizes that there are, ascending; those of `megapixels` among them."""

    @property
    def mean_bytes(self) -> float:
        """Of an image of the workload."""
        return sum(map(len, self.bodies)) / len(self.bodies)


def make_workload(images: Path | None, folder: Path, *, megapixels: float, sizes: Sequence[float]) -> Workload:
    """Encode the images into `folder`, one folder for each size.

    Raises SettingsError where `images` has none that can be decoded.
    """
    source, originals = _originals(images)
    every = sorted({*sizes, megapixels})
    bodies: list[bytes] = []
    for size in every:
        count = DISTINCT if size == megapixels else _DISTINCT_OF_OTHER_SIZES
        found = _bodies(originals, count, size)
        if not found:
            raise SettingsError(f"nothing in {images} can be decoded", remedy="give a folder of JPEGs: --images")
        below = size_folder(folder, size)
        below.mkdir(parents=True)
        for number, body in enumerate(found):
            (below / f"{number:02d}.jpg").write_bytes(body)
        if size == megapixels:
            bodies = found
    return Workload(folder, source, megapixels, bodies, every)


def size_folder(folder: Path, megapixels: float) -> Path:
    """Where the images of a size lie."""
    return folder / f"{megapixels:g}"


def read_bodies(folder: Path, megapixels: float) -> list[bytes]:
    """The images of a size."""
    return [path.read_bytes() for path in _paths(folder, megapixels)]


def _paths(folder: Path, megapixels: float) -> list[Path]:
    return sorted(size_folder(folder, megapixels).glob("*.jpg"))


def _originals(images: Path | None) -> tuple[str, list[bytes]]:
    """None of them where there are no photographs: noise then."""
    if images is not None:
        paths = list(find_images(images).values())[:_AT_MOST_FILES]
        return f"{len(paths)} files of {images}", [path.read_bytes() for path in paths]
    if PHOTOGRAPHS.is_dir():
        paths = list(find_images(PHOTOGRAPHS).values())
        return f"cuts of the demo's {len(paths)} photographs", [path.read_bytes() for path in paths]
    return "1/f noise, no photographs", []


def _bodies(originals: Sequence[bytes], count: int, megapixels: float) -> list[bytes]:
    if not originals:
        return [noise_jpeg(seed, megapixels=megapixels, quality=QUALITY) for seed in range(count)]
    rounds = range(-(-count // len(originals)))
    made = (
        jpeg_of_size(original, megapixels=megapixels, quality=QUALITY, variant=variant)
        for variant, original in itertools.product(rounds, originals)
    )
    return list(itertools.islice((body for body in made if body is not None), count))


# --- messages -------------------------------------------------------------------------------------------------------


def records(folder: Path, megapixels: float, form: Form, count: int, *, prefix: str = "image") -> Iterator[Record]:
    """`count` messages, the images in turn, each with an id of its own, as `ouzel send --as FORM` writes them."""
    paths = _paths(folder, megapixels)
    carried = [_carried(path, form) for path in paths]
    for number in range(count):
        yield _record(f"{prefix}-{number}", carried[number % len(carried)], form)


def _carried(path: Path, form: Form) -> bytes:
    if form == "reference":
        return path.resolve().as_uri().encode()
    body = path.read_bytes()
    return body if form == "raw" else base64.b64encode(body)


def _record(image_id: str, carried: bytes, form: Form) -> Record:
    if form == "raw":
        return Record(image_id, carried, ((IMAGE_ID, image_id.encode()), (CONTENT_TYPE, b"image/jpeg")))
    name = "data" if form == "inline" else "uri"
    value = orjson.dumps({"image_id": image_id, name: carried.decode()})
    return Record(image_id, value, ((CONTENT_TYPE, b"application/json"),))
