"""Sending dead letters back, each exactly once for read_committed readers, whatever is killed when.

The original and a marker that names its letter are written in one transaction, so that there are both or neither. The
fixed `transactional.id` lets one replay at a time commit: a second one fences the first before it reads the markers,
and from then on nothing can be added to them behind its back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import orjson
from confluent_kafka import KafkaError, Message, Producer, TopicCollection

from consumer.adapters.kafka_tools.clients import (
    KAFKA_ERRORS,
    NO_SUCH_TOPIC,
    NOT_AUTHORIZED,
    Complaints,
    Properties,
    kafka_error,
    open_admin,
    open_producer,
    partitions_of,
    translated,
    translated_write,
)
from consumer.adapters.kafka_tools.letters import Letter
from consumer.adapters.kafka_tools.reading import read_to_end
from consumer.adapters.librdkafka import PRODUCER_FENCED
from consumer.errors import Fatal, OutputRefused, ReplayFenced
from consumer.names import replay_marker_topic, replay_transactional_id

TRANSACTION_TIMEOUT_MS = 30_000
"""How long a killed replay may hold back read_committed readers of the input topic."""

_ATTEMPTS = 5
_PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
_RECORD_REFUSED = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD})
"""The broker does not take this very record (or one in its batch), however often it is sent."""


@dataclass(frozen=True, slots=True)
class SentBack:
    """What became of a letter: sent back, or the reason why the topic does not take it."""

    letter: Letter
    error: str | None = None


class _AbortAndRetry(Exception):
    """The transaction failed as a whole and can be aborted."""


class _Ambiguous(Exception):
    """Nobody knows whether it was committed: only the markers can tell."""


class _RecordRefused(Exception):
    """A record of the transaction is refused for good."""


def topic_id_of(properties: Properties, topic: str, *, timeout_s: float) -> str:
    """The topic's id; its name where the broker gives none. Raises as `Reader` does."""
    complaints = Complaints()
    admin = open_admin(properties, complaints)
    partitions_of(admin, topic, complaints, timeout_s)
    future = admin.describe_topics(TopicCollection([topic]), request_timeout=timeout_s)[topic]
    try:
        found = future.result().topic_id
    except KAFKA_ERRORS as error:
        raise translated(kafka_error(error), f"describing {topic}", complaints) from error
    return str(found) if found is not None and int(found.get_most_significant_bits() or 0) else topic


def read_markers(properties: Properties, dead_letter_topic: str, *, timeout_s: float) -> set[bytes]:
    """The marker keys of all letters that went back. Raises `TopicMissing` where the marker topic is missing."""
    found: set[bytes] = set()
    for record in read_to_end(properties, replay_marker_topic(dead_letter_topic), timeout_s=timeout_s):
        if record.key is not None and record.value is not None:
            found.add(record.key)
        elif record.key is not None:
            found.discard(record.key)
    return found


class Replayer:
    """The one replay of a dead-letter topic. Entering it fences any other; `replayed` is complete from then on."""

    def __init__(
        self, producer: Properties, consumer: Properties, dead_letter_topic: str, *, topic_id: str, timeout_s: float
    ) -> None:
        """Take over. `topic_id` is the dead-letter topic's; `timeout_s` bounds each wait for the broker.

        Raises `TopicMissing`, `BrokerUnreachable`, `NotAuthorized`, `SettingsError` or `ReplayFenced`.
        """
        # The time-out of a message is the transaction's; one of the user's may contradict it.
        own = ("delivery.timeout.ms", "message.timeout.ms")
        self._properties = {name: value for name, value in producer.items() if name not in own}
        self._consumer_properties = consumer
        self._dead_letter_topic = dead_letter_topic
        self._topic_id = topic_id
        self._timeout_s = timeout_s
        self._complaints = Complaints()
        self._in_transaction = False
        self._topics_seen: set[str] = set()
        self.replayed: set[bytes] = set()
        """Marker keys of the letters that went back, by this replay or an earlier one."""
        self._producer = self._take_over()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Abort what is open, if it still can be: else readers wait for the transaction's time-out."""
        if self._in_transaction:
            try:
                self._producer.abort_transaction(self._timeout_s)
            except KAFKA_ERRORS:
                return

    def done(self, letter: Letter) -> bool:
        """Whether it went back already."""
        return letter.marker_key(self._topic_id) in self.replayed

    def send_back(self, letters: Sequence[Letter]) -> list[SentBack]:
        """Send these back in one transaction; those that are done already are left out of it.

        A letter that the topic refuses for good is told with its reason, the others go without it.

        Raises:
            ReplayFenced: another replay took over.
            BrokerUnreachable, NotAuthorized, TopicMissing, OutputRefused: what is committed stays so; run it again.
        """
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            waiting = [letter for letter in letters if not self.done(letter)]
            try:
                if waiting:
                    self._transact(waiting)
            except _AbortAndRetry as error:
                self._abort()
                failure = error
            except _Ambiguous as error:
                self._producer = self._take_over()
                failure = error
            except _RecordRefused as error:
                self._abort()
                if len(letters) == 1:
                    return [SentBack(letters[0], str(error))]
                return [result for letter in letters for result in self.send_back([letter])]
            else:
                self.replayed.update(letter.marker_key(self._topic_id) for letter in letters)
                return [SentBack(letter) for letter in letters]
            time.sleep(0.2 * 2**attempt)
        raise self._fatal(failure)

    def _take_over(self) -> Producer:
        """A new producer, which fences the last one of this id and settles its transaction; then the markers."""
        producer = open_producer(
            self._properties,
            self._complaints,
            transactional_id=replay_transactional_id(self._dead_letter_topic),
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        )
        self._in_transaction = False
        try:
            self._retrying(lambda: producer.init_transactions(self._timeout_s))
        except (_AbortAndRetry, _Ambiguous) as error:
            raise self._fatal(error) from error
        self.replayed = read_markers(self._consumer_properties, self._dead_letter_topic, timeout_s=self._timeout_s)
        return producer

    def _transact(self, letters: Sequence[Letter]) -> None:
        # Of a topic that is gone, librdkafka would wait for the transaction's time-out.
        for topic in {str(letter.origin_topic) for letter in letters} - self._topics_seen:
            partitions_of(self._producer, topic, self._complaints, self._timeout_s)
            self._topics_seen.add(topic)
        failures: list[KafkaError] = []
        self._retrying(self._producer.begin_transaction)
        self._in_transaction = True
        replayed_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            for letter in letters:
                marker = {"replayed_at": replayed_at, "count": letter.replay_count + 1}
                record = letter.record
                self._produce(str(letter.origin_topic), record.value, record.key, letter.original_headers(), failures)
                key = letter.marker_key(self._topic_id)
                self._produce(replay_marker_topic(self._dead_letter_topic), orjson.dumps(marker), key, (), failures)
            self._retrying(lambda: self._producer.commit_transaction(self._timeout_s))
        except (_AbortAndRetry, _Ambiguous):
            self._judge(failures)
            raise
        self._in_transaction = False

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        failures: list[KafkaError],
    ) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None and error.code() not in _PURGED:
                failures.append(error)

        while True:
            try:
                self._producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
            except BufferError:
                self._retrying(lambda: self._producer.poll(0.5))
            except KAFKA_ERRORS as error:
                found = kafka_error(error)
                if found.code() in _RECORD_REFUSED:
                    raise _RecordRefused(found.str()) from error
                raise self._classified(found) from error
            else:
                return

    def _judge(self, failures: Sequence[KafkaError]) -> None:
        """What the delivery reports say is more exact than the transaction's own error."""
        for failure in failures:
            if failure.code() in NOT_AUTHORIZED | NO_SUCH_TOPIC:
                raise translated(failure, "sending letters back", self._complaints)
        for failure in failures:
            if failure.code() in _RECORD_REFUSED:
                raise _RecordRefused(failure.str())

    def _abort(self) -> None:
        """Abort; a producer that cannot even do that is replaced."""
        try:
            self._retrying(lambda: self._producer.flush(self._timeout_s))  # librdkafka#4849: flush before abort
            self._retrying(lambda: self._producer.abort_transaction(self._timeout_s))
        except (_AbortAndRetry, _Ambiguous):
            self._producer = self._take_over()
        self._in_transaction = False

    def _retrying(self, call: Callable[[], object]) -> None:
        """Call, and call again while librdkafka says that the same call may be repeated, up to the time-out."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                call()
            except KAFKA_ERRORS as error:
                found = kafka_error(error)
                if not found.retriable() or time.monotonic() >= deadline_s:
                    raise self._classified(found) from error
            else:
                return

    def _classified(self, error: KafkaError) -> Exception:
        if error.code() in PRODUCER_FENCED:
            return ReplayFenced(
                f"another replay of {self._dead_letter_topic} took over (or this one stood still for more than "
                f"{TRANSACTION_TIMEOUT_MS // 1000} s)",
                remedy="let the other one finish; run this again for what is left: letters that went back are skipped",
            )
        if error.code() in NOT_AUTHORIZED:
            return translated(error, "sending letters back", self._complaints)
        if error.txn_requires_abort():
            return _AbortAndRetry(error)
        return _Ambiguous(error)

    def _fatal(self, error: Exception | None) -> Fatal:
        cause = next(iter(error.args), None) if error else None
        if isinstance(cause, KafkaError):
            return translated_write(cause, "sending letters back", self._complaints)
        return OutputRefused(f"sending letters back: {error}")
