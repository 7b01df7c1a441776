"""Reading a topic without a group: bounded, to its present end, or following what comes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer.adapters.kafka_tools.clients import (
    Complaints,
    Properties,
    kafka_error,
    open_reader,
    partitions_of,
    translated,
)
from consumer.errors import BrokerUnreachable
from consumer.messages import Headers

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies in a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Headers
    timestamp_ms: int | None
    """Milliseconds since the epoch."""


class Reader:
    """A topic's records, committed ones only, partitions in no order among each other. Joins no group."""

    def __init__(self, properties: Properties, topic: str, *, timeout_s: float) -> None:
        """Connect. Raises `TopicMissing`, `BrokerUnreachable`, `NotAuthorized` or `SettingsError`."""
        self.topic = topic
        self._timeout_s = timeout_s
        self._complaints = Complaints()
        self._consumer: Consumer = open_reader(properties, self._complaints)
        try:
            self.partitions = partitions_of(self._consumer, topic, self._complaints, timeout_s)
        except BaseException:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._consumer.close()

    def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset there is, and the last stable offset: what a read_committed reader can reach now."""
        where = TopicPartition(self.topic, partition)
        # With isolation.level=read_committed the broker answers with the last stable offset, not the high watermark.
        low, end = self._ask(lambda: self._consumer.get_watermark_offsets(where, timeout=self._timeout_s))
        return int(low), int(end)

    def first_since(self, timestamp_ms: int) -> dict[int, int]:
        """By partition, the first offset with a timestamp at or after `timestamp_ms`; none where all are older."""
        asked = [TopicPartition(self.topic, number, timestamp_ms) for number in self.partitions]
        found = self._ask(lambda: self._consumer.offsets_for_times(asked, timeout=self._timeout_s))
        return {where.partition: where.offset for where in found if where.offset >= 0}

    def start(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on."""
        self._consumer.assign([TopicPartition(self.topic, number, offset) for number, offset in offsets.items()])

    def poll(self, timeout_s: float = _POLL_S) -> Record | None:
        """The next record, or None after `timeout_s` seconds without one. Raises the `Fatal` that stops reading."""
        message = self._message(timeout_s)
        return None if message is None or message.error() is not None else _record(message)

    def until(self, ends: Mapping[int, int]) -> Iterator[Record]:
        """Every record before these offsets, of the partitions that `start` began.

        Raises `BrokerUnreachable` if nothing comes for the time-out: a reading cut short never looks complete.
        """
        unread = set(ends)
        quiet_s = 0.0
        while unread:
            message = self._message(_POLL_S)
            if message is None:
                quiet_s += _POLL_S
                if quiet_s >= self._timeout_s:
                    stalled = f"reading {self.topic}: nothing came for {self._timeout_s:g} s before its end"
                    raise BrokerUnreachable(stalled, remedy="see whether the leaders of its partitions are up")
                continue
            quiet_s = 0.0
            number, offset = _place(message)
            if number not in unread:
                continue
            # The end may be a transaction's marker, which is no record: there only the end of partition is told.
            past_end = offset if message.error() is not None else offset + 1
            if message.error() is None and offset < ends[number]:
                yield _record(message)
            if past_end >= ends[number]:
                unread.discard(number)
                self._consumer.pause([TopicPartition(self.topic, number)])

    def _message(self, timeout_s: float) -> Message | None:
        """The next message or end of partition, or None; other errors are raised."""
        message: Message | None = self._ask(lambda: self._consumer.poll(timeout_s))
        error = message.error() if message is not None else None
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return message
        # The group is never joined, so that no right to it is needed.
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED or error.retriable():
            return None
        raise translated(error, f"reading {self.topic}", self._complaints)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KafkaException as error:
            raise translated(kafka_error(error), f"reading {self.topic}", self._complaints) from error


def read_to_end(
    properties: Properties,
    topic: str,
    *,
    timeout_s: float,
    start: Mapping[int, int] | None = None,
    since_ms: int | None = None,
) -> Iterator[Record]:
    """The committed records of `topic` up to its last stable offset at the time of the call.

    Args:
        properties: of a consumer.
        topic: must exist.
        timeout_s: the longest silence of the broker, in seconds, before it counts as gone.
        start: the partitions to read and their first offsets; None reads all of all partitions.
        since_ms: leaves out what is older, in milliseconds since the epoch (by the records' timestamps).

    Raises:
        TopicMissing, BrokerUnreachable, NotAuthorized, SettingsError: the reading is not complete.
    """
    with Reader(properties, topic, timeout_s=timeout_s) as reader:
        bounds = {number: reader.bounds(number) for number in reader.partitions}
        wanted = dict(start) if start is not None else {number: low for number, (low, _) in bounds.items()}
        if since_ms is not None:
            wanted = {number: max(first, wanted[number]) for number, first in reader.first_since(since_ms).items()}
        # A start below what retention left begins at what there is.
        begin = {n: max(at, bounds[n][0]) for n, at in wanted.items() if n in bounds and at < bounds[n][1]}
        ends = {number: bounds[number][1] for number in begin if begin[number] < bounds[number][1]}
        reader.start({number: begin[number] for number in ends})
        for record in reader.until(ends):
            if since_ms is None or (record.timestamp_ms or 0) >= since_ms:
                yield record


def _place(message: Message) -> tuple[int, int]:
    number, offset = message.partition(), message.offset()
    assert number is not None  # noqa: S101  # it was read from a broker
    assert offset is not None  # noqa: S101  # so was this
    return number, offset


def _record(message: Message) -> Record:
    number, offset = _place(message)
    _type, timestamp_ms = message.timestamp()
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Record(
        partition=number,
        offset=offset,
        key=_raw(message.key()),
        value=_raw(message.value()),
        headers=tuple((name, _raw(value)) for name, value in pairs),
        timestamp_ms=timestamp_ms if timestamp_ms >= 0 else None,
    )


def _raw(value: str | bytes | None) -> bytes | None:
    """A consumer always gives bytes; the signature allows text."""
    return value.encode() if isinstance(value, str) else value
