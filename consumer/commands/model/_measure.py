"""A model in a process of its own: what it says, how fast it is, and what it takes.

Each runtime is alone in its process, so that memory and cold start are its own, and one that crashes ends nothing but
itself. `measured_together` lets several take turns, so that what else the machine does meets each of them.
"""

import multiprocessing
import os
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from consumer.errors import ModelError, OuzelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from consumer.model_spec import ModelPackage
    from consumer.settings import Settings

BATCH_SIZES = (1, 8, 32)
_SCORED_TOGETHER = 8
_STARTING_S = 900.0  # a SavedModel may have to be converted first
_ENDING_S = 10.0
_CHUNK_BYTES = 1024 * 1024

Tell = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a runtime takes and gives on this machine."""

    images_per_s: dict[int, float]
    """By batch size; the median of the rounds."""
    cpu_ms: dict[int, float]
    """Milliseconds of CPU time for an image, likewise: what else the machine does moves it less."""
    resident_bytes: int | None
    """After every batch size was run; None where the system does not say."""
    cold_start_s: float
    """From the start of the process to the first answer."""
    size_bytes: int
    """Of the model's files."""
    compressed_bytes: int
    """Of the same, deflated."""


def on_its_runtime(settings: "Settings", package: "ModelPackage") -> "Settings":
    """The settings with the runtime that this model runs on: the one that it was made for, else what `model.runtime`
    stands for, which may take a trial of those installed. Raises ModelError and its kinds."""
    from consumer import bootstrap_model

    runtime = package.spec.runtime or bootstrap_model.choose_runtime(settings, package).runtime
    return settings.model_copy(update={"model": settings.model.model_copy(update={"runtime": runtime})})


class ModelProcess:
    """A model that runs in a child process until the block is left."""

    def __init__(self, settings: "Settings", package: "ModelPackage") -> None:
        """Start it and wait for its first answer, in a bounded time.

        Raises:
            ModelError: the runtime refuses it, or its process ended.
        """
        self._package = package
        self._deadline_s = settings.model.infer_deadline_ms / 1000
        # Threads of Kafka's and of other runtimes do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        began_s = time.monotonic()
        self._process = context.Process(target=_serve, args=(theirs, settings, package), daemon=True)
        self._process.start()
        theirs.close()
        try:
            started = self._answer(_STARTING_S)
        except BaseException:
            self.close()
            raise
        self.cold_start_s = time.monotonic() - began_s
        self.class_count: int = started["class_count"]
        self.runtime: str = started["runtime"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def warm_up(self) -> None:
        """Run every batch size once."""
        self._ask("warm_up")

    def scores(
        self, pixels: "Sequence[npt.NDArray[np.uint8]]", tell: Tell = lambda _more: None
    ) -> "npt.NDArray[np.float32]":
        """float32 [N, C] probabilities of N images, uint8 [H, W, 3] each; in batches of 8, the last one filled up."""
        import numpy as np

        found = []
        for start in range(0, len(pixels), _SCORED_TOGETHER):
            some = list(pixels[start : start + _SCORED_TOGETHER])
            full = np.stack(some + some[-1:] * (_SCORED_TOGETHER - len(some)))
            found.append(self._ask("scores", full)[: len(some)])
            tell(len(some))
        return np.concatenate(found) if found else np.zeros((0, self.class_count), np.float32)

    def turn(self, size: int, pixels: "npt.NDArray[np.uint8]", seconds: float) -> tuple[float, float]:
        """Images a second at this batch size, and CPU ms for each; it takes at least `seconds`."""
        import numpy as np

        batch = np.resize(pixels, (size, *pixels.shape[1:]))
        found: tuple[float, float] = self._ask("turn", batch, seconds)
        return found

    def resident_bytes(self) -> int | None:
        """Of its process now."""
        found: int | None = self._ask("resident_bytes")
        return found

    def close(self) -> None:
        """End it. Idempotent."""
        self._connection.close()
        self._process.join(_ENDING_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            self._connection.send((what, arguments))
        except OSError:
            raise self._ended() from None
        return self._answer(self._deadline_s)

    def _answer(self, deadline_s: float) -> Any:
        try:
            if not self._connection.poll(deadline_s):
                raise ModelError(
                    f"{self._named} has not answered for {deadline_s:g} s", remedy="raise model.infer_deadline_ms"
                )
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, OuzelError):
            raise answer
        return answer

    def _ended(self) -> ModelError:
        self._process.join(_ENDING_S)
        return ModelError(
            f"the process that ran {self._named} ended with {self._process.exitcode}",
            remedy="see what it said above; another runtime may run it: model.runtime",
        )

    @property
    def _named(self) -> str:
        return f"{self._package.spec.name} {self._package.spec.version}"


def measured_together(
    processes: "Sequence[ModelProcess]",
    packages: "Sequence[ModelPackage]",
    pixels: "Sequence[npt.NDArray[np.uint8]]",
    *,
    rounds: int,
    seconds: float,
    tell: Tell = lambda _more: None,
) -> list[Figures]:
    """The figures of models that take turns: in each round each one at each batch size.

    Args:
        processes: the models.
        packages: the same models' files.
        pixels: for each model uint8 [N, H, W, 3], at least one image.
        rounds: how many turns each one gets.
        seconds: of each turn.
        tell: is told of each turn that is over.
    """
    turns: list[dict[int, list[tuple[float, float]]]] = [{size: [] for size in BATCH_SIZES} for _ in processes]
    for process in processes:
        process.warm_up()
    for _ in range(rounds):
        for size in BATCH_SIZES:
            for process, images, found in zip(processes, pixels, turns, strict=True):
                found[size].append(process.turn(size, images, seconds))
                tell(1)
    return [
        Figures(
            {size: statistics.median(rate for rate, _ in each) for size, each in found.items()},
            {size: statistics.median(cpu_ms for _, cpu_ms in each) for size, each in found.items()},
            process.resident_bytes(),
            process.cold_start_s,
            *sizes(package.files),
        )
        for process, package, found in zip(processes, packages, turns, strict=True)
    ]


def sizes(files: Path) -> tuple[int, int]:
    """Bytes of a model's files, and of the same deflated, as zip and gzip do it."""
    beside = files.with_suffix(".bin") if files.suffix == ".xml" else files
    paths = [path for path in files.rglob("*") if path.is_file()] if files.is_dir() else {files, beside}
    size = compressed = 0
    for path in paths:
        deflate = zlib.compressobj()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                size += len(chunk)
                compressed += len(deflate.compress(chunk))
        compressed += len(deflate.flush())
    return size, compressed


# --- the child ------------------------------------------------------------------------------------------------------


def _serve(connection: Connection, settings: "Settings", package: "ModelPackage") -> None:
    """Load the model, say so, and answer until the other end is closed."""
    import signal

    from consumer import bootstrap_model
    from consumer.log import configure

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    configure(settings.log.model_copy(update={"level": "WARNING"}))
    try:
        runtime = bootstrap_model.open_runtime(settings, package)
        runtime.warm_up([1])
    except OuzelError as error:
        connection.send(error)
        return
    connection.send({"class_count": runtime.class_count, "runtime": runtime.info.runtime})
    calls: dict[str, Callable[..., Any]] = {
        "warm_up": lambda: runtime.warm_up(BATCH_SIZES),
        "scores": runtime.infer,
        "turn": lambda batch, seconds: _turn(runtime.infer, batch, seconds),
        "resident_bytes": _resident_bytes,
    }
    while True:
        try:
            what, arguments = connection.recv()
        except (EOFError, OSError):
            break
        try:
            answer = calls[what](*arguments)
        except OuzelError as error:
            answer = error
        except Exception as error:  # whatever a runtime raises
            answer = ModelError(
                f"{package.spec.name} {package.spec.version} does not run: {type(error).__name__}: {error}"[:500],
                remedy="another runtime may run it: model.runtime",
            )
        connection.send(answer)
    runtime.close()


def _turn(infer: Callable[[Any], Any], batch: Any, seconds: float) -> tuple[float, float]:
    images, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while True:
        infer(batch)
        images += len(batch)
        took_s = time.perf_counter() - began_s
        if took_s >= seconds:
            return images / took_s, (time.process_time() - began_cpu_s) * 1000 / images


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
