"""`ouzel tail`: label events as they come."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from consumer.adapters.kafka_tools.reading import Reader, Record
    from consumer.adapters.schema_registry.reading import ReadEvent
    from consumer.settings import Settings

_ROWS_KEPT = 200
_FRAMING_BYTES = 5  # Confluent's: a zero and the schema's id
_LABELS_SHOWN = 3
_EVENT_COLUMNS = ("image", "labels", "score", "model", "latency")
_LETTER_COLUMNS = ("position", "image", "error", "message")

Row = dict[str, str]


def tail(
    ctx: typer.Context,
    *,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All there is, then what comes.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many; exit 1 if fewer came.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="End when nothing came for so long.")
    ] = None,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="Follow the dead letters instead.")] = False,
) -> None:
    """Follow the label events: a live table in a terminal, JSON lines when piped.

    A JSON line is the event with its key, partition and offset added; Avro and Protobuf are read as output.format says.
    Joins no group and commits nothing, so it never
    disturbs a reader of yours. Ends at Ctrl-C with exit code 0.

        ouzel tail --from-beginning --limit 10

        ouzel tail | jq -r '[.image_id, .labels[0].label] | @tsv'
    """
    from consumer.adapters.kafka_tools.reading import Reader
    from consumer.console import settings_from, stdout_is_terminal
    from consumer.kafka_properties import client_properties

    settings = settings_from(ctx)
    kafka = settings.kafka
    topic = kafka.dead_letter_topic if dead_letters else kafka.output_topic
    view = _View(dead_letters=dead_letters, read=None if dead_letters else _event_reader(settings))
    show = _live_table(view) if stdout_is_terminal() else _json_lines(view)
    shown = 0
    try:
        with Reader(client_properties(kafka, "consumer"), topic, timeout_s=kafka.request_timeout_ms / 1000) as reader:
            bounds = {number: reader.bounds(number) for number in reader.partitions}
            reader.start({number: low if from_beginning else end for number, (low, end) in bounds.items()})
            typer.echo(f"following {topic} (Ctrl-C ends)", err=True)
            with show as show_one:
                for record in _records(reader, limit=limit, quiet_s=timeout):
                    show_one(record)
                    shown += 1
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # `ouzel tail | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return
    if limit is not None and shown < limit:
        typer.echo(f"{shown} of {limit} came", err=True)
        raise typer.Exit(1)


def _records(reader: "Reader", *, limit: int | None, quiet_s: float | None) -> Iterator["Record"]:
    """What comes, until there were `limit` of them or none for `quiet_s` seconds."""
    count = 0
    last_s = time.monotonic()
    while limit is None or count < limit:
        record = reader.poll(0.2)
        if record is not None:
            count += 1
            yield record
            last_s = time.monotonic()
        elif quiet_s is not None and time.monotonic() - last_s >= quiet_s:
            return


@dataclass(frozen=True, slots=True)
class _View:
    """What is shown of a record."""

    dead_letters: bool
    read: "ReadEvent | None"

    def line(self, record: "Record") -> dict[str, Any]:
        return letter_line(record) if self.dead_letters else event_line(record, self.read)

    def row(self, record: "Record") -> Row:
        return letter_row(record) if self.dead_letters else event_row(record, self.read)


def _event_reader(settings: "Settings") -> "ReadEvent | None":
    """What reads events that are no JSON; None where they are."""
    written_as = settings.output.format
    if written_as == "json":
        return None
    from consumer import bootstrap

    records = bootstrap.build_records(settings)
    from consumer.adapters.schema_registry.reading import event_reader

    return None if records is None else event_reader(records, written_as)


@contextmanager
def _json_lines(view: _View) -> Iterator[Callable[["Record"], None]]:
    from consumer.console import print_json

    yield lambda record: print_json(view.line(record))


@contextmanager
def _live_table(view: _View) -> Iterator[Callable[["Record"], None]]:
    """A table of the newest rows that fit the terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    columns = _LETTER_COLUMNS if view.dead_letters else _EVENT_COLUMNS
    rows: deque[Row] = deque(maxlen=_ROWS_KEPT)
    with Live(console=console, refresh_per_second=8, auto_refresh=True) as live:

        def show_one(record: "Record") -> None:
            rows.append(view.row(record))
            fitting = max(1, console.height - 6)
            live.update(_table(columns, list(rows)[-fitting:]))

        yield show_one


def _table(columns: tuple[str, ...], rows: list[Row]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from consumer.console import printable

    table = Table(expand=True)
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in columns))
    return table


def event_line(record: "Record", read: "ReadEvent | None" = None) -> dict[str, Any]:
    """The event with `key`, `partition` and `offset`; a value that cannot be read is under `value`."""
    place = {"key": as_text(record.key), "partition": record.partition, "offset": record.offset}
    event = _event(record, read)
    return {**event, **place} if event is not None else {"value": as_text(record.value), **place}


def event_row(record: "Record", read: "ReadEvent | None" = None) -> Row:
    """A label event in the words of the table; what an event of another version lacks stays empty."""
    event = _event(record, read) or {}
    labels = [label for label in _list(event.get("labels")) if isinstance(label, dict)][:_LABELS_SHOWN]
    model = event.get("model") if isinstance(event.get("model"), dict) else {}
    timings = event.get("timings_ms") if isinstance(event.get("timings_ms"), dict) else {}
    spent_ms = sum(value for value in (timings or {}).values() if isinstance(value, int | float))
    score = labels[0].get("score") if labels else None
    return {
        "image": str(event.get("image_id") or as_text(record.key) or ""),
        "labels": ", ".join(str(label.get("label")) for label in labels),
        "score": f"{score:.3f}" if isinstance(score, int | float) else "",
        "model": str((model or {}).get("name", "")),
        "latency": f"{spent_ms:.0f} ms" if timings else "",
    }


def letter_line(record: "Record") -> dict[str, Any]:
    """A dead letter's place and error; `ouzel dlq show` has the rest."""
    from consumer import headers as names
    from consumer.adapters.kafka_tools.letters import Letter
    from consumer.commands._time import format_time

    letter = Letter(record)
    return {
        "position": letter.position,
        "time": format_time(record.timestamp_ms),
        "key": as_text(record.key),
        "image_ids": sorted(letter.image_ids()),
        "error": letter.error_class,
        "message": letter.header(names.ERROR_EXCEPTION_MESSAGE),
        "stage": letter.header(names.ERROR_STAGE),
        "origin_topic": letter.origin_topic,
        "value_bytes": None if record.value is None else len(record.value),
        "partition": record.partition,
        "offset": record.offset,
    }


def letter_row(record: "Record") -> Row:
    """A dead letter in the words of the table."""
    line = letter_line(record)
    return {
        "position": line["position"],
        "image": ", ".join(line["image_ids"]),
        "error": line["error"],
        "message": line["message"] or "",
    }


def as_text(data: bytes | None) -> str | None:
    """UTF-8 as it is; other bytes as `base64:...`."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        return "base64:" + b64encode(data).decode()


def _event(record: "Record", read: "ReadEvent | None") -> dict[str, Any] | None:
    import orjson

    value = record.value or b""
    framed = value[:1] == b"\0"
    try:
        found = read(value) if framed and read else orjson.loads(value[_FRAMING_BYTES:] if framed else value)
    except Exception:  # what others wrote to the topic; it is shown as it is
        return None
    return found if isinstance(found, dict) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
