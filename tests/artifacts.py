"""Artifacts for tests that move models and run none: a SavedModel's place is taken by a few bytes."""

from pathlib import Path

from consumer.adapters.models.manifest import write_manifest
from consumer.adapters.models.model_file import write_model_file
from consumer.model_spec import GateStatus, InputSpec, ModelSpec, OutputSpec


def small_artifact(
    folder: Path, *, weights: bytes = b"weights", version: str = "1", gate: GateStatus = "original"
) -> str:
    """Write an artifact into `folder`; returns its digest. Equal arguments give equal digests."""
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "model" / "saved_model.pb").write_bytes(b"graph")
    (folder / "model" / "variables" / "variables.data").write_bytes(weights)
    (folder / "labels.csv").write_text("id,name\n0,dipper\n1,wren\n")
    spec = ModelSpec(
        name="birds",
        version=version,
        format="saved_model",
        input=InputSpec("images", "float32", "NHWC", 32, 32),
        output=OutputSpec("scores", "probabilities", 2),
        signature="serving_default",
        gate=gate,
    )
    write_model_file(folder, spec, provenance={"made_by": "the tests"}, metrics={"top_1": 0.75})
    return write_manifest(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path inside it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
