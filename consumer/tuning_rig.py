"""Images/s of decoding and inference side by side on all cores, with given settings: the service's own flow, in this
process, fed from memory. No broker, no fetch, no events."""

import threading
import time
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from loguru import logger

from consumer import bootstrap
from consumer.bootstrap_model import Model, cache_folder
from consumer.clock import SystemClock
from consumer.errors import Fatal
from consumer.headers import CONTENT_TYPE, IMAGE_ID
from consumer.messages import Delivery, Labelled, Lease, Outcome, Partition, Rejected
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.ports import ModelRuntime
from consumer.settings import Settings
from consumer.settings_tables import SchemaRegistrySettings
from consumer.stages.batch import padded_sizes
from consumer.stages.intake import ByteBudget
from consumer.tuning_settings import BATCH, STREAMS, THREADS, applied

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from consumer.messages import ModelInfo
    from consumer.tuning import Point

_IMAGES = 8
"""At least, in a look, after the batch with which it begins to count: whole batches, from one's end to another's."""
_LOST_S = 60.0
"""For one batch; the service itself would say so after `model.infer_deadline_ms`."""


class Kept:
    """A runtime that a flow's end does not close, and that is warmed once for each size."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self.inner = runtime
        self._warm: set[int] = set()

    @property
    def info(self) -> "ModelInfo":
        """The runtime's."""
        return self.inner.info

    @property
    def input_size(self) -> tuple[int, int]:
        """The runtime's."""
        return self.inner.input_size

    @property
    def class_count(self) -> int:
        """The runtime's."""
        return self.inner.class_count

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Those that are not warm yet. Raises ModelError."""
        if cold := sorted(set(batch_sizes) - self._warm):
            self.inner.warm_up(cold)
            self._warm.update(cold)

    def infer(self, pixels: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float32]":
        """The runtime's."""
        return self.inner.infer(pixels)

    def close(self) -> None:
        """Not yet: see `end`."""

    def end(self) -> None:
        """Free the model."""
        self.inner.close()


class _Watch(Observer):
    """Notes when each batch came back, and with how many images."""

    def __init__(self) -> None:
        super().__init__(Metrics(), SystemClock())
        self.batches: list[tuple[float, int]] = []

    def batch(self, images: int, padding: int) -> None:
        super().batch(images, padding)
        self.batches.append((time.perf_counter(), images))


class Rig:
    """Looks at points, one after the other. It owns the runtimes that it opens, not the one that it is given."""

    def __init__(self, settings: Settings, model: Model, bodies: Sequence[bytes]) -> None:
        """
        Args:
            settings: of the service; those that a point says are its.
            model: loaded as they say.
            bodies: encoded images, which come in turn.
        """
        self._settings = settings.model_copy(
            update={
                "schema_registry": SchemaRegistrySettings(),  # messages are JPEGs here
                "pipeline": settings.pipeline.model_copy(update={"fetch_concurrency": 1}),
            }
        )
        self._model = model
        self._deliveries = _deliveries(bodies)
        self._own = Kept(model.runtime)
        self._opened: dict[tuple[int, int], Kept] = {}

    def holds(self, threads: int, streams: int) -> None:
        """The model that was given has so many threads and streams."""
        self._opened[threads, streams] = self._own

    def look(self, point: "Point", seconds: float, *, most_s: float) -> float | None:
        """Images/s over about so many seconds, once it runs steadily; None where this point cannot be run, or does not
        two batches in `most_s`.

        Raises:
            Fatal: model or decoder do not come back.
        """
        if point[STREAMS] > point[THREADS]:
            return None  # OpenVINO makes no more of them than threads: that point has another name
        settings = applied(self._settings, point)
        try:
            runtime = self._runtime(point)
            runtime.warm_up(padded_sizes(point[BATCH]))
        except Fatal as error:
            logger.debug("{} cannot be run: {}", point, error)
            return None
        # Without its package: that the flow ends does not let go of the model's files.
        model = replace(self._model, runtime=runtime, package=None)
        return _measured(settings, model, self._deliveries, seconds, most_s)

    def keep_open(self, points: "Collection[Point]") -> None:
        """Free the runtimes of all others; one that is looked at again is opened again."""
        keys = {(point[THREADS], point[STREAMS]) for point in points}
        for key, kept in list(self._opened.items()):
            if key not in keys and kept is not self._own:
                del self._opened[key]
                kept.end()

    def runtime(self, point: "Point") -> ModelRuntime:
        """The one of this point, which is the caller's from now on: `close` leaves it."""
        kept = self._runtime(point)
        self._opened = {key: each for key, each in self._opened.items() if each is not kept}
        return kept.inner

    def close(self) -> None:
        """Free what was opened here."""
        self.keep_open(())

    def _runtime(self, point: "Point") -> Kept:
        key = point[THREADS], point[STREAMS]
        if key not in self._opened:
            self._opened[key] = Kept(self._open(*key))
        return self._opened[key]

    def _open(self, threads: int, streams: int) -> ModelRuntime:
        from consumer.adapters.runtimes.kinds import kind_of, open_kind

        package = self._model.package
        if package is None:
            raise TypeError("the null runtime has neither threads nor streams to choose")
        with _silent("consumer.adapters.runtimes.common"):
            return open_kind(
                kind_of(self._model.runtime.info.runtime),
                package,
                threads=threads,
                device=self._settings.model.device,
                cache=cache_folder(),
                streams=streams,
            )


@contextmanager
def _silent(module: str) -> "Iterator[None]":
    """That a model was loaded is said of the one that is used."""
    logger.disable(module)
    try:
        yield
    finally:
        logger.enable(module)


def _deliveries(bodies: Sequence[bytes]) -> list[Delivery]:
    """As `ouzel send` writes them: each the image itself."""
    lease = Lease(Partition("images", 0), epoch=1, topic_id="A" * 22)
    headers = ((IMAGE_ID, b"image"), (CONTENT_TYPE, b"image/jpeg"))
    return [Delivery(lease, number, body, headers=headers) for number, body in enumerate(bodies)]


def _measured(
    settings: Settings, model: Model, deliveries: Sequence[Delivery], seconds: float, most_s: float
) -> float | None:
    watch = _Watch()
    budget = ByteBudget(settings.pipeline.max_in_flight_bytes)
    batch, decoders = settings.batch.max_size, settings.pipeline.decode_threads
    room = threading.Semaphore(min(settings.pipeline.max_in_flight_messages, 2 * batch + 2 * decoders))
    failed: list[BaseException] = []

    def left(outcome: Outcome) -> None:
        budget.release(outcome.delivery)
        if not isinstance(outcome, Labelled):
            why = outcome.error if isinstance(outcome, Rejected) else outcome
            failed.append(Fatal(f"an image of the workload was not labelled: {why}"))
        room.release()

    flow = bootstrap.build_flow(
        settings, model, stores=[], budget=budget, observer=watch, on_outcome=left, on_crash=failed.append
    )
    flow.start()
    try:
        began_s = time.perf_counter()
        number = 0
        while not _enough(watch.batches, began_s, lead=batch, seconds=seconds, most_s=most_s):
            if failed:
                raise failed[0]
            if room.acquire(timeout=0.02):
                # A delivery of its own each time: the flow knows what is under way by its identity.
                flow.submit(replace(deliveries[number % len(deliveries)], offset=number))
                number += 1
            elif time.perf_counter() - began_s > most_s + _LOST_S:
                flow.tick()
                raise Fatal("a batch did not come back", remedy="lower batch.max_size, or raise model.threads")
    finally:
        flow.close()
    return _rate(watch.batches, lead=batch)


def _enough(batches: Sequence[tuple[float, int]], began_s: float, *, lead: int, seconds: float, most_s: float) -> bool:
    now_s = time.perf_counter()
    if now_s - began_s > most_s and batches:
        return True
    place = _steady(batches, lead)
    if place is None:
        return False
    images = sum(count for _, count in batches[place + 1 :])
    return images >= _IMAGES and batches[-1][0] - batches[place][0] >= seconds


def _steady(batches: Sequence[tuple[float, int]], lead: int) -> int | None:
    """The place of the batch from whose end on it counts; None where it is still to come."""
    images = 0
    for place, (_, count) in enumerate(batches):
        images += count
        if images >= lead:
            return place
    return None


def _rate(batches: Sequence[tuple[float, int]], *, lead: int) -> float | None:
    place = _steady(batches, lead)
    if place is None or place == len(batches) - 1:  # there was no time for more
        place = len(batches) - 2
    if place < 0:
        return None
    last_s = batches[-1][0]
    return sum(count for _, count in batches[place + 1 :]) / (last_s - batches[place][0])
