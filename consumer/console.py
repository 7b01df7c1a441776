"""How commands speak: data on stdout (a table in a terminal, JSON lines when piped), everything else on stderr."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
import typer

from consumer.errors import Fatal, OuzelError

if TYPE_CHECKING:
    from consumer.settings import Provenance, Settings

_LOADED = "consumer.settings"


def settings_from(ctx: typer.Context) -> "Settings":
    """The effective settings, loaded at the first call. Raises `SettingsError` with all that is wrong."""
    return settings_and_sources_from(ctx)[0]


def settings_and_sources_from(ctx: typer.Context) -> "tuple[Settings, Provenance]":
    """The effective settings, and where each value came from."""
    root = ctx.find_root()
    if _LOADED not in root.meta:
        from consumer.redact import hide
        from consumer.settings import load_with_sources, secret_values

        named: Path | None = root.obj
        root.meta[_LOADED] = load_with_sources(named)
        hide(secret_values(*root.meta[_LOADED]))
    loaded: tuple[Settings, Provenance] = root.meta[_LOADED]
    return loaded


def read_settings_again(ctx: typer.Context) -> "Settings":
    """The settings as they are now, from where `settings_from` took them. Raises `SettingsError`."""
    from consumer.redact import hide
    from consumer.settings import load_with_sources, secret_values

    loaded = load_with_sources(ctx.find_root().obj)
    hide(secret_values(*loaded))
    return loaded[0]


def stdout_is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """`text` with control characters spelt out: what others wrote must not steer the reader's terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_json(row: Mapping[str, Any]) -> None:
    """One JSON line on stdout."""
    sys.stdout.write(orjson.dumps(row, default=str).decode() + "\n")
    sys.stdout.flush()


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
    """Rows as a table in a terminal, as JSON lines (every key) when piped."""
    if not stdout_is_terminal():
        for row in rows:
            print_json(row)
        return
    print_table(rows, columns, title=title)


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
    """Rows as a table, whoever reads."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text("" if row.get(column) is None else printable(str(row[column]))) for column in columns))
    Console().print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """One thing's facts: a table of two columns in a terminal, one JSON line when piped; None is nothing to say."""
    if not stdout_is_terminal():
        print_json(facts)
        return
    print_table(({"": name, " ": value} for name, value in facts.items() if value is not None), ("", " "))


def crash(error: Exception) -> NoReturn:
    """Say where a defect of ours showed, on stderr, without a secret in it, and end with exit code 70."""
    import traceback

    from consumer.log import redacted

    for line in "".join(traceback.format_exception(error)).splitlines():
        typer.echo(redacted(line), err=True)
    typer.secho("error: a defect of Ouzel's: please report it with the lines above", fg="red", err=True)
    raise SystemExit(Fatal.exit_code)


def fail(error: OuzelError) -> NoReturn:
    """Say what is wrong and what to do, on stderr, and end with the error's exit code."""
    from consumer.redact import mask_secrets

    typer.secho(f"error: {mask_secrets(str(error))}", fg="red", err=True)
    if isinstance(error, Fatal) and error.remedy:
        typer.echo(f"  fix: {mask_secrets(error.remedy)}", err=True)
    raise SystemExit(error.exit_code if isinstance(error, Fatal) else 1)
