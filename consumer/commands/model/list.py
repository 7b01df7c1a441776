"""`ouzel model list`: the versions of a model in its registry."""

from typing import Annotated

import typer


def list_versions(
    ctx: typer.Context,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REFERENCE]", help="The model; else model.source's.")
    ] = None,
) -> None:
    """List the versions of a model, the newest first, with their aliases, gates, sizes and digests.

    Exit codes: 3 no such model, 5 no answer, 7 not allowed.

    Example: ouzel model list s3://models/birds
    """
    from consumer.bootstrap_registries import open_registry
    from consumer.commands.model._registries import answered, print_versions, reference_from, row_of
    from consumer.console import settings_from
    from consumer.errors import ModelNotFound

    settings = settings_from(ctx)
    meant = reference_from(reference, settings).model
    with answered():
        found = open_registry(settings, meant).versions()
    if not found:
        raise ModelNotFound(
            f"{meant}: no versions of a model lie there",
            remedy="`ouzel model register` puts one there; `ouzel model show` shows a model that is none's version",
        )
    print_versions([row_of(version) for version in found], title=str(meant))
