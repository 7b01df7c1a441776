"""Questions about the cluster and the group, by the AdminClient."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.adapters.kafka.translate import authentication_error, consumer_error
from consumer.adapters.librdkafka import until_coordinated
from consumer.adapters.tls import tls_refusal
from consumer.errors import BrokerUnreachable, NotAuthorized
from consumer.messages import CommitPoint, Partition
from consumer.ports import TopicFacts

T = TypeVar("T")

_GROUP_HAS_MEMBERS = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS}
)
_NO_CONTROLLER = "none where it is elected anew; else look at the controllers' logs"


class KafkaGroupView:
    """See `ports.GroupView`. `properties` are librdkafka's, complete."""

    def __init__(self, properties: Mapping[str, Any], *, group_id: str, timeout_ms: int) -> None:
        self._properties = properties
        self._refusal: NotAuthorized | None = None
        self._tls_error: KafkaError | None = None
        configuration: dict[str, Any] = {**properties, "error_cb": self._on_client_error}
        self._admin = AdminClient(configuration, logger=logging.getLogger("kafka"))
        self._servers = str(properties.get("bootstrap.servers", ""))
        self._commits = CommittedOffsets(properties, group_id, logger=logging.getLogger("kafka"))
        self._group_id = group_id
        self._timeout_s = timeout_ms / 1000
        self._has_controller = False
        self._gave_ids = False

    def cluster_id(self) -> str:
        """See the port."""
        return str(self._metadata().cluster_id or "")

    def topics(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """See the port."""
        if not self._has_controller:  # asked again until there is one: without it there are no topic ids
            metadata = self._metadata()
            self._has_controller = metadata.controller_id in metadata.brokers
        if not self._has_controller:
            if self._gave_ids:  # a topic that seems to have none now would be taken for another one
                raise BrokerUnreachable(f"{self._servers}: the cluster has no controller now", remedy=_NO_CONTROLLER)
            return self._topics_by_metadata(names)
        futures = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=self._timeout_s)
        found: dict[str, TopicFacts] = {}
        for name, future in futures.items():
            try:
                facts = self._ask(lambda future=future: future, topic=name)  # type: ignore[misc]
            except _Unknown:
                continue
            except BrokerUnreachable:
                self._has_controller = False  # gone, maybe: librdkafka looks for another one every five minutes
                raise
            found[name] = TopicFacts(str(facts.topic_id or ""), len(facts.partitions))
            self._gave_ids = True
        return found

    def _topics_by_metadata(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """Without topic ids, of a cluster that has no controller: librdkafka's mock, which `ouzel demo` runs."""
        found = self._metadata().topics
        return {
            name: TopicFacts("", len(found[name].partitions))
            for name in names
            if name in found and found[name].error is None
        }

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            self._admin.poll(0)  # a wrong password is told to `error_cb` alone, and here is where that is called
            refusal = self._refusal
            if refusal is None and self._tls_error is not None:
                refusal = tls_refusal(self._tls_error, servers=self._servers, properties=self._properties)
            if refusal is not None:
                raise refusal from error
            self._raise(error)

    def _on_client_error(self, error: KafkaError) -> None:
        self._refusal = authentication_error(error) or self._refusal
        if tls_refusal(error, servers=self._servers) is not None:
            self._tls_error = error

    def committed(self, partitions: Sequence[Partition]) -> Mapping[Partition, CommitPoint]:
        """See the port."""
        try:
            return until_coordinated(lambda: self._commits.read(partitions, self._timeout_s), timeout_s=self._timeout_s)
        except KafkaException as error:
            self._raise(error)

    def commit_while_empty(self, points: Mapping[Partition, CommitPoint]) -> bool:
        """See the port. A group with members refuses commits that come from outside of it."""
        asked = [TopicPartition(*partition, point.offset, point.metadata) for partition, point in points.items()]
        request = [ConsumerGroupTopicPartitions(self._group_id, asked)]

        def commit() -> Any:
            answer = self._admin.alter_consumer_group_offsets(request, request_timeout=self._timeout_s)
            return answer[self._group_id].result(timeout=self._timeout_s + 1)

        try:
            done = until_coordinated(commit, timeout_s=self._timeout_s)
        except (KafkaException, TimeoutError) as error:
            self._raise(error)
        refused = [each.error for each in done.topic_partitions if each.error is not None]
        if any(error.code() not in _GROUP_HAS_MEMBERS for error in refused):
            self._raise(KafkaException(refused[0]))
        return not refused

    def offsets(self, partitions: Sequence[Partition], at: str | int) -> Mapping[Partition, int]:
        """See the port."""
        if not partitions:
            return {}
        if at == "stable":
            return self._list(partitions, _spec("latest"), IsolationLevel.READ_COMMITTED)
        found = self._list(partitions, _spec(at))
        none = [partition for partition, offset in found.items() if offset < 0]
        return {**found, **(self._list(none, _spec("latest")) if none else {})}

    def close(self) -> None:
        """See the port."""
        self._commits.close()

    def _list(
        self,
        partitions: Sequence[Partition],
        spec: Any,
        isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    ) -> dict[Partition, int]:
        request = {TopicPartition(*partition): spec for partition in partitions}
        futures = self._admin.list_offsets(request, request_timeout=self._timeout_s, isolation_level=isolation)
        try:
            return {
                Partition(each.topic, each.partition): self._ask(
                    lambda future=future: future,  # type: ignore[misc]
                    topic=each.topic,
                ).offset
                for each, future in futures.items()
            }
        except _Unknown as error:  # deleted since we asked for the topics: ask again
            raise BrokerUnreachable(
                f"no offsets from {self._servers}: {error}", remedy="ouzel topics create"
            ) from error

    def _ask(self, question: Callable[[], "Future[T]"], *, topic: str | None = None) -> T:
        try:
            return question().result(timeout=self._timeout_s + 1)
        except (KafkaException, TimeoutError) as error:
            cause = _cause(error)
            if cause is not None and cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _Unknown(cause.str()) from error
            self._raise(error, topic)

    def _raise(self, error: Exception, topic: str | None = None) -> NoReturn:
        cause = _cause(error)
        fatal = consumer_error(cause, topic) if cause is not None else None
        if fatal is not None:
            raise fatal from error
        raise BrokerUnreachable(
            f"no answer from {self._servers}: {error}",
            remedy="check kafka.bootstrap_servers and that the broker runs; `ouzel doctor` looks closer",
        ) from error


def _spec(at: str | int) -> Any:
    if at == "earliest":
        return OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    if at == "latest":
        return OffsetSpec.latest()  # type: ignore[no-untyped-call]
    return OffsetSpec.for_timestamp(int(at))


def _cause(error: Exception) -> KafkaError | None:
    return error.args[0] if error.args and isinstance(error.args[0], KafkaError) else None


class _Unknown(Exception):
    """A topic that is not there."""
