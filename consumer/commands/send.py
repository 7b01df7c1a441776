"""`ouzel send`: images to the input topic, each acknowledged."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    suffix_filter,
)
from consumer.commands._time import Pacer
from consumer.errors import Fatal, MalformedMessage

if TYPE_CHECKING:
    from consumer.adapters.kafka_tools.sending import Sender
    from consumer.adapters.stores.s3_inventory import Inventory
    from consumer.adapters.stores.s3_listing import S3Listing
    from consumer.commands._bookmark import Bookmark
    from consumer.commands._bucket import Prefix
    from consumer.settings import Settings

_FRAMING_BYTES = 200
"""What a broker counts beside key, value and headers: about 100 bytes for a record alone in its batch."""


@dataclass(slots=True)
class _Failed:
    """An image that is not sent."""

    name: str
    reason: str
    place: Any = None


@dataclass(slots=True)
class _PassedOver:
    """Something that is no image, at a place of a bucket."""

    place: Any


_Entry = Outgoing | _Failed | _PassedOver


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What is sent from a bucket."""

    prefix: "Prefix | None"
    inventory: str | None
    takes: Callable[[str], bool]
    versions: bool

    def __str__(self) -> str:
        return self.inventory or str(self.prefix)


@dataclass(slots=True)
class _Tally:
    sent: int = 0
    bytes: int = 0
    failed: list[_Failed] = field(default_factory=list)


def send(
    ctx: typer.Context,
    *,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, URIs or s3://bucket/prefix/; `-` reads JSON lines.")
    ] = None,
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
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images; the next send goes on.")] = None,
    suffix: Annotated[
        str | None, typer.Option(metavar=".jpg,.png", help="Of a folder or bucket only these; else image suffixes.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All of a folder or bucket, whatever their suffix.")
    ] = False,
    inventory: Annotated[
        str | None, typer.Option(metavar="MANIFEST", help="What an S3 Inventory lists: path or s3:// of manifest.json.")
    ] = None,
    versions: Annotated[
        bool, typer.Option("--versions", help="Of an inventory each version of an object, not only the latest.")
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on in a bucket or inventory where an earlier send of it stopped.")
    ] = True,
    state: Annotated[
        Path | None, typer.Option(help="File that notes how far it is; else one in this user's state folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; no broker is asked.")] = False,
) -> None:
    """Send images to the input topic and wait until the broker has each of them.

    Folders are searched through for .jpg .jpeg .png .webp .bmp .gif .tif .tiff .avif .heic .heif, and so are buckets,
    which are listed where the URI ends in / (or in * after the beginning of a key). With `-`, each line of standard
    input is an image reference such as {"image_id": "a", "uri": "file:///images/a.jpg"}, checked before it is sent.
    Exits 1 if any image was not acknowledged; the others are sent. When piped, stdout has a JSON line for each image.
    The same command goes on in a bucket after the last image that was acknowledged when it was stopped or killed.

        ouzel send photos/

        ouzel send --as reference --top-k 3 --metadata camera=7 photos/ https://example.org/cat.jpg

        ouzel send --rate 500 s3://photos/2026/

        jq -c . references.json | ouzel send -
    """
    from consumer.console import settings_from

    settings = settings_from(ctx)
    options = Options(form=form, key=key, top_k=top_k, metadata=_pairs(metadata or []))
    topic = topic or settings.kafka.input_topics[0]
    takes = suffix_filter(suffix, everything=everything)
    bucket = _bucket(paths or [], inventory, takes, versions=versions)
    tally = _Tally()
    bookmark: Bookmark | None = None
    total: int | None = None
    records: Iterator[_Entry]
    if bucket is not None:
        source = _source(bucket, settings)
        about = _about(source, bucket, topic, settings, suffix="" if everything else (suffix or "images"))
        bookmark, after = _bookmark(about, state, resume=resume, dry_run=dry_run)
        records = _from_bucket(source, bucket, options, after=after)
    else:
        records, total = _records(paths or [], options, settings, takes)
    if dry_run:
        _list(records, tally, limit)
    else:
        _send(records, total, tally, topic=topic, rate=rate, limit=limit, bookmark=bookmark, settings=settings)
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


def _bucket(
    paths: Sequence[str], inventory: str | None, takes: Callable[[str], bool], *, versions: bool
) -> _Bucket | None:
    """What is asked of a bucket; None where files and single URIs are sent."""
    from consumer.commands._bucket import Prefix

    if versions and inventory is None:
        raise typer.BadParameter("--versions is about an --inventory: a listing has the latest of each object")
    if inventory is not None:
        if paths:
            raise typer.BadParameter("--inventory names all that is sent, and stands alone")
        return _Bucket(None, inventory, takes, versions=versions)
    try:
        prefixes = [prefix for each in paths if (prefix := Prefix.of(each)) is not None]
    except UnicodeDecodeError:
        raise typer.BadParameter("a prefix is percent-encoded UTF-8: write % in a key as %25") from None
    if prefixes and len(paths) > 1:
        raise typer.BadParameter("a bucket to list stands alone: its place is noted, and each has its own")
    return _Bucket(prefixes[0], None, takes, versions=False) if prefixes else None


def _source(bucket: _Bucket, settings: "Settings") -> "S3Listing | Inventory":
    from consumer.bootstrap import open_s3_listing

    if bucket.inventory is None:
        return open_s3_listing(settings)
    from consumer.adapters.stores.s3_inventory import Inventory

    # A local one may need no bucket.
    return Inventory(bucket.inventory, lambda name, key, to: open_s3_listing(settings).copy(name, key, to))


def _about(
    source: "S3Listing | Inventory", bucket: _Bucket, topic: str, settings: "Settings", *, suffix: str
) -> dict[str, str]:
    """What a bookmark belongs to: another topic, source or choice of images has another."""
    return {
        "topic": topic,
        "cluster": settings.kafka.bootstrap_servers,
        "source": str(bucket),
        "manifest": getattr(source, "digest", ""),
        "endpoint": settings.stores.s3.endpoint_url,
        "suffix": suffix,
        "versions": "all" if bucket.versions else "latest",
    }


def _bookmark(
    about: dict[str, str], state: Path | None, *, resume: bool, dry_run: bool
) -> "tuple[Bookmark | None, Any]":
    """The bookmark, and where the source goes on. A dry run looks at it and leaves it as it is."""
    from consumer.bootstrap_model import state_folder
    from consumer.commands._bookmark import Bookmark, default_path, place_in

    path = state or default_path(state_folder(), about)
    if dry_run:
        return None, place_in(path, about) if resume else None
    bookmark = Bookmark(path, about, resume=resume)
    if bookmark.place is not None:
        _say(f"going on after {bookmark.place} (noted in {path}; --no-resume begins anew)")
    return bookmark, bookmark.place


def _from_bucket(source: "S3Listing | Inventory", bucket: _Bucket, options: Options, *, after: Any) -> Iterator[_Entry]:
    from consumer.adapters.stores.s3_inventory import Inventory
    from consumer.commands._bucket import inventoried, listed

    if isinstance(source, Inventory):
        all_found = inventoried(source, bucket.takes, after=after, versions=bucket.versions)
    else:
        assert bucket.prefix is not None  # noqa: S101  # else there is an inventory
        all_found = listed(source, bucket.prefix, bucket.takes, after=after)
    for found in all_found:
        if found.image is not None:
            yield replace(record_for(found.image, options), place=found.place)
        elif found.refused:
            yield _Failed(found.name, found.refused, found.place)
        else:
            yield _PassedOver(found.place)


def _records(
    paths: list[str], options: Options, settings: "Settings", takes: Callable[[str], bool]
) -> tuple[Iterator[_Entry], int | None]:
    """The records, made as they are asked for, and how many they are, if that is known."""
    if not paths:
        raise typer.BadParameter("name files, folders, URIs or a bucket to send, or - for JSON lines")
    if paths == ["-"]:
        return _from_lines(options, settings), None
    if "-" in paths:
        raise typer.BadParameter("`-` reads standard input, and stands alone")
    images, missing = find_images(paths, takes)
    if missing:
        raise typer.BadParameter("no such file or folder: " + ", ".join(missing))
    if not images:
        raise typer.BadParameter("no image in there: --all takes every file, whatever its suffix")
    if options.extras() and any(image.form(options) is Form.RAW for image in images):
        raise typer.BadParameter("--top-k and --metadata need a message to be in: add --as inline or --as reference")
    return _from_images(images, options, settings.kafka.max_message_bytes), len(images)


def _from_images(images: Iterable[Image], options: Options, max_bytes: int) -> Iterator[_Entry]:
    for image in images:
        name = str(image.path or image.uri)
        try:
            # Of a file that is far too large, nothing is read.
            hint = size_hint_bytes(image, options)
            yield _Failed(name, _too_large(hint, max_bytes)) if hint > max_bytes else record_for(image, options)
        except OSError as error:
            yield _Failed(name, error.strerror or str(error))


def _from_lines(options: Options, settings: "Settings") -> Iterator[_Entry]:
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


def _list(records: Iterator[_Entry], tally: _Tally, limit: int | None) -> None:
    from consumer.console import print_rows

    def rows() -> Iterator[dict[str, Any]]:
        while limit is None or tally.sent < limit:
            record = next(records, None)
            if record is None:
                return
            if isinstance(record, _Failed):
                tally.failed.append(record)
            elif isinstance(record, Outgoing):
                tally.sent += 1
                tally.bytes += len(record.value)
                yield {"image_id": record.image_id, "form": record.form, "bytes": len(record.value)}

    print_rows(rows(), ["image_id", "form", "bytes"])


@dataclass(slots=True)
class _Sending:
    """Images on their way, and what is noted of them."""

    sender: "Sender"
    tally: _Tally
    bookmark: "Bookmark | None"
    advance: Callable[[], None]
    pacer: Pacer
    max_bytes: int

    def hand_over(self, records: Iterator[_Entry], limit: int | None) -> bool:
        """Whether that was all of them, and not cut short by the limit."""
        handed_over = 0
        while limit is None or handed_over < limit:
            record = next(records, None)
            if record is None:
                return True
            if isinstance(record, _PassedOver):
                self._pass_over(record.place)
            elif isinstance(record, _Failed):
                self._fail(record)
            elif record.size_bytes + _FRAMING_BYTES > self.max_bytes:
                self._fail(_Failed(record.image_id, _too_large(record.size_bytes, self.max_bytes), record.place))
            else:
                self._hand_over(record)
                handed_over += 1
        return False

    def _hand_over(self, record: Outgoing) -> None:
        now_s = time.monotonic()
        self._wait_until(now_s + self.pacer.wait_s(now_s))
        number = self.sender.send(record.image_id, record.value, key=record.key, headers=record.headers)
        if self.bookmark is not None:
            self.bookmark.sent(number, record.place)
        self.settle()

    def _fail(self, failed: _Failed) -> None:
        self.tally.failed.append(failed)
        self.advance()
        self._pass_over(failed.place)

    def _pass_over(self, place: Any) -> None:
        if self.bookmark is not None:
            self.bookmark.passed_over(place)
            self.bookmark.save_when_due()

    def _wait_until(self, due_s: float) -> None:
        """Serve acknowledgements while the rate makes us wait."""
        while (left_s := due_s - time.monotonic()) > 0:
            self.sender.wait(left_s)
            self.settle()

    def settle(self) -> None:
        """Take in the results that came: counted, noted, and told on a piped stdout."""
        from consumer.console import print_json, stdout_is_terminal

        self.sender.wait(0)
        for result in self.sender.results():
            if result.error is None:
                self.tally.sent += 1
                self.tally.bytes += result.value_bytes
            else:
                self.tally.failed.append(_Failed(result.name, result.error))
            if self.bookmark is not None:
                self.bookmark.settled(result.number, acknowledged=result.error is None)
            self.advance()
            if not stdout_is_terminal():
                place = {"topic": self.sender.topic, "partition": result.partition, "offset": result.offset}
                print_json({"image_id": result.name, **place, "error": result.error})

    def settle_all(self) -> None:
        """Wait until the broker has said of each what became of it."""
        while self.sender.unacknowledged:
            self.sender.wait(0.5)
            self.settle()
        self.settle()


def _send(
    records: Iterator[_Entry],
    total: int | None,
    tally: _Tally,
    *,
    topic: str,
    rate: float | None,
    limit: int | None,
    bookmark: "Bookmark | None",
    settings: "Settings",
) -> None:
    from consumer.adapters.kafka_tools.sending import Sender
    from consumer.kafka_properties import client_properties

    kafka = settings.kafka
    sender = Sender(client_properties(kafka, "producer"), topic, timeout_s=kafka.request_timeout_ms / 1000)
    stopped_by: Fatal | None = None
    whole = False
    try:
        with _progress(total) as advance:
            sending = _Sending(sender, tally, bookmark, advance, Pacer(rate), kafka.max_message_bytes)
            try:
                whole = sending.hand_over(records, limit)
            except Fatal as error:  # the source ends here; what was handed over is finished
                stopped_by = error
            sending.settle_all()
    except KeyboardInterrupt:
        _say(f"stopped: {sender.unacknowledged} images are not acknowledged; they may or may not be in {topic}")
        raise typer.Exit(130) from None
    finally:
        if bookmark is not None:
            bookmark.finish() if whole else bookmark.save()
    if stopped_by is not None:
        _say(f"sent {tally.sent} images to {topic} before that")
        raise stopped_by


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
