"""model.toml: what an artifact says of itself. Validated here, and nowhere else."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from consumer.errors import ModelCorrupt
from consumer.model_spec import (
    MAX_SIDE,
    GateStatus,
    InputSpec,
    Layout,
    ModelFormat,
    ModelSpec,
    OutputSpec,
    Precision,
    Resize,
    RuntimeName,
)

MODEL_FILE = "model.toml"
_MAX_BYTES = 1024 * 1024
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has control characters")
    return text


# TOML has lists, not tuples; what is in them is as strict as the rest.
_Pair = Annotated[tuple[float, float], Strict(strict=False)]
_Channels = Annotated[tuple[float, ...], Field(max_length=3), Strict(strict=False)]
_Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Input(_Table):
    name: _Word
    dtype: Literal["uint8", "int8", "float32", "float16", "bfloat16"]
    layout: Layout
    height: _Side
    width: _Side
    range: _Pair = (0.0, 1.0)
    mean: _Channels = ()
    std: _Channels = ()
    resize: Resize = "bilinear"
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class _Output(_Table):
    name: _Word
    kind: Literal["probabilities", "logits"]
    classes: Annotated[int, Field(ge=1)]


class _Gate(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    status: GateStatus = "original"


class ModelFile(_Table):
    """All of model.toml."""

    format_version: Literal[1] = 1
    name: _Word
    version: _Word
    format: ModelFormat
    files: Annotated[str, Field(min_length=1)] = "model"
    """What the runtime loads, inside the artifact: a folder, or one file."""
    labels: str = "labels.csv"
    precision: Precision = "f32"
    signature: str = ""
    runtime: RuntimeName | Literal[""] = ""
    parent: Annotated[str, Field(pattern=r"\A(sha256:[0-9a-f]{64})?\z")] = ""
    options: dict[str, str] = {}
    input: _Input
    output: _Output
    gate: _Gate = _Gate()
    provenance: dict[str, Any] = {}
    """Where it comes from, for people: when and by what it was made, of what, with which settings."""
    metrics: dict[str, Any] = {}
    """What was measured of it, for people."""

    def spec(self) -> ModelSpec:
        """What stages and runtimes need to know."""
        return ModelSpec(
            name=self.name,
            version=self.version,
            format=self.format,
            input=InputSpec(**self.input.model_dump()),
            output=OutputSpec(**self.output.model_dump()),
            signature=self.signature,
            precision=self.precision,
            runtime=self.runtime,
            options=dict(self.options),
            gate=self.gate.status,
            parent=self.parent,
        )


def read_model_file(folder: Path) -> ModelFile:
    """The artifact's `model.toml`.

    Raises:
        ModelCorrupt: absent, or not one; all that is wrong, with the keys.
    """
    path = folder / MODEL_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelCorrupt(f"{path}: too long for a model.toml", remedy=_REMEDY)
        raw = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}", remedy=_REMEDY) from error
    if raw.get("format_version", 1) != 1:
        raise ModelCorrupt(
            f"{path} has format_version {raw['format_version']!r}, and this Ouzel reads 1", remedy="use a newer Ouzel"
        )
    try:
        found = ModelFile.model_validate(raw)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ModelCorrupt(f"{path}: {wrong}", remedy=_REMEDY) from error
    for name, inside in (("files", found.files), ("labels", found.labels)):
        if inside and (inside.startswith("/") or {".", ".."} & set(inside.split("/"))):
            raise ModelCorrupt(f"{path}: {name} leads out of the artifact: {inside!r}", remedy=_REMEDY)
    for name, values in (("input.mean", found.input.mean), ("input.std", found.input.std)):
        if len(values) not in {0, 1, 3} or (name == "input.std" and 0 in values):
            raise ModelCorrupt(f"{path}: {name} is none, one value or three; std never zero", remedy=_REMEDY)
    if found.input.range[0] == found.input.range[1]:
        raise ModelCorrupt(f"{path}: input.range is one value, and every image would look alike", remedy=_REMEDY)
    return found


def gate_status(text: str) -> str:
    """The gate's status that the text of a `model.toml` says; empty where it cannot be read."""
    try:
        return _Gate.model_validate(tomllib.loads(text).get("gate", {})).status
    except (tomllib.TOMLDecodeError, ValidationError):
        return ""


def write_model_file(
    folder: Path,
    spec: ModelSpec,
    *,
    files: str = "model",
    labels: str = "labels.csv",
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
) -> ModelFile:
    """Write `model.toml` into `folder`; the manifest is written after it (`write_manifest`).

    `gate` is what was found beside the status: the bound, the share, how many images.
    """
    raw: dict[str, Any] = {
        "format_version": 1,
        "name": spec.name,
        "version": spec.version,
        "format": spec.format,
        "files": files,
        "labels": labels,
        "precision": spec.precision,
        "signature": spec.signature,
        "runtime": spec.runtime,
        "parent": spec.parent,
        "options": dict(spec.options),
        "input": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec.input).items()},
        "output": asdict(spec.output),
        "gate": {"status": spec.gate, **(gate or {})},
        "provenance": dict(provenance),
        "metrics": dict(metrics),
    }
    made = ModelFile.model_validate(raw)  # what is written must be read again
    (folder / MODEL_FILE).write_bytes(tomli_w.dumps(raw).encode())
    return made


_REMEDY = "get the artifact anew, or write one with `ouzel model init`"
