"""Writes an artifact: model, labels, model.toml and manifest. It is whole, or it is not there."""

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consumer.adapters.labels import load_labels
from consumer.adapters.models.manifest import write_manifest
from consumer.adapters.models.model_file import write_model_file
from consumer.adapters.models.package import check_artifact, is_artifact
from consumer.errors import CommandRefused, ModelError
from consumer.model_spec import ModelFormat, ModelSpec

LABELS = "labels.csv"
# Of a SavedModel's folder, what TensorFlow writes: labels and notes that lie beside it are not the model.
_OF_A_SAVED_MODEL = ("saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra")
_FILE_NAMES: Mapping[ModelFormat, str] = {"onnx": "model.onnx", "tflite": "model.tflite", "openvino": "model.xml"}


def copy_model(source: Path, form: ModelFormat, folder: Path) -> Path:
    """Copy a model's files into `folder`/model, links followed; returns what a runtime loads.

    Raises:
        ModelError: a file that belongs to it is missing or cannot be read.
    """
    target = folder / "model"
    target.mkdir()
    try:
        if form == "saved_model":
            for name in _OF_A_SAVED_MODEL:
                part = source / name
                if part.is_dir():
                    shutil.copytree(part, target / name)
                elif part.exists():
                    shutil.copyfile(part, target / name)
            return target
        file = target / _FILE_NAMES[form]
        shutil.copyfile(source, file)
        if form == "openvino":
            shutil.copyfile(source.with_suffix(".bin"), file.with_suffix(".bin"))
        if form == "onnx":  # weights of more than 2 GiB lie beside it, and the file names them
            for more in sorted(source.parent.glob(f"{_literal(source.name)}[._]data")):
                shutil.copyfile(more, target / more.name)
    except OSError as error:
        raise ModelError(f"{source} cannot be copied: {error}", remedy="copy or export the model anew") from error
    return file


def copy_labels(labels: Path, classes: int, folder: Path) -> int:
    """Write a label file as `id,name` in order of id into `folder`; returns how many classes have a name.

    Raises:
        ModelError: not the labels of a model with so many classes; see `load_labels`.
    """
    names = load_labels(labels, classes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "name"))
    writer.writerows((index, names.name(index)) for index in range(classes) if names.name(index) != str(index))
    (folder / LABELS).write_bytes(text.getvalue().encode())
    return len(names)


def write_artifact(
    output: Path,
    fill: Callable[[Path], ModelSpec],
    *,
    replace: bool = False,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    gate: Mapping[str, Any] | None = None,
) -> str:
    """Write an artifact to `output`; returns its digest.

    Args:
        output: the artifact's folder, which is not there yet.
        fill: puts the model (`copy_model`) and its labels (`copy_labels`, or none) into the empty folder that it is
            given, and says what the model is.
        replace: whether an artifact that is there gives way.
        provenance, metrics, gate: see `write_model_file`.

    Raises:
        CommandRefused: something is there.
        ModelError: what was filled in is no artifact, or the folder cannot be written; and what `fill` raises.
    """
    refuse_overwriting(output, replace=replace)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".writing-") as scratch:
            made = Path(scratch) / "artifact"
            made.mkdir()
            spec = fill(made)
            write_model_file(
                made,
                spec,
                files="model" if spec.format == "saved_model" else f"model/{_FILE_NAMES[spec.format]}",
                labels=LABELS if (made / LABELS).exists() else "",
                provenance=provenance,
                metrics=metrics or {},
                gate=gate,
            )
            digest = write_manifest(made)
            check_artifact(made, pin=digest)
            if replace and output.exists():
                output.rename(Path(scratch) / "before")
            made.rename(output)
    except OSError as error:
        raise ModelError(f"{output} cannot be written: {error}", remedy="give a folder that can be written") from error
    return digest


def refuse_overwriting(output: Path, *, replace: bool) -> None:
    """Raises CommandRefused where something is at `output` that must stay."""
    if not output.exists() and not output.is_symlink():
        return
    if not replace:
        raise CommandRefused(f"{output} is there already", remedy="give another folder, or --force to replace it")
    if output.is_symlink() or not is_artifact(output):
        raise CommandRefused(
            f"{output} is no artifact, and --force replaces only those", remedy="remove it, or give another folder"
        )


def _literal(name: str) -> str:
    """A name for `glob`, with nothing in it that stands for anything else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
