"""The images that models are compared on: from a folder, or from the last messages of a topic.

Encoded bytes are decoded as they come and let go: what stays of an image is its pixels, and a thumbnail if wanted.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from consumer.commands.model._topic_images import Body, topic_bodies
from consumer.errors import InvalidMessage, SettingsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from consumer.ports import ImageDecoder
    from consumer.settings import Settings

MOST = 20_000
"""Images in one comparison: their pixels are held in memory, 150 KB each at 224 x 224."""
DEFAULT = 2_000
_TOPIC = re.compile(r"kafka://([A-Za-z0-9._-]{1,249})(?:\?last=([0-9]{1,9}))?")
_THUMBNAIL_PX = 320

Advance = Callable[[int, int | None], None]
"""Told how many images are done, and of how many, where that is known."""


@dataclass(frozen=True, slots=True)
class Topic:
    """`kafka://NAME?last=N`"""

    name: str
    last: int


@dataclass(frozen=True, slots=True)
class ModelImage:
    """An image as the models see it."""

    name: str
    photograph: str
    """Id of the photograph that it is of; see `stages.photographs`."""
    digest: str
    """SHA-256 of its bytes, in hex."""
    pixels: "tuple[npt.NDArray[np.uint8], ...]" = field(repr=False)
    """uint8 [H, W, 3] for each decoder."""
    thumbnail: bytes | None = field(default=None, repr=False)
    """WebP."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """What was read."""

    images: list[ModelImage]
    passed_over: Mapping[str, int]
    """How many were passed over, by the class of their error."""

    @property
    def images_of(self) -> Counter[str]:
        """How many images each photograph has."""
        return Counter(image.photograph for image in self.images)


def topic_of(source: str) -> Topic | None:
    """The topic that `--images` names; None where it is a folder or file. Raises SettingsError."""
    if not source.startswith("kafka:"):
        return None
    found = _TOPIC.fullmatch(source)
    last = int(found[2] or DEFAULT) if found else 0
    if found is None or not 1 <= last <= MOST:
        raise SettingsError(
            f"--images {source}: not a topic with a number of messages",
            remedy=f"write kafka://TOPIC?last=N with N from 1 to {MOST}",
        )
    return Topic(found[1], last)


def read_images(
    settings: "Settings",
    source: str,
    decoders: "Sequence[ImageDecoder]",
    *,
    limit: int,
    cluster_by: str = "",
    thumbnails: bool = False,
    advance: Advance = lambda _done, _of: None,
) -> ImageSet:
    """Read and decode what `--images` names.

    Args:
        settings: of Kafka, the stores and the input.
        source: a folder or file, or a topic (see `topic_of`).
        decoders: one for each size and way of preparing that is wanted.
        limit: of a folder the most images; of more, those whose names' hashes come first.
        cluster_by: see `stages.photographs.photograph_ids`.
        thumbnails: whether to keep one of each.
        advance: is told of the progress.

    Raises:
        SettingsError: no such folder or topic's name, or no image in it.
        Fatal: the topic cannot be read.
    """
    from consumer.stages.photographs import difference_hash, photograph_ids

    topic = topic_of(source)
    bodies = _of_folder(source, limit) if topic is None else topic_bodies(settings, topic.name, topic.last)
    passed_over: Counter[str] = Counter()
    read: list[ModelImage] = []
    hashes: list[int] = []
    done = 0
    for name, body, of in bodies:
        done += 1
        advance(done, of)
        if isinstance(body, Exception):
            passed_over[type(body).__name__] += 1
            continue
        try:
            pixels = tuple(decoder.decode(body).pixels for decoder in decoders)
        except InvalidMessage as error:
            passed_over[type(error).__name__] += 1
            continue
        hashes.append(difference_hash(pixels[0]))
        thumbnail = _thumbnail(body) if thumbnails else None
        read.append(ModelImage(name, "", hashlib.sha256(body).hexdigest(), pixels, thumbnail))
    if not read:
        told = ", ".join(f"{count} {name}" for name, count in sorted(passed_over.items())) or "nothing there"
        raise SettingsError(f"--images {source}: no image in it ({told})", remedy="name a folder or topic with some")
    ids = photograph_ids([each.name for each in read], [each.digest for each in read], hashes, cluster_by=cluster_by)
    images = [
        ModelImage(each.name, photograph, each.digest, each.pixels, each.thumbnail)
        for each, photograph in zip(read, ids, strict=True)
    ]
    return ImageSet(images, dict(passed_over))


def _thumbnail(body: bytes) -> bytes | None:
    from consumer.adapters.thumbnails import thumbnail

    return thumbnail(body, max_px=_THUMBNAIL_PX)


def _of_folder(source: str, limit: int) -> Iterator[Body]:
    from consumer.commands._sendable import find_images, suffix_filter

    found, missing = find_images([source], suffix_filter(None, everything=False))
    paths = [(image.image_id, image.path) for image in found if image.path is not None]
    if missing or not paths:
        raise SettingsError(
            f"--images {source}: {'no such file or folder' if missing else 'no images in it'}",
            remedy="name a folder of images, or kafka://TOPIC?last=N",
        )
    if len(paths) > limit:
        paths = sorted(paths, key=lambda each: hashlib.sha256(each[0].encode()).digest())[:limit]
    for name, path in paths:
        yield name, _bytes_of(path), len(paths)


def _bytes_of(path: Path) -> bytes | OSError:
    try:
        return path.read_bytes()
    except OSError as error:
        return error
