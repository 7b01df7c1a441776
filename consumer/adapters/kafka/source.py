"""The consumer group's member, on librdkafka.

Traps that this file knows (each has a test): an exception that escapes a callback discards the messages that `poll` has
in hand, so callbacks only take notes; a paused partition stays paused across assignments; with
`auto.offset.reset=error` a partition without a usable offset refuses `seek`, so it is unassigned and assigned again;
commits are asynchronous, one at a time.
"""

import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, ThrottleEvent, TopicPartition
from loguru import logger

from consumer.adapters.kafka.translate import consumer_error, is_fenced
from consumer.errors import Fatal, InstanceFenced, NotAuthorized, Retryable, SettingsError
from consumer.log import rate_limited
from consumer.messages import CommitPoint, Delivery, Headers, Lease, Partition, TimestampType
from consumer.ports import AssignmentListener, Clock, CommitResult, OffsetLost

_TIMESTAMP_TYPES: dict[int, TimestampType] = {0: "none", 1: "create", 2: "log_append"}


class KafkaSource:
    """See `ports.MessageSource`. `properties` are librdkafka's, complete."""

    def __init__(self, properties: Mapping[str, Any], topics: Sequence[str], *, clock: Clock) -> None:
        self._topics = list(topics)
        self._static = bool(properties.get("group.instance.id"))
        self._clock = clock
        self._listener: AssignmentListener | None = None
        self._leases: dict[Partition, Lease] = {}
        self._started_at: dict[Partition, int] = {}
        self._at_end: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._lag: dict[Partition, int] = {}
        self._throttled_until_s = 0.0
        self._sent: deque[dict[Partition, CommitPoint]] = deque()
        self._steady = False
        self._answer: CommitResult | None = None
        self._callback_error: Exception | None = None
        self._client_errors: deque[KafkaError] = deque()
        self._closed = False
        self._consumer = Consumer(
            {
                **properties,
                "on_commit": self._noting(self._on_commit),
                "stats_cb": self._noting(self._on_stats),
                "error_cb": self._noting(self._on_client_error),
                "throttle_cb": self._noting(self._on_throttle),
            },
            logger=logging.getLogger("kafka"),  # else librdkafka writes to stderr itself
        )

    # --- membership -------------------------------------------------------------------------------------------------

    def subscribe(self, listener: AssignmentListener) -> None:
        """See the port."""
        self._listener = listener
        self._consumer.subscribe(
            self._topics,
            on_assign=self._noting(self._on_assign),
            on_revoke=self._noting(self._on_revoke),
            on_lost=self._noting(self._on_lost),
        )

    def leave(self) -> None:
        """See the port."""
        self._consumer.unsubscribe()

    @property
    def joined(self) -> bool:
        """See the port. A member without partitions gets no callback; of the group's generation it knows."""
        return self._steady

    def close(self) -> None:
        """See the port."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def _on_assign(self, _consumer: Consumer, assigned: list[TopicPartition]) -> None:
        # Nothing is read before the pipeline has decided where. The placeholder is an absolute offset, since librdkafka
        # looks up any other, and an answer that comes late moves the partition after `start` (seen with KIP-848).
        placeholders = [TopicPartition(each.topic, each.partition, 0) for each in assigned]
        self._consumer.incremental_assign(placeholders)
        self._consumer.pause(placeholders)
        partitions = [_partition(each) for each in assigned]
        self._paused.update(partitions)
        self._steady = True
        if self._listener is not None:
            self._listener.on_assigned(partitions)

    def _on_revoke(self, _consumer: Consumer, revoked: list[TopicPartition]) -> None:
        partitions = [_partition(each) for each in revoked]
        try:
            if self._listener is not None:
                self._listener.on_revoked(partitions)
        finally:
            self._forget(partitions)
            self._consumer.incremental_unassign(revoked)

    def _on_lost(self, _consumer: Consumer, lost: list[TopicPartition]) -> None:
        partitions = [_partition(each) for each in lost]
        try:
            if self._listener is not None:
                self._listener.on_lost(partitions)
        finally:
            self._forget(partitions)
            self._consumer.incremental_unassign(lost)

    def _forget(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self._leases.pop(partition, None)
            self._started_at.pop(partition, None)
            self._at_end.pop(partition, None)
            self._lag.pop(partition, None)
            self._paused.discard(partition)

    # --- messages ---------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> Delivery | OffsetLost | None:
        """See the port. Raises Retryable where what was in hand may be lost: start every partition anew."""
        try:
            message = self._consumer.poll(timeout_s)
        except (KafkaException, RuntimeError) as error:
            raise Retryable(f"poll failed: {error}") from error
        if self._callback_error is not None:
            failure, self._callback_error = self._callback_error, None
            raise failure
        while self._client_errors:  # a refused password is followed at once by "all brokers are down"
            self._handle(self._client_errors.popleft(), None)
        if message is None:
            return None
        failed = message.error()
        if failed is not None:
            return self._handle(failed, message)
        return self._delivery(message)

    def start(self, lease: Lease, offset: int) -> None:
        """See the port."""
        where = TopicPartition(lease.partition.topic, lease.partition.number, offset)
        try:
            self._consumer.seek(where)
        except KafkaException:  # nothing is fetched of it: its offset was refused, or it was assigned this very moment
            # Not in all cases: outside of its callback this also answers a revoke that waits for our next poll, and of
            # whichever partition. Its next owner would begin before we have committed.
            self._consumer.incremental_unassign([where])
            self._consumer.incremental_assign([where])
        self._consumer.resume([where])  # a pause outlives its assignment
        self._paused.discard(lease.partition)
        self._leases[lease.partition] = lease
        self._started_at[lease.partition] = offset
        self._at_end.pop(lease.partition, None)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """See the port."""
        wanted = [each for each in partitions if each in self._leases and each not in self._paused]
        if wanted:
            self._consumer.pause([TopicPartition(*each) for each in wanted])
            self._paused.update(wanted)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """See the port."""
        wanted = [each for each in partitions if each in self._leases and each in self._paused]
        if wanted:
            self._consumer.resume([TopicPartition(*each) for each in wanted])
            self._paused.difference_update(wanted)

    def position(self, partition: Partition) -> int | None:
        """See the port."""
        found = self._consumer.position([TopicPartition(*partition)])[0]
        position = found.offset if found.offset >= 0 and found.error is None else None
        # The end is told past what compaction emptied, which the position is not.
        at_end = self._at_end.get(partition)
        return position if at_end is None else max(at_end, position or 0)

    @property
    def throttled_until_s(self) -> float:
        """See the port."""
        return self._throttled_until_s

    def lag(self) -> Mapping[Partition, int]:
        """See the port. As of the last statistics (`statistics.interval.ms`)."""
        return self._lag

    def _delivery(self, message: Message) -> Delivery | None:
        partition = Partition(message.topic() or "", message.partition() or 0)
        lease, offset = self._leases.get(partition), message.offset() or 0
        if lease is None or offset < self._started_at[partition]:
            return None  # read before the pipeline said where to begin; `start` reads what is wanted
        return delivery_of(message, lease, received_s=self._clock.monotonic_s())

    def _handle(self, error: KafkaError, message: Message | None) -> OffsetLost | None:
        """Raises what ends the process; the rest is a log line or the pipeline's to decide."""
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET and message is not None:
            partition = Partition(message.topic() or "", message.partition() or 0)
            return OffsetLost(partition) if partition in self._leases else None
        if code == KafkaError._PARTITION_EOF:
            self._note_end(message)
            return None
        fatal = self._fatal(error, message.topic() if message is not None else None)
        if fatal is not None:
            raise fatal
        rate_limited(f"kafka {error.name()}").bind(code=error.name()).warning("kafka: {}", error.str())
        return None

    def _note_end(self, message: Message | None) -> None:
        """Told only with `enable.partition.eof`, after all messages before it."""
        if message is not None:
            partition, offset = Partition(message.topic() or "", message.partition() or 0), message.offset() or 0
            if partition in self._leases and offset >= self._started_at[partition]:
                self._at_end[partition] = offset

    def _fatal(self, error: KafkaError, topic: str | None) -> Fatal | None:
        """What ends the process; None for what may pass. A lost instance id shows in a commit or in a message,
        whichever is answered first."""
        told = consumer_error(error, topic)
        if is_fenced(error) and self._static and not isinstance(told, NotAuthorized | SettingsError):
            return InstanceFenced(
                f"another member of the group uses the same group.instance.id: {error.str()}",
                remedy="give each replica its own kafka.group_instance_id, for example with {hostname}",
            )
        return told

    # --- commits ----------------------------------------------------------------------------------------------------

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port."""
        self._consumer.commit(offsets=_offsets(points), asynchronous=True)
        self._sent.append(dict(points))  # its answer comes in a later poll

    @property
    def commit_under_way(self) -> bool:
        """See the port."""
        return bool(self._sent)

    def commit_result(self) -> CommitResult | None:
        """See the port."""
        answer, self._answer = self._answer, None
        return answer

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """See the port. Works inside the revoke callback, where the commit's own answer cannot come: requests to the
        coordinator share a connection and are answered in order."""
        if not points:
            return True
        try:
            found = self._consumer.committed(_offsets(points), timeout=max(timeout_s, 0.01))
        except KafkaException as error:
            logger.warning("could not confirm the last commit: {}", error)
            return False
        by_partition = {_partition(each): each for each in found}
        return all(
            partition in by_partition
            and by_partition[partition].error is None
            and by_partition[partition].offset >= point.offset
            for partition, point in points.items()
        )

    def group_metadata(self) -> bytes | None:
        """Who we are in the group, and of which generation: a transaction's offsets are refused from a member of an
        older one (KIP-447). None where we are no member: the coordinator would take offsets from nobody."""
        metadata: bytes = self._consumer.consumer_group_metadata()
        # As rd_kafka_consumer_group_metadata_write writes it: a magic word, then the generation.
        magic, generation = struct.unpack_from("=7si", metadata)
        if magic != b"CGMDv2:":
            raise Fatal(
                "librdkafka tells the group's generation in a form that is not known here",
                remedy="install the confluent-kafka that requirements.lock names",
            )
        return metadata if generation > 0 else None

    def _on_commit(self, error: KafkaError | None, results: list[TopicPartition]) -> None:
        sent = self._sent.popleft() if self._sent else {}
        errors: dict[Partition, str] = {}
        for each in results:
            reason = each.error or error
            if reason is not None:
                # The right to the group is missed here first; raised by the next poll.
                self._callback_error = self._fatal(reason, None) or self._callback_error
                errors[_partition(each)] = reason.name()
        if error is not None and not results:
            errors = dict.fromkeys(sent, error.name())
        committed = {partition: point for partition, point in sent.items() if partition not in errors}
        self._answer = CommitResult(committed, errors)

    # --- what librdkafka tells us -----------------------------------------------------------------------------------

    def _noting(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Nothing may escape a callback: it is noted, and raised after `poll` has handed over what it has."""

        def call(*args: Any) -> None:
            try:
                callback(*args)
            except Exception as error:
                logger.opt(exception=error).error("a callback failed")
                self._callback_error = error

        return call

    def _on_stats(self, statistics: str) -> None:
        found = orjson.loads(statistics)
        # Under KIP-848 the statistics say `init` of a member without partitions, for ever.
        self._steady = self._steady or self.group_metadata() is not None
        lag: dict[Partition, int] = {}
        for topic, facts in found.get("topics", {}).items():
            for number, of_partition in facts.get("partitions", {}).items():
                partition = Partition(topic, int(number))
                end = of_partition.get("ls_offset", -1)  # the last stable offset, as read_committed counts
                if partition in self._leases and end >= 0:
                    # `consumer_lag` is unknown until a commit; the application's position is not.
                    position = max(of_partition.get("app_offset", -1), self._started_at.get(partition, 0))
                    lag[partition] = max(0, end - position)
        self._lag = lag

    def _on_throttle(self, event: ThrottleEvent) -> None:
        self._throttled_until_s = max(self._throttled_until_s, self._clock.monotonic_s() + event.throttle_time)

    def _on_client_error(self, error: KafkaError) -> None:
        self._client_errors.append(error)


def delivery_of(message: Message, lease: Lease, *, received_s: float, delivery_count: int = 0) -> Delivery:
    """A message of librdkafka's, on the books of `lease`."""
    kind, timestamp_ms = message.timestamp()
    return Delivery(
        lease=lease,
        offset=message.offset() or 0,
        value=message.value(),
        key=message.key(),
        headers=_headers(message.headers()),
        timestamp_ms=timestamp_ms if kind else None,
        timestamp_type=_TIMESTAMP_TYPES.get(kind, "none"),
        received_s=received_s,
        delivery_count=delivery_count,
    )


def _partition(each: TopicPartition) -> Partition:
    return Partition(each.topic, each.partition)


def _offsets(points: Mapping[Partition, CommitPoint]) -> list[TopicPartition]:
    return [
        TopicPartition(partition.topic, partition.number, point.offset, point.metadata)
        for partition, point in points.items()
    ]


def _headers(raw: Any) -> Headers:
    return tuple((name, value) for name, value in raw) if raw else ()
