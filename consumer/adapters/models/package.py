"""Opens a model that lies on this disk: an artifact, verified, or a bare model that settings describe.

What decides labels is under the digest either way. An artifact's is the hash of its manifest; where settings of
decoding differ from the defaults, it is a hash over both, as the labels may then differ too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from consumer.adapters.model_digest import file_sha256, folder_sha256, model_digest
from consumer.adapters.models.manifest import verify
from consumer.adapters.models.model_file import MODEL_FILE, ModelFile, read_model_file
from consumer.adapters.models.saved_model import read_signature
from consumer.errors import ModelCorrupt, ModelError, ModelRefused
from consumer.model_spec import ModelPackage, ModelSpec, OutputKind, Resize

_NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class BareModel:
    """What settings say of a model that says nothing of itself; see `settings_tables.ModelSettings`."""

    name: str = ""
    version: str = ""
    labels: Path | None = None
    signature: str = ""
    input_range: Sequence[float] = (0.0, 1.0)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    resize: Resize = "bilinear"
    crop: float = 1.0
    output: OutputKind = "auto"
    weights: Mapping[str, str] | None = None
    """SHA-256 by name of what it was made from, where its own bytes differ from build to build; None hashes them."""


def is_artifact(folder: Path) -> bool:
    """Whether a `model.toml` describes what lies there."""
    return (folder / MODEL_FILE).is_file()


def open_artifact(
    folder: Path, *, pin: str = "", decode: Mapping[str, object] = _NOTHING, allow_provisional: bool = False
) -> ModelPackage:
    """Verify an artifact and read it.

    Args:
        folder: the artifact's.
        pin: the digest that it must have; empty for any.
        decode: settings of decoding that differ from their defaults; they change the digest.
        allow_provisional: whether a variant that was gated on too few images may be used.

    Raises:
        ModelCorrupt: its bytes are not those of its manifest or of the pin, or it is none.
        ModelRefused: the gate of `ouzel model optimize` rejected it.
    """
    package = read_artifact(folder, pin=pin, decode=decode)
    spec = package.spec
    refuse_by_gate(spec.gate, f"{spec.name} {spec.version}", allow_provisional=allow_provisional)
    return package


def read_artifact(folder: Path, *, pin: str = "", decode: Mapping[str, object] = _NOTHING) -> ModelPackage:
    """As `open_artifact`, whatever the gate said: to look at a variant, not to serve it. Raises ModelCorrupt."""
    digest, said = check_artifact(folder, pin=pin)
    spec = said.spec()
    files = folder / said.files
    labels = folder / said.labels if said.labels else None
    if decode:
        canonical = json.dumps({"artifact": digest, "decode": dict(decode)}, sort_keys=True, separators=(",", ":"))
        digest = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    return ModelPackage(spec, folder, files, labels, digest, is_artifact=True)


def check_artifact(folder: Path, *, pin: str = "") -> tuple[str, ModelFile]:
    """Verify an artifact, whatever its gate says: its digest, and what it says of itself.

    Raises:
        ModelCorrupt: its bytes are not those of its manifest or of the pin, or it is none.
    """
    if not is_artifact(folder):
        raise ModelCorrupt(
            f"{folder}: no artifact: it has no {MODEL_FILE}",
            remedy="`ouzel model init SOURCE --output DIR` writes one of a model",
        )
    digest = verify(folder, pin=pin)
    said = read_model_file(folder)
    files = folder / said.files
    there = (files / "saved_model.pb").is_file() if said.format == "saved_model" else files.is_file()
    if not there:
        raise ModelCorrupt(f"{folder}: its files, {said.files}, are no {said.format} model", remedy=_ANEW)
    if said.labels and not (folder / said.labels).is_file():
        raise ModelCorrupt(f"{folder}: its labels, {said.labels}, are missing", remedy=_ANEW)
    return digest, said


def refuse_bare_file(path: Path) -> None:
    """Raises ModelError for a model that is one file: it says too little of itself to be used as it is."""
    if path.is_file() and path.suffix in {".onnx", ".tflite", ".xml"}:
        raise ModelError(
            f"{path}: a file alone does not say how its input is prepared nor what its classes are called",
            remedy=f"write an artifact of it, `ouzel model init {path.name} --output DIR`, and set model.source to DIR",
        )


_ANEW = "get the artifact anew: `ouzel model pull`, or copy it whole"


def refuse_by_gate(gate: str, what: str, *, allow_provisional: bool) -> None:
    """What may neither be served nor promoted.

    Args:
        gate: a `GateStatus`.
        what: the variant, for people.
        allow_provisional: the setting.

    Raises:
        ModelRefused: its labels do not agree with its parent's, or not surely.
    """
    if gate == "rejected":
        raise ModelRefused(
            f"{what} was rejected: its labels do not agree with those of its parent",
            remedy="use the parent, or make another variant: `ouzel model optimize`",
        )
    if gate == "provisional" and not allow_provisional:
        raise ModelRefused(
            f"{what} is provisional: it was compared with its parent on too few images to tell",
            remedy="run `ouzel model optimize` with more images, or set model.allow_provisional = true",
        )


def open_bare(folder: Path, bare: BareModel, *, decode: Mapping[str, object] = _NOTHING) -> ModelPackage:
    """A SavedModel without `model.toml`; settings say what it does not.

    `decode` are all settings of decoding; they are part of the digest.

    Raises:
        ModelError: absent, or no SavedModel that takes images and gives scores; or its label file is absent.
    """
    refuse_bare_file(folder)
    signature = read_signature(folder, bare.signature)
    if bare.labels is not None and not bare.labels.is_file():
        raise ModelError(f"{bare.labels}: no such label file", remedy="set model.labels to a label file")
    image = replace(
        signature.input,
        range=(float(bare.input_range[0]), float(bare.input_range[1])),
        mean=tuple(float(value) for value in bare.mean),
        std=tuple(float(value) for value in bare.std),
        resize=bare.resize,
        crop=bare.crop,
    )
    digest = model_digest(
        weights=folder_sha256(folder) if bare.weights is None else bare.weights,
        labels=file_sha256(bare.labels) if bare.labels is not None else "",
        preprocessing={
            **decode,
            "resize": image.resize,
            "crop": image.crop,
            "input_range": list(image.range),
            "mean": list(image.mean),
            "std": list(image.std),
            "signature": signature.name,
            "output": bare.output,
        },
        precision="f32",
    )
    spec = ModelSpec(
        name=bare.name or folder.resolve().name,
        version=bare.version or digest.removeprefix("sha256:")[:12],
        format="saved_model",
        input=image,
        output=replace(signature.output, kind=bare.output),
        signature=signature.name,
    )
    return ModelPackage(spec, folder, folder, bare.labels, digest)
