"""What the commands around registries share: which model is meant, a bar, and what an outage is for a command."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from consumer.errors import CommandRefused, ModelsUnavailable

if TYPE_CHECKING:
    from consumer.model_reference import ModelReference
    from consumer.ports import BytesMoved, ModelVersion
    from consumer.settings import Settings

COLUMNS = ("version", "aliases", "gate", "size_bytes", "created_at", "digest")


def reference_from(text: str | None, settings: "Settings") -> "ModelReference":
    """What a command was given, else `model.source`. Raises SettingsError and CommandRefused."""
    from consumer.bootstrap_registries import reference_of
    from consumer.model_reference import parse_reference

    reference = parse_reference(text) if text else reference_of(settings)
    if reference is None:
        raise CommandRefused(
            'model.source is "default", which comes from no registry',
            remedy="name the model, such as s3://bucket/models/birds, or set model.source",
        )
    return reference


@contextmanager
def answered() -> Iterator[None]:
    """A registry that does not answer ends a command with exit code 5, a folder that cannot be written with 1."""
    from consumer.bootstrap_registries import unreachable

    try:
        yield
    except ModelsUnavailable as error:
        raise unreachable(error) from error
    except OSError as error:
        raise CommandRefused(
            f"{error.filename or 'a folder'} cannot be written: {error.strerror or error}",
            remedy="let this user write there, or make room",
        ) from error


@contextmanager
def bar(what: str) -> "Iterator[BytesMoved]":
    """Bytes on stderr, where a person reads it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)

        def moved(done: int, of: int | None) -> None:
            progress.update(task, completed=done, total=of)

        yield moved


def row_of(version: "ModelVersion") -> dict[str, Any]:
    """For a table and for JSON."""
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "gate": version.gate,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "digest": version.digest,
    }


def print_versions(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS, *, title: str = "") -> None:
    """As a table with short digests in a terminal, as JSON lines when piped."""
    from consumer.console import print_json, print_table, stdout_is_terminal

    if not stdout_is_terminal():
        for row in rows:
            print_json(row)
        return
    shown = [
        {
            **row,
            "aliases": ", ".join(row.get("aliases") or ()),
            "digest": str(row.get("digest") or "").removeprefix("sha256:")[:12],
        }
        for row in rows
    ]
    print_table(shown, columns, title=title)
