"""Which model labels. A swap is one assignment between two images: whoever is decoded after it is the new one's, and
what the old one decoded it also labels. It is closed when its last image has left.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from loguru import logger

from consumer.messages import ModelInfo
from consumer.ports import ImageDecoder, SandboxedDecoder
from consumer.stages.infer import Inference


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A model that is loaded, with the decoders that make its pixels."""

    decoder: ImageDecoder
    sandbox: SandboxedDecoder
    """The same in a child process, for suspects."""
    inference: Inference
    decodes_as: Hashable = None
    """Equal for two that make the same pixels of an image: input size, resize, crop."""
    release: Callable[[], None] = lambda: None
    """Its files on this disk are not needed any more."""

    @property
    def info(self) -> ModelInfo:
        """Which model it is."""
        return self.inference.info

    def close(self) -> None:
        """Free what it holds. Nobody may need it any more. Idempotent.

        What cannot be freed is said and harms nobody: whoever closes it labels on with another, or ends.
        """
        for what, free in (("sandbox", self.sandbox.close), ("model", self.inference.close), ("files", self.release)):
            try:
                free()
            except Exception as error:
                about = logger.opt(exception=error)
                about.error("model {} {} is done, and its {} cannot be freed", self.info.name, self.info.version, what)


class Servings:
    """The one that labels now, and those before it that still have images. Any thread."""

    def __init__(self, first: Serving) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._by_number = {0: first}
        self._images = {0: 0}

    @property
    def current(self) -> Serving:
        """The one that an image which comes now is for."""
        with self._lock:  # between the number and its model another may take over
            return self._by_number[self._number]

    def enter(self) -> tuple[int, Serving]:
        """An image is about to be decoded: the current one, and the number that `leave` wants back."""
        with self._lock:
            self._images[self._number] += 1
            return self._number, self._by_number[self._number]

    def of(self, number: int) -> Serving:
        """The one of this number, for an image that has not left."""
        with self._lock:
            return self._by_number[number]

    def leave(self, number: int, images: int = 1) -> None:
        """So many images of it are done, in whatever way. The last one of an old one closes it."""
        with self._lock:
            self._images[number] -= images
        self._close_if_done(number)

    def swap(self, serving: Serving) -> None:
        """From now on this one."""
        with self._lock:
            old = self._number
            self._number += 1
            self._by_number[self._number] = serving
            self._images[self._number] = 0
        self._close_if_done(old)

    def close(self) -> None:
        """All of them."""
        with self._lock:
            every = list(self._by_number.values())
        for serving in every:
            serving.close()

    def _close_if_done(self, number: int) -> None:
        with self._lock:
            if number == self._number or self._images.get(number) != 0:
                return
            del self._images[number]
            done = self._by_number.pop(number)
        done.close()
