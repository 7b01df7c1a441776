"""Watches a run from outside: the group's committed offsets and every label event and dead letter, into a history."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from consumer import headers as names
from tests.history import CommittedPartition, Output, Recorder, base64_or_none, sha256_or_none
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique
from tests.processes import wait_until

_REQUEST_S = 5.0
_Place = tuple[str, int]


def topic_ids(cluster: Cluster, topics: Sequence[str]) -> dict[str, str]:
    """Ids of the topics that exist."""
    found = {}
    asked = TopicCollection(list(topics))
    for name, answer in cluster.admin().describe_topics(asked, request_timeout=_REQUEST_S).items():
        try:
            found[name] = str(answer.result(_REQUEST_S).topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return found


def _offsets(cluster: Cluster, places: Sequence[_Place], spec: OffsetSpec) -> dict[_Place, int]:
    asked = {TopicPartition(*place): spec for place in places}
    answers = cluster.admin().list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_REQUEST_S
    )
    return {(where.topic, where.partition): answer.result(_REQUEST_S).offset for where, answer in answers.items()}


class Observer:
    """A thread that samples until `stop`. A round that a fault interrupts proves nothing and is taken anew.

    Each round reads the committed offsets *first*, then the outputs to their ends as of then, and marks that with a
    checkpoint: so an answer that is missing at the checkpoint was missing when the offset was committed (I2), however
    slow the observer is.
    """

    def __init__(
        self,
        cluster: Cluster,
        recorder: Recorder,
        *,
        group: str,
        images: Sequence[str],
        predictions: str,
        dead_letters: str,
        interval_s: float = 0.1,
        share: bool = False,
        lag: Callable[[], Mapping[_Place, int]] | None = None,
    ) -> None:
        """`share`: the group is a share group, which commits no offsets; `lag` asks the broker how many messages it has
        yet to be through with (`tests.share_lag`)."""
        self._cluster = cluster
        self._recorder = recorder
        self._group = group
        self._images = list(images)
        self._predictions = predictions
        self._dead_letters = dead_letters
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._answered: set[tuple[str, int, int]] = set()
        self._lag: dict[_Place, int] | None = None
        self._rounds = 0
        self._broken: BaseException | None = None
        self._next: dict[_Place, int] = {}
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._share = share
        self._share_lag = lag
        # Asks for the group's offsets and never joins it.
        self._group_reader = Consumer(cluster.client_properties(group_id=group, isolation_level="read_committed"))
        self._reader = Consumer(
            cluster.client_properties(
                group_id=unique("observer"),
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_partition_eof=True,
            )
        )

    # --- asked by tests ---------------------------------------------------------------------------------------------

    @property
    def answered(self) -> int:
        """How many inputs have an event or a letter so far."""
        with self._lock:
            return len(self._answered)

    def wait_answered(self, count: int, *, timeout_s: float = 60) -> None:
        """Until at least so many inputs have an event or a letter."""
        self._wait(lambda: self.answered >= count, timeout_s, lambda: f"{count} answers ({self.answered} came)")

    def wait_round(self, *, timeout_s: float = 30) -> None:
        """Until offsets and outputs were read once more, both as of after this call."""
        begun = self._rounds + 1
        self._wait(lambda: self._rounds > begun, timeout_s, lambda: "a whole round of the observer")

    def wait_no_lag(self, *, timeout_s: float = 60) -> None:
        """Until a sample that began after this call shows every input partition committed to its end."""
        begun = self._rounds + 1

        def caught_up() -> bool:
            with self._lock:
                lag = self._lag
                return self._rounds > begun and lag is not None and not any(lag.values())

        self._wait(caught_up, timeout_s, lambda: f"lag to return to zero (now {self._lag})")

    def wait_rounds(self, count: int, *, timeout_s: float = 60) -> None:
        """So many whole looks at the cluster: to see that something does not happen."""
        begun = self._rounds + 1  # the one under way began before this call
        self._wait(lambda: self._rounds >= begun + count, timeout_s, lambda: f"{count} rounds of the observer")

    def _wait(self, condition: Any, timeout_s: float, what: Any) -> None:
        def held() -> bool:
            if self._broken is not None:
                raise RuntimeError("the observer broke") from self._broken
            return bool(condition())

        try:
            wait_until(held, timeout_s=timeout_s, what="the condition")
        except TimeoutError:
            raise AssertionError(f"waited {timeout_s:g} s for {what()}") from None

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def stop(self, *, timeout_s: float = 30) -> None:
        """One more whole round, then end. Idempotent."""
        if self._thread.is_alive():
            try:
                self.wait_round(timeout_s=timeout_s)
            finally:
                self._stopping.set()
                self._thread.join(timeout_s)
                self._reader.close()
                self._group_reader.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                # The broker may be away: the sample, if there was one, then stays without its checkpoint.
                with contextlib.suppress(KafkaException, TimeoutError):
                    self._round()
                self._stopping.wait(self._interval_s)
        except BaseException as error:
            self._broken = error  # raised again in the test's thread

    def _round(self) -> None:
        partitions = self._sample()
        if partitions is None:
            return
        number = self._recorder.sample(partitions)
        if self._share_lag is not None:
            # The ends are those of before: messages that came since then only make it look like fewer.
            lag = self._share_lag()
            ends = {(each.topic, each.partition): each.end for each in partitions}
            self._recorder.settled(number, {place: ends[place] - lag[place] for place in lag.keys() & ends.keys()})
        self._read_outputs()
        self._recorder.checkpoint(number)
        with self._lock:
            self._lag = {(partition.topic, partition.partition): partition.lag for partition in partitions}
            self._rounds += 1

    # --- committed offsets ------------------------------------------------------------------------------------------

    def _sample(self) -> list[CommittedPartition] | None:
        """None where a topic was recreated meanwhile: whose offsets these are cannot be said."""
        ids = topic_ids(self._cluster, self._images)
        places = self._partitions(list(ids))
        committed = self._committed(places)
        begins = _offsets(self._cluster, places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = _offsets(self._cluster, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        if topic_ids(self._cluster, self._images) != ids:
            return None
        return [
            CommittedPartition(
                place[0], ids[place[0]], place[1], committed[place], begins[place], max(ends[place], begins[place])
            )
            for place in places
        ]

    def _committed(self, places: Sequence[_Place]) -> dict[_Place, int | None]:
        if self._share:
            return dict.fromkeys(places)
        # Not by AdminClient.list_consumer_group_offsets, which can end the process (librdkafka issue 5040).
        answers = self._group_reader.committed([TopicPartition(*place) for place in places], timeout=_REQUEST_S)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {(place.topic, place.partition): place.offset if place.offset >= 0 else None for place in answers}

    def _partitions(self, topics: Sequence[str]) -> list[_Place]:
        # One topic a time: a question about all topics would also list the other tests'.
        found = []
        for topic in topics:
            metadata = self._cluster.admin().list_topics(topic, timeout=_REQUEST_S).topics[topic]
            if metadata.error is not None or not metadata.partitions:
                raise TimeoutError  # a broker that has just started does not know its topics yet: nothing was seen
            found += [(topic, number) for number in sorted(metadata.partitions)]
        return found

    # --- outputs ----------------------------------------------------------------------------------------------------

    def _read_outputs(self) -> None:
        places = self._partitions([self._predictions, self._dead_letters])
        new = [place for place in places if place not in self._next]
        self._reader.incremental_assign([TopicPartition(*place, OFFSET_BEGINNING) for place in new])
        self._next |= dict.fromkeys(new, 0)
        ends = _offsets(self._cluster, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        deadline_s = time.monotonic() + 30
        while any(self._next[place] < end for place, end in ends.items()):
            if time.monotonic() > deadline_s:
                raise TimeoutError
            for message in self._reader.consume(500, 0.05):
                self._take(message)

    def _take(self, message: Message) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and topic and partition is not None and offset is not None:
                # The end as a committed reader sees it: behind markers and aborted records.
                self._next[topic, partition] = max(self._next[topic, partition], offset)
            return
        assert topic is not None
        assert partition is not None
        assert offset is not None
        self._next[topic, partition] = offset + 1
        output = read_output(message, dead_letters=self._dead_letters)
        if output is None:
            return
        self._recorder.output(output)
        with self._lock:
            self._answered.add((output.source_topic, output.source_partition, output.source_offset))


def read_output(message: Message, *, dead_letters: str) -> Output | None:
    """A record of the output or dead-letter topic as a line of a history; None for a forwarded tombstone.

    What cannot be read names no source, and the verifier calls it a phantom.
    """
    value, key = message.value(), message.key()
    pairs: list[tuple[str, bytes | None]] = list(message.headers() or [])  # type: ignore[arg-type]
    headers = {name: (data or b"").decode(errors="replace") for name, data in pairs}
    place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
    key_bytes = key.encode() if isinstance(key, str) else key
    value_bytes = value.encode() if isinstance(value, str) else value
    if place[0] == dead_letters:
        return Output(
            "letter",
            *place,
            key=base64_or_none(key_bytes),
            source_topic=headers.get(names.ERROR_TOPIC, ""),
            source_partition=_number(headers.get(names.ERROR_PARTITION)),
            source_offset=_number(headers.get(names.ERROR_OFFSET)),
            sha256=headers.get(names.ORIGINAL_SHA256) or sha256_or_none(value_bytes),
            error=headers.get(names.ERROR_EXCEPTION_CLASS),
            headers=headers,
        )
    if value_bytes is None:
        return None
    try:
        event: Mapping[str, Any] = json.loads(value_bytes)
        return Output(
            "event",
            *place,
            key=base64_or_none(key_bytes),
            source_topic=event["source"]["topic"],
            source_partition=event["source"]["partition"],
            source_offset=event["source"]["offset"],
            image_id=event["image_id"],
            event_id=event["event_id"],
            model_digest=event["model"]["digest"],
            labels=tuple((label["index"], label["score"]) for label in event["labels"]),
            headers=headers,
        )
    except (ValueError, KeyError, TypeError):
        return Output("event", *place, key=base64_or_none(key_bytes), source_topic="", source_partition=-1,
                      source_offset=-1, headers=headers)  # fmt: skip


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else -1
