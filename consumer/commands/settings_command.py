"""`ouzel settings`: what is in force, and where each value came from."""

from typing import Annotated, Any

import typer


def settings(
    ctx: typer.Context,
    *,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines in a terminal too.")] = False,
) -> None:
    """The effective settings and where each came from; secrets are masked.

    Anything that is wrong is listed on one page instead, with exit code 2. The names in the first column are those of
    settings.toml; in the environment batch.max_size is OUZEL_BATCH__MAX_SIZE.
    """
    from consumer.console import print_json, print_rows, settings_and_sources_from
    from consumer.kafka_properties import is_secret
    from consumer.redact import MASK
    from consumer.settings import default_of, value_of
    from consumer.settings_page import from_secret_file

    effective, sources = settings_and_sources_from(ctx)
    rows: list[dict[str, Any]] = []
    for key, origin in sources.items():
        value = value_of(effective, key)
        if changed and value == default_of(key):
            continue
        rows.append(
            {"key": key, "value": MASK if is_secret(key) or from_secret_file(origin) else _shown(value), "from": origin}
        )
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_rows(rows, ("key", "value", "from"))


def _shown(value: Any) -> Any:
    """A URI among the settings (a model's, a proxy's) may carry a password."""
    from consumer.log import redacted

    return redacted(value) if isinstance(value, str) else value
