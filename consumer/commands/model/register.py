"""`ouzel model register`: an artifact becomes a version in a registry."""

from pathlib import Path
from typing import Annotated

import typer


def register(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The artifact's folder.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="The model in its registry, without alias; else model.source's."),
    ] = None,
    *,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Aliases to set at once, each with --alias.")
    ] = None,
) -> None:
    """Verify an artifact and put it into a registry, as a new version that appears when it is complete.

    Bytes that are there already are no new version. A variant that its gate rejected, or found provisional, may be kept
    there, marked as it is; it gets no alias. Exit codes: 3 the artifact, 5 no answer, 7 not allowed.

        ouzel model register models/birds s3://models/birds --alias staging

        ouzel model register models/birds wandb-artifact://team/project/birds
    """
    from consumer.adapters.models.package import check_artifact, refuse_by_gate
    from consumer.bootstrap_registries import open_registry
    from consumer.commands.model._registries import (
        answered,
        bar,
        print_versions,
        reference_from,
        row_of,
    )
    from consumer.console import settings_from
    from consumer.errors import CommandRefused

    settings = settings_from(ctx)
    reference = reference_from(target, settings)
    if target and (reference.alias or reference.pin):
        raise CommandRefused(
            f"{target}: a new version gets its name from the registry",
            remedy="leave alias and pin out; --alias sets one",
        )
    _, said = check_artifact(folder)
    if alias:
        refuse_by_gate(said.gate.status, f"version {said.version}", allow_provisional=settings.model.allow_provisional)
    with answered(), bar(f"registering {said.name}") as moved:
        made = open_registry(settings, reference.model).upload(folder, aliases=alias or [], moved=moved)
    print_versions([{"reference": f"{reference.model}:{made.version}", **row_of(made)}], title=str(reference.model))
