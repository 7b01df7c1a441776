"""The runtimes that there are, what each needs and runs, and how one is opened."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumer.errors import CannotRun
from consumer.extras import missing
from consumer.model_spec import ModelFormat, ModelPackage, ModelSpec
from consumer.ports import ModelRuntime

_HERE = "consumer.adapters.runtimes"


@dataclass(frozen=True, slots=True)
class Kind:
    """One runtime. Its module, and what that imports, is imported when a model is opened with it."""

    name: str
    """As `model.runtime` has it, and the extra that installs it."""
    title: str
    needs: str
    """The vendor's module."""
    packages: tuple[str, ...]
    """The distributions that bring it, any of them."""
    module: str
    factory: str
    formats: frozenset[ModelFormat]
    has_streams: bool = False
    """Whether it runs several images side by side, and lets us say how many."""
    threads_stay: bool = False
    """Whether a process can say once only how many threads it may use."""


KINDS = (
    Kind(
        "openvino",
        "OpenVINO",
        "openvino",
        ("openvino",),
        "openvino_runtime",
        "OpenVinoRuntime",
        frozenset({"saved_model", "openvino", "onnx", "tflite"}),
        has_streams=True,
    ),
    Kind(
        "onnxruntime",
        "ONNX Runtime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "onnx_runtime",
        "OnnxRuntime",
        frozenset({"saved_model", "onnx"}),
    ),
    Kind(
        "litert",
        "LiteRT",
        "ai_edge_litert",
        ("ai-edge-litert",),
        "litert_runtime",
        "LiteRtRuntime",
        frozenset({"saved_model", "tflite"}),
    ),
    Kind(
        "tensorflow",
        "TensorFlow",
        "tensorflow",
        ("tensorflow-cpu", "tensorflow"),
        "tensorflow_runtime",
        "TensorFlowRuntime",
        frozenset({"saved_model"}),
        threads_stay=True,
    ),
)
"""In the order that decides between two that are equally fast: the lighter one first."""

NATIVE: Mapping[ModelFormat, str] = {
    "saved_model": "tensorflow",
    "openvino": "openvino",
    "onnx": "onnxruntime",
    "tflite": "litert",
}
"""The runtime that a format is the own one of: its scores are right, and of a quantised file nobody else's are."""


def find_kind(name: str) -> Kind | None:
    """Of `model.runtime`; None for a name that is none, such as the null runtime's."""
    return next((kind for kind in KINDS if kind.name == name), None)


def kind_of(name: str) -> Kind:
    """Of `model.runtime`. Raises CannotRun for a name that is none."""
    found = find_kind(name)
    if found is None:
        raise CannotRun(f"there is no runtime {name!r}", remedy=f"there are {', '.join(kind.name for kind in KINDS)}")
    return found


def is_installed(kind: Kind) -> bool:
    """Looked for, and not imported."""
    return not missing(kind.needs, f"{_HERE}.{kind.module}")


def made_for(spec: ModelSpec) -> str:
    """The one runtime that may run it: the one that it names, or a quantised model's own; empty for any."""
    return spec.runtime or (NATIVE[spec.format] if spec.precision == "int8" else "")


def candidates(package: ModelPackage) -> Sequence[Kind]:
    """Those that are installed and run its format; of a model that was made for one runtime, that one alone.

    Raises:
        CannotRun: none is.
    """
    spec = package.spec
    only = made_for(spec)
    fit = [kind for kind in KINDS if spec.format in kind.formats and only in {"", kind.name}]
    installed = [kind for kind in fit if is_installed(kind)]
    if not installed:
        names = ", ".join(kind.name for kind in fit) or "none"
        made = f" and was made for {only}" if only else ""
        raise CannotRun(
            f"no runtime is installed that runs {spec.name}: it is {spec.format}{made}; these would: {names}",
            remedy=install(fit[0]) if fit else "use the model that this variant was made from",
        )
    return installed


def install(kind: Kind) -> str:
    """The command that installs it."""
    return f"pip install '.[{kind.name}]'"


def open_kind(
    kind: Kind, package: ModelPackage, *, threads: int, device: str, cache: Path, streams: int = 0
) -> ModelRuntime:
    """Load the model with this runtime; not warm yet.

    Args:
        kind: the runtime.
        package: the model.
        threads: cores that it may use.
        device: `auto`, `cpu`, `gpu:0`, ...
        cache: where it may keep what it compiles or converts.
        streams: images that it runs side by side; 0 is as many as it thinks best.

    Raises:
        ModelError: unreadable, or not a model that we can run.
        CannotRun: not installed, or not for this model or machine.
        DeviceMissing: a GPU that is asked for and is not there.
    """
    if not is_installed(kind):
        raise CannotRun(f"{kind.title} is not installed", remedy=install(kind))
    if streams and not kind.has_streams:
        raise CannotRun(
            f"model.streams is {streams}, and {kind.title} has no streams",
            remedy='set model.streams = 0, or model.runtime = "openvino"',
        )
    factory: Any = getattr(importlib.import_module(f"{_HERE}.{kind.module}"), kind.factory)
    keeps: dict[str, Any] = {} if kind.name == "tensorflow" else {"cache": cache}
    if kind.has_streams:
        keeps["streams"] = streams
    runtime: ModelRuntime = factory(package, threads=threads, device=device, **keeps)
    return runtime
