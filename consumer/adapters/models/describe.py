"""What a model's own file says of its input and output: SavedModel, `.onnx`, `.tflite`, OpenVINO's `.xml`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from consumer.adapters.models.onnx_ops import is_quantised
from consumer.adapters.models.saved_model import image_layout, read_signature
from consumer.adapters.runtimes.common import one_line
from consumer.errors import ModelError
from consumer.extras import missing
from consumer.model_spec import InputSpec, ModelFormat, OutputSpec, Precision

_FORMATS: Mapping[str, ModelFormat] = {".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino"}
_INPUT_DTYPES = frozenset({"uint8", "int8", "float32", "float16", "bfloat16"})
_OF_ONNX = {"float": "float32", "double": "float64"}
_OF_OPENVINO = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8", "f64": "float64"}


@dataclass(frozen=True, slots=True)
class Described:
    """What was read of a model."""

    format: ModelFormat
    input: InputSpec
    """With its defaults where the file does not say."""
    output: OutputSpec
    signature: str = ""
    """Of a SavedModel."""
    precision: Precision = "f32"
    """`int8` where any of it is quantised."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: list[int | None] | None
    """None where even the rank is not known."""


def describe(source: Path, *, signature: str = "") -> Described:
    """Read a model's signature; runs nothing of it.

    Args:
        source: a SavedModel's folder, or a file.
        signature: of a SavedModel; empty for `serving_default`, else the only one.

    Raises:
        ModelError: absent, unreadable, of no format that we know, or not from images to a row of scores.
        CannotRun: what reads this format is not installed.
    """
    if source.is_dir():
        found = read_signature(source, signature)
        return Described("saved_model", found.input, found.output, found.name)
    if not source.is_file():
        raise ModelError(f"{source}: no such file or folder", remedy="name a model's file, or a SavedModel's folder")
    form = _FORMATS.get(source.suffix.lower())
    if form is None:
        raise ModelError(
            f"{source}: not a model by its name",
            remedy=f"name a SavedModel's folder, or a file that ends in {', '.join(_FORMATS)}",
        )
    if signature:
        raise ModelError(f"{source}: only a SavedModel has signatures", remedy="leave --signature out")
    return {"onnx": _onnx, "tflite": _tflite, "openvino": _openvino}[form](source)


def _checked(source: Path, form: ModelFormat, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]) -> Described:
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) != 1:
            listed = ", ".join(tensor.name for tensor in tensors) or "none"
            raise ModelError(
                f"{source} has {len(tensors)} {what} ({listed}); one is needed",
                remedy="export it with a single image input and a single output",
            )
    image, scores = inputs[0], outputs[0]
    if image.dtype not in _INPUT_DTYPES:
        raise ModelError(
            f"{source}: input {image.name} is {image.dtype}; uint8 or float32 images are needed",
            remedy="export the model with decoded images as its input",
        )
    found = image_layout(image.shape)
    if found is None:
        raise ModelError(
            f"{source}: input {image.name} has shape {image.shape or 'unknown'};"
            " [N, height, width, 3] or [N, 3, height, width] is needed",
            remedy="export the model with a fixed image size and three channels",
        )
    classes = scores.shape[1] if scores.shape is not None and len(scores.shape) == 2 else None
    return Described(form, InputSpec(image.name, image.dtype, *found), OutputSpec(scores.name, classes=classes or 0))


def _read(source: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives. Raises ModelError, whatever it raises."""
    try:
        return read()
    except Exception as error:  # each library has classes of its own
        raise ModelError(f"{source}: cannot be read: {one_line(error)}", remedy="export or copy it anew") from error


def _onnx(source: Path) -> Described:
    if missing("onnxruntime") and not missing("openvino"):
        return replace(_openvino(source), format="onnx", precision=_onnx_precision(source))
    from consumer.adapters.runtimes.onnx_runtime import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _read(source, lambda: ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"]))

    def tensor(found: Any) -> _Tensor:
        kind = found.type.removeprefix("tensor(").removesuffix(")")
        return _Tensor(
            found.name,
            _OF_ONNX.get(kind, kind),
            [size if isinstance(size, int) else None for size in found.shape],
        )

    described = _checked(source, "onnx", [*map(tensor, session.get_inputs())], [*map(tensor, session.get_outputs())])
    return replace(described, precision=_onnx_precision(source))


def _onnx_precision(source: Path) -> Precision:
    return "int8" if _read(source, lambda: is_quantised(source)) else "f32"


def _tflite(source: Path) -> Described:
    from consumer.adapters.runtimes.litert_runtime import import_interpreter, open_interpreter, quantisation_of

    interpreter = open_interpreter(import_interpreter(), source, threads=1)

    def tensor(found: Any) -> _Tensor:
        sizes = [None if size < 0 else int(size) for size in found["shape_signature"]]
        return _Tensor(found["name"], np.dtype(found["dtype"]).name, sizes)

    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    described = _checked(source, "tflite", [*map(tensor, inputs)], [*map(tensor, outputs)])
    if any(map(_is_scaled, interpreter.get_tensor_details())):
        described = replace(described, precision="int8")
    if described.input.dtype != "int8":
        return described
    by = quantisation_of(inputs[0])
    if by is None:
        return described
    # Pixels are then only shifted by 128, as the one who quantised it had it.
    low, high = ((value - by.zero_point) * by.scale for value in (-128, 127))
    return replace(described, input=replace(described.input, range=(low, high)))


def _is_scaled(tensor: Any) -> bool:
    """Whether a tensor's whole numbers stand for others: weights or activations of a quantised `.tflite`."""
    return np.issubdtype(tensor["dtype"], np.integer) and len(tensor["quantization_parameters"]["scales"]) > 0


def _openvino(source: Path) -> Described:
    from consumer.adapters.runtimes.openvino_start import import_openvino

    core = import_openvino().Core()
    model = _read(source, lambda: core.read_model(str(source)))

    def tensor(found: Any) -> _Tensor:
        shape = found.get_partial_shape()
        sizes = None if shape.rank.is_dynamic else [None if d.is_dynamic else d.get_length() for d in shape]
        name = found.get_any_name() if found.get_names() else found.get_node().get_friendly_name()
        kind = found.get_element_type().get_type_name()
        return _Tensor(name, _OF_OPENVINO.get(kind, kind), sizes)

    described = _checked(source, "openvino", [*map(tensor, model.inputs)], [*map(tensor, model.outputs)])
    quantised = any(each.get_type_name() == "FakeQuantize" for each in model.get_ops())
    return replace(described, precision="int8" if quantised else "f32")
