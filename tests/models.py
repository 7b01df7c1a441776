"""Small real models for tests: SavedModels that answer in a millisecond and tell photographs apart."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

from consumer.adapters.models.package import BareModel, open_bare
from consumer.model_spec import ModelPackage

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
    names: tuple[str, str] = ("images", "scores"),
    seed: int = 7,
) -> Path:
    """Write a SavedModel of two random convolutions into `folder` and return it.

    Input `images` of `dtype` (float32 in [0, 1], or uint8), output `scores`: probabilities, or the logits behind them;
    `names` gives them other names.
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

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name=names[0])], autograph=False)  # type: ignore[untyped-decorator]
    def classify(images: Any) -> dict[str, Any]:
        values = tf.cast(images, tf.float32)
        if dtype == "uint8":
            values /= 255.0
        if layout == "NCHW":
            values = tf.transpose(values, (0, 2, 3, 1))
        values = tf.nn.relu(tf.nn.conv2d(values - 0.5, first, 2, "SAME"))
        values = tf.nn.relu(tf.nn.conv2d(values, second, 2, "SAME"))
        scores = tf.reduce_mean(values, axis=(1, 2)) @ dense * 4.0
        return {names[1]: scores if logits else tf.nn.softmax(scores)}

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


@cache
def model_cache() -> Path:
    """Where the test run keeps converted models, each of which takes seconds to make."""
    return temporary_folder("ouzel-model-cache-")


@contextmanager
def converting_here() -> Iterator[None]:
    """Models are converted in this process, where TensorFlow is there already, and not in a child, which would import
    it each time; what the child does besides is in `test_converted_models.py`."""
    from consumer.adapters.models import convert

    def here(package: ModelPackage, target: convert.Target, output: Path, threads: int) -> None:
        convert.convert(package, target, output, threads=threads)

    with patch.object(convert, "_in_a_child", here):
        yield


@cache
def tiny_file(
    target: Literal["onnx", "tflite"], *, batch: int | None = None, quantised: str = "", **options: Any
) -> Path:
    """The same model as a file of its own, as others would export it: `images` -> `scores`, untouched by us.

    `batch` fixes the batch size; `quantised` (`int8`, `uint8`: of a `.tflite`) is the type of input and output then.
    """
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    loaded = tf.saved_model.load(str(tiny_model(**options)))
    signature = loaded.signatures["serving_default"]
    shape = [batch, *signature.structured_input_signature[1]["images"].shape[1:]]
    dtype = options.get("dtype", "float32")
    function = tf.function(
        lambda images: signature(images=images)["scores"],
        input_signature=[tf.TensorSpec(shape, dtype, name="images")],
        autograph=False,
    )
    concrete = function.get_concrete_function()
    folder = Path(tempfile.mkdtemp(prefix="file-", dir=temporary_folder("ouzel-tiny-models-")))
    file = folder / f"birds.{target}"
    if target == "onnx":
        import tf2onnx
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        frozen = convert_variables_to_constants_v2(concrete)
        names = frozen.inputs[0].name, frozen.outputs[0].name
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(), input_names=[names[0]], output_names=[names[1]], opset=18
        )
        file.write_bytes(model.SerializeToString())
        return file
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], loaded)
    if quantised:
        random = np.random.default_rng(0)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([random.random((1, *shape[1:]), np.float32)] for _ in range(20))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, quantised)
    file.write_bytes(converter.convert())
    return file


def bare(folder: Path, **described: Any) -> ModelPackage:
    """A SavedModel without `model.toml`, described by `BareModel`'s fields."""
    return open_bare(folder, BareModel(**described))


def tiny_labels(folder: Path, *, classes: int = 10) -> Path:
    """A label file for it, its rows in reverse order: `class-0`, `class-1`, ... by id."""
    path = folder / "labels.csv"
    rows = [f"{index},class-{index}" for index in reversed(range(classes))]
    path.write_text("\n".join(["id,name", *rows]) + "\n")
    return path
