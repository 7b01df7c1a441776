"""What each stage costs alone: CPU-milliseconds and wall-clock an image, with so many threads, in this process.

Nothing else may work in the process meanwhile: its CPU is counted as a whole, threads of native libraries included.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from consumer.bench.open_loop import percentile
from consumer.messages import Delivery, ImageJob
from consumer.ports import ImageDecoder, ImageStore, MessageParser, ModelRuntime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """So many images, and what they took."""

    images: int
    cpu_s: float
    """Of the whole process."""
    wall_s: float
    p50_ms: float
    p99_ms: float
    """Wall-clock of one piece of work: an image, of `measure_infer` a batch."""

    @property
    def cpu_ms(self) -> float:
        """CPU-milliseconds an image."""
        return 1000 * self.cpu_s / self.images

    @property
    def wall_ms(self) -> float:
        """Milliseconds of wall-clock an image."""
        return 1000 * self.wall_s / self.images

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / self.wall_s


def measure(work: Callable[[T], object], items: Sequence[T], *, threads: int, seconds: float) -> Measured:
    """`work` on each item in turn, over and over, in `threads` threads for about `seconds`, at least once in each."""
    numbers = itertools.count()
    began = threading.Barrier(threads + 1)
    clock: list[float] = [0.0]

    def one_thread(_number: int) -> list[float]:
        taken_s: list[float] = []
        began.wait()
        while not taken_s or time.perf_counter() < clock[0]:
            item = items[next(numbers) % len(items)]
            started_s = time.perf_counter()
            work(item)
            taken_s.append(time.perf_counter() - started_s)
        return taken_s

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(one_thread, number) for number in range(threads)]
        started_s, cpu_s = time.perf_counter(), time.process_time()
        clock[0] = started_s + seconds
        began.wait()
        durations_s = [each for future in running for each in future.result()]
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return Measured(
        len(durations_s),
        cpu_s,
        wall_s,
        1000 * percentile(durations_s, 0.50),
        1000 * percentile(durations_s, 0.99),
    )


def measure_fetch(
    parser: MessageParser,
    stores: Sequence[ImageStore],
    deliveries: Sequence[Delivery],
    *,
    threads: int,
    seconds: float,
    max_bytes: int,
    deadline_s: float,
) -> Measured:
    """From messages to encoded images: parsed, and read from their store where they are references."""
    from consumer.stages.fetch import choose_store, verify

    def fetch(delivery: Delivery) -> None:
        job = parser(delivery)
        if not isinstance(job, ImageJob):
            raise TypeError("a message of the workload asks for one image")
        body = job.data
        if job.uri is not None:
            body = choose_store(stores, job.uri).fetch(job.uri, max_bytes=max_bytes, deadline_s=deadline_s).body
        verify(job, body or b"", max_bytes=max_bytes)

    return measure(fetch, deliveries, threads=threads, seconds=seconds)


def measure_decode(decoder: ImageDecoder, bodies: Sequence[bytes], *, threads: int, seconds: float) -> Measured:
    """From encoded images to the model's pixels: opened and decoded, the checksum included."""
    return measure(decoder.decode, bodies, threads=threads, seconds=seconds)


def measure_infer(runtime: ModelRuntime, pixels: "npt.NDArray[np.uint8]", *, batch: int, seconds: float) -> Measured:
    """Batches of `batch` through the model, one after the other, with the runtime's own threads.

    Args:
        runtime: warm at this size.
        pixels: uint8 [N, H, W, 3], at least one image; repeated to fill the batch.
        batch: images a call.
        seconds: about how long.
    """
    import numpy as np

    full: Any = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
    taken_s: list[float] = []
    started_s, cpu_s = time.perf_counter(), time.process_time()
    while not taken_s or time.perf_counter() - started_s < seconds:
        call_s = time.perf_counter()
        runtime.infer(full)
        taken_s.append(time.perf_counter() - call_s)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return Measured(
        batch * len(taken_s), cpu_s, wall_s, 1000 * percentile(taken_s, 0.50), 1000 * percentile(taken_s, 0.99)
    )
