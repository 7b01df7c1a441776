"""What every runtime does alike: how pixels are scaled, what the model's answer is, and which model it says it is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.errors import CannotRun, ModelError
from consumer.messages import ModelInfo
from consumer.model_spec import InputSpec, ModelPackage
from consumer.ports import ModelRuntime


class LoadedRuntime:
    """What a runtime answers about the model that it holds. Its subclass calls `_hold` when the model is loaded."""

    _info: ModelInfo
    _input_size: tuple[int, int]
    _class_count: int

    def _hold(
        self, package: ModelPackage, *, runtime: str, classes: int, gives: str, device: str, threads: int
    ) -> None:
        """Note what was loaded, and say it. `gives`: what the model itself gives, `probabilities` or `logits`."""
        self._info = info_of(package, runtime)
        self._input_size = package.spec.input.size
        self._class_count = classes
        _say_loaded(package, runtime=runtime, classes=classes, gives=gives, device=device, threads=threads)

    @property
    def info(self) -> ModelInfo:
        """Which model this is."""
        return self._info

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that `infer` takes."""
        return self._input_size

    @property
    def class_count(self) -> int:
        """C, the length of a score row."""
        return self._class_count


def one_of_each(file: Path, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, str]:
    """The name of a graph's input and of its output. Raises ModelError where either is not one."""
    for what, names in (("inputs", inputs), ("outputs", outputs)):
        if len(names) != 1:
            raise ModelError(
                f"{file} has {len(names)} {what} ({', '.join(names)}); one is needed", remedy="export it anew"
            )
    return inputs[0], outputs[0]


def affine(image: InputSpec) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(factor, offset), float32 [3] each: what the model sees is `pixel * factor + offset`.

    Raises:
        ModelError: mean or std of two values, or a std of zero.
    """
    for name, values in (("model.mean", image.mean), ("model.std", image.std)):
        if len(values) not in {0, 1, 3}:
            raise ModelError(f"{name} has {len(values)} values", remedy=f"give {name} one value, or three for R, G, B")
    if any(value == 0 for value in image.std):
        raise ModelError("model.std holds a 0", remedy="pixels are divided by it; for none leave it empty")
    low, high = image.range
    means = np.broadcast_to(np.array(image.mean or (0.0,), np.float64), 3)
    deviations = np.broadcast_to(np.array(image.std or (1.0,), np.float64), 3)
    factor = (high - low) / 255.0 / deviations
    offset = (low - means) / deviations
    return factor.astype(np.float32), offset.astype(np.float32)


def preparation(image: InputSpec) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]:
    """What makes of uint8 [N, H, W, 3] pixels the array that a model takes, in its layout and type.

    In NumPy, where the model's graph does not do it: 0.04 to 0.13 ms for 224 x 224 pixels, which is under 1 % of what
    a MobileNetV2 takes for them.

    Raises:
        CannotRun: a type that NumPy does not have.
        ModelError: see `affine`.
    """
    factor, offset = affine(image)
    if image.dtype == "uint8":
        return lambda pixels: pixels if image.layout == "NHWC" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    if image.dtype not in {"float32", "float16"}:
        raise CannotRun(
            f"{image.name} takes {image.dtype}, which only TensorFlow and OpenVINO feed",
            remedy="export the model with a float32 or uint8 input",
        )
    rows = image.layout == "NHWC"
    # Of NHWC a whole row at a time, as rows of three values would be slow.
    factor, offset = (np.tile(each, image.width) if rows else each[:, None, None] for each in (factor, offset))
    shifted = bool(np.any(offset))

    def prepare(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        count, height, width, _ = pixels.shape
        given = pixels.reshape(count, height, width * 3) if rows else pixels.transpose(0, 3, 1, 2)
        images = np.empty(given.shape, np.float32)
        np.multiply(given, factor, out=images)
        if shifted:
            images += offset
        return images.reshape(pixels.shape if rows else images.shape).astype(image.dtype, copy=False)

    return prepare


def warn_of_unused_scale(image: InputSpec) -> None:
    """A model that takes uint8 gets the pixels as they are."""
    if image.dtype == "uint8" and (image.mean or image.std or image.range != (0.0, 1.0)):
        logger.warning("the model takes uint8: model.input_range, model.mean and model.std are not used")


def probe_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Grey, a ramp and noise, the same each time: uint8 [3, height, width, 3]."""
    size = (height, width, 3)
    grey = np.full(size, 127, np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], size)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return np.stack([grey, ramp, noise])


def checked_probe(what: str, scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The model's answer to `probe_images`, float32 [3, C]. Raises ModelError where it is no row of scores an image."""
    if scores.ndim != 2 or scores.shape[0] != 3 or not np.issubdtype(scores.dtype, np.number):
        raise ModelError(
            f"{what} {scores.dtype} {list(scores.shape)} for 3 images; [3, classes] is needed",
            remedy="set model.signature to one whose output is a row of scores for each image",
        )
    return scores.astype(np.float32)


def detect_output(probe: npt.NDArray[np.float32]) -> Literal["probabilities", "logits"]:
    """Scores outside [0, 1] are logits; those inside are probabilities, even where each class has its own.

    Raises:
        ModelError: they are not numbers.
    """
    if not np.isfinite(probe).all():
        raise ModelError(
            "the model gives scores that are not numbers", remedy="check model.input_range, model.mean and model.std"
        )
    if probe.min() < -1e-3 or probe.max() > 1.0 + 1e-3:
        return "logits"
    if np.abs(probe.sum(axis=1) - 1.0).max() > 1e-2:
        logger.warning(
            "the model's scores lie in [0, 1] and do not sum to 1: taken as one probability for each class;"
            ' if they are logits, set model.output = "logits"'
        )
    return "probabilities"


def check_scores(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Raises FloatingPointError where a score is not a number: the batch is then halved to find the culprit."""
    if not np.isfinite(scores).all():
        raise FloatingPointError("the model gave a score that is not a number")
    return scores


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [N, C] to probabilities, row by row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def run_once_each(runtime: ModelRuntime, batch_sizes: Sequence[int]) -> None:
    """Warm a runtime up, the largest batch first: what it allocates then serves the others too.

    Raises:
        ModelError: a size that it cannot run, for example because the device's memory is too small.
    """
    for size in sorted(set(batch_sizes), reverse=True):
        try:
            runtime.infer(np.full((size, *runtime.input_size, 3), 127, np.uint8))
        except Exception as error:
            raise ModelError(
                f"model {runtime.info.name} cannot run a batch of {size}: {one_line(error)}",
                remedy="lower batch.max_size",
            ) from error


def in_pieces(
    run: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], images: npt.NDArray[Any], size: int
) -> npt.NDArray[Any]:
    """The answers of a model whose batch size is fixed at `size`: piece by piece, the last one filled up with its last
    image."""
    answers = []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        short = size - len(piece)
        full = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)]) if short else piece
        answers.append(run(full)[: len(piece)])
    return np.concatenate(answers)


def info_of(package: ModelPackage, runtime: str) -> ModelInfo:
    """What every label event says of the model."""
    spec = package.spec
    return ModelInfo(spec.name, spec.version, package.digest, runtime, spec.precision)


def _say_loaded(package: ModelPackage, *, runtime: str, classes: int, gives: str, device: str, threads: int) -> None:
    """One line at start: what was read of the model."""
    spec = package.spec
    image = spec.input
    channels = "N, H, W, 3" if image.layout == "NHWC" else "N, 3, H, W"
    logger.info(
        "model {} {}: {}{} {} [{}], H {}, W {} -> {}, {} classes, gives {} ({}), {} on {} with {} threads",
        spec.name,
        spec.version,
        f"signature {spec.signature!r}: " if spec.signature else "",
        image.name,
        image.dtype,
        channels,
        image.height,
        image.width,
        spec.output.name,
        classes,
        gives,
        "detected" if spec.output.kind == "auto" else "as it says",
        f"{runtime} {spec.precision}",
        device,
        threads,
    )


def one_line(error: Exception) -> str:
    """An error's class and text, without line ends, at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
