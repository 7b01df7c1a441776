"""Pruning by magnitude: of each kernel the smallest weights become zero.

The graph stays as it is and the kernels stay dense, so that a CPU computes as much as before; what shrinks is the
model's compressed size. Only the values in the SavedModel's variables are written anew. Depthwise kernels, those
of the first layer and biases are left alone: they are few, and each counts.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.adapters.optimize.making import Made, Task, versions
from consumer.adapters.runtimes.tensorflow_graph import serving_graph
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun

_WIDEST_WINDOW = 7
"""Pixels of a convolution's kernel; more are not usual."""


def make(task: Task) -> Iterator[Made]:
    """Of a SavedModel, one for each level."""
    spec = task.package.spec
    tf, _ = start_tensorflow(threads=task.threads, device="cpu")
    graph = serving_graph(tf, task.package)
    tensors = _read(tf, task)
    kernels = [name for name, tensor in tensors.items() if is_kernel(tensor)]
    if not kernels:
        raise CannotRun(
            "the SavedModel holds no kernels in variables: they are constants of its graph, or it has none",
            remedy="export it with its variables",
        )
    for level in task.levels:
        name = f"pruned-{level * 100:.0f}"
        files = task.folder / name
        # Without its fingerprint, which stands for other weights.
        shutil.copytree(task.package.files, files, ignore=shutil.ignore_patterns("fingerprint.pb", "variables"))
        (files / "variables").mkdir()
        thinned = tensors | {kernel: pruned(tensors[kernel], level) for kernel in kernels}
        tf.raw_ops.SaveV2(
            prefix=str(files / "variables" / "variables"),
            tensor_names=list(thinned),
            shape_and_slices=[""] * len(thinned),
            tensors=list(thinned.values()),
        )
        yield Made(
            name=name,
            format="saved_model",
            files=files,
            input=spec.input,
            output=replace(spec.output, kind=graph.gives, classes=graph.classes),
            precision="f32",
            signature=spec.signature,
            tools=versions("tensorflow", "tensorflow-cpu"),
            notes={"pruned_share_of_kernels": level, "zeros_in_all": _zeros(thinned)},
        )


def is_kernel(tensor: Any) -> bool:
    """Whether it is the kernel of a dense layer [in, out], or of a convolution with many channels on both sides, in any
    layout ([kh, kw, in, out] of TensorFlow, [out, kh, kw, in] of TensorFlow Lite)."""
    if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32:
        return False
    # Of a depthwise kernel only one side is longer than the window is.
    least = {2: 1, 4: _WIDEST_WINDOW}.get(tensor.ndim)
    return least is not None and bool(sorted(tensor.shape)[-2] > least)


def pruned(kernel: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.float32]:
    """The kernel with this share of its weights zero: those nearest to it."""
    count = int(share * kernel.size)
    if not count:
        return kernel
    thinned = kernel.copy()
    thinned.ravel()[np.argpartition(np.abs(kernel).ravel(), count - 1)[:count]] = 0.0
    return thinned


def _read(tf: Any, task: Task) -> dict[str, Any]:
    """Every tensor of the SavedModel's variables, those included that are no weights, by name."""
    prefix = task.package.files / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        return {}
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


def _zeros(tensors: Mapping[str, Any]) -> float:
    """Share of all float32 values that are zero."""
    values = [each for each in tensors.values() if isinstance(each, np.ndarray) and each.dtype == np.float32]
    return float(sum((each == 0).sum() for each in values) / max(1, sum(each.size for each in values)))
