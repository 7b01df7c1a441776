"""Inference on a GPU: the service's own runtime with its model, and the same architecture in PyTorch, which says what
the GPU could do."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.rounds import Figures, Turns, in_turn, timed
from consumer.bench.stages import measure_infer
from consumer.ports import ModelRuntime

BATCHES = (1, 8, 32, 64, 128, 512)
PRECISIONS = ("f32", "tf32", "f16")
_CLASSES = 965
_SETS = 4
"""Inputs that take turns."""


def random_pixels(count: int) -> Any:
    """uint8 [N, 224, 224, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8)


def add_runtime(turns: Turns, name: str, runtime: ModelRuntime, seconds: float, batches: Sequence[int]) -> None:
    """The service's runtime, from pixels in the CPU's memory to scores in the CPU's memory, as the service calls it."""
    for batch in batches:
        turns.add(f"{name}, batch of {batch}", partial(_runtime, runtime, batch, seconds))


def _runtime(runtime: ModelRuntime, batch: int, seconds: float) -> Callable[[], Figures]:
    pixels = random_pixels(batch)
    runtime.warm_up([batch])

    def once() -> Figures:
        found = measure_infer(runtime, pixels, batch=batch, seconds=seconds)
        return {"images_per_s": found.rate, "cpu_ms": found.cpu_ms, "call_ms": found.wall_ms * batch}

    return once


# --- PyTorch --------------------------------------------------------------------------------------------------------


def add_torch(turns: Turns, seconds: float, batches: Sequence[int]) -> None:
    """torchvision's mobilenet_v2 with as many classes as the bird model, random weights, channels last, as a CUDA
    graph: `resident` with the pixels on the GPU already, `copied` from pinned memory and the scores back."""
    for precision in PRECISIONS:
        for batch in batches:
            for copied in (False, True):
                where = "copied" if copied else "resident"
                turns.add(
                    f"torch {precision}, {where}, batch of {batch}",
                    partial(_torch, precision, batch, seconds, copied=copied),
                )


def _torch(precision: str, batch: int, seconds: float, *, copied: bool) -> Callable[[], Figures]:
    torch: Any = importlib.import_module("torch")
    _set_precision(torch, precision)
    held = _captured(torch, precision, batch)
    following = in_turn([torch.from_numpy(random_pixels(batch)).pin_memory() for _ in range(_SETS)])
    back = torch.empty(held.scores.shape, dtype=held.scores.dtype, pin_memory=True)
    held.source.copy_(following())

    def work() -> None:
        if copied:
            held.source.copy_(following(), non_blocking=True)
        held.graph.replay()
        if copied:
            back.copy_(held.scores, non_blocking=True)

    def once() -> Figures:
        return timed(work, images=batch, seconds=seconds, settle=torch.cuda.synchronize)

    once()
    return once


def _set_precision(torch: Any, precision: str) -> None:
    """What is captured is computed in it, whatever is set afterwards."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


@dataclass(frozen=True, slots=True)
class _Captured:
    """A CUDA graph, and what its memory belongs to."""

    graph: Any
    model: Any
    source: Any
    """uint8 [N, 224, 224, 3] on the GPU: what it reads."""
    scores: Any
    """float32 [N, 965] on the GPU: what it writes."""


def _captured(torch: Any, precision: str, batch: int) -> _Captured:
    """From pixels to probabilities."""
    models: Any = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    kind = torch.float16 if precision == "f16" else torch.float32
    model = models.mobilenet_v2(num_classes=_CLASSES).eval().cuda().to(kind).to(memory_format=torch.channels_last)
    source = torch.zeros((batch, 224, 224, 3), dtype=torch.uint8, device="cuda")

    def forward() -> Any:
        images = source.permute(0, 3, 1, 2).to(kind) / 127.5 - 1.0
        return torch.softmax(model(images).float(), dim=1)

    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = forward()
    return _Captured(graph, model, source, scores)


def add_whole(turns: Turns, bodies: Sequence[bytes], seconds: float, batches: Sequence[int]) -> None:
    """From encoded JPEGs to scores on the GPU alone: nvJPEG, resize, the model in f32. One thread."""
    for batch in batches:
        turns.add(f"JPEG to scores, GPU, f32, batch of {batch}", partial(_whole, bodies, seconds, batch))


def _whole(bodies: Sequence[bytes], seconds: float, batch: int) -> Callable[[], Figures]:
    from benchmarks.gpu.decoding import NvJpeg

    torch: Any = importlib.import_module("torch")
    jpeg = NvJpeg()
    _set_precision(torch, "f32")
    held = _captured(torch, "f32", batch)
    encoded = jpeg.held([bodies[number % len(bodies)] for number in range(batch)])

    def work() -> None:
        held.source.copy_(jpeg.pixels(encoded))
        held.graph.replay()
        held.scores.cpu()

    def once() -> Figures:
        return timed(work, images=batch, seconds=seconds, settle=jpeg.settle)

    once()
    return once
