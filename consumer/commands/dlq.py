"""`ouzel dlq ls`, `show` and `replay`: what could not be labelled, why, and sending it back."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumer.commands._time import Pacer, format_time, parse_time_ms
from consumer.errors import CommandRefused

if TYPE_CHECKING:
    from consumer.adapters.kafka_tools.letters import Letter
    from consumer.settings import KafkaSettings

app = typer.Typer(help="The dead letters: what is in there, why, and sending it back.", no_args_is_help=True)

Classes = Annotated[list[str] | None, typer.Option("--class", help="Error class, e.g. NotAnImage; repeatable.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Letters written at or after this RFC 3339 time.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Letters written before this RFC 3339 time.")]

_BATCH_BYTES = 64 * 1024 * 1024
_PREVIEW_BYTES = 512
_PREVIEW_CHARS = 2000


class Bucket(StrEnum):
    """How finely `ls` tells times apart."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


_BUCKET_CHARS = {
    Bucket.MINUTE: len("2026-01-31T09:30"),
    Bucket.HOUR: len("2026-01-31T09"),
    Bucket.DAY: len("2026-01-31"),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant; nothing chosen is all of them."""

    classes: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    ids: frozenset[str] = frozenset()
    """Image ids or positions (`partition:offset`)."""

    @classmethod
    def of(
        cls, classes: Sequence[str] | None, since: str | None, until: str | None, ids: Sequence[str] | None = None
    ) -> "Selection":
        """From the options. Raises `typer.BadParameter` for a time that is none."""
        return cls(
            classes=frozenset(classes or ()),
            since_ms=parse_time_ms(since) if since else None,
            until_ms=parse_time_ms(until) if until else None,
            ids=frozenset(ids or ()),
        )

    def takes(self, letter: "Letter") -> bool:
        """Whether this letter is meant."""
        written_ms = letter.record.timestamp_ms or 0
        if self.classes and letter.error_class not in self.classes:
            return False
        if self.since_ms is not None and written_ms < self.since_ms:
            return False
        if self.until_ms is not None and written_ms >= self.until_ms:
            return False
        return not self.ids or letter.position in self.ids or bool(self.ids & letter.image_ids())


@app.command("ls")
def list_letters(
    ctx: typer.Context,
    *,
    error_class: Classes = None,
    since: Since = None,
    until: Until = None,
    bucket: Annotated[Bucket, typer.Option(help="How finely times are told apart.")] = Bucket.HOUR,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many rows.")] = 50,
) -> None:
    """Count the dead letters by time and error class, newest first.

    Each row names its newest letter, to look at with `ouzel dlq show`, and how many of its letters went back already.
    """
    from consumer.console import print_rows, settings_from

    kafka = settings_from(ctx).kafka
    letters = _letters(kafka, Selection.of(error_class, since, until))
    rows = grouped(letters, bucket, *_markers_if_any(kafka))
    print_rows(rows[:limit], ["time", "class", "letters", "replayed", "newest", "message"])
    if len(rows) > limit:
        typer.echo(f"{len(rows) - limit} older rows are not shown: --limit {len(rows)} shows all", err=True)


@app.command()
def show(
    ctx: typer.Context,
    position: Annotated[str, typer.Argument(help="PARTITION:OFFSET, as `ouzel dlq ls` prints it.")],
    *,
    save: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the message's exact bytes here.")] = None,
) -> None:
    """One dead letter: why it is one, its headers, and the beginning of its value.

    Passwords, tokens and the queries of URIs are left out; --save writes all of it.
    """
    from consumer.console import print_json, settings_from, stdout_is_terminal

    letter = _letter_at(settings_from(ctx).kafka, position)
    if save is not None:
        if letter.record.value is None:
            raise CommandRefused(f"the letter {position} has no value to save")
        save.write_bytes(letter.record.value)
        typer.echo(f"wrote {len(letter.record.value)} bytes to {save}", err=True)
    description = described(letter)
    if stdout_is_terminal():
        _print_letter(description)
    else:
        print_json(description)


@app.command()
def replay(
    ctx: typer.Context,
    *,
    error_class: Classes = None,
    since: Since = None,
    until: Until = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Image id, or position PARTITION:OFFSET; repeatable.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only list what would go back.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many letters a second.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Letters in one transaction.")] = 100,
    max_replays: Annotated[int, typer.Option(min=1, help="Refuse letters that went back so often.")] = 3,
    force: Annotated[bool, typer.Option("--force", help="Send them back whatever --max-replays says.")] = False,
) -> None:
    """Send the originals of dead letters back to the topic they came from. A dry run, unless --execute is given.

    Each letter goes back once: the original and a marker go in one transaction, and letters with a marker are skipped,
    so that a replay that was killed can simply be run again. One replay at a time: a second one ends the first (exit
    code 11). Letters that cannot go back are listed, and make the exit code 1.

        ouzel dlq replay --class StoreFailed --since 2026-01-31T09:00:00Z --rate 20 --execute
    """
    from consumer.console import settings_from

    kafka = settings_from(ctx).kafka
    chosen = _letters(kafka, Selection.of(error_class, since, until, ids))
    counts = {"replayed": 0, "would_replay": 0, "skipped": 0, "refused": 0}
    outcomes = _replay(kafka, chosen, execute=execute, rate=rate, batch=batch, max_replays=max_replays, force=force)
    for letter, status, reason in outcomes:
        counts[status] += 1
        _tell(letter, status, reason)
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if count)
    typer.echo(told or "no letter is meant by this", err=True)
    if not execute:
        typer.echo("a dry run: nothing was sent; --execute does it", err=True)
    if counts["refused"]:
        raise typer.Exit(1)


Outcome = tuple["Letter", str, str | None]
"""A letter, `replayed`, `would_replay`, `skipped` or `refused`, and the reason."""


def _replay(
    kafka: "KafkaSettings",
    letters: Iterable["Letter"],
    *,
    execute: bool,
    rate: float | None,
    batch: int,
    max_replays: int,
    force: bool,
) -> Iterator[Outcome]:
    """What becomes of each letter, in the order of the dead-letter topic."""
    from consumer.adapters.kafka_tools.replay import Replayer, read_markers, topic_id_of
    from consumer.kafka_properties import client_properties

    timeout_s = kafka.request_timeout_ms / 1000
    reading = client_properties(kafka, "consumer")
    topic_id = topic_id_of(client_properties(kafka, "admin"), kafka.dead_letter_topic, timeout_s=timeout_s)

    def refusal(letter: "Letter") -> str | None:
        return letter.refusal(kafka.input_topics, max_replays=max_replays, force=force)

    if not execute:
        markers = read_markers(reading, kafka.dead_letter_topic, timeout_s=timeout_s)
        for letter in letters:
            if letter.marker_key(topic_id) in markers:
                yield letter, "skipped", "went back already"
            elif reason := refusal(letter):
                yield letter, "refused", reason
            else:
                yield letter, "would_replay", None
        return
    pacer = Pacer(rate)
    # A transaction is open for no longer than its letters take at this rate, for it holds readers back.
    most = batch if rate is None else max(1, min(batch, int(rate)))
    with Replayer(
        client_properties(kafka, "producer"), reading, kafka.dead_letter_topic, topic_id=topic_id, timeout_s=timeout_s
    ) as replayer:
        waiting: list[Letter] = []
        for letter in letters:
            if replayer.done(letter):
                yield letter, "skipped", "went back already"
            elif reason := refusal(letter):
                yield letter, "refused", reason
            else:
                waiting.append(letter)
            if len(waiting) >= most or sum(len(each.record.value or b"") for each in waiting) >= _BATCH_BYTES:
                time.sleep(pacer.wait_s(time.monotonic(), len(waiting)))
                yield from _sent(replayer.send_back(waiting))
                waiting = []
        time.sleep(pacer.wait_s(time.monotonic(), len(waiting)))
        yield from _sent(replayer.send_back(waiting))


def _sent(results: Iterable[Any]) -> Iterator[Outcome]:
    for result in results:
        yield result.letter, "replayed" if result.error is None else "refused", result.error


def _tell(letter: "Letter", status: str, reason: str | None) -> None:
    """A JSON line when piped; in a terminal a line for each that is not simply sent."""
    from consumer.console import print_json, printable, stdout_is_terminal

    if stdout_is_terminal():
        name = next(iter(sorted(letter.image_ids())), "")
        text = f"{status.replace('_', ' ')}  {letter.position}  {letter.error_class}  {name}"
        typer.echo(printable(f"{text}  ({reason})" if reason else text))
        return
    print_json(
        {
            "position": letter.position,
            "status": status,
            "reason": reason,
            "class": letter.error_class,
            "topic": letter.origin_topic,
            "image_ids": sorted(letter.image_ids()),
            "replay_count": letter.replay_count + (status == "replayed"),
        }
    )


def _letters(kafka: "KafkaSettings", selection: Selection) -> Iterator["Letter"]:
    """The letters that are meant, of all that lie in the topic now."""
    from consumer.adapters.kafka_tools.letters import Letter
    from consumer.adapters.kafka_tools.reading import read_to_end
    from consumer.kafka_properties import client_properties

    records = read_to_end(
        client_properties(kafka, "consumer"),
        kafka.dead_letter_topic,
        timeout_s=kafka.request_timeout_ms / 1000,
        since_ms=selection.since_ms,
    )
    return (letter for letter in map(Letter, records) if selection.takes(letter))


def _letter_at(kafka: "KafkaSettings", position: str) -> "Letter":
    from consumer.adapters.kafka_tools.letters import Letter, parse_position
    from consumer.adapters.kafka_tools.reading import read_to_end
    from consumer.kafka_properties import client_properties

    place = parse_position(position)
    if place is None:
        raise typer.BadParameter(f"{position!r} is not PARTITION:OFFSET, such as 0:41")
    partition, offset = place
    records = read_to_end(
        client_properties(kafka, "consumer"),
        kafka.dead_letter_topic,
        timeout_s=kafka.request_timeout_ms / 1000,
        start={partition: offset},
    )
    found = next(iter(records), None)
    if found is None or found.offset != offset:
        raise CommandRefused(
            f"there is no letter {position} in {kafka.dead_letter_topic}",
            remedy="`ouzel dlq ls` lists the positions there are; retention may have removed this one",
        )
    return Letter(found)


def _markers_if_any(kafka: "KafkaSettings") -> tuple[str, set[bytes]]:
    """The dead-letter topic's id and the markers; none where their topic was not created yet."""
    from consumer.adapters.kafka_tools.replay import read_markers, topic_id_of
    from consumer.errors import TopicMissing
    from consumer.kafka_properties import client_properties

    timeout_s = kafka.request_timeout_ms / 1000
    topic_id = topic_id_of(client_properties(kafka, "admin"), kafka.dead_letter_topic, timeout_s=timeout_s)
    try:
        markers = read_markers(client_properties(kafka, "consumer"), kafka.dead_letter_topic, timeout_s=timeout_s)
    except TopicMissing:
        markers = set()
    return topic_id, markers


def grouped(letters: Iterable["Letter"], bucket: Bucket, topic_id: str, markers: set[bytes]) -> list[dict[str, Any]]:
    """Rows of counts by time bucket and error class, newest bucket first, then the most frequent class."""
    from consumer import headers as names

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    newest_ms: dict[tuple[str, str], int] = {}
    for letter in letters:
        written = format_time(letter.record.timestamp_ms)
        when = written[: _BUCKET_CHARS[bucket]] if written else ""
        group = (when, letter.error_class)
        row = rows.setdefault(group, {"time": when, "class": letter.error_class, "letters": 0, "replayed": 0})
        row["letters"] += 1
        row["replayed"] += letter.marker_key(topic_id) in markers
        written_ms = letter.record.timestamp_ms or 0
        if written_ms >= newest_ms.get(group, 0):
            newest_ms[group] = written_ms
            row["newest"] = letter.position
            row["message"] = letter.header(names.ERROR_EXCEPTION_MESSAGE)
    by_count = sorted(rows.values(), key=lambda row: (-row["letters"], row["class"]))
    return sorted(by_count, key=lambda row: str(row["time"]), reverse=True)


def described(letter: "Letter") -> dict[str, Any]:
    """All that `show` prints of a letter."""
    from consumer import headers as names
    from consumer.kafka_properties import is_secret
    from consumer.redact import MASK

    record = letter.record
    errors = (names.ERROR_EXCEPTION_STACKTRACE, names.ERROR_EXCEPTION_MESSAGE)
    return {
        "position": letter.position,
        "time": format_time(record.timestamp_ms),
        "class": letter.error_class,
        "stage": letter.header(names.ERROR_STAGE),
        "message": letter.header(names.ERROR_EXCEPTION_MESSAGE),
        "stack": letter.header(names.ERROR_EXCEPTION_STACKTRACE),
        "image_ids": sorted(letter.image_ids()),
        "origin_topic": letter.origin_topic,
        "replay_count": letter.replay_count,
        "key": _safe(_text(record.key)),
        "headers": {
            name: MASK if is_secret(name) else _safe(_text(value))
            for name, value in record.headers
            if name not in errors
        },
        "value_bytes": None if record.value is None else len(record.value),
        "preview": preview(record.value),
    }


def preview(value: bytes | None) -> str | None:
    """The beginning of a value: as text without secrets where it is text, else as a hex dump."""
    if value is None:
        return None
    try:
        # Four bytes at most belong to a character that the cut went through.
        text = value[: _PREVIEW_CHARS * 4].decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or len(value) <= _PREVIEW_CHARS * 4:
            return hex_dump(value[:_PREVIEW_BYTES])
        text = value[: error.start].decode()
    return str(_safe(text))[:_PREVIEW_CHARS]


def _safe(text: str | None) -> str | None:
    from consumer.log import redacted

    return None if text is None else redacted(text)


def hex_dump(data: bytes) -> str:
    """Offset, 16 bytes in hex, and their ASCII, a line."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)


def _text(data: bytes | None) -> str | None:
    from consumer.commands.tail import as_text

    return as_text(data)


def _print_letter(description: Mapping[str, Any]) -> None:
    """Lines for a person; what others wrote is made printable, line by line."""
    from consumer.console import printable

    def lines(text: object) -> Iterator[str]:
        return (printable(line) for line in str(text).splitlines())

    for name in ("position", "time", "class", "stage", "message", "origin_topic", "replay_count", "key", "value_bytes"):
        if description[name] is not None:
            typer.echo(f"{name.replace('_', ' '):>13}  {' '.join(lines(description[name]))}")
    for title in ("headers", "stack", "preview"):
        content = description[title]
        if content:
            text = "\n".join(f"{name}: {value}" for name, value in content.items()) if title == "headers" else content
            typer.secho(title, bold=True)
            for line in lines(text):
                typer.echo(f"  {line}")
