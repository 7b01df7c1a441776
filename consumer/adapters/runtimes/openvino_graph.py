"""From a model's files to an OpenVINO graph of one image: uint8 pixels in, a row of float32 scores out."""

from typing import Any

import numpy as np

from consumer.adapters.models.saved_model import signature_names
from consumer.adapters.runtimes.common import affine, one_line
from consumer.errors import CannotRun, ModelError
from consumer.model_spec import ModelPackage, ModelSpec

_DEFAULT_SIGNATURE = "serving_default"
# Not bfloat16, which OpenVINO and TensorFlow round differently: scores differed by 0.001.
_TYPES = {"uint8": "u8", "float32": "f32", "float16": "f16"}
_ELSEWHERE = 'set model.runtime = "tensorflow", or to another that runs this format'


def read_graph(core: Any, package: ModelPackage) -> Any:
    """The graph as it is written. Reads SavedModels, `.xml`, `.onnx` and `.tflite` by itself.

    Raises:
        ModelError: it cannot be read.
        CannotRun: OpenVINO has not what it is made of, or takes another of its signatures.
    """
    spec = package.spec
    if spec.format == "saved_model":
        _refuse_other_signature(package)
    try:
        graph = core.read_model(str(package.files))
    except RuntimeError as error:
        if "OpConversionFailure" in str(error):
            raise CannotRun(
                f"{spec.name}: OpenVINO has no rule for what it is made of: {_operations(str(error))}",
                remedy=_ELSEWHERE,
            ) from error
        raise ModelError(
            f"{package.files}: OpenVINO cannot read it: {one_line(error)}", remedy="export or copy it anew"
        ) from error
    if len(graph.inputs) != 1:
        raise CannotRun(
            f"{spec.name} has {len(graph.inputs)} inputs as OpenVINO reads it; one is needed", remedy=_ELSEWHERE
        )
    return graph


def serving_graph(ov: Any, graph: Any, spec: ModelSpec) -> Any:
    """uint8 [1, H, W, 3] to the model's own scores, float32 [1, C].

    One image, and not a free number: fixed shapes ran 1.3 times as fast, and several images at once are run side by
    side (see `openvino_runtime`). Changes `graph`.

    Raises:
        ModelError: what it gives is no row of scores for each image.
        CannotRun: an input or output of a type that is not fed here.
    """
    image = spec.input
    if image.dtype not in _TYPES:
        raise CannotRun(f"{image.name} takes {image.dtype}, which is not fed to OpenVINO", remedy=_ELSEWHERE)
    output = _output(graph, spec)
    if not graph.outputs[output].get_element_type().is_real():
        raise CannotRun(
            f"{spec.output.name} gives whole numbers ({graph.outputs[output].get_element_type().get_type_name()}),"
            " of which OpenVINO does not say what they stand for",
            remedy=_ELSEWHERE,
        )
    types = {name: getattr(ov.Type, kind) for name, kind in _TYPES.items()}
    wrapped = ov.preprocess.PrePostProcessor(graph)
    pixels = wrapped.input()
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    pixels.model().set_layout(ov.Layout(image.layout))
    if image.dtype != "uint8":
        steps = pixels.preprocess()
        steps.convert_element_type(ov.Type.f32).custom(lambda values: _scaled(ov, values, spec))
        steps.convert_element_type(types[image.dtype])
    wrapped.output(output).tensor().set_element_type(ov.Type.f32)
    try:
        made = wrapped.build()
        made.reshape([1, *image.size, 3])
    except RuntimeError as error:
        raise CannotRun(f"{spec.name} cannot be given one image: {one_line(error)}", remedy=_ELSEWHERE) from error
    made = ov.Model([made.outputs[output]], made.get_parameters(), "ouzel")
    shape = made.output().get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 2 or shape[0].is_dynamic or shape[0].get_length() != 1:
        raise ModelError(
            f"{spec.output.name} is {shape} for one image; [1, classes] is needed",
            remedy="set model.signature to one whose output is a row of scores for each image",
        )
    return made


def with_softmax(ov: Any, graph: Any) -> Any:
    """The same graph, its logits made probabilities. Changes `graph`."""
    wrapped = ov.preprocess.PrePostProcessor(graph)
    wrapped.output().postprocess().custom(lambda scores: ov.opset13.softmax(scores, 1).output(0))
    return wrapped.build()


def _scaled(ov: Any, values: Any, spec: ModelSpec) -> Any:
    """`pixel * factor + offset`, by channel; the channels come last here."""
    factor, offset = affine(spec.input)
    scaled = ov.opset13.multiply(values, ov.opset13.constant(factor))
    if np.any(offset):
        scaled = ov.opset13.add(scaled, ov.opset13.constant(offset))
    return scaled.output(0)


def _refuse_other_signature(package: ModelPackage) -> None:
    """OpenVINO takes `serving_default`, else all signatures together; asked for another it would label by the wrong
    one."""
    wanted = package.spec.signature
    if wanted == _DEFAULT_SIGNATURE:
        return
    names = signature_names(package.files)
    if len(names) > 1:
        raise CannotRun(
            f"OpenVINO cannot choose signature {wanted!r} among {', '.join(names)}",
            remedy='set model.runtime = "tensorflow", or export the model with this signature alone',
        )


def _output(graph: Any, spec: ModelSpec) -> int:
    """Which of the outputs; the only one, whatever a converter has called it, but never another signature's."""
    named = [number for number, output in enumerate(graph.outputs) if spec.output.name in output.get_names()]
    if named:
        return named[0]
    if len(graph.outputs) == 1 and spec.format != "saved_model":
        return 0
    there = ", ".join(sorted(name for output in graph.outputs for name in output.get_names())) or "none with a name"
    raise CannotRun(
        f"{spec.name} has no output {spec.output.name} as OpenVINO reads it; it has: {there}", remedy=_ELSEWHERE
    )


def _operations(message: str) -> str:
    """Those that OpenVINO names in its message."""
    _, _, rest = message.partition("No conversion rule found for operations: ")
    return rest.splitlines()[0].strip() if rest else "it does not say what"
