"""A group's offsets: where it is, how far behind, and moving it while nobody is in it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.adapters.kafka_tools.clients import (
    OPENING_ERRORS,
    Complaints,
    Properties,
    kafka_error,
    open_admin,
    partitions_of,
    refused_properties,
    silent_logger,
    translated,
)
from consumer.adapters.librdkafka import until_coordinated
from consumer.errors import CommandRefused
from consumer.messages import CommitPoint, Partition

T = TypeVar("T")

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a live group."""

    client_id: str
    host: str
    member_id: str
    instance_id: str | None

    def __str__(self) -> str:
        return f"{self.instance_id or self.client_id} at {self.host.removeprefix('/')}"


@dataclass(frozen=True, slots=True)
class PartitionState:
    """A partition as the group sees it. Offsets are of the next record to read."""

    partition: Partition
    earliest: int
    end: int
    """The last stable offset: what a read_committed reader can reach."""
    committed: int | None
    note: str
    """The commit's metadata: a note from the last owner to the next."""
    member: Member | None

    @property
    def lag(self) -> int | None:
        """Offsets between committed and end (gaps and markers count); None without a commit."""
        return None if self.committed is None else max(0, self.end - self.committed)


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group, its members and its partitions."""

    group_id: str
    state: str
    protocol: str
    members: Sequence[Member]
    partitions: Sequence[PartitionState]


class GroupOffsets:
    """One group's offsets, by the admin protocol: nothing joins the group. Works for both group protocols."""

    def __init__(self, properties: Properties, group_id: str, *, timeout_s: float) -> None:
        """Raises `SettingsError`; connects at the first call."""
        self.group_id = group_id
        self._timeout_s = timeout_s
        self._complaints = Complaints()
        self._admin: AdminClient = open_admin(properties, self._complaints)
        try:
            self._commits = CommittedOffsets(properties, group_id, logger=silent_logger())
        except OPENING_ERRORS as error:
            raise refused_properties(error) from error

    def describe(self, topics: Iterable[str]) -> GroupState:
        """The group now, for all partitions of these topics.

        Raises `TopicMissing`, `BrokerUnreachable` or `NotAuthorized`.
        """
        partitions = [
            Partition(topic, number)
            for topic in topics
            for number in partitions_of(self._admin, topic, self._complaints, self._timeout_s)
        ]
        group = self._one(self._admin.describe_consumer_groups, [self.group_id])
        committed = self._committed(partitions)
        members, owners = _members(group.members)
        earliest = self._offsets(dict.fromkeys(partitions, _EARLIEST))
        ends = self.latest(partitions)
        states = []
        for partition in partitions:
            found = committed.get(partition)
            states.append(
                PartitionState(
                    partition=partition,
                    earliest=earliest[partition],
                    end=ends[partition],
                    committed=found.offset if found is not None else None,
                    note=found.metadata if found is not None else "",
                    member=owners.get(partition),
                )
            )
        return GroupState(self.group_id, group.state.name.lower(), group.type.name.lower(), members, states)

    def _committed(self, partitions: Sequence[Partition]) -> dict[Partition, CommitPoint]:
        return self._asked(lambda: self._commits.read(partitions, self._timeout_s))

    def latest(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The last stable offset of each."""
        return self._offsets(dict.fromkeys(partitions, _LATEST))

    def at_time(self, partitions: Sequence[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """The first offset at or after a time (milliseconds since the epoch); the end where all is older."""
        found = self._offsets(dict.fromkeys(partitions, OffsetSpec.for_timestamp(timestamp_ms)))
        ends = self.latest(partitions)
        return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}

    def reset(self, points: Mapping[Partition, CommitPoint]) -> None:
        """Commit these offsets with their metadata, in the place of a group that has no member.

        Raises `CommandRefused` if the broker did not take them all: with members, it takes none.
        """
        asked = [
            TopicPartition(partition.topic, partition.number, point.offset, point.metadata)
            for partition, point in points.items()
        ]
        answer = self._one(
            self._admin.alter_consumer_group_offsets, [ConsumerGroupTopicPartitions(self.group_id, asked)]
        )
        refused = [
            f"{done.topic}[{done.partition}]: {done.error.str()}" for done in answer.topic_partitions if done.error
        ]
        if refused:
            raise CommandRefused(
                f"the broker did not take these offsets of {self.group_id}:\n  " + "\n  ".join(refused),
                remedy="stop every replica of the group, then try again when `ouzel offsets show` lists no member",
            )

    def _offsets(self, specs: Mapping[Partition, OffsetSpec]) -> dict[Partition, int]:
        asked = {TopicPartition(partition.topic, partition.number): spec for partition, spec in specs.items()}
        if not asked:
            return {}
        futures = self._admin.list_offsets(
            asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=self._timeout_s
        )
        return {
            Partition(where.topic, where.partition): int(self._asked(future.result).offset)
            for where, future in futures.items()
        }

    def _one(self, call: Callable[..., dict[str, Future[Any]]], asked: list[Any]) -> Any:
        """The answer of an admin call that was asked for this one group."""

        def ask() -> Any:
            return call(asked, request_timeout=self._timeout_s)[self.group_id].result()

        return self._asked(ask)

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return until_coordinated(ask, timeout_s=self._timeout_s)
        except KafkaException as error:
            raise translated(kafka_error(error), f"asking for group {self.group_id}", self._complaints) from error


def _members(described: Iterable[Any]) -> tuple[list[Member], dict[Partition, Member]]:
    """The members, and who owns which partition."""
    members: list[Member] = []
    owners: dict[Partition, Member] = {}
    for one in described:
        member = Member(one.client_id, one.host, one.member_id, one.group_instance_id or None)
        members.append(member)
        for owned in one.assignment.topic_partitions if one.assignment else []:
            owners[Partition(owned.topic, owned.partition)] = member
    return members, owners
