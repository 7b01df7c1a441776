"""A share group's members, on librdkafka's ShareConsumer (KIP-932; a preview in librdkafka 2.16).

Traps that this file knows: every message of a poll has to be acknowledged before the next poll; what a poll timed out
on may arrive after it, and its lock runs while it waits for the next poll; a poll brings whole batches of a producer,
however many messages it asked for.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from confluent_kafka import AcknowledgeType, IllegalStateException, KafkaError, KafkaException, Message, ShareConsumer
from loguru import logger

from consumer.adapters.kafka.source import delivery_of
from consumer.adapters.kafka.translate import share_error
from consumer.log import rate_limited
from consumer.messages import Delivery, Lease, Partition
from consumer.ports import Clock


class KafkaShareSource:
    """See `ports.ShareSource`. `properties` are librdkafka's, complete."""

    def __init__(self, properties: Mapping[str, Any], topics: Sequence[str], *, members: int, clock: Clock) -> None:
        self._members = [
            KafkaShareMember({**properties, "client.id": f"{properties['client.id']}-{number}"}, topics, clock=clock)
            for number in range(members)
        ]

    @property
    def members(self) -> Sequence["KafkaShareMember"]:
        """See the port."""
        return self._members

    @property
    def joined(self) -> bool:
        """See the port."""
        return any(member.joined for member in self._members)


class KafkaShareMember:
    """See `ports.ShareMember`."""

    def __init__(self, properties: Mapping[str, Any], topics: Sequence[str], *, clock: Clock) -> None:
        self._properties = properties
        self._topics = list(topics)
        self._clock = clock
        self._lease_of: Callable[[Partition, float], Lease] = _not_subscribed
        self._client_errors: deque[KafkaError] = deque()
        self._joined = False
        self._fetching_since_s: float | None = None
        """Since when a fetch may be under way that no poll has brought home."""
        self._closed = False
        self._consumer = self._open()

    def _open(self) -> ShareConsumer:
        callbacks = {"error_cb": self._client_errors.append, "stats_cb": self._on_stats}
        return ShareConsumer({**self._properties, **callbacks}, logger=logging.getLogger("kafka"))

    @property
    def joined(self) -> bool:
        """See the port."""
        return self._joined

    def subscribe(self, lease_of: Callable[[Partition, float], Lease]) -> None:
        """See the port."""
        self._lease_of = lease_of
        self._consumer.subscribe(self._topics)

    # --- messages ---------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> Sequence[Delivery]:
        """See the port."""
        called_s = self._clock.monotonic_s()
        since_s = called_s if self._fetching_since_s is None else self._fetching_since_s
        try:
            found = list(self._consumer.poll(timeout_s))
        except IllegalStateException as error:  # a message that nobody acknowledged, by some fault of ours
            logger.error("the share consumer cannot go on, and is made anew: {}", error)
            self._make_anew()
            return []
        except KafkaException as error:
            self._handle(error.args[0], None)
            found = []
        while self._client_errors:  # a refused password is followed at once by "all brokers are down"
            self._handle(self._client_errors.popleft(), None)
        # The fetch of a call that timed out goes on. What it brings is locked from now on at the earliest.
        self._fetching_since_s = None if found else self._clock.monotonic_s()
        return self._deliveries(found, since_s)

    def _deliveries(self, messages: Iterable[Message], since_s: float) -> list[Delivery]:
        deliveries = []
        for message in messages:
            failed = message.error()
            if failed is not None:
                self._handle(failed, message)  # librdkafka itself has acknowledged it, where it is a message at all
                continue
            partition = Partition(message.topic() or "", message.partition() or 0)
            lease = self._lease_of(partition, since_s)
            count = message.delivery_count()
            deliveries.append(
                delivery_of(message, lease, received_s=self._clock.monotonic_s(), delivery_count=count or 0)
            )
        return deliveries

    # --- acknowledgements -------------------------------------------------------------------------------------------

    def accept(self, deliveries: Sequence[Delivery], timeout_s: float) -> Mapping[Partition, str]:
        """See the port."""
        refused = self._acknowledge(deliveries, AcknowledgeType.ACCEPT)
        return {**refused, **self._commit(timeout_s)}

    def release(self, deliveries: Sequence[Delivery], timeout_s: float) -> None:
        """See the port."""
        self._acknowledge(deliveries, AcknowledgeType.RELEASE)
        self._commit(timeout_s)

    def _acknowledge(self, deliveries: Iterable[Delivery], kind: AcknowledgeType) -> dict[Partition, str]:
        refused: dict[Partition, str] = {}
        for each in deliveries:
            topic, number = each.partition
            try:
                self._consumer.acknowledge_offset(topic, number, each.offset, kind)
            except (IllegalStateException, KafkaException) as error:  # the session with its broker is another one
                refused[each.partition] = str(error)
        return refused

    def _commit(self, timeout_s: float) -> dict[Partition, str]:
        try:
            answers = self._consumer.commit_sync(float(timeout_s))
        except KafkaException as error:
            self._handle(error.args[0], None)
            return {Partition(topic, -1): str(error) for topic in self._topics}
        refused: dict[Partition, str] = {}
        for where, refusal in answers.items():
            if refusal is not None:
                fault: KafkaError = refusal.args[0]
                self._raise_fatal(fault, None)
                refused[Partition(where.topic, where.partition)] = fault.name()
        return refused

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See the port."""
        if not self._closed:
            self._closed = True
            self._close_client()

    def _close_client(self) -> None:
        try:
            self._consumer.close()
        except (KafkaException, IllegalStateException) as error:
            logger.warning("leaving the share group failed, its locks lapse by themselves: {}", error)

    def _make_anew(self) -> None:
        self._close_client()
        self._consumer = self._open()
        self.subscribe(self._lease_of)

    # --- what librdkafka tells us -----------------------------------------------------------------------------------

    def _on_stats(self, statistics: str) -> None:
        """Nothing may escape a callback."""
        try:
            self._joined = self._joined or orjson.loads(statistics).get("cgrp", {}).get("join_state") == "steady"
        except Exception as error:
            logger.opt(exception=error).error("a callback failed")

    def _handle(self, error: KafkaError, message: Message | None) -> None:
        """Raises what ends the process; the rest is a log line."""
        self._raise_fatal(error, message.topic() if message is not None else None)
        rate_limited(f"kafka {error.name()}").bind(code=error.name()).warning("kafka: {}", error.str())

    def _raise_fatal(self, error: KafkaError, topic: str | None) -> None:
        fatal = share_error(error, topic, group_id=str(self._properties["group.id"]))
        if fatal is not None:
            raise fatal


def _not_subscribed(partition: Partition, since_s: float) -> Lease:
    raise AssertionError(f"{partition} at {since_s}: poll comes after subscribe")
