"""Batch: when images go to the model together. Passive: the caller owns the thread, the lock and the time.

A batch closes at the first of

* `max_size` images,
* `max_bytes` of pixels,
* the last image before another model's: a batch never mixes two,
* `max_wait_ms` since its **first** image came,
* an idle model with work waiting, and nothing being decoded that could still join within `max_wait_ms`.

The model takes the largest batch there is the moment it is free; it waits only for what is already on its way.
"""

from collections import deque

from consumer.messages import Batch, CloseReason, DecodedImage


def padded_sizes(max_size: int) -> tuple[int, ...]:
    """The batch sizes that a model is warmed for, ascending and ending at `max_size`: powers of two and the steps
    halfway between them, so that padding is at most a third of a batch.

    >>> padded_sizes(16)
    (1, 2, 3, 4, 6, 8, 12, 16)
    """
    sizes = {max_size}
    power = 1
    while power < max_size:
        sizes.update((power, power + power // 2))
        power *= 2
    return tuple(sorted(size for size in sizes if 1 <= size <= max_size))


def padded(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest warmed size that holds `count` images."""
    return next(size for size in sizes if size >= count)


class Batcher:
    """Images waiting for the model, in the order in which they came."""

    def __init__(self, *, max_size: int, max_bytes: int, max_wait_ms: float) -> None:
        self._max_size = max_size
        self._max_bytes = max_bytes
        self._max_wait_s = max_wait_ms / 1000
        self._waiting: deque[DecodedImage] = deque()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, image: DecodedImage) -> bool:
        """One more image; `image.ready_s` is when it came. Whether `take` or `due_in_s` may now answer otherwise: only
        then need a model that waits be woken."""
        waiting = self._waiting
        waiting.append(image)
        self._held_bytes += image.pixels.nbytes
        return (
            len(waiting) == 1
            or len(waiting) >= self._max_size
            or self._held_bytes >= self._max_bytes
            or image.serving != waiting[0].serving
        )

    def due_in_s(self, now_s: float) -> float | None:
        """Seconds until age alone closes a batch; None with nothing waiting."""
        if not self._waiting:
            return None
        return max(0.0, self._waiting[0].ready_s + self._max_wait_s - now_s)

    def take(self, now_s: float, *, more_coming: bool) -> Batch | None:
        """The batch for a model that is free now; None while waiting pays.

        Args:
            now_s: monotonic seconds.
            more_coming: whether images are being decoded that could still join.
        """
        if not self._waiting:
            return None
        count, full = self._largest()
        if full is not None:
            reason = full
        elif self._waiting[0].ready_s + self._max_wait_s <= now_s:
            reason = CloseReason.AGE
        elif not more_coming:
            reason = CloseReason.IDLE
        else:
            return None
        images = tuple(self._waiting.popleft() for _ in range(count))
        self._held_bytes -= sum(image.pixels.nbytes for image in images)
        return Batch(images, reason)

    def _largest(self) -> tuple[int, CloseReason | None]:
        """How many of those waiting go together, and which bound they meet, if any."""
        held = 0
        for count, image in enumerate(self._waiting):
            if count == self._max_size:
                return count, CloseReason.SIZE
            if image.serving != self._waiting[0].serving:
                return count, CloseReason.MODEL
            held += image.pixels.nbytes
            if held > self._max_bytes and count:  # one image larger than the whole bound goes alone
                return count, CloseReason.BYTES
        if len(self._waiting) == self._max_size:
            return self._max_size, CloseReason.SIZE
        return len(self._waiting), CloseReason.BYTES if held >= self._max_bytes else None
