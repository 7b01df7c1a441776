"""TensorFlow SavedModels on CPU or GPU.

The signature is wrapped in a graph of our own that takes uint8 pixels and gives probabilities (scale, mean and std in
front; softmax behind where the model gives logits), and the whole is frozen: variables become constants, and calls go
to one concrete function, which nothing can retrace. XLA stays off: on CPU it made this kind of model ten times slower.

Measured on 2 virtual cores (AMD EPYC with AVX-512 and bf16, no AMX; TensorFlow 2.21, float32, uint8 in, median of three
interleaved rounds on a machine with other work), images/s at batch 1 / 4 / 8 / 16 / 32:

    MobileNetV2, 965 classes     frozen  86 / 135 / 113 / 129 / 145    signature  54 / 90 / 81 / 137 / 105
    EfficientNet-Lite0           frozen  78 / 102 / 131 / 126 / 152    signature  50 / 124 / 92 / 142 / 131

The very first call took 250 to 500 ms, and the first of each further batch size up to four times its usual time: that
is what the warm-up is for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.model_digest import folder_sha256, model_digest
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import ModelError
from consumer.messages import ModelInfo

Output = Literal["auto", "probabilities", "logits"]
_NOTHING: Mapping[str, object] = {}
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a SavedModel's signature takes and gives."""

    name: str
    input_name: str
    output_name: str
    dtype: str
    """`uint8`, or one of the floating-point types."""
    layout: Literal["NHWC", "NCHW"]
    height: int
    width: int

    def __str__(self) -> str:
        channels = "N, H, W, 3" if self.layout == "NHWC" else "N, 3, H, W"
        return (
            f"signature {self.name!r}: {self.input_name} {self.dtype} [{channels}], H {self.height}, W {self.width}"
            f" -> {self.output_name}"
        )


class TensorFlowRuntime:
    """Fulfils `ports.ModelRuntime` with a SavedModel."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int,
        signature: str = "",
        device: str = "auto",
        input_range: Sequence[float] = (0.0, 1.0),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        output: Output = "auto",
        name: str = "",
        version: str = "",
        labels_digest: str = "",
        weights: Mapping[str, str] | None = None,
        preprocessing: Mapping[str, object] = _NOTHING,
    ) -> None:
        """Load the model: 0.5 s and more, and TensorFlow's import.

        Args:
            folder: the SavedModel's.
            threads: cores that it may use. One value for the process: TensorFlow takes it once.
            signature: empty for `serving_default`, else the only one there is.
            device: `auto` (a GPU if there is one), `cpu`, `gpu:0`, ...
            input_range: what pixel values 0 and 255 become, before `mean` and `std`.
            mean: subtracted; one value, or one for each of R, G, B.
            std: divided by; likewise.
            output: what the model gives; `auto` looks at what it gives.
            name: in every label event; the folder's if empty.
            version: likewise; the beginning of the digest if empty.
            labels_digest: SHA-256 of the label file, for the model's digest.
            weights: SHA-256 by name of what the model was made from, for the model's digest, where the folder's own
                bytes are not the same from build to build; None hashes the folder.
            preprocessing: what the decoder does (resize, crop), for the model's digest.

        Raises:
            ModelError: absent, unreadable, or not a model that we can run.
            DeviceMissing: a GPU that is asked for and is not there.
        """
        if not (folder / "saved_model.pb").is_file():
            raise _no_saved_model(folder)
        scale = _affine(input_range, mean, std)
        tf, self._device = start_tensorflow(threads=threads, device=device)
        self._tf = tf
        with tf.device(self._device):
            loaded, function = _load(tf, folder, signature)
            self._signature = _read_signature(function, _signature_name(loaded, function))
            if self._signature.dtype == "uint8" and (mean or std or tuple(input_range) != (0.0, 1.0)):
                logger.warning("the model takes uint8: model.input_range, model.mean and model.std are not used")
            probe = _probe(tf, function, self._signature, scale)
            self._class_count = int(probe.shape[1])
            found = _detect_output(probe) if output == "auto" else output
            serve = _serving_graph(tf, function, self._signature, scale, softmax=found == "logits")
            self._function, self._keep_alive = _freeze(serve, loaded)
        digest = model_digest(
            weights=folder_sha256(folder) if weights is None else weights,
            labels=labels_digest,
            preprocessing={
                **preprocessing,
                "input_range": [float(value) for value in input_range],
                "mean": [float(value) for value in mean],
                "std": [float(value) for value in std],
                "signature": self._signature.name,
                "output": found,
            },
            precision="f32",
        )
        self._info = ModelInfo(
            name=name or folder.resolve().name,
            version=version or digest.removeprefix("sha256:")[:12],
            digest=digest,
            runtime="tensorflow",
            precision="f32",
        )
        logger.info(
            "model {} {}: {}, {} classes, gives {} ({}), on {} with {} threads",
            self._info.name,
            self._info.version,
            self._signature,
            self._class_count,
            found,
            "detected" if output == "auto" else "model.output",
            self._device,
            threads,
        )

    @property
    def info(self) -> ModelInfo:
        """Which model this is."""
        return self._info

    @property
    def signature(self) -> Signature:
        """What was read from the SavedModel."""
        return self._signature

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that `infer` takes."""
        return self._signature.height, self._signature.width

    @property
    def class_count(self) -> int:
        """C, the length of a score row."""
        return self._class_count

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run every batch size once.

        Raises:
            ModelError: it cannot be run, for example because the device's memory is too small.
        """
        for size in sorted(set(batch_sizes), reverse=True):
            try:
                self.infer(np.full((size, *self.input_size, 3), 127, np.uint8))
            except Exception as error:
                raise ModelError(
                    f"model {self._info.name} cannot run a batch of {size}: {_one_line(error)}",
                    remedy="lower batch.max_size",
                ) from error

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] RGB in, float32 [N, C] probabilities out.

        Raises what TensorFlow raises, and FloatingPointError where a score is not a number.
        """
        if self._function is None:
            raise RuntimeError("the runtime is closed")
        with self._tf.device(self._device):
            (outputs,) = self._function(self._tf.convert_to_tensor(pixels, dtype=self._tf.uint8))
        scores: npt.NDArray[np.float32] = outputs.numpy()
        if not np.isfinite(scores).all():
            raise FloatingPointError("the model gave a score that is not a number")
        return scores

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._function = self._keep_alive = None


def _signature_name(loaded: Any, function: Any) -> str:
    """The name under which `function` is one of the signatures of `loaded`."""
    return next(str(name) for name, candidate in loaded.signatures.items() if candidate is function)


def _no_saved_model(folder: Path) -> ModelError:
    if not folder.exists():
        what = "no such folder"
    elif not folder.is_dir():
        what = "not a folder"
    else:
        what = "not a SavedModel: it has no saved_model.pb"
    return ModelError(
        f"{folder}: {what}", remedy="set model.source to `default` or to the folder that holds saved_model.pb"
    )


def _affine(
    input_range: Sequence[float], mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(factor, offset), float32 [3] each: what the model sees is `pixel * factor + offset`."""
    for name, values in (("model.mean", mean), ("model.std", std)):
        if len(values) not in {0, 1, 3}:
            raise ModelError(f"{name} has {len(values)} values", remedy=f"give {name} one value, or three for R, G, B")
    if any(value == 0 for value in std):
        raise ModelError("model.std holds a 0", remedy="pixels are divided by it; for none leave it empty")
    low, high = input_range
    means = np.broadcast_to(np.array(mean or (0.0,), np.float64), 3)
    deviations = np.broadcast_to(np.array(std or (1.0,), np.float64), 3)
    factor = (high - low) / 255.0 / deviations
    offset = (low - means) / deviations
    return factor.astype(np.float32), offset.astype(np.float32)


def _load(tf: Any, folder: Path, signature: str) -> tuple[Any, Any]:
    """The SavedModel, and its signature's function."""
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = loaded.signatures
    except Exception as error:  # OSError, DecodeError, OpError, ValueError, ...: it is broken in one way or another
        raise ModelError(
            f"{folder}: the SavedModel cannot be loaded: {_one_line(error)}", remedy="export or copy it anew"
        ) from error
    names = ", ".join(sorted(signatures)) or "none"
    if signature:
        chosen = signature
    elif "serving_default" in signatures:
        chosen = "serving_default"
    elif len(signatures) == 1:
        chosen = next(iter(signatures))
    else:
        raise ModelError(f"{folder}: which signature? It has: {names}", remedy="set model.signature to one of them")
    if chosen not in signatures:
        raise ModelError(f"{folder}: no signature {chosen!r}; it has: {names}", remedy="set model.signature")
    return loaded, signatures[chosen]


def _read_signature(function: Any, name: str) -> Signature:
    inputs: dict[str, Any] = function.structured_input_signature[1]
    outputs: dict[str, Any] = function.structured_outputs
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) != 1:
            names = ", ".join(sorted(tensors)) or "none"
            raise ModelError(
                f"signature {name!r} has {len(tensors)} {what} ({names}); one is needed",
                remedy=f"set model.signature to one with a single image input and output, or export one; {what} differ",
            )
    ((input_name, tensor),) = inputs.items()
    (output_name,) = outputs
    dtype = str(tensor.dtype.name)
    if dtype != "uint8" and dtype not in _FLOATS:
        raise ModelError(
            f"signature {name!r}: input {input_name} is {dtype}; uint8 or float32 images are needed",
            remedy="set model.signature to one that takes decoded images, or export one",
        )
    shape = list(tensor.shape) if tensor.shape.rank is not None else []
    match shape:
        case [None, int(height), int(width), 3]:
            return Signature(name, input_name, output_name, dtype, "NHWC", height, width)
        case [None, 3, int(height), int(width)]:
            return Signature(name, input_name, output_name, dtype, "NCHW", height, width)
    raise ModelError(
        f"signature {name!r}: input {input_name} has shape {shape or 'unknown'};"
        " [None, height, width, 3] or [None, 3, height, width] is needed",
        remedy="set model.signature, or export the model with a free batch size, a fixed image size and three channels",
    )


def _model_input(tf: Any, pixels: Any, signature: Signature, scale: tuple[Any, Any]) -> Any:
    """Graph or eager: uint8 [N, H, W, 3] to what the signature takes."""
    if signature.dtype == "uint8":
        images = pixels
    else:
        factor, offset = scale
        images = tf.cast(pixels, tf.float32) * factor
        if np.any(offset):
            images += offset
        images = tf.cast(images, signature.dtype)
    return tf.transpose(images, (0, 3, 1, 2)) if signature.layout == "NCHW" else images


def _probe(tf: Any, function: Any, signature: Signature, scale: tuple[Any, Any]) -> npt.NDArray[np.float32]:
    """What the model gives, untouched, for a grey image, a ramp and noise: float32 [3, C]."""
    size = (signature.height, signature.width, 3)
    grey = np.full(size, 127, np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, signature.width).astype(np.uint8)[None, :, None], size)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    images = _model_input(tf, tf.constant(np.stack([grey, ramp, noise])), signature, scale)
    try:
        result = function(**{signature.input_name: images})[signature.output_name].numpy()
    except Exception as error:
        raise ModelError(f"{signature}: the model does not run: {_one_line(error)}", remedy="export it anew") from error
    if result.ndim != 2 or result.shape[0] != 3 or not np.issubdtype(result.dtype, np.number):
        raise ModelError(
            f"{signature} {result.dtype} {list(result.shape)} for 3 images; [3, classes] is needed",
            remedy="set model.signature to one whose output is a row of scores for each image",
        )
    probe: npt.NDArray[np.float32] = result.astype(np.float32)
    return probe


def _detect_output(probe: npt.NDArray[np.float32]) -> Literal["probabilities", "logits"]:
    """Scores outside [0, 1] are logits; those inside are probabilities, even where each class has its own."""
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


def _serving_graph(tf: Any, function: Any, signature: Signature, scale: tuple[Any, Any], *, softmax: bool) -> Any:
    """uint8 [N, H, W, 3] -> float32 [N, C] probabilities, as one concrete function with a free N."""
    pixels = tf.TensorSpec([None, signature.height, signature.width, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[pixels], autograph=False, jit_compile=False)  # type: ignore[untyped-decorator]
    def serve(pixels: Any) -> Any:
        images = _model_input(tf, pixels, signature, scale)
        scores = tf.cast(function(**{signature.input_name: images})[signature.output_name], tf.float32)
        return tf.nn.softmax(scores) if softmax else scores

    return serve.get_concrete_function()


def _freeze(serve: Any, loaded: Any) -> tuple[Any, Any]:
    """The function to call, and what must live as long as it does."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        frozen = convert_variables_to_constants_v2(serve)
        if len(frozen.inputs) == 1:
            return frozen, None
        reason = "it holds tables or other resources that are no variables"
    except Exception as error:
        reason = _one_line(error)
    logger.warning("the model is not frozen and runs as it is, somewhat slower: {}", reason)
    return (lambda pixels: (serve(pixels),)), loaded


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
