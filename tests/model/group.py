"""A broker and a consumer group, decided step by step: logs with gaps and markers, generations, commits that come late,
are lost or are refused. The fakes of `tests/fakes.py`, with what a member and the broker can disagree on.

Every commit that lands is judged at once: I1 and I2 (nothing behind it lacks its event or letter) and I3 (it does not
go back, and comes from the partition's owner).
"""

import base64
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from consumer.messages import CommitPoint, Delivery, OutputRecord, Partition
from consumer.ports import CommitResult, OffsetLost
from tests.fakes import FakeClock, FakeCluster, FakeSource
from tests.history import Violation, sha256_or_none, verify
from tests.observer import read_output

TOPIC, OUTPUT, LETTERS = "images", "predictions", "images.dlq"
TOPIC_ID = "id-1"


class PromiseBroken(AssertionError):
    """What a commit, or the history of a run, shows."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A record as a consumer of the output topics is handed it."""

    record: OutputRecord
    at: int

    def topic(self) -> str:
        return self.record.topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return list(self.record.headers)


class GroupCluster(FakeCluster):
    """Logs, committed offsets, the group, and the history that `tests/history.py` judges."""

    def __init__(self, partitions: int) -> None:
        super().__init__({TOPIC: partitions})
        self.generation = 0
        self.owners: dict[Partition, GroupSource | None] = dict.fromkeys(self.logs)
        self.last_owners: dict[Partition, GroupSource | None] = dict.fromkeys(self.logs)
        self.wanted_back: set[Partition] = set()
        self.members: list[GroupSource] = []
        self.zombies = False
        """Whether a member was ever put out without its knowledge."""
        self.history: list[dict[str, Any]] = []
        self.answered: set[tuple[int, int]] = set()
        self.broken: PromiseBroken | None = None
        """The last promise that was: what ends in an error logs another one, and goes on."""
        self._owed: dict[tuple[int, int], bool] = {}
        self._outputs = self._samples = 0

    def breaks(self, what: str) -> PromiseBroken:
        """To be raised."""
        self.broken = PromiseBroken(what)
        return self.broken

    # --- records ----------------------------------------------------------------------------------------------------

    def write_input(self, partition: Partition, value: bytes | None, key: bytes | None, *, gap: int) -> None:
        """Append to the input, after offsets that hold nothing."""
        (offset,) = self.send(partition, value, key=key, gap=gap)
        self._owed[partition.number, offset] = value is not None
        image_id = None if value is None else f"{partition}-{offset}"
        self._note("sent", topic=partition.topic, topic_id=TOPIC_ID, partition=partition.number, offset=offset,
                   key=None if key is None else base64.b64encode(key).decode(), image_id=image_id,
                   sha256=sha256_or_none(value), acknowledged=True)  # fmt: skip

    def write_marker(self, partition: Partition) -> None:
        """An offset without a record: the end of a transaction, or one that was aborted."""
        self.logs[partition].end += 1

    def write_output(self, record: OutputRecord) -> tuple[int, int]:
        """An event or a letter is there to be read; returns the partition and offset of the input that it answers."""
        self._outputs += 1
        output = read_output(_Written(record, self._outputs), dead_letters=LETTERS)  # type: ignore[arg-type]
        assert output is not None
        answers = (output.source_partition, output.source_offset)
        self.answered.add(answers)
        self._note("output", form=output.form, topic=output.topic, partition=output.partition, offset=output.offset,
                   key=output.key, source_topic=output.source_topic, source_partition=output.source_partition,
                   source_offset=output.source_offset, image_id=output.image_id, event_id=output.event_id,
                   model_digest=output.model_digest, labels=list(output.labels), sha256=output.sha256,
                   error=output.error, headers={})  # fmt: skip
        return answers

    # --- the group --------------------------------------------------------------------------------------------------

    def join(self, member: "GroupSource") -> None:
        """It is known from now on, and owns nothing."""
        self.members.append(member)
        self._new_generation()

    def give(self, partition: Partition, member: "GroupSource") -> None:
        """A free partition is a member's; it hears so in its next poll."""
        self.owners[partition] = self.last_owners[partition] = member
        self._new_generation()
        member.assign(partition)

    def take_back(self, partition: Partition) -> None:
        """Its owner is asked to give it back, in its next poll."""
        owner = self.owners[partition]
        assert owner is not None
        self.wanted_back.add(partition)
        owner.revoke(partition)

    def given_back(self, partition: Partition, member: "GroupSource") -> None:
        """Its owner has let go of it."""
        self.wanted_back.discard(partition)
        if self.owners[partition] is member:
            self.owners[partition] = None

    def put_out(self, member: "GroupSource") -> None:
        """The group goes on without it; it does not know."""
        self.members.remove(member)
        for partition, owner in self.owners.items():
            if owner is member:
                self.owners[partition] = None
                self.wanted_back.discard(partition)
        self._new_generation()

    def _new_generation(self) -> None:
        self.generation += 1
        for member in self.members:
            member.generation = self.generation

    # --- commits ----------------------------------------------------------------------------------------------------

    def commit(self, member: "GroupSource", points: Mapping[Partition, CommitPoint], generation: int) -> bool:
        """Whether the coordinator takes it: of the current generation alone."""
        if member not in self.members or generation != self.generation:
            return False
        for partition, point in points.items():
            if self.last_owners[partition] is not member:
                raise self.breaks(f"I3: {partition} was committed at {point.offset} by a member that does not own it")
        self.land(points)
        return True

    def land(self, points: Mapping[Partition, CommitPoint]) -> None:
        """These are committed."""
        for partition, point in points.items():
            self._judge(partition, point.offset)
        self.committed.update(points)
        self._sample()

    def _judge(self, partition: Partition, offset: int) -> None:
        before = self.committed.get(partition)
        if before is not None and offset < before.offset:
            raise self.breaks(f"I3: {partition} went back from {before.offset} to {offset}")
        missing = [at for (of, at), owed in self._owed.items()
                   if owed and of == partition.number and at < offset and (of, at) not in self.answered]  # fmt: skip
        if missing:
            raise self.breaks(f"I1, I2: {partition} was committed at {offset}, and {missing} have no answer")

    def verify(self) -> list[Violation]:
        """What `tests/history.py` says of the whole run."""
        return verify(self.history, zombies=self.zombies)

    def _sample(self) -> None:
        self._samples += 1
        partitions = [
            [partition.topic, TOPIC_ID, partition.number, point.offset if point is not None else None, 0, log.end]
            for partition, log in self.logs.items()
            for point in [self.committed.get(partition)]
        ]
        self._note("sample", number=self._samples, partitions=partitions)
        self._note("checkpoint", sample=self._samples)

    def _note(self, kind: str, **fields: object) -> None:
        self.history.append({"kind": kind, "at_s": float(len(self.history)), **fields})


@dataclass(slots=True)
class _Sent:
    points: dict[Partition, CommitPoint]
    generation: int
    answer: CommitResult | None = None
    """None until the coordinator has it."""


class GroupSource(FakeSource):
    """A member of a `GroupCluster`. Never waits."""

    cluster: GroupCluster

    def __init__(self, cluster: GroupCluster, clock: FakeClock) -> None:
        super().__init__(cluster, clock=clock)
        self.generation = 0
        self.answers_questions = True
        """Whether the coordinator answers within the time that a drain has."""
        self.idle: Callable[[], None] = lambda: None
        """Runs where a real poll would wait."""
        self._commits: deque[_Sent] = deque()

    def poll(self, timeout_s: float) -> Delivery | OffsetLost | None:
        """See the port."""
        if self._commits and self._commits[0].answer is not None:
            self._answer = self._commits.popleft().answer
        failure = self._run_script()
        if failure is not None:
            raise failure
        found = self._next()
        if self.poll_error is not None:  # what poll had in hand is gone, and the position is past it
            error, self.poll_error = self.poll_error, None
            raise error
        if found is None and timeout_s > 0:
            self.idle()
        return found

    def position(self, partition: Partition) -> int | None:
        """See the port. The end of a partition is told, past what holds no record."""
        at = self._at.get(partition)
        if at is None or partition in self.paused:
            return super().position(partition) if at is not None else None
        log = self.cluster.logs[partition]
        at_end = not any(each.offset >= at for each in log.records)
        return log.end if at_end else super().position(partition)

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port."""
        known = all(sent.answer is not None for sent in self._commits)  # though its answer has not been read
        assert known or self.closed, "two commits on their way to the coordinator"
        self._commits.append(_Sent(dict(points), self.generation))
        if self.closed:  # it is sent before the group is left
            self.commits_arrive()

    @property
    def commit_under_way(self) -> bool:
        """See the port."""
        return bool(self._commits)

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """See the port. Requests of one connection are answered in order."""
        if not points:
            return True
        if not self.answers_questions:
            self.clock.advance(timeout_s)
            return False
        self.commits_arrive()
        nowhere = CommitPoint(-1)
        return all(self.cluster.committed.get(each, nowhere).offset >= point.offset for each, point in points.items())

    def close(self) -> None:
        """See the port."""
        if self.closed:
            return
        self.closed = True
        if self.assigned:
            self.revoke(*sorted(self.assigned))
        failure = self._run_script()
        if failure is not None:
            raise failure

    def commits_arrive(self, *, answered: bool = True) -> None:
        """What is under way is with the coordinator; without `answered` the member never learns what became of it."""
        for sent in self._commits:
            if sent.answer is None:
                taken = self.cluster.commit(self, sent.points, sent.generation)
                reason = "ILLEGAL_GENERATION" if answered else "REQUEST_TIMED_OUT"
                ok = taken and answered
                sent.answer = CommitResult(sent.points if ok else {}, {} if ok else dict.fromkeys(sent.points, reason))

    def commits_fail(self) -> None:
        """What is under way never gets there."""
        for sent in self._commits:
            if sent.answer is None:
                sent.answer = CommitResult({}, dict.fromkeys(sent.points, "NETWORK_EXCEPTION"))

    def _tell(self, what: str, partitions: tuple[Partition, ...]) -> None:
        super()._tell(what, partitions)
        if what != "assign":
            for partition in partitions:
                self.cluster.given_back(partition, self)
