"""The kinds of variants: what each needs, and who makes it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from consumer.adapters.cpu_flags import BF16
from consumer.adapters.optimize import litert_int8, onnx_variants, openvino_variants, pruned, tensorflow_bf16
from consumer.adapters.optimize.making import Made, Task
from consumer.errors import CannotRun
from consumer.extras import missing
from consumer.model_spec import ModelFormat, ModelPackage

_ANY: Final[frozenset[ModelFormat]] = frozenset({"saved_model", "onnx", "tflite", "openvino"})
_SAVED_MODEL: Final[frozenset[ModelFormat]] = frozenset({"saved_model"})


@dataclass(frozen=True, slots=True)
class Kind:
    """One value of `--to`."""

    make: Callable[[Task], Iterator[Made]]
    """Raises CannotRun and ModelError."""
    modules: tuple[str, ...]
    """What must be installed."""
    extras: str
    """That bring it."""
    formats: frozenset[ModelFormat]
    """Of which it can be made."""
    calibrates: bool = False
    cpu_flags: frozenset[str] = frozenset()
    """Of which the CPU needs one; none: any CPU will do."""
    provider: str = ""
    """ONNX Runtime's, that must be here; empty: none."""


KINDS: Mapping[str, Kind] = {
    "openvino-bf16": Kind(openvino_variants.make_bf16, ("openvino",), "openvino", _ANY, cpu_flags=BF16),
    "openvino-int8": Kind(openvino_variants.make_int8, ("openvino", "nncf"), "optimize", _ANY, calibrates=True),
    "tf-bf16": Kind(tensorflow_bf16.make, ("tensorflow",), "tensorflow", _SAVED_MODEL, cpu_flags=BF16),
    "fp16": Kind(
        onnx_variants.make_fp16,
        ("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
        "tensorflow,optimize,onnxruntime-gpu",
        _SAVED_MODEL,
        provider=onnx_variants.CUDA,
    ),
    "litert-int8": Kind(
        litert_int8.make, ("tensorflow", "ai_edge_litert"), "tensorflow,litert", _SAVED_MODEL, calibrates=True
    ),
    "onnx": Kind(
        onnx_variants.make_onnx,
        ("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
        "tensorflow,optimize,onnxruntime",
        _SAVED_MODEL,
    ),
    "tensorrt": Kind(
        onnx_variants.make_tensorrt,
        ("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
        "tensorflow,optimize,onnxruntime-gpu",
        _SAVED_MODEL,
        provider=onnx_variants.TENSORRT,
    ),
    "pruned": Kind(pruned.make, ("tensorflow",), "tensorflow", _SAVED_MODEL),
}


def refuse(name: str, package: ModelPackage, *, cpu_flags: Collection[str]) -> None:
    """Raises CannotRun where this kind cannot be made of this model, or not compared with it, on this machine."""
    kind, spec = KINDS[name], package.spec
    if spec.gate != "original" or spec.precision != "f32":
        raise CannotRun(
            f"{spec.name} {spec.version} is a variant itself ({spec.precision})",
            remedy=f"make {name} of the original, {spec.parent or 'in float32'}",
        )
    if spec.format not in kind.formats:
        raise CannotRun(
            f"{name} is made of {', '.join(sorted(kind.formats))}, and {spec.name} is {spec.format}",
            remedy="name the SavedModel that it was made from",
        )
    if kind.cpu_flags and kind.cpu_flags.isdisjoint(cpu_flags):
        raise CannotRun(
            f"{name} needs a CPU with {' or '.join(sorted(kind.cpu_flags))}, and this one has neither: it would run"
            " slower than float32 there",
            remedy="run this on a machine of the kind that will serve it; `ouzel doctor` names the flags",
        )
    if absent := missing(*kind.modules):
        raise CannotRun(
            f"{', '.join(absent)}: not installed, and {name} needs it", remedy=f"pip install '.[{kind.extras}]'"
        )
    if kind.provider:
        onnx_variants.refuse_without(kind.provider)
