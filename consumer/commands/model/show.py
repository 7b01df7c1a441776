"""`ouzel model show`: what one version of a model says of itself."""

from typing import Annotated, Any

import typer


def show(
    ctx: typer.Context,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REFERENCE]", help="The model, with alias; else model.source.")
    ] = None,
) -> None:
    """Show a model's model.toml (input, output, gate, provenance, metrics), its files and its aliases.

    It is fetched into the cache for that, and verified. Exit codes: 3 no such model, or damaged; 5 no answer; 7 not
    allowed.

    Example: ouzel model show s3://models/birds:production
    """
    from consumer.adapters.models.manifest import hash_files
    from consumer.adapters.models.model_file import read_model_file
    from consumer.adapters.models.package import is_artifact
    from consumer.bootstrap_model import cache_folder
    from consumer.bootstrap_registries import is_versioned, obtain_folder, open_registry
    from consumer.commands.model._registries import answered, bar, reference_from
    from consumer.console import print_json, print_table, settings_from, stdout_is_terminal

    settings = settings_from(ctx)
    meant = reference_from(reference, settings)
    with answered(), bar(f"fetching {meant.name}") as moved:
        found = obtain_folder(settings, meant, cache_folder(), moved=moved)
        aliases = (
            open_registry(settings, meant).resolve(found.version).aliases
            if is_versioned(meant) and found.version and not meant.pin
            else ()
        )
    facts: dict[str, Any] = {
        "reference": str(meant),
        "version": found.version,
        "digest": found.digest,
        "aliases": list(aliases),
    }
    if is_artifact(found.path):
        facts["model"] = read_model_file(found.path).model_dump(mode="json")
    facts["files"] = hash_files(found.path)
    if not stdout_is_terminal():
        print_json(facts)
        return
    print_table(_flat(facts), ("fact", "value"), title=str(meant))


def _flat(facts: Any, above: str = "") -> list[dict[str, str]]:
    if isinstance(facts, dict):
        return [row for key, value in facts.items() for row in _flat(value, f"{above}.{key}" if above else str(key))]
    shown = ", ".join(map(str, facts)) if isinstance(facts, list) else str(facts)
    return [{"fact": above, "value": shown}] if shown else []
