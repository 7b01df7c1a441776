"""Small real models for tests: SavedModels that answer in a millisecond and tell photographs apart."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "consumer" / "data" / "photographs"


def tiny_saved_model(
    folder: Path,
    *,
    size: int = 32,
    classes: int = 10,
    layout: Literal["NHWC", "NCHW"] = "NHWC",
    dtype: str = "float32",
    logits: bool = False,
    signature: str = "serving_default",
    seed: int = 7,
) -> Path:
    """Write a SavedModel of two random convolutions into `folder` and return it.

    Input `images` of `dtype` (float32 in [0, 1], or uint8), output `scores`: probabilities, or the logits behind them.
    Equal arguments give the same weights. A quarter of a second, once TensorFlow is there.
    """
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    random = np.random.default_rng(seed)

    def variable(*shape: int) -> Any:
        fan_in = int(np.prod(shape[:-1]))
        return tf.Variable(random.normal(0, 2.0 / np.sqrt(fan_in), shape).astype(np.float32))

    first, second, dense = variable(3, 3, 3, 8), variable(3, 3, 8, 16), variable(16, classes)
    shape = [None, size, size, 3] if layout == "NHWC" else [None, 3, size, size]

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")], autograph=False)  # type: ignore[untyped-decorator]
    def classify(images: Any) -> dict[str, Any]:
        values = tf.cast(images, tf.float32)
        if dtype == "uint8":
            values /= 255.0
        if layout == "NCHW":
            values = tf.transpose(values, (0, 2, 3, 1))
        values = tf.nn.relu(tf.nn.conv2d(values - 0.5, first, 2, "SAME"))
        values = tf.nn.relu(tf.nn.conv2d(values, second, 2, "SAME"))
        scores = tf.reduce_mean(values, axis=(1, 2)) @ dense * 4.0
        return {"scores": scores if logits else tf.nn.softmax(scores)}

    save_model(folder, {signature: classify}, [first, second, dense])
    return folder


def save_model(folder: Path, signatures: dict[str, Any], variables: list[Any]) -> None:
    """Write a SavedModel with these signatures."""
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    module = tf.Module()
    module.kept = variables
    for name, function in signatures.items():
        setattr(module, name, function)
    tf.saved_model.save(module, str(folder), signatures=signatures)


@cache
def temporary_folder(prefix: str) -> Path:
    """One for the test run, by its prefix."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def tiny_model(**options: Any) -> Path:
    """`tiny_saved_model` in a temporary folder, once for the test run. To be read only."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-", dir=temporary_folder("ouzel-tiny-models-")))
    return tiny_saved_model(folder / "tiny", **options)


def tiny_labels(folder: Path, *, classes: int = 10) -> Path:
    """A label file for it, its rows in reverse order: `class-0`, `class-1`, ... by id."""
    path = folder / "labels.csv"
    rows = [f"{index},class-{index}" for index in reversed(range(classes))]
    path.write_text("\n".join(["id,name", *rows]) + "\n")
    return path
