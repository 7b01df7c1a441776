"""The signatures of a SavedModel, read from its file: without TensorFlow, whose import takes seconds and 300 MB.

Only the few fields needed are declared, by their numbers in TensorFlow's `saved_model.proto`, `meta_graph.proto`,
`tensor_shape.proto` and `types.proto` (https://github.com/tensorflow/tensorflow, tensorflow/core); protobuf passes over
the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from consumer.errors import CannotRun, ModelError
from consumer.model_spec import MAX_SIDE, InputSpec, Layout, OutputSpec

_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    6: "int8",
    7: "string",
    9: "int64",
    14: "bfloat16",
    19: "float16",
}
_INPUT_DTYPES = frozenset({"uint8", "float32", "float16", "bfloat16"})
# TensorFlow adds it for its own use while it loads.
_NOT_FOR_CALLERS = "__saved_model_init_op"


@dataclass(frozen=True, slots=True)
class SavedModelSignature:
    """One signature that takes images and gives scores."""

    name: str
    input: InputSpec
    """With its defaults for how pixels are prepared: a SavedModel does not say."""
    output: OutputSpec

    def __str__(self) -> str:
        image = self.input
        channels = "N, H, W, 3" if image.layout == "NHWC" else "N, 3, H, W"
        return (
            f"signature {self.name!r}: {image.name} {image.dtype} [{channels}], H {image.height}, W {image.width}"
            f" -> {self.output.name}"
        )


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: list[int | None] | None
    """None where even the rank is not known."""


def read_signature(folder: Path, wanted: str = "") -> SavedModelSignature:
    """The signature `wanted`; where none is named `serving_default`, else the only one.

    Raises:
        ModelError: no SavedModel, no such signature, or not one that takes images and gives a row of scores.
        CannotRun: protobuf is not installed.
    """
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise _no_saved_model(folder)
    signatures = _signatures(path)
    names = ", ".join(sorted(signatures)) or "none"
    if wanted:
        chosen = wanted
    elif "serving_default" in signatures:
        chosen = "serving_default"
    elif len(signatures) == 1:
        chosen = next(iter(signatures))
    else:
        raise ModelError(f"{folder}: which signature? It has: {names}", remedy="set model.signature to one of them")
    if chosen not in signatures:
        raise ModelError(f"{folder}: no signature {chosen!r}; it has: {names}", remedy="set model.signature")
    return _checked(chosen, *signatures[chosen])


def signature_names(folder: Path) -> list[str]:
    """Of all signatures, in order. Raises: see `read_signature`."""
    return sorted(_signatures(folder / "saved_model.pb"))


def _checked(name: str, inputs: dict[str, _Tensor], outputs: dict[str, _Tensor]) -> SavedModelSignature:
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) != 1:
            listed = ", ".join(sorted(tensors)) or "none"
            raise ModelError(
                f"signature {name!r} has {len(tensors)} {what} ({listed}); one is needed",
                remedy=f"set model.signature to one with a single image input and output, or export one; {what} differ",
            )
    ((input_name, image),) = inputs.items()
    ((output_name, scores),) = outputs.items()
    if image.dtype not in _INPUT_DTYPES:
        raise ModelError(
            f"signature {name!r}: input {input_name} is {image.dtype}; uint8 or float32 images are needed",
            remedy="set model.signature to one that takes decoded images, or export one",
        )
    classes = scores.shape[1] if scores.shape is not None and len(scores.shape) == 2 else None
    output = OutputSpec(output_name, classes=classes or 0)
    found = image_layout(image.shape)
    if found is not None and image.shape is not None and image.shape[0] is None:
        return SavedModelSignature(name, InputSpec(input_name, image.dtype, *found), output)
    raise ModelError(
        f"signature {name!r}: input {input_name} has shape {image.shape or 'unknown'};"
        " [None, height, width, 3] or [None, 3, height, width] is needed",
        remedy="set model.signature, or export the model with a free batch size, a fixed image size and three channels",
    )


def image_layout(shape: Sequence[int | None] | None) -> tuple[Layout, int, int] | None:
    """Layout, height and width of a batch of RGB images; None where a tensor of this shape is none of fixed size."""
    layout: Layout
    match shape:
        case [_, int(height), int(width), 3]:
            layout = "NHWC"
        case [_, 3, int(height), int(width)]:
            layout = "NCHW"
        case _:
            return None
    return (layout, height, width) if min(height, width) >= 1 and max(height, width) <= MAX_SIDE else None


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


def _signatures(path: Path) -> dict[str, tuple[dict[str, _Tensor], dict[str, _Tensor]]]:
    message = _saved_model_class()()
    try:
        message.ParseFromString(path.read_bytes())
    except (OSError, _decode_error()) as error:
        raise ModelError(
            f"{path.parent}: the SavedModel cannot be loaded: {type(error).__name__}: {error}".rstrip(": "),
            remedy="export or copy it anew",
        ) from error
    # Of several graphs, the one to serve.
    graph = next((each for each in message.meta_graphs if "serve" in each.meta_info_def.tags), None)
    if graph is None:
        raise ModelError(
            f"{path.parent}: the SavedModel cannot be loaded: it holds no graph with the tag `serve`",
            remedy="export it anew, with tf.saved_model.save or model.export",
        )
    return {
        name: (_tensors(signature.inputs), _tensors(signature.outputs))
        for name, signature in graph.signature_def.items()
        if name != _NOT_FOR_CALLERS
    }


def _tensors(infos: Any) -> dict[str, _Tensor]:
    return {name: _Tensor(_DTYPES.get(info.dtype, f"type {info.dtype}"), _shape(info)) for name, info in infos.items()}


def _shape(info: Any) -> list[int | None] | None:
    if info.tensor_shape.unknown_rank:
        return None
    return [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]


def _decode_error() -> type[Exception]:
    from google.protobuf.message import DecodeError

    error: type[Exception] = DecodeError
    return error


@cache
def _saved_model_class() -> Any:
    """The message class of a SavedModel, with only what is read here. Raises CannotRun."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise CannotRun(
            "protobuf, which reads SavedModels, is not installed", remedy="pip install '.[openvino]'"
        ) from error
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="ouzel_saved_model.proto", package="ouzel.tf", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        """Fields as (name, number, type, message's name); a leading `*` repeats."""
        made = file.message_type.add(name=name)
        for field_name, number, kind, of in fields:
            made.field.add(
                name=field_name.lstrip("*"),
                number=number,
                type=kind,
                label=kinds.LABEL_REPEATED if field_name.startswith("*") else kinds.LABEL_OPTIONAL,
                type_name=f".ouzel.tf.{of}" if of else None,
            )

    def mapping(owner: str, name: str, number: int, of: str) -> None:
        """A map<string, of>: on the wire, repeated entries of key and value."""
        made = next(each for each in file.message_type if each.name == owner)
        entry = made.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
        entry.field.add(
            name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL, type_name=f".ouzel.tf.{of}"
        )
        made.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=kinds.LABEL_REPEATED,
            type_name=f".ouzel.tf.{owner}.{entry.name}",
        )

    message("Dim", ("size", 1, kinds.TYPE_INT64, ""))
    message("Shape", ("*dim", 2, kinds.TYPE_MESSAGE, "Dim"), ("unknown_rank", 3, kinds.TYPE_BOOL, ""))
    message("TensorInfo", ("dtype", 2, kinds.TYPE_INT32, ""), ("tensor_shape", 3, kinds.TYPE_MESSAGE, "Shape"))
    message("Signature")
    mapping("Signature", "inputs", 1, "TensorInfo")
    mapping("Signature", "outputs", 2, "TensorInfo")
    message("MetaInfo", ("*tags", 4, kinds.TYPE_STRING, ""))
    message("MetaGraph", ("meta_info_def", 1, kinds.TYPE_MESSAGE, "MetaInfo"))
    mapping("MetaGraph", "signature_def", 5, "Signature")
    message("SavedModel", ("*meta_graphs", 2, kinds.TYPE_MESSAGE, "MetaGraph"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ouzel.tf.SavedModel"))
