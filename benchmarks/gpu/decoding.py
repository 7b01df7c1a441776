"""Decoding: as the service does it on the cores, and on the GPU by nvJPEG, with how far the pixels differ."""

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.rounds import Figures, Turns, timed
from consumer.adapters.image import PillowDecoder
from consumer.bench.stages import measure_decode
from consumer.cpu import quota_cores

SIZE = (224, 224)
"""What the model takes: height and width."""
BATCHES = (32, 64)
Resizer = Literal["pillow", "simd"]
_RESIZERS: tuple[Resizer, ...] = ("pillow", "simd")


def add_on_cores(turns: Turns, bodies: Sequence[bytes], seconds: float) -> None:
    """The service's own decoder: in as many threads as there are cores, and in as many processes with a thread each,
    which share no interpreter."""
    for resizer in _RESIZERS:
        turns.add(f"decode, cores, {resizer}, one process", partial(_threads, bodies, seconds, resizer))
        turns.add(f"decode, cores, {resizer}, processes", partial(_processes, bodies, seconds, resizer))


def _threads(bodies: Sequence[bytes], seconds: float, resizer: Resizer) -> Callable[[], Figures]:
    decoder, threads = PillowDecoder(SIZE, resizer=resizer), quota_cores()

    def once() -> Figures:
        found = measure_decode(decoder, bodies, threads=threads, seconds=seconds)
        return {"images_per_s": found.rate, "cpu_ms": found.cpu_ms}

    once()
    return once


def _processes(bodies: Sequence[bytes], seconds: float, resizer: Resizer) -> Callable[[], Figures]:
    count = quota_cores()
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))

    def once() -> Figures:
        running: list[Future[tuple[float, float]]] = [
            pool.submit(_alone, list(bodies), seconds, resizer) for _ in range(count)
        ]
        answers = [each.result() for each in running]
        rate = sum(each[0] for each in answers)
        return {"images_per_s": rate, "cpu_ms": sum(share * ms for share, ms in answers) / rate}

    once()
    return once


def _alone(bodies: Sequence[bytes], seconds: float, resizer: Resizer) -> tuple[float, float]:
    """Images/s and CPU-ms an image of one thread, in a process of its own."""
    found = measure_decode(PillowDecoder(SIZE, resizer=resizer), bodies, threads=1, seconds=seconds)
    return found.rate, found.cpu_ms


# --- on the GPU -----------------------------------------------------------------------------------------------------


class NvJpeg:
    """torchvision's nvJPEG, and its antialiased bilinear resize on the GPU."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._io: Any = importlib.import_module("torchvision.io")
        self._functional: Any = importlib.import_module("torchvision.transforms.v2.functional")

    def held(self, bodies: Sequence[bytes]) -> list[Any]:
        """Encoded images as nvJPEG takes them: in the CPU's memory."""
        return [self._torch.frombuffer(bytearray(body), dtype=self._torch.uint8) for body in bodies]

    def decoded(self, held: list[Any]) -> list[Any]:
        """uint8 [3, H, W] each, on the GPU, in the image's own size."""
        found: list[Any] = self._io.decode_jpeg(held, mode=self._io.ImageReadMode.RGB, device="cuda")
        return found

    def pixels(self, held: list[Any]) -> Any:
        """uint8 [N, 224, 224, 3] on the GPU."""
        return self._torch.stack([self._small(each) for each in self.decoded(held)]).permute(0, 2, 3, 1)

    def settle(self) -> None:
        """The GPU is done."""
        self._torch.cuda.synchronize()

    def _small(self, picture: Any) -> Any:
        # In float, rounded at the end, as its uint8 path is the CPU's.
        small = self._functional.resize(picture.float(), list(SIZE), antialias=True)
        return small.round().clamp(0, 255).to(self._torch.uint8)


def add_on_gpu(turns: Turns, bodies: Sequence[bytes], seconds: float) -> None:
    """nvJPEG alone, and with the resize: batches of 32 and 64, one thread."""
    for batch in BATCHES:
        for resized in (False, True):
            what = "decode and resize" if resized else "decode alone"
            turns.add(
                f"{what}, GPU, batch of {batch}",
                partial(_on_gpu, bodies, seconds, batch, resized=resized),
            )


def _on_gpu(bodies: Sequence[bytes], seconds: float, batch: int, *, resized: bool) -> Callable[[], Figures]:
    jpeg = NvJpeg()
    held = jpeg.held([bodies[number % len(bodies)] for number in range(batch)])
    work = jpeg.pixels if resized else jpeg.decoded

    def once() -> Figures:
        return timed(lambda: (work(held), None)[1], images=batch, seconds=seconds, settle=jpeg.settle)

    once()
    return once


def differences(bodies: Sequence[bytes]) -> dict[str, Any]:
    """How far the GPU's pixels are from the service's, of 224 x 224 x 3 values of 0 to 255 an image."""
    ours = on_cores(bodies)
    theirs = on_gpu(bodies)
    apart = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    return {
        "images": len(bodies),
        "mean": round(float(apart.mean()), 4),
        "most": int(apart.max()),
        "share_that_differs": round(float((apart > 0).mean()), 4),
        "mean_of_the_worst_image": round(float(apart.mean(axis=(1, 2, 3)).max()), 4),
    }


def on_cores(bodies: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """uint8 [N, 224, 224, 3] by the service's own decoder."""
    decoder = PillowDecoder(SIZE)
    return np.stack([decoder.decode(body).pixels for body in bodies])


def on_gpu(bodies: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """The same by nvJPEG and the GPU's resize."""
    jpeg = NvJpeg()
    found: npt.NDArray[np.uint8] = jpeg.pixels(jpeg.held(bodies)).cpu().numpy()
    return found
