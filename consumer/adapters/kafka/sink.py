"""The idempotent producer, on librdkafka. Delivery reports have a thread of their own: the owner's may be inside a
revoke callback that waits for them."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from loguru import logger

from consumer.adapters.kafka.translate import authentication_error, delivery_error
from consumer.errors import NotAuthorized, OutputRefused, OutputUnavailable
from consumer.log import rate_limited
from consumer.messages import OutputRecord
from consumer.ports import Clock

Done = Callable[[Exception | None], None]

CALL_ERRORS = (KafkaException, SystemError)
"""What any call into a producer may raise once that has failed for good; SystemError where two calls meet one error."""
_MAX_NEW_PRODUCERS = 3
_NEW_PRODUCERS_WINDOW_S = 600.0


def hand_over(
    producer: Producer, record: OutputRecord, on_delivery: Callable[[KafkaError | None, Message], None]
) -> bool:
    """Give a record to librdkafka; False where its queue is full. Raises KafkaException where it is refused at once."""
    try:
        producer.produce(
            record.topic,
            value=record.value,
            key=record.key,
            headers=list(record.headers),
            on_delivery=on_delivery,
        )
    except BufferError:
        return False
    return True


class KafkaSink:
    """See `ports.ResultSink`. `properties` are librdkafka's, complete."""

    def __init__(self, properties: Mapping[str, Any], *, clock: Clock) -> None:
        self._properties = dict(properties)
        self._clock = clock
        self._lock = threading.Lock()
        self._overflow: deque[tuple[OutputRecord, Done]] = deque()
        self._fatal: KafkaError | Exception | None = None
        self._unreported: dict[int, Done] = {}
        """A fatal error is raised by the next poll, and the reports that it had in hand are lost with it."""
        self._last_number = 0
        self._renewals_s: deque[float] = deque()
        self._refusal: OutputRefused | NotAuthorized | None = None
        self._log_in_refused: NotAuthorized | None = None
        self._closing = threading.Event()
        self._producer = self._new_producer()
        self._reports = threading.Thread(target=self._serve_reports, name="delivery-reports", daemon=True)
        self._reports.start()

    def publish(self, record: OutputRecord, done: Done) -> None:
        """See the port."""
        if self._refusal is not None:
            done(self._refusal)
            return
        with self._lock:
            if self._overflow or not self._produce(record, done):
                self._overflow.append((record, done))

    def close(self, timeout_s: float) -> int:
        """See the port."""
        if not self._closing.is_set():
            self._producer.flush(timeout_s)
        self._closing.set()
        self._reports.join(timeout=5)
        return len(self._producer) + len(self._overflow)

    def _produce(self, record: OutputRecord, done: Done) -> bool:
        """False where librdkafka's queue is full: the record waits its turn."""
        self._last_number += 1
        number = self._last_number
        self._unreported[number] = done
        try:
            taken = hand_over(self._producer, record, self._reporter(record.topic, number))
        except KafkaException as error:
            del self._unreported[number]
            done(delivery_error(error.args[0], record.topic))
            return True
        if not taken:
            del self._unreported[number]
        return taken

    def _reporter(self, topic: str, number: int) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, _message: Message) -> None:
            try:
                self._unreported[number](None if error is None else self._translated(error, topic))
                del self._unreported[number]
            except Exception as failure:  # nothing may escape a callback; the record counts as unreported
                logger.opt(exception=failure).error("a delivery report could not be handled")

        return report

    def _translated(self, error: KafkaError, topic: str) -> Exception:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error
            return OutputUnavailable(f"the producer failed and is replaced: {error.str()}")
        return delivery_error(error, topic)

    def _serve_reports(self) -> None:
        try:
            while not self._closing.is_set():
                self._serve_some()
        except Exception as error:  # a new producer that cannot be made, say
            logger.opt(exception=error).error("delivery reports end")
            self._end(error)

    def _serve_some(self) -> None:
        try:
            self._producer.poll(0.1)
        except CALL_ERRORS as error:
            self._fatal = self._fatal or error
        if self._fatal is not None:
            self._renew()
        if self._log_in_refused is not None and self._refusal is None:
            self._give_up(self._log_in_refused)
        if self._overflow:
            self._drain_overflow()

    def _end(self, error: Exception) -> None:
        """Nobody is left to tell what became of records: all that wait are told so, and so is who comes."""
        refusal = OutputRefused(f"the producer cannot go on: {error}", remedy="start the replica again")
        with self._lock:
            self._tell_unreported(refusal)
            self._refuse(refusal)

    def _tell_unreported(self, error: Exception) -> None:
        """The caller holds the lock, as for `_refuse`."""
        for number in list(self._unreported):
            self._unreported.pop(number)(error)

    def _refuse(self, refusal: OutputRefused | NotAuthorized) -> None:
        """From now on, for good; what waits for room is told so."""
        self._refusal = refusal
        while self._overflow:
            self._overflow.popleft()[1](refusal)

    def _drain_overflow(self) -> None:
        with self._lock:
            while self._overflow and self._produce(*self._overflow[0]):
                self._overflow.popleft()

    def _give_up(self, refusal: NotAuthorized) -> None:
        """Without a log-in no record is ever acknowledged, and none times out: what waits is told so."""
        with self._lock:
            self._refuse(refusal)
        self._producer.purge()  # the reports come in the next polls; what is then published again is refused

    def _renew(self) -> None:
        """A fatal error ends an idempotent producer: a new one takes over, and what was not acknowledged is reported
        as unknown, so that it is produced again."""
        with self._lock:
            error, self._fatal = self._fatal, None
            now_s = self._clock.monotonic_s()
            self._renewals_s.append(now_s)
            while self._renewals_s[0] < now_s - _NEW_PRODUCERS_WINDOW_S:
                self._renewals_s.popleft()
            logger.error("the producer failed, a new one takes over: {}", error)
            old, self._producer = self._producer, self._new_producer()
            with suppress(*CALL_ERRORS):
                old.purge()
                old.flush(5)
            self._tell_unreported(OutputUnavailable(f"the producer failed: {error}"))
            if len(self._renewals_s) > _MAX_NEW_PRODUCERS:
                self._refuse(
                    OutputRefused(
                        f"the producer failed {len(self._renewals_s)} times in ten minutes: {error}",
                        remedy="look at the broker's log; start the replica again when the cause is gone",
                    )
                )

    def _new_producer(self) -> Producer:
        return Producer({**self._properties, "error_cb": self._on_client_error}, logger=logging.getLogger("kafka"))

    def _on_client_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error
        else:
            self._log_in_refused = authentication_error(error) or self._log_in_refused
            rate_limited(f"producer {error.name()}").bind(code=error.name()).warning("kafka producer: {}", error.str())
