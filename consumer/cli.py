"""The command line: registers the commands, nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from consumer import __version__
from consumer.commands import (
    bench,
    classify,
    dlq,
    doctor,
    model,
    offsets,
    run,
    schemas,
    send,
    settings_command,
    tail,
    topics,
)
from consumer.commands.demo import demo

_HELP = """
Labels images from Kafka and loses none.

[bold]First[/bold]  `ouzel demo` shows everything at once: broker, model, photographs, labels, a page.

[bold]With your own Kafka[/bold]  put kafka.bootstrap_servers into settings.toml, then
`ouzel topics create`, `ouzel doctor` (says what is missing and what to do), `ouzel run`.
Beside it: `ouzel send photo.jpg` and `ouzel tail`.

Data goes to stdout, a table in a terminal and JSON lines when piped; all else goes to stderr.
"""

_EXIT_CODES = """
[bold]Exit codes[/bold]  0 done · 1 some of it failed, and is listed · 2 wrong usage or settings · 3 model or device ·
4 a model call that does not return · 5 no broker, schema registry or model registry ·
6 no such topic or schema · 7 not allowed · 8 output refused · 9 another member has this group.instance.id ·
10 too many dead letters · 11 another `dlq replay` took over · 12 records lost to retention ·
13 a decode that does not return · 14 no sandbox for suspects · 15 a range is not done yet ·
16 a bucket that cannot be listed · 17 no progress · 18 another replica has this transaction.id ·
19 share group refused · 70 anything else
"""

app = typer.Typer(
    name="ouzel",
    help=_HELP,
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ouzel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    settings: Annotated[
        Path | None, typer.Option(help="Settings file; else $OUZEL_SETTINGS, else ./settings.toml.")
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    ctx.obj = settings


# In the order in which a newcomer meets them.
app.command("demo")(demo)
app.command("run")(run.run)
app.command("send")(send.send)
app.command("tail")(tail.tail)
app.command("classify")(classify.classify)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.command("settings")(settings_command.settings)
app.add_typer(model.app, name="model")
app.add_typer(topics.app, name="topics")
app.add_typer(schemas.app, name="schemas")
app.add_typer(offsets.app, name="offsets")
app.add_typer(dlq.app, name="dlq")
