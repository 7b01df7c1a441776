"""TensorFlow SavedModels on CPU or GPU.

The signature is wrapped in a graph that takes uint8 pixels and gives probabilities, and the whole is frozen: calls go
to one concrete function. XLA stays off: on CPU it made this kind of model ten times slower.

Measured on 2 virtual cores (AMD EPYC with AVX-512 and bf16, no AMX; TensorFlow 2.21, float32, uint8 in, median of three
interleaved rounds on a machine with other work), images/s at batch 1 / 4 / 8 / 16 / 32:

    MobileNetV2, 965 classes     frozen  86 / 135 / 113 / 129 / 145    signature  54 / 90 / 81 / 137 / 105
    EfficientNet-Lite0           frozen  78 / 102 / 131 / 126 / 152    signature  50 / 124 / 92 / 142 / 131

The very first call took 250 to 500 ms, and the first of each further batch size up to four times its usual time: that
is what the warm-up is for.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.cpu_flags import BF16, cpu_flags
from consumer.adapters.runtimes.common import LoadedRuntime, check_scores, run_once_each, warn_of_unused_scale
from consumer.adapters.runtimes.tensorflow_graph import ServingGraph, frozen, in_precision, serving_graph
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun
from consumer.model_spec import ModelPackage, Precision


class TensorFlowRuntime(LoadedRuntime):
    """Fulfils `ports.ModelRuntime` with a SavedModel."""

    def __init__(self, package: ModelPackage, *, threads: int, device: str = "auto") -> None:
        """Load the model: 0.5 s and more, and TensorFlow's import.

        Args:
            package: a SavedModel.
            threads: cores that it may use. One value for the process: TensorFlow takes it once.
            device: `auto` (a GPU if there is one), `cpu`, `gpu:0`, ...

        Raises:
            ModelError: unreadable, or not a model that we can run.
            CannotRun: TensorFlow does not run this format, or not in its precision here.
            DeviceMissing: a GPU that is asked for and is not there.
        """
        spec = package.spec
        if spec.format != "saved_model":
            raise CannotRun(
                f"TensorFlow runs SavedModels, and this model is {spec.format}", remedy='set model.runtime = "auto"'
            )
        tf, self._device = start_tensorflow(threads=threads, device=device)
        self._tf = tf
        refuse_precision(spec.precision, on_gpu=self._device.startswith("/GPU"), flags=cpu_flags())
        warn_of_unused_scale(spec.input)
        with tf.device(self._device):
            graph = serving_graph(tf, package)
            self._function, self._keep_alive = _function_of(tf, graph, spec.precision)
        self._hold(
            package,
            runtime="tensorflow",
            classes=graph.classes,
            gives=graph.gives,
            device=self._device,
            threads=threads,
        )

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run every batch size once.

        Raises:
            ModelError: it cannot be run, for example because the device's memory is too small.
        """
        run_once_each(self, batch_sizes)

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


def refuse_precision(precision: Precision, *, on_gpu: bool, flags: Collection[str]) -> None:
    """Raises CannotRun where TensorFlow cannot compute in `precision` here, or far slower than in float32.

    `flags` are the CPU's. TensorFlow's bf16 is oneDNN's, on the CPU; its f16 is for GPUs.
    """
    if precision == "f32":
        return
    if precision == "f16":
        if not on_gpu:
            raise CannotRun("TensorFlow computes in f16 on GPUs only", remedy=_IN_FLOAT32)
    elif precision == "bf16":
        if on_gpu:
            raise CannotRun("TensorFlow computes in bf16 on CPUs only", remedy='set model.device = "cpu"')
        if not BF16 & set(flags):
            raise CannotRun(
                f"bf16 needs a CPU with {' or '.join(sorted(BF16))}, and this one has neither",
                remedy=_IN_FLOAT32,
            )
    else:
        raise CannotRun(f"TensorFlow does not run models in {precision}", remedy='set model.runtime = "auto"')


_IN_FLOAT32 = "use the model that this variant was made from"


def _function_of(tf: Any, graph: ServingGraph, precision: Precision) -> tuple[Any, Any]:
    """The function to call, and what must live as long as it does. Raises CannotRun where `precision` is not f32."""
    try:
        function = frozen(graph)
    except CannotRun as reason:
        if precision != "f32":
            raise
        logger.warning("the model is not frozen and runs as it is, somewhat slower: {}", reason)
        return (lambda pixels: (graph.function(pixels),)), graph.loaded
    return (function if precision == "f32" else in_precision(tf, function, precision)), None
