"""`ouzel demo`: everything at once, nothing to install or configure."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from consumer.demo.results import Result, RunFacts
    from consumer.demo.session import Running

LABELS_IN_TABLE = 3


def demo(
    *,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("ouzel-demo.html"),
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder of your own instead of our photographs.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave broker and service up until Ctrl-C, for kcat to join in.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON lines instead of a table (as when piped).")] = False,
    ready_within_s: Annotated[float, typer.Option(help="Seconds that the model may take to build and load.")] = 600.0,
    silent_for_s: Annotated[float, typer.Option(help="Seconds without any answer after which to give up.")] = 120.0,
) -> None:
    """Start a broker and the service, send them photographs, and show the labels: nothing to install or configure.

    The broker is librdkafka's mock cluster in a child process; the model is built on first use and kept in the cache.
    It uses settings of its own: settings.toml, --settings and OUZEL_ variables change nothing here.
    Everything is stopped at the end. Exit code 1: an image could not be labelled, and the table says why.
    """
    from rich.console import Console

    from consumer.demo import session
    from consumer.demo.results import RunFacts

    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        """SIGTERM and a closed terminal end the demo the way Ctrl-C does: children first."""
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    console = Console(stderr=True, highlight=False)
    folder = images or session.PHOTOGRAPHS
    found = session.find_images(folder)
    _check_writable(output)
    results: Sequence[Result] = ()
    try:
        with _running(console, folder, ready_within_s) as running:
            began_s = time.monotonic()
            results = _label(running, found, console, silent_for_s)
            facts = RunFacts(running.ready_s, time.monotonic() - began_s)
            _write_page(output, results, found, facts)
            _show(results, as_json=json or not sys.stdout.isatty())
            console.print(f"The page: {output.resolve().as_uri()}", soft_wrap=True)
            if keep:
                _keep(running, console)
    except BaseException:
        # librdkafka's binding may turn an interrupt at a bad moment into an error of its own (run: a TypeError).
        if not interrupted:
            raise
        if not results:
            console.print("Interrupted; everything is stopped.")
            raise typer.Exit(130) from None
    if not all(result.event for result in results):
        raise typer.Exit(1)


def _check_writable(output: Path) -> None:
    """Fail before the minute of work, not after it."""
    from consumer.errors import SettingsError

    if output.is_dir() or not output.resolve().parent.is_dir():
        raise SettingsError(
            f"cannot write the page to {output}", remedy="give a file in a folder that exists: --output"
        )


@contextmanager
def _running(console: "Console", image_folder: Path, ready_within_s: float) -> Iterator["Running"]:
    """Broker and service; until they are ready, a line that says what is happening and for how long."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from consumer.demo import session

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("starting", total=None)

    def say(what: str) -> None:
        if console.is_terminal:
            progress.update(task, description=what)
        else:
            console.print(what, markup=False)

    with progress, session.running(say, image_folder=image_folder, ready_within_s=ready_within_s) as running:
        progress.stop()
        console.print(f"[green]✓[/green] Embedded broker at {running.bootstrap_servers}")
        console.print(f"[green]✓[/green] Service ready after {running.ready_s:.1f} s")
        yield running


def _label(
    running: "Running", images: Mapping[str, Path], console: "Console", silent_for_s: float
) -> Sequence["Result"]:
    """Send and wait, with a bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from consumer.demo import session

    columns = (
        TextColumn("Labelling {task.fields[image]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("labelling", total=len(images), image="")
        return session.label(
            running,
            images,
            silent_for_s=silent_for_s,
            on_result=lambda result: progress.update(task, advance=1, image=result.image_id),
        )


def _write_page(output: Path, results: Sequence["Result"], images: Mapping[str, Path], facts: "RunFacts") -> None:
    from consumer.adapters.thumbnails import thumbnail
    from consumer.demo.page import render

    small = {image_id: thumbnail(path.read_bytes()) for image_id, path in images.items()}
    page = render(results, {image_id: body for image_id, body in small.items() if body}, facts)
    output.write_text(page, encoding="utf-8")


def _show(results: Sequence["Result"], *, as_json: bool) -> None:
    """The results: JSON lines, or a table for a person."""
    from consumer.console import print_json

    if as_json:
        for result in results:
            answer = {"event": result.event} if result.event else {"error": result.reason}
            print_json({"image": result.image_id, "latency_ms": round(result.latency_ms, 1), **answer})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("latency ms", justify="right")
    for result in results:
        best = result.labels[:LABELS_IN_TABLE]
        names = [str(label["label"]) for label in best] or [result.reason or "no label reached the least score"]
        labels = Text(names[0], style="" if best else "red") + Text("".join(f"\n{name}" for name in names[1:]), "dim")
        scores = "\n".join(f"{label['score']:.1%}" for label in best)
        table.add_row(Text(result.image_id), labels, scores, f"{result.latency_ms:.0f}")
    Console().print(table)


def _keep(running: "Running", console: "Console") -> None:
    """Stay up until Ctrl-C."""
    from consumer.demo.service import DEAD_LETTER_TOPIC, INPUT_TOPIC, OUTPUT_TOPIC

    broker = running.bootstrap_servers
    health = f"http://127.0.0.1:{running.health_port}"
    lines = (
        "",
        f"Broker   {broker}   (in memory; images up to 1 MB)",
        f"Service  {health}/readyz   {health}/metrics   log {running.service.log}",
        "",
        f"  kcat -b {broker} -P -t {INPUT_TOPIC} photo.jpg              # label a photograph",
        f"  kcat -b {broker} -C -t {OUTPUT_TOPIC} -o end -u         # follow the labels",
        f"  kcat -b {broker} -C -t {DEAD_LETTER_TOPIC} -f '%h\\n' -e      # what could not be labelled, and why",
        "",
        "Ctrl-C stops both.",
    )
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    while True:
        for child in (running.broker, running.service):
            if child.exit_code is not None:
                raise child.failure(f"the {child.name} ended")
        time.sleep(0.5)
