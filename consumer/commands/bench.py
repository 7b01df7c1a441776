"""`ouzel bench`: how close to the machine's limit the service runs, measured here and now."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from consumer.bench.results import Plan, Result
    from consumer.bench.session import Told


class Form(StrEnum):
    """How an image goes into a message; as `ouzel send --as`."""

    RAW = "raw"
    INLINE = "inline"
    REFERENCE = "reference"


class BrokerKind(StrEnum):
    """Which broker is started where none is given."""

    KAFKA = "kafka"
    EMBEDDED = "embedded"


def bench(
    ctx: typer.Context,
    *,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the settings that label most images, and print them; some minutes.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --tune: a new settings file that gets what was found.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: two short rounds, coarse figures.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of terms and service; 3 where not given.")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.5, help="Seconds of each round's backlog and of each load; 10 where not given."),
    ] = None,
    messages: Annotated[
        int | None, typer.Option(min=10, help="Images of a backlog; else as many as take --seconds.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder of photographs; else the demo's. Encoded anew."),
    ] = None,
    megapixels: Annotated[float, typer.Option(min=0.001, max=50, help="Size of the workload's images.")] = 0.3,
    form: Annotated[
        Form,
        typer.Option("--as", help="raw: the JPEG itself, as `ouzel send`; inline: JSON, base64; reference: a URI."),
    ] = Form.RAW,
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A broker that runs; else one is started for the purpose.")
    ] = None,
    broker_pid: Annotated[
        int | None, typer.Option(help="Process id of that broker on this machine: its CPU is not ours to use.")
    ] = None,
    broker: Annotated[
        BrokerKind, typer.Option(help="What is started: kafka needs Java 17 and Maven; embedded is no real broker.")
    ] = BrokerKind.KAFKA,
    kafka_jars: Annotated[
        Path | None, typer.Option(help="Folder of Apache Kafka's jars; else the user's cache, fetched once by Maven.")
    ] = None,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="Without latency at 30, 50, 70 and 90 % of the measured throughput.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Where a page of it goes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document (as when piped).")] = False,
) -> None:
    """Measure what this machine could do with your settings, and what the service makes of it.

    In rounds, in turn: what fetching, decoding (by image size) and inference (by batch size) cost alone, what a bare
    Kafka loop costs, and the real service on a filled topic. From the first follows the roofline,

        X = 1000 * C / (t_fetch + t_decode + t_infer(b) + t_ovh)   images/s, t in CPU-ms, C in cores,

    from the last how much of it is reached, and where the rest goes. Then latency by load, from the time at which each
    image was due. Medians, with the least and the most beside them. Stop what else runs on the machine before.

    With --tune instead: of the runtimes that are installed and agree, of batch size, threads of decoding and inference,
    and streams, which do most images/s side by side, the best held against your settings in turns, at last on the
    service where a broker is at hand. A gain that was not there every time is none. --write makes a settings file of
    what was found, with those tables and keys alone. `model.autotune` uses it too where no setting that you hold is
    another one.

    Settings are yours (--settings, OUZEL_ variables); topics and group are the run's own, and deleted after it.
    Exit codes: 1 images became dead letters, 2 settings or an extra (`bench`), 3 model, 5 no broker, or no Java or
    Maven to start one, 130 interrupted.
    """
    from dataclasses import replace

    from consumer.bench.results import QUICK, Plan
    from consumer.bench.session import bench as measure
    from consumer.bootstrap_model import cache_folder
    from consumer.console import settings_from

    settings_from(ctx)  # what is wrong with them is said before anything is started
    given: dict[str, Any] = {
        "rounds": rounds,
        "seconds": seconds,
        "latency_seconds": seconds,
        "messages": messages,
    }
    plan = replace(
        QUICK if quick else Plan(),
        images=images,
        megapixels=megapixels,
        form=form.value,
        bootstrap_servers=bootstrap_servers or "",
        broker_pid=broker_pid,
        embedded=broker is BrokerKind.EMBEDDED,
        jars=kafka_jars or cache_folder() / "kafka",
        **{name: value for name, value in given.items() if value is not None},
    )
    if no_latency:
        plan = replace(plan, loads=())
    _check_writable(html)
    _check_new(write, tune=tune)
    if tune:
        _tune(ctx, plan, html, write, as_json=json or not sys.stdout.isatty())
        return
    with _interruptible() as check, _progress(check) as told:
        result = measure(plan, ctx.find_root().obj, told)
    _remember(result)
    _tell(result, html, as_json=json or not sys.stdout.isatty())


def _tune(ctx: typer.Context, plan: "Plan", html: Path | None, write: Path | None, *, as_json: bool) -> None:
    from consumer.bench.tune import tune as search
    from consumer.bench.tune_report import show, summarize
    from consumer.console import print_json
    from consumer.errors import SettingsError

    if html is not None:
        raise SettingsError("--tune writes no page", remedy="leave out --html, or --tune")
    with _interruptible() as check, _progress(check) as told:
        outcome = search(plan, ctx.find_root().obj, told)
    summary = summarize(outcome)
    if as_json:
        print_json(summary)
    else:
        show(summary)
    if write is not None:
        _write(write, summary)


def _write(write: Path, summary: Mapping[str, Any]) -> None:
    from consumer.bench.tune_report import as_file
    from consumer.errors import SettingsError

    if not summary["is_gain"]:
        typer.echo(f"{write} is not written: {summary['verdict']}", err=True)
        return
    try:
        with write.open("x", encoding="utf-8") as file:
            file.write(as_file(summary))
    except OSError as error:
        raise SettingsError(f"cannot write {write}: {error.strerror}", remedy="paste the lines above") from error
    typer.echo(f"Written: {write}", err=True)


def _remember(result: "Result") -> None:
    """What Kafka costs, for `ouzel_roofline_ratio` of replicas here: with the workload that is measured where nothing
    else is asked for, since it grows with the messages. The mock is no Kafka."""
    from statistics import median

    from consumer.bench.results import Plan
    from consumer.bootstrap_roofline import remember_overhead

    plan, usual = result.plan, Plan()
    is_usual = (plan.images, plan.megapixels, plan.form) == (usual.images, usual.megapixels, usual.form)
    if is_usual and result.facts.broker_kind != "embedded":
        remember_overhead(median(each.bare_cpu_ms for each in result.rounds))


def _tell(result: "Result", html: Path | None, *, as_json: bool) -> None:
    from consumer.bench.summary import summarize

    summary = summarize(result)
    if as_json:
        from consumer.console import print_json

        print_json(summary)
    else:
        from consumer.bench.report import show

        show(summary)
    if html is not None:
        from consumer.bench.page import render

        html.write_text(render(summary), encoding="utf-8")
        typer.echo(f"The page: {html.resolve().as_uri()}", err=True)


def _check_writable(html: Path | None) -> None:
    """Fail before the minutes of work, not after them."""
    from consumer.errors import SettingsError

    if html is not None and (html.is_dir() or not html.resolve().parent.is_dir()):
        raise SettingsError(f"cannot write the page to {html}", remedy="give a file in a folder that exists: --html")


def _check_new(write: Path | None, *, tune: bool) -> None:
    """As early: and what is there may be somebody's settings."""
    from consumer.errors import SettingsError

    if write is None:
        return
    if not tune:
        raise SettingsError("--write is for what --tune finds", remedy="add --tune, or leave out --write")
    if write.exists() or not write.resolve().parent.is_dir():
        said = "is there already, and is not written over" if write.exists() else "is in no folder that exists"
        raise SettingsError(f"{write} {said}", remedy="give a new file in a folder that exists: --write")


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM and a closed terminal end the run the way Ctrl-C does: children first, exit code 130.

    Yields what is to be called between steps: an interrupt that came while Python was collecting garbage, or inside a
    call-back of librdkafka, is lost there.
    """
    interrupted = False

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        """`check` raises it again: nobody needs to read of it."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    sys.unraisablehook = lost
    try:
        yield check
    except BaseException:
        # librdkafka's binding may turn an interrupt at a bad moment into an error of its own.
        if not interrupted:
            raise
        typer.echo("Interrupted; everything is stopped.", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress(check: Callable[[], None]) -> Iterator["Told"]:
    """What is being done, on stderr: one line that changes in a terminal, a line a step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from consumer.bench.session import Told

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=2,  # it is CPU that the service could have
    ) as progress:
        task = progress.add_task("starting", total=None)

        def say(text: str) -> None:
            check()
            progress.reset(task, description=text, total=None)
            if not console.is_terminal:
                console.print(text, markup=False)

        @contextmanager
        def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
            check()
            progress.reset(task, description=what, total=total)
            if not console.is_terminal:
                console.print(what, markup=False)

            def tell(done: int) -> None:
                check()
                progress.update(task, completed=done)

            yield tell

        yield Told(say, bar)
