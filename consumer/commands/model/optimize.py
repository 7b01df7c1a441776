"""`ouzel model optimize`: a variant that is smaller or faster, used only if its labels agree."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumer.commands.model._bars import progress_bars
from consumer.commands.model._images import DEFAULT, MOST, read_images
from consumer.errors import CommandRefused, SettingsError

if TYPE_CHECKING:
    from consumer.commands.model._variant import Candidate
    from consumer.model_spec import ModelPackage

_REJECTED = 1
_LEVELS = "30,50,70"


class Kind(StrEnum):
    """As typer takes a choice; `adapters.optimize.kinds` has what each needs."""

    OPENVINO_BF16 = "openvino-bf16"
    OPENVINO_INT8 = "openvino-int8"
    TF_BF16 = "tf-bf16"
    FP16 = "fp16"
    LITERT_INT8 = "litert-int8"
    ONNX = "onnx"
    TENSORRT = "tensorrt"
    PRUNED = "pruned"


def optimize(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="The original: anything that model.source may be.")],
    *,
    to: Annotated[Kind, typer.Option(help="What to make of it; see docs/optimizing.md.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The variant's folder, not there yet.")],
    images: Annotated[str, typer.Option(help="A folder of images, or kafka://TOPIC?last=N.")],
    min_agreement: Annotated[
        float,
        typer.Option(min=0.0, max=0.9999, help="The share of photographs whose first label must surely stay."),
    ] = 0.99,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="Too few images make a provisional variant, not an error.")
    ] = False,
    calibration: Annotated[
        int, typer.Option(min=1, max=MOST, help="Images that int8 kinds measure activations on.")
    ] = 300,
    levels: Annotated[str, typer.Option(help="Of pruned: percent of the weights, with commas.")] = _LEVELS,
    cluster_by: Annotated[
        str, typer.Option(help="Images whose names are equal up to this text are of one photograph.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="The most images of a folder.")] = DEFAULT,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Turns that each model's speed is measured in.")] = 3,
) -> None:
    """Make a variant of a model, compare its labels with the original's, and write it as an artifact of its own.

    It is accepted if the lower end of the 95 % confidence interval of their agreement reaches --min-agreement; a
    rejected one is written, too, and `ouzel run` refuses it. Exit code 0: accepted or provisional; 1: rejected; 2: too
    few images; 3: it cannot be made here.

        ouzel model optimize models/birds --to openvino-int8 --output models/birds-int8 --images photographs/
    """
    from consumer import bootstrap_model
    from consumer.adapters.cpu_flags import cpu_flags, noted
    from consumer.adapters.models.write import refuse_overwriting
    from consumer.adapters.optimize.kinds import KINDS, refuse
    from consumer.commands.model import _variant
    from consumer.console import settings_from
    from consumer.log import configure

    settings = settings_from(ctx)
    configure(settings.log.model_copy(update={"level": "WARNING"}))
    shares = _shares(levels)
    refuse_overwriting(output, replace=False)
    with progress_bars() as bars:
        with bars.bar(f"opening {source}"):
            package = bootstrap_model.open_to_look_at(settings, source)
        refuse(to, package, cpu_flags=cpu_flags())
        calibrates = KINDS[to].calibrates
        with bars.counted("reading the images") as advance:
            found = read_images(
                settings,
                images,
                [bootstrap_model.open_decoder(settings, package)],
                limit=limit,
                cluster_by=cluster_by,
                advance=advance,
            )
        split = _variant.divided(found, calibration=calibration if calibrates else 0)
        _variant.check_enough(split, min_agreement=min_agreement, allow_small=allow_small, calibrates=calibrates)
        try:
            scratch = _variant.scratch_folder(output)
        except OSError as error:
            raise CommandRefused(
                f"{output.parent} cannot be written: {error.strerror or error}", remedy="give another --output"
            ) from error
        with scratch as folder:
            compared = _variant.candidates(
                settings,
                package,
                to,
                split,
                folder=Path(folder),
                levels=shares,
                min_agreement=min_agreement,
                rounds=rounds,
                bars=bars,
            )
            chosen = _variant.best(compared)
            digest = _variant.write(
                package,
                chosen,
                split,
                output=output,
                min_agreement=min_agreement,
                provenance=_provenance(to, images, noted(cpu_flags())),
            )
    _print(package, compared, chosen, found.passed_over, output=output, digest=digest, min_agreement=min_agreement)
    if chosen.verdict == "rejected":
        raise typer.Exit(_REJECTED)


def _shares(levels: str) -> list[float]:
    """Percent with commas, as ascending shares. Raises SettingsError."""
    try:
        shares = sorted({float(level) / 100 for level in levels.split(",")})
    except ValueError:
        shares = []
    if not shares or not all(0.0 < share < 1.0 for share in shares):
        raise SettingsError(
            f"--levels {levels}: not percent from 1 to 99 with commas", remedy=f"write them as {_LEVELS}"
        )
    return shares


def _provenance(kind: str, images: str, flags: list[str]) -> dict[str, Any]:
    from consumer import __version__
    from consumer.clock import SystemClock
    from consumer.commands.model._images import topic_of

    topic = topic_of(images)
    return {
        "made_by": f"ouzel {__version__}: model optimize --to {kind}",
        "made_at": SystemClock().utc_now(),
        "images_from": f"topic {topic.name}" if topic else "files",
        "cpu_flags": flags,
    }


# --- printing -------------------------------------------------------------------------------------------------------


def _print(
    package: "ModelPackage",
    compared: "list[Candidate]",
    chosen: "Candidate",
    passed_over: Any,
    *,
    output: Path,
    digest: str,
    min_agreement: float,
) -> None:
    from consumer.commands.model._variant import gate_table, metrics_table
    from consumer.console import print_json, print_table, stdout_is_terminal
    from consumer.stages.agreement import images_needed

    if not stdout_is_terminal():
        for each in compared:
            said = {"kind": "variant", "name": each.made.name, "verdict": each.verdict}
            gate = gate_table(each.comparison, min_agreement=min_agreement)
            figures = {"variant": metrics_table(each.figures), "original": metrics_table(each.original)}
            print_json({**said, **gate, **figures})
        print_json(
            {
                "kind": "artifact",
                "path": str(output),
                "digest": digest,
                "name": chosen.made.name,
                "gate": chosen.verdict,
                "parent": package.digest,
                "passed_over": dict(passed_over),
            }
        )
        return
    columns = ("", "original", *(each.made.name for each in compared))
    print_table(_rows(compared, columns), columns, title=f"{package.spec.name} {package.spec.version}")
    top1 = chosen.comparison.top1
    if passed_over:
        typer.echo(f"passed over: {', '.join(f'{count} {name}' for name, count in passed_over.items())}", err=True)
    needed = images_needed(min_agreement)
    few = f", of {needed} needed" if top1.photographs < needed else ""
    typer.secho(
        f"{chosen.made.name} is {chosen.verdict}: surely at least {top1.lower_bound:.2%} agree "
        f"({top1.method}, {top1.images} images of {top1.photographs} photographs{few}), {min_agreement:.2%} asked for",
        fg={"accepted": "green", "provisional": "yellow", "rejected": "red"}[chosen.verdict],
        err=True,
    )
    typer.echo(f"wrote {output} ({digest})", err=True)


def _rows(compared: "list[Candidate]", columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each figure, a column for each model."""
    original = compared[-1].original
    rows: list[list[str]] = [
        ["size, MB", _mb(original.size_bytes), *(_mb(each.figures.size_bytes) for each in compared)],
        ["compressed, MB", _mb(original.compressed_bytes), *(_mb(each.figures.compressed_bytes) for each in compared)],
        ["same first label", "", *(f"{each.comparison.top1.share:.2%}" for each in compared)],
        ["surely at least", "", *(f"{each.comparison.top1.lower_bound:.2%}" for each in compared)],
        ["disagreements", "", *(f"{_disagreements(each)}" for each in compared)],
        ["among first five", "", *(f"{each.comparison.top5_share:.2%}" for each in compared)],
        ["largest shift", "", *(f"{each.comparison.largest_shift:.4f}" for each in compared)],
    ]
    for size, rate in original.images_per_s.items():
        rows.append(
            [f"images/s at {size}", f"{rate:.0f}", *(f"{each.figures.images_per_s[size]:.0f}" for each in compared)]
        )
    for size, cpu_ms in original.cpu_ms.items():
        rows.append(
            [f"CPU ms an image at {size}", f"{cpu_ms:.1f}", *(f"{each.figures.cpu_ms[size]:.1f}" for each in compared)]
        )
    rows += [
        ["resident, MB", _mb(original.resident_bytes), *(_mb(each.figures.resident_bytes) for each in compared)],
        ["cold start, s", f"{original.cold_start_s:.1f}", *(f"{each.figures.cold_start_s:.1f}" for each in compared)],
        ["verdict", "", *(each.verdict for each in compared)],
    ]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _disagreements(each: "Candidate") -> str:
    return f"{each.comparison.top1.disagreements} of {each.comparison.top1.images}"


def _mb(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
