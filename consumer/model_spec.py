"""What is known of a model before it runs: where it lies, what goes in, what comes out, and who vouches for it.

All of it decides labels, so all of it is under the digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ModelFormat = Literal["saved_model", "openvino", "onnx", "tflite"]
"""How a model lies on disk: a SavedModel's folder, an OpenVINO `.xml` with its `.bin`, an `.onnx`, a `.tflite`."""
Layout = Literal["NHWC", "NCHW"]
OutputKind = Literal["auto", "probabilities", "logits"]
"""What the model gives. `auto`: the runtime looks at what it gives for three test images."""
Precision = Literal["f32", "bf16", "f16", "int8"]
GateStatus = Literal["original", "accepted", "provisional", "rejected"]
"""`original`: made by training, nothing to compare it with. The others are what `ouzel model optimize` found: labels
agree with the parent's; agree on too few images to tell; do not agree."""
RuntimeName = Literal["tensorflow", "openvino", "onnxruntime", "litert"]
MAX_SIDE = 65_535
"""Pixels of the longest side of an input."""
Resize = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the model takes, and how pixels become that."""

    name: str
    """Of the signature's input, or of the graph's."""
    dtype: str
    """`uint8`, `float32`, `float16`, `bfloat16`; of a quantised `.tflite` also `int8`."""
    layout: Layout
    height: int
    width: int
    """In pixels."""
    range: tuple[float, float] = (0.0, 1.0)
    """What pixel values 0 and 255 become, before mean and std. Not used where the model takes uint8."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Subtracted, then divided by: none, one value, or one for each of R, G, B."""
    resize: Resize = "bilinear"
    crop: float = 1.0
    """Share of the largest centred box of the input's aspect that is kept; 1.0 squeezes the whole image in."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the model gives: a row of scores for each image."""

    name: str
    kind: OutputKind = "auto"
    classes: int = 0
    """0 where the model's file does not say."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's own description: what `model.toml` says, or what was read from a bare model and the settings."""

    name: str
    version: str
    format: ModelFormat
    input: InputSpec
    output: OutputSpec
    signature: str = ""
    """Of a SavedModel; empty for the other formats."""
    precision: Precision = "f32"
    """What it computes in. A runtime that cannot compute in it must refuse the model."""
    runtime: str = ""
    """The one runtime that it was made and gated for; empty: any that runs its format."""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What that runtime must be told, as it was when the model was gated."""
    gate: GateStatus = "original"
    parent: str = ""
    """Digest of the model that it was made from; empty for an original."""


def spec_from(raw: Mapping[str, Any]) -> ModelSpec:
    """The spec again, as `dataclasses.asdict` and JSON left it on its way to another process."""
    image: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in raw["input"].items()
    }
    return ModelSpec(**{**raw, "input": InputSpec(**image), "output": OutputSpec(**raw["output"])})


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A model on this disk, verified, with all that a runtime and a decoder need to know of it."""

    spec: ModelSpec
    folder: Path
    """The artifact's folder, or the bare model itself."""
    files: Path
    """What the runtime loads: a SavedModel's folder, or the `.xml`, `.onnx` or `.tflite` file."""
    labels: Path | None
    digest: str
    """`sha256:` and hex: everything that decides a label (I7)."""
    is_artifact: bool = False
    """Whether it has a `model.toml`; else it is bare, and settings describe it."""
