"""`ouzel send`: images to the input topic, each acknowledged."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from consumer.commands._sendable import (
    Form,
    Image,
    Options,
    Outgoing,
    find_images,
    record_for,
    records_of_lines,
    size_hint_bytes,
)
from consumer.commands._time import Pacer
from consumer.errors import MalformedMessage

if TYPE_CHECKING:
    from consumer.adapters.kafka_tools.sending import Sender
    from consumer.settings import Settings

_FRAMING_BYTES = 200
"""What a broker counts beside key, value and headers: about 100 bytes for a record alone in its batch."""


@dataclass(slots=True)
class _Failed:
    """An image that is not sent."""

    name: str
    reason: str


@dataclass(slots=True)
class _Tally:
    sent: int = 0
    bytes: int = 0
    failed: list[_Failed] = field(default_factory=list)


def send(
    ctx: typer.Context,
    *,
    paths: Annotated[list[str], typer.Argument(help="Files, folders or URIs; `-` reads JSON lines.")],
    form: Annotated[
        Form,
        typer.Option(
            "--as", help="raw: the file itself; inline: JSON with base64; reference: JSON with a file:// URI."
        ),
    ] = Form.RAW,
    topic: Annotated[str | None, typer.Option(help="Topic; else the first of kafka.input_topics.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of every message; else the image's id.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, max=1000, help="Labels wanted for each image.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Carried through to the label event; repeatable.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many images a second.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All files of a folder, whatever their suffix.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; no broker is asked.")] = False,
) -> None:
    """Send images to the input topic and wait until the broker has each of them.

    Folders are searched through for .jpg .jpeg .png .webp .bmp .gif .tif .tiff. With `-`, each line of standard input
    is an image reference such as {"image_id": "a", "uri": "file:///images/a.jpg"}, checked before it is sent. Exits 1
    if any image was not acknowledged; the others are sent. When piped, stdout has a JSON line for each image.

        ouzel send photos/

        ouzel send --as reference --top-k 3 --metadata camera=7 photos/ https://example.org/cat.jpg

        jq -c . references.json | ouzel send -
    """
    from consumer.console import settings_from

    settings = settings_from(ctx)
    options = Options(form=form, key=key, top_k=top_k, metadata=_pairs(metadata or []))
    records, total = _records(paths, options, settings, everything=everything)
    topic = topic or settings.kafka.input_topics[0]
    tally = _Tally()
    if dry_run:
        _list(records, tally)
    else:
        _send(records, total, tally, topic=topic, rate=rate, settings=settings)
    for failure in tally.failed:
        _say(f"not sent: {failure.name}: {failure.reason}")
    verb = "would send" if dry_run else "sent"
    lost = f", {len(tally.failed)} not" if tally.failed else ""
    _say(f"{verb} {tally.sent} images ({tally.bytes / 1e6:.1f} MB) to {topic}{lost}")
    if tally.failed:
        raise typer.Exit(1)


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--metadata")
        found[name] = value
    return found


def _records(
    paths: list[str], options: Options, settings: "Settings", *, everything: bool
) -> tuple[Iterator[Outgoing | _Failed], int | None]:
    """The records, made as they are asked for, and how many they are, if that is known."""
    if paths == ["-"]:
        return _from_lines(options, settings), None
    if "-" in paths:
        raise typer.BadParameter("`-` reads standard input, and stands alone")
    images, missing = find_images(paths, everything=everything)
    if missing:
        raise typer.BadParameter("no such file or folder: " + ", ".join(missing))
    if not images:
        raise typer.BadParameter("no image in there: --all takes every file, whatever its suffix")
    if options.extras() and any(image.form(options) is Form.RAW for image in images):
        raise typer.BadParameter("--top-k and --metadata need a message to be in: add --as inline or --as reference")
    return _from_images(images, options, settings.kafka.max_message_bytes), len(images)


def _from_images(images: Iterable[Image], options: Options, max_bytes: int) -> Iterator[Outgoing | _Failed]:
    for image in images:
        name = str(image.path or image.uri)
        try:
            # Of a file that is far too large, nothing is read.
            hint = size_hint_bytes(image, options)
            yield _Failed(name, _too_large(hint, max_bytes)) if hint > max_bytes else record_for(image, options)
        except OSError as error:
            yield _Failed(name, error.strerror or str(error))


def _from_lines(options: Options, settings: "Settings") -> Iterator[Outgoing | _Failed]:
    for found in records_of_lines(sys.stdin.buffer, options, _line_checker(settings)):
        if isinstance(found, MalformedMessage):
            yield _Failed("standard input", str(found))
        else:
            yield found


def _line_checker(settings: "Settings") -> Callable[[bytes], str]:
    """The service's own parser: what it takes, it will take."""
    from consumer.messages import Delivery, ImageJob, Lease, Partition
    from consumer.stages.parse import Parser

    parse = Parser(
        max_metadata_bytes=settings.input.max_metadata_bytes,
        max_image_bytes=settings.stores.max_image_bytes,
        max_records=settings.input.max_records,
    )
    lease = Lease(Partition("", 0), epoch=0, topic_id="")

    def check(value: bytes) -> str:
        headers = (("content-type", b"application/json"),)
        asked = parse(Delivery(lease=lease, offset=0, value=value, headers=headers))
        if not isinstance(asked, ImageJob):
            raise MalformedMessage("it asks for no image, or for several: send one image reference in each line")
        return asked.image_id

    return check


def _too_large(size_bytes: int, max_bytes: int) -> str:
    return f"{size_bytes} bytes are more than kafka.max_message_bytes ({max_bytes}): send it by reference, or raise it"


def _list(records: Iterable[Outgoing | _Failed], tally: _Tally) -> None:
    from consumer.console import print_rows

    rows = []
    for record in records:
        if isinstance(record, _Failed):
            tally.failed.append(record)
            continue
        tally.sent += 1
        tally.bytes += len(record.value)
        rows.append({"image_id": record.image_id, "form": record.form, "bytes": len(record.value)})
    print_rows(rows, ["image_id", "form", "bytes"])


def _send(
    records: Iterable[Outgoing | _Failed],
    total: int | None,
    tally: _Tally,
    *,
    topic: str,
    rate: float | None,
    settings: "Settings",
) -> None:
    from consumer.adapters.kafka_tools.sending import Sender
    from consumer.kafka_properties import client_properties

    kafka = settings.kafka
    sender = Sender(client_properties(kafka, "producer"), topic, timeout_s=kafka.request_timeout_ms / 1000)
    try:
        with _progress(total) as advance:
            _hand_over(records, sender, tally, advance, pacer=Pacer(rate), max_bytes=kafka.max_message_bytes)
            while sender.unacknowledged:
                sender.wait(0.5)
                _settle(sender, tally, advance)
            _settle(sender, tally, advance)
    except KeyboardInterrupt:
        _say(f"stopped: {sender.unacknowledged} images are not acknowledged; they may or may not be in {topic}")
        raise typer.Exit(130) from None


def _hand_over(
    records: Iterable[Outgoing | _Failed],
    sender: "Sender",
    tally: _Tally,
    advance: Callable[[], None],
    *,
    pacer: Pacer,
    max_bytes: int,
) -> None:
    for record in records:
        if isinstance(record, _Failed):
            tally.failed.append(record)
            advance()
        elif record.size_bytes + _FRAMING_BYTES > max_bytes:
            tally.failed.append(_Failed(record.image_id, _too_large(record.size_bytes, max_bytes)))
            advance()
        else:
            now_s = time.monotonic()
            _wait_until(now_s + pacer.wait_s(now_s), sender, tally, advance)
            sender.send(record.image_id, record.value, key=record.key, headers=record.headers)
            _settle(sender, tally, advance)


def _wait_until(due_s: float, sender: "Sender", tally: _Tally, advance: Callable[[], None]) -> None:
    """Serve acknowledgements while the rate makes us wait."""
    while (left_s := due_s - time.monotonic()) > 0:
        sender.wait(left_s)
        _settle(sender, tally, advance)


def _settle(sender: "Sender", tally: _Tally, advance: Callable[[], None]) -> None:
    """Take in the results that came: counted, and told on a piped stdout."""
    from consumer.console import print_json, stdout_is_terminal

    sender.wait(0)
    for result in sender.results():
        if result.error is None:
            tally.sent += 1
            tally.bytes += result.value_bytes
        else:
            tally.failed.append(_Failed(result.name, result.error))
        advance()
        if not stdout_is_terminal():
            place = {"topic": sender.topic, "partition": result.partition, "offset": result.offset}
            print_json({"image_id": result.name, **place, "error": result.error})


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on stderr where a person sees it; yields what moves it on by one image."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("sending", total=total)
        yield lambda: progress.advance(task)


def _say(text: str) -> None:
    from consumer.console import printable

    typer.echo(printable(text), err=True)
