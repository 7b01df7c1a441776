"""`ouzel run` with a model, a decoder and a store that fail as they are told. Only tests start it.

Pictures of one colour bring out a fault (`picture_of`):
    magenta     the model raises on every batch that holds it
    cyan        the model's scores for it are not numbers
    yellow      a defect of ours while it is decoded
OUZEL_TEST_STORE=folder     serves `test://host/name`, and `s3` and `gs` likewise, from folder/name. With a file
                            folder/host.down the host fails like a store that is away, with folder/name.failing that
                            one image; each try adds a line to folder/tries. Objects of `s3` and `gs` have their MD5
                            as ETag, and the version that the URI asks for
OUZEL_TEST_SLOW_MODEL_S=seconds     each batch takes so much longer
"""

import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from consumer.bootstrap import Ports
from consumer.errors import Fatal, ImageNotFound, StoreUnavailable
from consumer.messages import Decoded, OpenedImage, StoredImage, StoredVersion
from consumer.ports import ImageStore
from consumer.service import end_service, run_service
from consumer.settings import load
from tests.crashing_replica import Wrapped

ENTRY = "tests.faulty_replica"

Colour = Literal["magenta", "cyan", "yellow"]
_RGB: dict[Colour, tuple[int, int, int]] = {"magenta": (255, 0, 255), "cyan": (0, 255, 255), "yellow": (255, 255, 0)}


def picture_of(colour: Colour) -> bytes:
    """A PNG of one colour."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16), _RGB[colour]).save(file, "PNG")
    return file.getvalue()


def _is(pixels: Any, colour: Colour) -> bool:
    return bool((pixels == np.array(_RGB[colour], np.uint8)).all())


class ToldStore:
    """A store of files in a folder, with outages on demand."""

    schemes = frozenset({"test", "s3", "gs"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def health_key(self, uri: str) -> str:
        """The host fails as a whole."""
        return f"{urlsplit(uri).scheme}://{urlsplit(uri).netloc}"

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`."""
        host, name = urlsplit(uri).netloc, unquote(urlsplit(uri).path).strip("/")
        with self._lock, (self._folder / "tries").open("a") as tries:
            tries.write(f"{host}/{name}\n")
        if (self._folder / f"{host}.down").exists() or (self._folder / f"{name}.failing").exists():
            raise StoreUnavailable(f"{uri}: 503")
        path = self._folder / name
        if not path.exists():
            raise ImageNotFound(f"{uri}: 404")
        body = path.read_bytes()[:max_bytes]
        return StoredImage(body) if uri.startswith("test:") else StoredImage(body, _version(uri, body))


def _version(uri: str, body: bytes) -> StoredVersion:
    query = dict(parse_qsl(urlsplit(uri).query))
    asked = query.get("versionId") or query.get("generation")
    return StoredVersion(etag=hashlib.md5(body, usedforsecurity=False).hexdigest(), version_id=asked)


def with_faults(ports: Ports) -> Ports:
    """Puts the faults between the service and its ports."""
    decoder, runtime = ports.model.decoder, ports.model.runtime
    slow_s = float(os.environ.get("OUZEL_TEST_SLOW_MODEL_S", "0"))

    def opened(body: bytes) -> OpenedImage:
        image = decoder.open(body)

        def decode() -> Decoded:
            decoded = image.decode()
            if _is(decoded.pixels, "yellow"):
                raise ZeroDivisionError("the seeded defect")
            return decoded

        return replace(image, decode=decode)

    def infer(pixels: Any) -> Any:
        if not pixels.any():  # blank: the service learns at its start what a batch costs
            return runtime.infer(pixels)
        time.sleep(slow_s)
        if any(_is(image, "magenta") for image in pixels):
            raise ValueError("the seeded failure of the model")
        scores = runtime.infer(pixels).copy()
        for row, image in enumerate(pixels):
            if _is(image, "cyan"):
                scores[row] = np.nan
        return scores

    wrapped: Any = Wrapped
    stores: Sequence[ImageStore] = ports.stores
    folder = os.environ.get("OUZEL_TEST_STORE")
    if folder is not None:
        stores = [*stores, ToldStore(Path(folder))]
    model = replace(ports.model, decoder=wrapped(decoder, open=opened), runtime=wrapped(runtime, infer=infer))
    return replace(ports, stores=stores, model=model)


def main() -> None:
    """What `ouzel run` does."""
    try:
        run_service(load(), resume="--resume" in sys.argv, wrap=with_faults)
    except Fatal as error:
        end_service(error)


if __name__ == "__main__":
    main()
