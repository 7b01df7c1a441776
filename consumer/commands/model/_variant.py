"""Makes variants of a model, compares each with it, and writes the best as an artifact of its own."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.commands.model._measure import BATCH_SIZES, Figures, ModelProcess, measured_together, on_its_runtime
from consumer.errors import CannotRun, SettingsError
from consumer.stages.agreement import CONFIDENCE, Agreement, Verdict, calibration_photographs, images_needed, verdict

if TYPE_CHECKING:
    from consumer.adapters.optimize.making import Made
    from consumer.commands.model._bars import Bars
    from consumer.commands.model._images import ImageSet, ModelImage
    from consumer.model_spec import ModelPackage
    from consumer.settings import Settings
    from consumer.stages.comparison import Comparison

_TURN_S = 0.3


@dataclass(frozen=True, slots=True)
class Split:
    """Images that calibrate, and images that are compared. They share no photograph."""

    calibration: "list[ModelImage]"
    holdout: "list[ModelImage]"

    @property
    def calibration_sha256(self) -> str:
        """Over the SHA-256 of each calibration image, in their order; empty where there are none."""
        if not self.calibration:
            return ""
        return hashlib.sha256("\n".join(image.digest for image in self.calibration).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant that was made and compared."""

    made: "Made"
    comparison: "Comparison"
    figures: Figures
    original: Figures
    """Of the original, in turns with this one."""
    verdict: Verdict


def divided(found: "ImageSet", *, calibration: int) -> Split:
    """Divide by photograph: the same photographs always alike."""
    chosen = calibration_photographs(found.images_of, calibration) if calibration else frozenset()
    calibrating = sorted((each for each in found.images if each.photograph in chosen), key=lambda each: each.digest)
    return Split(calibrating[:calibration], [each for each in found.images if each.photograph not in chosen])


def check_enough(split: Split, *, min_agreement: float, allow_small: bool, calibrates: bool) -> None:
    """Raises SettingsError where there are too few photographs; says how many are missing."""
    if calibrates and not split.calibration:
        raise SettingsError(
            "all images are of one photograph, and calibration and hold-out may not share one",
            remedy="give images of several photographs",
        )
    needed = images_needed(min_agreement)
    photographs = len({image.photograph for image in split.holdout})
    if photographs >= needed or allow_small:
        return
    calibrating = f" after {len(split.calibration)} images for calibration" if split.calibration else ""
    raise SettingsError(
        f"{photographs} photographs ({len(split.holdout)} images) are left to compare{calibrating}, and an agreement "
        f"of {min_agreement:g} can be told from {needed} on, if all agree: {needed - photographs} are missing",
        remedy="give more images (the usual source is --images 'kafka://TOPIC?last=2000'), lower --min-agreement, "
        "or make a provisional variant with --allow-small",
    )


def candidates(
    settings: "Settings",
    package: "ModelPackage",
    kind: str,
    split: Split,
    *,
    folder: Path,
    levels: Sequence[float],
    min_agreement: float,
    rounds: int,
    bars: "Bars",
) -> list[Candidate]:
    """Make the variants of this kind in `folder` and compare each. Raises CannotRun and ModelError."""
    from consumer.adapters.labels import load_labels, no_labels
    from consumer.adapters.optimize.kinds import KINDS
    from consumer.adapters.optimize.making import Task
    from consumer.cpu import quota_cores
    from consumer.stages.comparison import compare

    holdout = [image.pixels[0] for image in split.holdout]
    photographs = [image.photograph for image in split.holdout]
    found: list[Candidate] = []
    with bars.bar("choosing the original's runtime"):
        settings = on_its_runtime(settings, package)
    with ModelProcess(settings, package) as original:
        with bars.bar(f"labelling by {package.spec.name} on {original.runtime}", len(holdout)) as tell:
            expected = original.scores(holdout, tell)
        known = load_labels(package.labels, original.class_count) if package.labels else no_labels()
        names = [known.name(number) for number in range(original.class_count)]
        with bars.bar(f"making {kind}", len(split.calibration) or None) as tell:
            task = Task(
                package,
                folder,
                [image.pixels[0] for image in split.calibration],
                threads=settings.model.threads or quota_cores(),
                levels=levels,
                tell=tell,
            )
            made_ones = list(KINDS[kind].make(task))
        for made in made_ones:
            variant = _package(package, made)
            with ModelProcess(on_its_runtime(settings, variant), variant) as process:
                if process.class_count != original.class_count:
                    raise CannotRun(
                        f"{made.name} gives {process.class_count} scores, and the original {original.class_count}",
                        remedy="use another kind",
                    )
                with bars.bar(f"labelling by {made.name}", len(holdout)) as tell:
                    scores = process.scores(holdout, tell)
                with bars.bar("taking turns", rounds * len(BATCH_SIZES) * 2) as tell:
                    before, after = measured_together(
                        [original, process],
                        [package, variant],
                        [_some(holdout)] * 2,
                        rounds=rounds,
                        seconds=_TURN_S,
                        tell=tell,
                    )
            comparison = compare((expected, scores), (names, names), photographs)
            found.append(
                Candidate(
                    made,
                    comparison,
                    after,
                    before,
                    verdict(comparison.top1, min_agreement=min_agreement),
                )
            )
    return found


def best(found: Sequence[Candidate]) -> Candidate:
    """The last, which is the smallest, of those with the best verdict; of rejected ones the one that agrees most."""
    for wanted in ("accepted", "provisional"):
        if passed := [each for each in found if each.verdict == wanted]:
            return passed[-1]
    return max(found, key=lambda each: each.comparison.top1.lower_bound)


def write(
    package: "ModelPackage",
    chosen: Candidate,
    split: Split,
    *,
    output: Path,
    min_agreement: float,
    provenance: Mapping[str, Any],
) -> str:
    """Write the chosen one as an artifact, whatever its verdict; returns its digest. Raises ModelError."""
    from consumer.adapters.models.write import copy_labels, copy_model, write_artifact
    from consumer.model_spec import ModelSpec

    made, spec = chosen.made, package.spec

    def fill(folder: Path) -> ModelSpec:
        copy_model(made.files, made.format, folder)
        if package.labels is not None:
            copy_labels(package.labels, made.output.classes, folder)
        return replace(_package(package, made).spec, gate=chosen.verdict)

    return write_artifact(
        output,
        fill,
        provenance={
            **provenance,
            "parent_name": spec.name,
            "parent_version": spec.version,
            "tools": dict(made.tools),
            "calibration_images": len(split.calibration),
            "calibration_sha256": split.calibration_sha256,
            **made.notes,
        },
        metrics={"variant": metrics_table(chosen.figures), "original": metrics_table(chosen.original)},
        gate=gate_table(chosen.comparison, min_agreement=min_agreement),
    )


def gate_table(comparison: "Comparison", *, min_agreement: float) -> dict[str, Any]:
    """What was found, for model.toml and for people."""
    top1: Agreement = comparison.top1
    return {
        "min_agreement": min_agreement,
        "lower_bound": top1.lower_bound,
        "confidence": CONFIDENCE,
        "method": top1.method,
        "holdout_images": top1.images,
        "holdout_photographs": top1.photographs,
        "photographs_needed": images_needed(min_agreement),
        "disagreements": top1.disagreements,
        "top1_agreement": top1.share,
        "top5_agreement": comparison.top5_share,
        "largest_shift": comparison.largest_shift,
        "mean_shift": comparison.mean_shift,
    }


def scratch_folder(output: Path) -> "tempfile.TemporaryDirectory[str]":
    """Where variants are made. Beside the output: models are large, and /tmp may be memory. Raises OSError."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=output.parent, prefix=".optimizing-")


def metrics_table(figures: Figures) -> dict[str, Any]:
    """What was measured, for model.toml and for people."""
    found: dict[str, Any] = {
        "images_per_s": {str(size): round(rate, 2) for size, rate in figures.images_per_s.items()},
        "cpu_ms": {str(size): round(cpu_ms, 3) for size, cpu_ms in figures.cpu_ms.items()},
        "cold_start_s": round(figures.cold_start_s, 3),
        "size_bytes": figures.size_bytes,
        "compressed_bytes": figures.compressed_bytes,
    }
    if figures.resident_bytes is not None:  # TOML has no null
        found["resident_bytes"] = figures.resident_bytes
    return found


def _package(package: "ModelPackage", made: "Made") -> "ModelPackage":
    """The variant as a runtime takes it, before it is an artifact. Its digest stands for its files alone."""
    from consumer.adapters.model_digest import file_sha256, folder_sha256
    from consumer.model_spec import ModelPackage

    spec = replace(
        package.spec,
        version=f"{package.spec.version}+{made.name}",
        format=made.format,
        input=made.input,
        output=made.output,
        signature=made.signature,
        precision=made.precision,
        runtime=made.runtime,
        options=dict(made.options),
        gate="provisional",
        parent=package.digest,
    )
    hashes = folder_sha256(made.files) if made.files.is_dir() else {made.files.name: file_sha256(made.files)}
    digest = "sha256:" + hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()
    return ModelPackage(spec, made.files.parent, made.files, package.labels, digest)


def _some(pixels: Sequence[Any]) -> Any:
    import numpy as np

    return np.stack(list(pixels[: max(BATCH_SIZES)]))
