"""`ouzel model compare`: what two models say of the same images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumer.commands.model._bars import progress_bars
from consumer.commands.model._images import DEFAULT, MOST, read_images
from consumer.errors import CommandRefused

if TYPE_CHECKING:
    from consumer.commands.model._images import ImageSet
    from consumer.model_spec import ModelPackage
    from consumer.stages.comparison import ComparedImage, Comparison, Side

_TOP_K = 5
_PAIR_COLUMNS = ("images", "first", "second")
_IMAGE_COLUMNS = ("image", "first", "second", "shift")


def compare(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A model: anything that model.source may be.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    *,
    images: Annotated[str, typer.Option(help="A folder of images, or kafka://TOPIC?last=N.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with the images as well.")] = None,
    cluster_by: Annotated[
        str, typer.Option(help="Images whose names are equal up to this text are of one photograph.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="The most images of a folder.")] = DEFAULT,
) -> None:
    """Compare what two models say of the same images: how often they agree, what they confuse, and on which images.

    Tables in a terminal, JSON lines when piped: one `summary`, a `confused` for each pair of labels, a `disagreement`
    for each image. Classes are compared by name where the models number them differently. A rejected variant may be
    compared, too.

        ouzel model compare models/birds models/birds-int8 --images photographs/ --html compare.html
    """
    from consumer import bootstrap_model
    from consumer.adapters.labels import load_labels, no_labels
    from consumer.commands.model._measure import ModelProcess, on_its_runtime
    from consumer.console import settings_from
    from consumer.log import configure
    from consumer.stages.comparison import compare as compared

    settings = settings_from(ctx)
    configure(settings.log.model_copy(update={"level": "WARNING"}))
    packages: list[ModelPackage] = []
    scores, names = [], []
    with progress_bars() as bars:
        for source in (first, second):
            with bars.bar(f"opening {source}"):
                packages.append(bootstrap_model.open_to_look_at(settings, source))
        decoders = [bootstrap_model.open_decoder(settings, package) for package in packages]
        with bars.counted("reading the images") as advance:
            found = read_images(
                settings,
                images,
                decoders,
                limit=limit,
                cluster_by=cluster_by,
                thumbnails=html is not None,
                advance=advance,
            )
        for index, package in enumerate(packages):
            what = f"{package.spec.name} {package.spec.version}"
            with bars.bar(f"loading {what}"):
                model = ModelProcess(on_its_runtime(settings, package), package)
            with model, bars.bar(f"labelling by {what}", len(found.images)) as tell:
                scores.append(model.scores([image.pixels[index] for image in found.images], tell))
                known = load_labels(package.labels, model.class_count) if package.labels else no_labels()
                names.append([known.name(number) for number in range(model.class_count)])
    comparison = compared(
        (scores[0], scores[1]), (names[0], names[1]), [image.photograph for image in found.images], top_k=_TOP_K
    )
    if html is not None:
        _write_page(html, packages, found, comparison)
    _print(packages, found, comparison)


def _write_page(path: Path, packages: "list[ModelPackage]", found: "ImageSet", comparison: "Comparison") -> None:
    from consumer.commands.model.compare_page import render

    names = [image.name for image in found.images]
    thumbnails = [image.thumbnail for image in found.images]
    try:
        path.write_text(render(packages, comparison, names, thumbnails), encoding="utf-8")
    except OSError as error:
        raise CommandRefused(
            f"{path} cannot be written: {error.strerror or error}", remedy="name another file with --html"
        ) from error
    typer.echo(f"wrote {path}", err=True)


# --- printing -------------------------------------------------------------------------------------------------------


def summary(packages: "list[ModelPackage]", found: "ImageSet", comparison: "Comparison") -> dict[str, Any]:
    """What is known in all."""
    top1 = comparison.top1
    return {
        "first": _said(packages[0]),
        "second": _said(packages[1]),
        "images": top1.images,
        "photographs": top1.photographs,
        "disagreements": top1.disagreements,
        "top1_agreement": round(top1.share, 6),
        "top1_lower_bound": round(top1.lower_bound, 6),
        "method": top1.method,
        "top5_agreement": round(comparison.top5_share, 6),
        "largest_shift": round(comparison.largest_shift, 6),
        "mean_shift": round(comparison.mean_shift, 6),
        "passed_over": dict(found.passed_over),
    }


def _said(package: "ModelPackage") -> dict[str, str]:
    spec = package.spec
    return {"name": spec.name, "version": spec.version, "digest": package.digest, "gate": spec.gate}


def _print(packages: "list[ModelPackage]", found: "ImageSet", comparison: "Comparison") -> None:
    from consumer.console import print_json, print_table, stdout_is_terminal

    whole = summary(packages, found, comparison)
    pairs = [{"first": one, "second": other, "images": count} for one, other, count in comparison.confused()]
    disagreed = comparison.disagreements
    if not stdout_is_terminal():
        print_json({"kind": "summary", **whole})
        for pair in pairs:
            print_json({"kind": "confused", **pair})
        for each in disagreed:
            print_json({"kind": "disagreement", **_image_line(each, found)})
        return
    told = {**whole, "first": _version(packages[0]), "second": _version(packages[1])}
    told["passed_over"] = ", ".join(f"{count} {name}" for name, count in found.passed_over.items()) or "none"
    print_table([{"what": key.replace("_", " "), "": value} for key, value in told.items()], ("what", ""))
    if pairs:
        print_table(pairs, _PAIR_COLUMNS, title="labels that differ")
        print_table([_image_row(each, found) for each in disagreed], _IMAGE_COLUMNS, title="images that differ")


def _version(package: "ModelPackage") -> str:
    return f"{package.spec.name} {package.spec.version} ({package.spec.gate})"


def _image_line(each: "ComparedImage", found: "ImageSet") -> dict[str, Any]:
    image = found.images[each.index]
    return {
        "image": image.name,
        "sha256": image.digest,
        "first": _labels(each.first),
        "second": _labels(each.second),
        "shift": round(each.shift, 6),
    }


def _labels(side: "Side") -> list[dict[str, Any]]:
    return [{"label": label, "score": round(score, 6)} for label, score in zip(side.labels, side.scores, strict=True)]


def _image_row(each: "ComparedImage", found: "ImageSet") -> dict[str, Any]:
    return {
        "image": found.images[each.index].name,
        "first": f"{each.first.labels[0]} {each.first.scores[0]:.3f}",
        "second": f"{each.second.labels[0]} {each.second.scores[0]:.3f}",
        "shift": f"{each.shift:.3f}",
    }
