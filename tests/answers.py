"""What came of an input: its label events and dead letters, read off the topics, and the group's lag."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from consumer import headers as names
from tests.kafka_broker import Cluster
from tests.kafka_clients import Sent, end_offsets, unique
from tests.processes import wait_until
from tests.replica import TopicNames


class Place(NamedTuple):
    """Where an input lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the output or the dead-letter topic."""

    is_letter: bool
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def event(self) -> dict[str, Any]:
        """The label event."""
        assert not self.is_letter, f"a letter: {self.text(names.ERROR_EXCEPTION_MESSAGE)}"
        found: dict[str, Any] = json.loads(self.value or b"")
        return found

    @property
    def error(self) -> str:
        """The letter's class of error."""
        assert self.is_letter, "a label event"
        return self.text(names.ERROR_EXCEPTION_CLASS)

    def text(self, name: str) -> str:
        """A header, which must be there exactly once."""
        (value,) = [value for header, value in self.headers if header == name]
        return (value or b"").decode()

    @property
    def source(self) -> Place | None:
        """The input that it answers; None for a tombstone that was forwarded."""
        if self.is_letter:
            return Place(
                self.text(names.ERROR_TOPIC), int(self.text(names.ERROR_PARTITION)), int(self.text(names.ERROR_OFFSET))
            )
        if self.value is None:
            return None
        source = self.event["source"]
        return Place(source["topic"], source["partition"], source["offset"])


class Answers:
    """Follows the output and the dead-letter topic from their beginnings. Use as a context manager."""

    def __init__(self, cluster: Cluster, topics: TopicNames) -> None:
        self._cluster = cluster
        self._topics = topics
        self.all: list[Answer] = []
        """In the order of reading; within one partition that of the log."""
        self._by_place: dict[Place, list[Answer]] = {}
        self._reader = Consumer(
            cluster.client_properties(
                group_id=unique("answers"),
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                fetch_wait_max_ms=20,
            )
        )
        self._places: list[tuple[str, int]] = []
        self._find_partitions()

    @property
    def events(self) -> list[Answer]:
        """Label events, and tombstones that were forwarded."""
        return [answer for answer in self.all if not answer.is_letter]

    @property
    def letters(self) -> list[Answer]:
        """Dead letters."""
        return [answer for answer in self.all if answer.is_letter]

    def to(self, sent: Sent, *, timeout_s: float = 30) -> Answer:
        """The first answer to this input, when it is there."""
        place = Place(sent.topic, sent.partition, sent.offset)
        self.wait(lambda: place in self._by_place, f"an answer to {place}", timeout_s=timeout_s)
        return self._by_place[place][0]

    def to_all(self, sent: Iterable[Sent], *, timeout_s: float = 60) -> list[Answer]:
        """The first answers to these inputs, in their order."""
        return [self.to(each, timeout_s=timeout_s) for each in sent]

    def count(self, sent: Sent) -> int:
        """How many answers to this input were read so far."""
        return len(self._by_place.get(Place(sent.topic, sent.partition, sent.offset), []))

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 30) -> None:
        """Read until `condition()` holds."""

        def held() -> bool:
            if condition():
                return True
            self._read(0.1)
            return condition()

        wait_until(held, timeout_s=timeout_s, what=what, interval_s=0)

    def read_to_end(self, *, timeout_s: float = 30) -> None:
        """Read everything that was published before this call."""
        self._find_partitions()
        ends = {
            (topic, number): end
            for topic in (self._topics.predictions, self._topics.dead_letters)
            for number, end in end_offsets(self._cluster, topic).items()
        }

        def at_end() -> bool:
            places = self._reader.position([TopicPartition(*place) for place in ends])
            return all(max(place.offset, 0) >= ends[place.topic, place.partition] for place in places)

        self.wait(at_end, "the end of the outputs", timeout_s=timeout_s)

    def _find_partitions(self) -> None:
        for topic in (self._topics.predictions, self._topics.dead_letters):
            metadata = self._cluster.admin().list_topics(topic, timeout=10).topics[topic]
            new = [(topic, number) for number in metadata.partitions if (topic, number) not in self._places]
            self._reader.incremental_assign([TopicPartition(*place, OFFSET_BEGINNING) for place in new])
            self._places += new

    def _read(self, timeout_s: float) -> None:
        for message in self._reader.consume(500, timeout_s):
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            answer = _answer(message, self._topics.dead_letters)
            self.all.append(answer)
            source = answer.source
            if source is not None:
                self._by_place.setdefault(source, []).append(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


def _answer(message: Message, dead_letters: str) -> Answer:
    raw: list[tuple[str, bytes | None]] = list(message.headers() or [])  # type: ignore[arg-type]
    return Answer(
        is_letter=message.topic() == dead_letters,
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=tuple(raw),
    )


def _bytes(data: str | bytes | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data


class Group:
    """A group's committed offsets on some topics, asked by a consumer that never joins. Use as a context manager."""

    def __init__(self, cluster: Cluster, group: str, *topics: str) -> None:
        self._cluster = cluster
        self._topics = topics
        self._consumer = Consumer(cluster.client_properties(group_id=group, enable_auto_commit=False))

    def committed(self) -> Mapping[tuple[str, int], TopicPartition]:
        """By topic and partition; an offset below 0 says that there is none."""
        places = [
            TopicPartition(topic, number)
            for topic in self._topics
            for number in self._cluster.admin().list_topics(topic, timeout=10).topics[topic].partitions
        ]
        return {(each.topic, each.partition): each for each in self._consumer.committed(places, timeout=10)}

    def offsets(self) -> dict[tuple[str, int], int]:
        """The committed offsets; partitions without one are left out."""
        return {place: each.offset for place, each in self.committed().items() if each.offset >= 0}

    def ends(self) -> dict[tuple[str, int], int]:
        """Last stable offsets."""
        return {
            (topic, number): end for topic in self._topics for number, end in end_offsets(self._cluster, topic).items()
        }

    def lag(self) -> dict[tuple[str, int], int]:
        """Offsets from what is committed to the last stable offset, where there are any."""
        committed = self.offsets()
        ends = self.ends()
        return {place: end - committed.get(place, 0) for place, end in ends.items() if end > committed.get(place, 0)}

    def wait_no_lag(self, *, timeout_s: float = 30) -> None:
        """Until everything is committed, to the very end."""
        wait_until(lambda: not self.lag(), timeout_s=timeout_s, what=f"no lag (now {self.lag()})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()


def wait_no_lag(cluster: Cluster, topics: TopicNames, *, timeout_s: float = 30) -> None:
    """Until the group has committed its input to the very end."""
    with Group(cluster, topics.group, topics.images) as group:
        group.wait_no_lag(timeout_s=timeout_s)


def image_ids(answers: Sequence[Answer]) -> list[str]:
    """Of label events."""
    return [answer.event["image_id"] for answer in answers]
