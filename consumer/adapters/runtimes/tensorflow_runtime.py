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

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.runtimes.common import (
    affine,
    check_scores,
    checked_probe,
    detect_output,
    info_of,
    one_line,
    probe_images,
    say_loaded,
    warn_of_unused_scale,
)
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun, ModelError
from consumer.messages import ModelInfo
from consumer.model_spec import InputSpec, ModelPackage


class TensorFlowRuntime:
    """Fulfils `ports.ModelRuntime` with a SavedModel."""

    def __init__(self, package: ModelPackage, *, threads: int, device: str = "auto") -> None:
        """Load the model: 0.5 s and more, and TensorFlow's import.

        Args:
            package: a SavedModel.
            threads: cores that it may use. One value for the process: TensorFlow takes it once.
            device: `auto` (a GPU if there is one), `cpu`, `gpu:0`, ...

        Raises:
            ModelError: unreadable, or not a model that we can run.
            DeviceMissing: a GPU that is asked for and is not there.
        """
        spec = package.spec
        if spec.format != "saved_model":
            raise CannotRun(
                f"TensorFlow runs SavedModels, and this model is {spec.format}", remedy='set model.runtime = "auto"'
            )
        self._input_size = spec.input.size
        scale = affine(spec.input)
        tf, self._device = start_tensorflow(threads=threads, device=device)
        self._tf = tf
        with tf.device(self._device):
            loaded, function = _load(tf, package)
            warn_of_unused_scale(spec.input)
            probe = _probe(tf, function, package, scale)
            self._class_count = int(probe.shape[1])
            found = detect_output(probe) if spec.output.kind == "auto" else spec.output.kind
            serve = _serving_graph(tf, function, package, scale, softmax=found == "logits")
            self._function, self._keep_alive = _freeze(serve, loaded)
        self._info = info_of(package, "tensorflow")
        say_loaded(
            package,
            runtime="tensorflow",
            classes=self._class_count,
            gives=found,
            device=self._device,
            threads=threads,
        )

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
                    f"model {self._info.name} cannot run a batch of {size}: {one_line(error)}",
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
        return check_scores(scores)

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._function = self._keep_alive = None


def _load(tf: Any, package: ModelPackage) -> tuple[Any, Any]:
    """The SavedModel, and its signature's function."""
    try:
        loaded = tf.saved_model.load(str(package.files))
        return loaded, loaded.signatures[package.spec.signature]
    except Exception as error:  # OSError, DecodeError, OpError, ValueError, ...: it is broken in one way or another
        raise ModelError(
            f"{package.files}: the SavedModel cannot be loaded: {one_line(error)}", remedy="export or copy it anew"
        ) from error


def _model_input(tf: Any, pixels: Any, image: InputSpec, scale: tuple[Any, Any]) -> Any:
    """Graph or eager: uint8 [N, H, W, 3] to what the signature takes."""
    if image.dtype == "uint8":
        images = pixels
    else:
        factor, offset = scale
        images = tf.cast(pixels, tf.float32) * factor
        if np.any(offset):
            images += offset
        images = tf.cast(images, image.dtype)
    return tf.transpose(images, (0, 3, 1, 2)) if image.layout == "NCHW" else images


def _probe(tf: Any, function: Any, package: ModelPackage, scale: tuple[Any, Any]) -> npt.NDArray[np.float32]:
    """What the model gives, untouched, for three test images: float32 [3, C]."""
    spec = package.spec
    images = _model_input(tf, tf.constant(probe_images(*spec.input.size)), spec.input, scale)
    what = f"signature {spec.signature!r} -> {spec.output.name}"
    try:
        result = function(**{spec.input.name: images})[spec.output.name].numpy()
    except Exception as error:
        raise ModelError(f"{what}: the model does not run: {one_line(error)}", remedy="export it anew") from error
    return checked_probe(what, result)


def _serving_graph(tf: Any, function: Any, package: ModelPackage, scale: tuple[Any, Any], *, softmax: bool) -> Any:
    """uint8 [N, H, W, 3] -> float32 [N, C] probabilities, as one concrete function with a free N."""
    image, output = package.spec.input, package.spec.output
    pixels = tf.TensorSpec([None, *image.size, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[pixels], autograph=False, jit_compile=False)  # type: ignore[untyped-decorator]
    def serve(pixels: Any) -> Any:
        images = _model_input(tf, pixels, image, scale)
        scores = tf.cast(function(**{image.name: images})[output.name], tf.float32)
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
        reason = one_line(error)
    logger.warning("the model is not frozen and runs as it is, somewhat slower: {}", reason)
    return (lambda pixels: (serve(pixels),)), loaded
