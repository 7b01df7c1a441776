"""Questions about a cluster and its topics, for the commands. Errors are ours, each with what to do."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from consumer.adapters.librdkafka import CLIENT_LOG, COORDINATOR_AWAY, in_our_words
from consumer.errors import Fatal, SettingsError, ShareGroupRefused, TopicMissing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A cluster that answers."""

    cluster_id: str
    brokers: tuple[str, ...]
    """`host:port` as they advertise themselves."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as it is."""

    name: str
    topic_id: str
    """Empty where the broker gives none."""
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    """Its effective configuration; empty where we may not read it."""
    allowed: frozenset[str] | None = None
    """What we may do with it (`READ`, `WRITE`, ...); None where the broker does not say."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as it should be."""

    name: str
    partitions: int
    replication_factor: int
    """Replicas of each partition; -1 for the broker's default."""
    config: Mapping[str, str]


class KafkaAdmin:
    """One admin client. Every method blocks for at most about `timeout_s`, and raises a `Fatal` of ours."""

    def __init__(self, properties: Mapping[str, Any], *, timeout_s: float) -> None:
        """`properties` as `kafka_properties.client_properties(kafka, "admin")` gives them."""
        self._servers = str(properties.get("bootstrap.servers", ""))
        self._properties = properties
        self._timeout_s = timeout_s
        self._last_error: KafkaError | None = None
        opened: dict[str, Any] = {**properties, "error_cb": self._on_error}
        try:
            self._client = AdminClient(opened, logger=CLIENT_LOG)
        except (KafkaException, AttributeError, TypeError, ValueError) as error:
            remedy = "mend it in [kafka.client] or [kafka.admin]; `ouzel doctor` says more"
            carried = error.args[0] if error.args else error
            said = carried.str() if isinstance(carried, KafkaError) else str(error)
            raise SettingsError(f"librdkafka refuses a property: {said}", remedy=remedy) from error

    def cluster(self) -> ClusterFacts:
        """Who answers. Raises BrokerUnreachable or NotAuthorized."""
        found = self._result(self._client.describe_cluster(request_timeout=self._timeout_s), "asking for the cluster")
        return ClusterFacts(str(found.cluster_id), tuple(f"{node.host}:{node.port}" for node in found.nodes))

    def topics(self, names: Sequence[str]) -> dict[str, TopicFacts | None]:
        """Each topic as it is, None where it does not exist."""
        futures = self._client.describe_topics(
            TopicCollection(list(names)), include_authorized_operations=True, request_timeout=self._timeout_s
        )
        found: dict[str, TopicFacts | None] = {}
        for name, future in futures.items():
            try:
                topic = self._result(future, f"describing topic {name!r}", topic=name)
            except TopicMissing:
                found[name] = None
                continue
            found[name] = TopicFacts(
                name=name,
                topic_id=str(topic.topic_id),
                partitions=len(topic.partitions),
                replication_factor=min((len(part.replicas) for part in topic.partitions), default=0),
                config=self._config(name),
                allowed=_operations(topic.authorized_operations),
            )
        return found

    def group_allowed(self, group_id: str) -> frozenset[str] | None:
        """What we may do with the group; None where the broker does not say. Raises NotAuthorized where nothing."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            future = self._client.describe_consumer_groups(
                [group_id], include_authorized_operations=True, request_timeout=self._timeout_s
            )[group_id]
            try:
                return _operations(self._result(future, f"describing group {group_id!r}").authorized_operations)
            except GroupUnknown:
                # Nobody has joined it yet, and only of groups that exist does the broker say what we may do.
                return None
            except CoordinatorAway:
                if time.monotonic() > deadline_s:
                    return None
                time.sleep(0.2)

    def group_config(self, group_id: str) -> dict[str, str]:
        """The group's own configuration as it holds. Raises NotAuthorized or BrokerUnreachable."""
        resource = ConfigResource(ResourceType.GROUP, group_id)
        future = self._client.describe_configs([resource], request_timeout=self._timeout_s)[resource]
        entries = self._result(future, f"reading the configuration of group {group_id!r}")
        return {name: str(entry.value) for name, entry in entries.items() if entry.value is not None}

    def set_group_config(self, group_id: str, config: Mapping[str, str], *, dry_run: bool = False) -> None:
        """Set these, and leave the others as they are; with `dry_run` only ask whether it could be done.

        Raises:
            ShareGroupRefused: the broker does not take one of them.
            NotAuthorized, BrokerUnreachable: see `errors`.
        """
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
        ]
        resource = ConfigResource(ResourceType.GROUP, group_id, incremental_configs=entries)
        future = self._client.incremental_alter_configs(
            [resource], validate_only=dry_run, request_timeout=self._timeout_s
        )[resource]
        doing = f"configuring group {group_id!r}"
        try:
            self._result(future, doing)
        except Fatal as error:
            cause = error.__cause__.args[0] if isinstance(error.__cause__, KafkaException) else None
            if cause is None or cause.code() not in {KafkaError.INVALID_CONFIG, KafkaError.INVALID_REQUEST}:
                raise
            remedy = "choose values within the broker's bounds (group.share.min... and group.share.max...) in [share]"
            raise ShareGroupRefused(f"while {doing}: {cause.str()}", remedy=remedy) from error

    def broker_config(self) -> dict[str, str]:
        """The configuration of one broker; empty where we may not read it."""
        nodes = self._result(
            self._client.describe_cluster(request_timeout=self._timeout_s), "asking for the cluster"
        ).nodes
        return self._read_config(ConfigResource(ResourceType.BROKER, str(nodes[0].id))) if nodes else {}

    def default_replication_factor(self) -> int | None:
        """What the brokers make of -1; None where we may not ask."""
        value = self.broker_config().get("default.replication.factor")
        return int(value) if value else None

    def create(self, plans: Sequence[TopicPlan], *, dry_run: bool = False) -> dict[str, bool]:
        """Make the topics. True: made (or could be, with `dry_run`); False: it was there already and is left alone."""
        wanted = [
            NewTopic(
                plan.name,
                num_partitions=plan.partitions,
                replication_factor=plan.replication_factor,
                config=dict(plan.config),
            )
            for plan in plans
        ]
        futures = self._client.create_topics(
            wanted, operation_timeout=self._timeout_s, request_timeout=self._timeout_s, validate_only=dry_run
        )
        return {name: self._made(future, name) for name, future in futures.items()}

    def _made(self, future: "Future[Any]", name: str) -> bool:
        try:
            self._result(future, f"creating topic {name!r}", topic=name)
        except TopicThere:
            return False
        return True

    def _config(self, topic: str) -> dict[str, str]:
        return self._read_config(ConfigResource(ResourceType.TOPIC, topic))

    def _read_config(self, resource: ConfigResource) -> dict[str, str]:
        future = self._client.describe_configs([resource], request_timeout=self._timeout_s)[resource]
        try:
            entries = future.result(timeout=self._timeout_s + 5)
        except (KafkaException, TimeoutError):
            # Describing configurations is a right of its own, which the service does not need.
            return {}
        return {name: str(entry.value) for name, entry in entries.items() if entry.value is not None}

    def _result(self, future: "Future[T]", doing: str, *, topic: str = "") -> T:
        try:
            return future.result(timeout=self._timeout_s + 5)
        except KafkaException as error:
            fault: KafkaError = error.args[0]
            if fault.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicThere from error
            if fault.code() == KafkaError.GROUP_ID_NOT_FOUND:
                raise GroupUnknown from error
            # A refused log-in shows as a time-out; its cause came to the error call-back.
            self._client.poll(0)
            cause = self._last_error if fault.code() == KafkaError._TIMED_OUT and self._last_error else fault
            if fault.code() in COORDINATOR_AWAY:
                raise CoordinatorAway from error
            raise self._in_our_words(cause, doing, topic) from error
        except TimeoutError as error:
            timed_out = self._last_error or KafkaError(KafkaError._TIMED_OUT)
            raise self._in_our_words(timed_out, doing, topic) from error

    def _in_our_words(self, cause: KafkaError, doing: str, topic: str) -> Fatal:
        return in_our_words(cause, doing=doing, servers=self._servers, topic=topic, properties=self._properties)

    def _on_error(self, error: KafkaError) -> None:
        # "All brokers down" follows the error that says why.
        if self._last_error is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last_error = error


class TopicThere(Exception):
    """The topic exists already."""


class CoordinatorAway(Exception):
    """The group's coordinator is being found or is loading."""


class GroupUnknown(Exception):
    """No such group."""


def _operations(listed: Sequence[AclOperation] | None) -> frozenset[str] | None:
    return None if listed is None else frozenset(operation.name for operation in listed)
