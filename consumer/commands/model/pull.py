"""`ouzel model pull`: a model of a registry onto this disk."""

from pathlib import Path
from typing import Annotated

import typer


def pull(
    ctx: typer.Context,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REFERENCE]", help="The model, with alias and pin; else model.source.")
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option(help="Also copy it there: a folder that does not exist yet, or is empty.")
    ] = None,
) -> None:
    """Fetch a model into the cache and verify it, so that `ouzel run` starts from there.

    What is in the cache is verified and not fetched again. Exit codes: 3 no such model, damaged, or not the one that is
    pinned; 5 no answer, and nothing in the cache; 7 not allowed.

        ouzel model pull s3://models/birds:production

        ouzel model pull wandb-artifact://team/project/birds:v3 --output models/birds
    """
    import shutil

    from consumer.bootstrap_model import cache_folder
    from consumer.bootstrap_registries import obtain_folder
    from consumer.commands.model._registries import answered, bar, print_versions, reference_from
    from consumer.console import settings_from
    from consumer.errors import CommandRefused

    settings = settings_from(ctx)
    meant = reference_from(reference, settings)
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CommandRefused(f"{output} is there already", remedy="name a folder that does not exist yet")
    with answered(), bar(f"fetching {meant.name}") as moved:
        found = obtain_folder(settings, meant, cache_folder(), moved=moved)
    path = found.path
    if output is not None:
        try:
            shutil.copytree(found.path, output, copy_function=shutil.copyfile, dirs_exist_ok=True)
            for folder in (output, *filter(Path.is_dir, output.rglob("*"))):
                folder.chmod(0o755)
        except OSError as error:
            raise CommandRefused(
                f"{output} cannot be written: {error.strerror or error}", remedy="give a folder with room for it"
            ) from error
        path = output
    row = {
        "reference": str(meant),
        "version": found.version,
        "digest": found.digest,
        "path": str(path),
        "from_cache": found.from_cache,
    }
    print_versions([row], ("version", "digest", "path", "from_cache"), title=str(meant))
