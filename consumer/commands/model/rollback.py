"""`ouzel model rollback`: an alias comes to stand again for what it stood for before."""

from typing import Annotated

import typer


def rollback(
    ctx: typer.Context,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REFERENCE:ALIAS]", help="The model and the alias; else model.source's.")
    ] = None,
) -> None:
    """Have an alias stand again for the version before. Replicas that watch it go back to that.

    Exit codes: 1 no alias was named; 3 it stood for no version before; 5 no answer; 7 not allowed.

    Example: ouzel model rollback s3://models/birds:production
    """
    from consumer.bootstrap_registries import open_registry
    from consumer.commands.model._registries import answered, print_versions, reference_from, row_of
    from consumer.console import settings_from
    from consumer.errors import CommandRefused

    settings = settings_from(ctx)
    meant = reference_from(reference, settings)
    if not meant.alias:
        raise CommandRefused(
            f"{meant}: which alias is to go back?",
            remedy=f"name it behind a colon: ouzel model rollback {meant.model}:ALIAS",
        )
    with answered():
        now = open_registry(settings, meant.model).roll_back(meant.alias)
    row = {"alias": meant.alias, **row_of(now)}
    print_versions([row], ("alias", "version", "gate", "digest"), title=str(meant.model))
