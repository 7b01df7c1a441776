"""`ouzel classify`: the service's own stages over files, with no Kafka."""

import csv
import io
import queue
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumer.commands._sendable import find_images, suffix_filter
from consumer.console import print_json, printable, stdout_is_terminal
from consumer.errors import SettingsError

if TYPE_CHECKING:
    from rich.text import Text

    from consumer.commands._sendable import Image
    from consumer.flow import Flow
    from consumer.messages import Outcome
    from consumer.settings import Settings

_TURN_S = 0.05


class Format(StrEnum):
    """How results are written."""

    AUTO = "auto"
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def classify(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Image files, or folders (searched for images).")],
    form: Annotated[
        Format, typer.Option("--format", help="auto: a table in a terminal, JSON lines when piped.")
    ] = Format.AUTO,
    top_k: Annotated[int | None, typer.Option(min=1, max=1000, help="Labels an image; else model.top_k.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="In folders take every file, whatever its suffix.")] = False,
) -> None:
    """Label image files here and now: the stages of `ouzel run` over a folder, with no Kafka.

    Images that fail are listed with their reason; the exit code is then 1.

    Example: ouzel classify photographs/ --format csv > labels.csv
    """
    from consumer.console import settings_from

    images, missing = find_images(paths, suffix_filter(None, everything=everything))
    if missing:
        raise SettingsError(f"no such file or folder: {', '.join(missing)}", remedy="check the paths")
    if not images:
        raise SettingsError(f"no images below {', '.join(paths)}", remedy="--all takes files of every suffix")
    settings = settings_from(ctx)
    if top_k is not None:
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"top_k": top_k})})
    if form is Format.AUTO:
        form = Format.TABLE if stdout_is_terminal() else Format.JSON
    rows = _Counted(_classified(settings, [(image.image_id, image.uri or _uri(image)) for image in images]))
    {Format.TABLE: _print_table, Format.JSON: _print_lines, Format.CSV: _print_csv}[form](rows)
    if rows.failed:
        typer.secho(f"{rows.failed} of {rows.total} images failed", fg="red", err=True)
        raise typer.Exit(1)


class _Counted:
    """Rows on their way to the printer."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = rows
        self.total = 0
        self.failed = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.total += 1
            self.failed += "error" in row
            yield row


def _classified(settings: "Settings", images: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """A row for each (name, URI), in their order, as soon as it and all before it are done."""
    from consumer import bootstrap, bootstrap_model
    from consumer.adapters.stores.file_store import FileStore
    from consumer.clock import SystemClock
    from consumer.log import configure
    from consumer.messages import Delivery, Lease, Partition
    from consumer.metrics import Metrics
    from consumer.observer import Observer
    from consumer.stages.intake import ByteBudget

    configure(settings.log.model_copy(update={"level": "WARNING"}))
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    budget = ByteBudget(settings.pipeline.max_in_flight_bytes)
    with _progress(len(images)) as (say, advance):
        model = bootstrap_model.load_model(settings, progress=lambda _share, what: say(what))
        flow = bootstrap.build_flow(
            settings,
            model,
            stores=[FileStore(["/"])],  # the user's own shell, the user's own files
            budget=budget,
            observer=Observer(Metrics(), SystemClock()),
            on_outcome=done.put,
            on_crash=done.put,
        )
        say("warming the model")
        flow.start()
        say("labelling")
        lease = Lease(Partition("files", 0), epoch=1, topic_id="")
        rows: dict[int, dict[str, Any]] = {}
        taken = given = 0
        try:
            while given < len(images):
                while taken < len(images) and taken - given < settings.pipeline.max_in_flight_messages:
                    name, uri = images[taken]
                    headers = (("content-type", b"text/uri-list"), ("image-id", name.encode()))
                    flow.submit(Delivery(lease, taken, uri.encode(), headers=headers))
                    taken += 1
                outcome = _next(done, flow)
                budget.release(outcome.delivery)
                rows[outcome.delivery.offset] = _row(images[outcome.delivery.offset][0], outcome)
                while given in rows:
                    advance()
                    yield rows.pop(given)
                    given += 1
        finally:
            flow.close()


def _uri(image: "Image") -> str:
    return image.path.resolve().as_uri() if image.path is not None else ""


def _next(done: "queue.SimpleQueue[Outcome | BaseException]", flow: "Flow") -> "Outcome":
    while True:
        flow.tick()
        try:
            found = done.get(timeout=_TURN_S)
        except queue.Empty:
            continue
        if isinstance(found, BaseException):
            raise found
        return found


def _row(name: str, outcome: "Outcome") -> dict[str, Any]:
    from consumer.messages import Labelled, Rejected
    from consumer.stages.events import model_answer

    if isinstance(outcome, Rejected):
        error = {"class": type(outcome.error).__name__, "message": str(outcome.error), "stage": outcome.stage}
        return {"path": name, "error": error}
    if not isinstance(outcome, Labelled):
        return {"path": name, "error": {"class": type(outcome).__name__, "message": "not labelled", "stage": "parse"}}
    return {"path": name, **model_answer(outcome)}


# --- printing -------------------------------------------------------------------------------------------------------


def _progress(total: int) -> Any:
    """A bar on stderr in a terminal: yields (say what is happening, one more is done)."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    @contextmanager
    def bar() -> Iterator[Any]:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task("loading the model", total=total)
            yield (
                lambda what: progress.update(task, description=what),
                lambda: progress.advance(task),
            )

    return bar()


def _print_lines(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        print_json(row)


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("labels")
    table.add_column("score", justify="right")
    for row in rows:
        if "error" in row:
            said = f"{row['error']['class']}: {row['error']['message']}"
            table.add_row(_plain(row["path"]), Text(printable(said), style="red"), "")
            continue
        labels = row["labels"]
        table.add_row(
            _plain(row["path"]),
            Text("\n").join(_plain(label["label"]) for label in labels)
            if labels
            else Text("none above model.min_score", style="dim"),
            "\n".join(f"{label['score']:.3f}" for label in labels),
        )
    Console().print(table)


def _plain(text: str) -> "Text":
    """Text that is neither markup nor steers the terminal."""
    from rich.text import Text

    return Text(printable(text))


def _print_csv(rows: Iterable[dict[str, Any]]) -> None:
    columns = ["path", "rank", "index", "label", "score", "error"]
    _write_csv_row(columns)
    for row in rows:
        if "error" in row:
            _write_csv_row([row["path"], "", "", "", "", f"{row['error']['class']}: {row['error']['message']}"])
        for rank, label in enumerate(row.get("labels", []), start=1):
            _write_csv_row([row["path"], rank, label["index"], label["label"], label["score"], ""])


def _write_csv_row(values: list[Any]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    sys.stdout.write(line.getvalue())
    sys.stdout.flush()
