"""`ouzel model init`: an artifact of a model that says nothing of itself."""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from consumer.adapters.models.describe import Described
    from consumer.model_spec import InputSpec, ModelSpec
    from consumer.settings import Settings


class Resize(StrEnum):
    """`model_spec.Resize`, as typer takes a choice."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
    NEAREST = "nearest"
    BOX = "box"
    HAMMING = "hamming"


class OutputKind(StrEnum):
    """`model_spec.OutputKind`, as typer takes a choice."""

    AUTO = "auto"
    PROBABILITIES = "probabilities"
    LOGITS = "logits"


def init(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="A SavedModel's folder, or a file: .onnx, .tflite, or OpenVINO's .xml with its .bin.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The artifact's folder, a new one.")],
    name: Annotated[str, typer.Option(help="In label events and metrics; else the name of DIR.")] = "",
    version: Annotated[str, typer.Option(help="In label events and metrics; else a hash of the model's files.")] = "",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV `id,name` in any order, or one name a line.")
    ] = None,
    signature: Annotated[str, typer.Option(help="Of a SavedModel; else serving_default, or the only one.")] = "",
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="What pixel values 0 and 255 become, before mean and std; else 0 1."),
    ] = None,
    mean: Annotated[str, typer.Option(metavar="R,G,B", help="Subtracted: one value, or three with commas.")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="Divided by, after the mean.")] = "",
    resize: Annotated[Resize, typer.Option(help="Filter that shrinks images.")] = Resize.BILINEAR,
    crop: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the shorter side that a centre crop keeps.")
    ] = 1.0,
    output_kind: Annotated[OutputKind, typer.Option(help="What the model gives; auto looks.")] = OutputKind.AUTO,
    force: Annotated[bool, typer.Option("--force", help="Replace the artifact that is there.")] = False,
) -> None:
    """Write an artifact of a model: its files, its labels, model.toml and a manifest.

    The signature is read from the model; what no file says (how pixels are scaled, what the classes are called) is said
    here, as the model was trained and evaluated. The model is run once on test images, to see what it gives.

    Example: ouzel model init exported/ --output models/birds --labels birds.csv --input-range -1 1
    """
    from dataclasses import replace

    from consumer import __version__
    from consumer.adapters.models.describe import describe
    from consumer.adapters.models.write import copy_labels, copy_model, refuse_overwriting, write_artifact
    from consumer.adapters.runtimes.kinds import NATIVE
    from consumer.clock import SystemClock
    from consumer.console import print_facts, settings_from
    from consumer.log import configure
    from consumer.model_spec import ModelSpec

    settings = settings_from(ctx)
    configure(settings.log.model_copy(update={"level": "WARNING"}))
    refuse_overwriting(output, replace=force)
    described = describe(source, signature=signature)
    image = replace(
        described.input,
        range=described.input.range if input_range is None else input_range,
        mean=_values(mean, "--mean"),
        std=_values(std, "--std"),
        resize=resize.value,
        crop=crop,
    )
    facts: dict[str, Any] = {}

    def fill(folder: Path) -> ModelSpec:
        files = copy_model(source, described.format, folder)
        spec = ModelSpec(
            name=name or output.resolve().name,
            version=version or _hash(files)[:12],
            format=described.format,
            input=image,
            output=replace(described.output, kind=output_kind.value),
            signature=described.signature,
            precision=described.precision,
            # Each runtime rounds whole numbers in its own way, and one digest must have one label.
            runtime=NATIVE[described.format] if described.precision == "int8" else "",
        )
        spec = _probed(settings, spec, files)
        named = copy_labels(labels, spec.output.classes, folder) if labels is not None else 0
        facts.update(_facts(spec, named))
        return spec

    digest = write_artifact(
        output,
        fill,
        replace=force,
        provenance={
            "made_by": f"ouzel {__version__}: model init",
            "made_at": SystemClock().utc_now(),
            "source": source.resolve().name,
            "signature": _signature(described),
        },
    )
    print_facts({"artifact": str(output), **facts, "digest": digest})
    typer.echo(f'next: ouzel model verify {output}; then set model.source = "{output}" and run ouzel doctor', err=True)


def _probed(settings: "Settings", spec: "ModelSpec", files: Path) -> "ModelSpec":
    """The spec with what only running the model tells: how many classes, probabilities or logits.

    Raises ModelError and CannotRun.
    """
    from dataclasses import replace

    from consumer.adapters.runtimes.common import detect_output, probe_images
    from consumer.adapters.runtimes.kinds import NATIVE, candidates, open_kind
    from consumer.bootstrap_model import cache_folder
    from consumer.cpu import quota_cores
    from consumer.model_spec import ModelPackage

    untouched = replace(spec, output=replace(spec.output, kind="probabilities"))
    package = ModelPackage(untouched, files, files, None, f"sha256:{_hash(files)}")
    kinds = candidates(package)
    native = next((kind for kind in kinds if kind.name == NATIVE[spec.format]), kinds[0])
    threads = settings.model.threads or quota_cores()
    runtime = open_kind(native, package, threads=threads, device="cpu", cache=cache_folder())
    try:
        kind = spec.output.kind
        if kind == "auto":
            kind = detect_output(runtime.infer(probe_images(*spec.input.size)))
        return replace(spec, output=replace(spec.output, kind=kind, classes=runtime.class_count))
    finally:
        runtime.close()


def _values(text: str, option: str) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in {1, 3}:
        raise typer.BadParameter(f"{text!r} is not one number, or three with commas", param_hint=option)
    return values


def _hash(files: Path) -> str:
    """Hex that stands for the model's files."""
    from consumer.adapters.model_digest import folder_sha256

    folder = files if files.is_dir() else files.parent
    return hashlib.sha256(json.dumps(folder_sha256(folder), sort_keys=True).encode()).hexdigest()


def _signature(described: "Described") -> str:
    image, scores = described.input, described.output
    name = f"{described.signature}: " if described.signature else ""
    return f"{name}{image.name} {image.dtype} {_shape(image)} -> {scores.name}"


def _shape(image: "InputSpec") -> str:
    sides = f"{image.height}, {image.width}"
    return f"[N, {sides}, 3]" if image.layout == "NHWC" else f"[N, 3, {sides}]"


def _facts(spec: "ModelSpec", named: int) -> dict[str, Any]:
    image, scores = spec.input, spec.output
    return {
        "name": spec.name,
        "version": spec.version,
        "format": spec.format,
        "precision": spec.precision,
        "runtime": spec.runtime or None,
        "signature": spec.signature or None,
        "input": f"{image.name} {image.dtype} {_shape(image)}",
        "range": None if image.dtype == "uint8" else list(image.range),
        "mean": list(image.mean) or None,
        "std": list(image.std) or None,
        "resize": f"{image.resize}, crop {image.crop}",
        "output": f"{scores.name}, {scores.classes} {scores.kind}",
        "labels": f"{named} of {scores.classes} classes have a name",
    }
