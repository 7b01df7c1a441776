"""`ouzel model promote`: an alias comes to stand for a version."""

from typing import Annotated

import typer


def promote(
    ctx: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The version: by its name or another alias, such as birds:3.")
    ],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="What comes to stand for it, such as production.")],
) -> None:
    """Have an alias stand for a version. Replicas that watch the alias take it up; `ouzel model rollback` undoes it.

    A variant that its gate rejected is refused, and a provisional one without model.allow_provisional. Exit codes: 3 no
    such version, or refused; 5 no answer; 7 not allowed.

        ouzel model promote s3://models/birds:3 production

        ouzel model promote wandb-artifact://team/project/birds:staging production
    """
    from consumer.adapters.models.model_file import read_model_file
    from consumer.adapters.models.package import is_artifact, refuse_by_gate
    from consumer.bootstrap_model import cache_folder
    from consumer.bootstrap_registries import obtain_folder, open_registry
    from consumer.commands.model._registries import (
        answered,
        bar,
        print_versions,
        reference_from,
        row_of,
    )
    from consumer.console import settings_from
    from consumer.errors import ModelCorrupt

    settings = settings_from(ctx)
    meant = reference_from(reference, settings)
    with answered():
        registry = open_registry(settings, meant.model)
        found = registry.resolve(meant.alias)
        if meant.pin and found.digest and found.digest != meant.pin:
            raise ModelCorrupt(
                f"{meant.model}, version {found.version}, is {found.digest}, and {meant.pin} is wanted",
                remedy="it is another model: correct the pin or the version",
            )
        gate = found.gate
        if not gate:
            # Not registered by us: only its own files say.
            with bar(f"fetching {meant.name}") as moved:
                folder = obtain_folder(settings, meant, cache_folder(), version=found, moved=moved).path
            gate = read_model_file(folder).gate.status if is_artifact(folder) else "original"
        refuse_by_gate(gate, f"version {found.version}", allow_provisional=settings.model.allow_provisional)
        before = registry.point(alias, found.version)
        now = registry.resolve(alias)
    row = {"alias": alias, "before": before or None, **row_of(now)}
    print_versions([row], ("alias", "version", "before", "gate", "digest"), title=str(meant.model))
