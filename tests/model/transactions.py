"""A transaction coordinator, and a producer's end of it, decided step by step: a transaction is committed, aborted, or
nobody knows; it times out; its offsets are refused from an old generation, and pending until it ends.

What becomes of it is judged at once: a read_committed reader sees each message once and in the order of its partition
(I1, I4), and what is committed has been answered (I2) and never goes back (I3).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from consumer.errors import BrokerUnreachable, TransactionBroken
from consumer.messages import CommitPoint, OutputRecord, Partition
from consumer.ports import CommitResult
from tests.fakes import Done, FakeGroupView
from tests.model.group import GroupCluster, GroupSource

How = Literal["commit", "abort", "landed", "lost"]
"""How the broker takes the end of a transaction: known to both, or unknown to the replica (`landed`, `lost`)."""


@dataclass(eq=False, slots=True)
class OpenTransaction:
    """What the broker has of a transaction that has not ended."""

    records: list[tuple[int, OutputRecord]] = field(default_factory=list)
    """By their place in the log."""
    points: dict[Partition, CommitPoint] = field(default_factory=dict)
    """Pending: nobody is told the committed offsets of these."""


class TransactionalCluster(GroupCluster):
    """A group whose offsets come in transactions too."""

    def __init__(self, partitions: int) -> None:
        super().__init__(partitions)
        self.open: list[OpenTransaction] = []
        self._seen: dict[int, dict[int, int]] = {}
        """By input partition: where in the log the answer to each offset is, of what is committed."""
        self._log_end = 0

    def begin(self) -> OpenTransaction:
        """Of any producer."""
        self.open.append(OpenTransaction())
        return self.open[-1]

    def append(self, transaction: OpenTransaction, record: OutputRecord) -> None:
        """It is in the log, and nobody sees it yet."""
        self._log_end += 1
        transaction.records.append((self._log_end, record))

    def add_offsets(
        self,
        transaction: OpenTransaction,
        member: GroupSource,
        points: Mapping[Partition, CommitPoint],
        generation: int | None,
    ) -> bool:
        """Whether the coordinator takes them: of the current generation alone."""
        if member not in self.members or generation != self.generation:
            return False
        for partition, point in points.items():
            if self.last_owners[partition] is not member:
                raise self.breaks(f"I3: {partition} is committed at {point.offset} by a member that does not own it")
        transaction.points.update(points)
        return True

    def commit_transaction(self, transaction: OpenTransaction) -> None:
        """Readers see it, and the offsets hold."""
        self.open.remove(transaction)
        for place, record in transaction.records:
            partition, offset = self.write_output(record)
            seen = self._seen.setdefault(partition, {})
            if offset in seen:
                raise self.breaks(f"I1: {partition}/{offset} is seen twice by a read_committed reader")
            seen[offset] = place
            in_order = sorted(seen, key=seen.__getitem__)
            if in_order != sorted(in_order):
                raise self.breaks(f"I4: a read_committed reader sees {in_order} of partition {partition}")
        self.land(transaction.points)

    def abort(self, transaction: OpenTransaction) -> None:
        """Nobody ever sees it."""
        self.open.remove(transaction)


class StableView(FakeGroupView):
    """Questions of a read_committed consumer: committed offsets are not told while some are pending."""

    cluster: TransactionalCluster

    def committed(self, partitions: Sequence[Partition]) -> Mapping[Partition, CommitPoint]:
        """See the port."""
        if any(each in transaction.points for transaction in self.cluster.open for each in partitions):
            raise BrokerUnreachable("UNSTABLE_OFFSET_COMMIT")
        return super().committed(partitions)


@dataclass(slots=True)
class _End:
    points: dict[Partition, CommitPoint]
    generation: int | None
    stage: Literal["asked", "offsets sent", "unknown"] = "asked"


class StepTransactions:
    """`ports.ResultSink` and `ports.Transactions`, whose thread takes a step when it is told to."""

    def __init__(self, cluster: TransactionalCluster, source: GroupSource) -> None:
        self._cluster = cluster
        self._source = source
        self.under_way: deque[tuple[OutputRecord, Done]] = deque()
        self.transaction: OpenTransaction | None = None
        self.fenced = False
        """Whether the coordinator has aborted what was open, and takes nothing more of this producer."""
        self._broken = False
        self._introduced = False
        self._work: deque[_End | None] = deque()
        """Ends, and None for what is to be undone."""
        self._answer: CommitResult | None = None

    # --- the ports --------------------------------------------------------------------------------------------------

    def publish(self, record: OutputRecord, done: Done) -> None:
        """See the port."""
        if self._broken:
            done(TransactionBroken("the transaction is broken"))
        else:
            self.under_way.append((record, done))

    def close(self, timeout_s: float) -> int:
        """See the port. What is open is aborted."""
        self.under_way.clear()
        self._drop()
        return 0

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port."""
        assert not self.under_way, "a commit while records are under way"
        assert not self.commit_under_way, "two commits under way"
        self._work.append(_End(dict(points), self.known))

    @property
    def commit_under_way(self) -> bool:
        """See the port."""
        return any(self._work) or self._answer is not None

    def commit_result(self) -> CommitResult | None:
        """See the port."""
        answer, self._answer = self._answer, None
        return answer

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """See the port."""
        del points
        if not self._source.answers_questions:
            self._source.clock.advance(timeout_s)
        else:
            while self._work:
                self.step("commit")
        if any(self._work):
            return False
        return self._answer is None or not self._answer.undone

    @property
    def unresolved(self) -> bool:
        """See the port."""
        unknown = any(each is not None and each.stage == "unknown" for each in self._work)
        return not self._introduced or unknown or None in self._work

    def undo(self) -> None:
        """See the port."""
        self._work.append(None)

    @property
    def known(self) -> int | None:
        """The generation that we are a member of, as the group tells; None where it told that we are none."""
        return self._source.generation if self._source in self._cluster.members else None

    # --- steps ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether its thread has anything to do."""
        return bool(self._work) or not self._introduced

    def write(self) -> None:
        """The oldest record is in the log, and acknowledged; of a fenced producer none is."""
        if self.fenced:
            self.fail(0)
        elif self.under_way:
            record, done = self.under_way.popleft()
            self._append(record)
            done(None)

    def fail(self, written: int) -> None:
        """The transaction is broken, though the oldest of what is under way is in the log."""
        failed, self.under_way = list(self.under_way), deque()
        if not failed:
            return
        self._broken = True
        for number, (record, done) in enumerate(failed):
            if number < written and not self.fenced:
                self._append(record)
            done(TransactionBroken("no answer"))

    def times_out(self) -> None:
        """It was open for too long: the coordinator aborts it, and fences its producer."""
        if self.transaction is not None:
            self._drop()
            self.fenced = True

    def step(self, how: How) -> None:
        """The thread goes on by a step; `how` says what becomes of a transaction that is asked to be committed."""
        if not self._introduced:
            self._introduced = True
            return
        if not self._work:
            return
        work = self._work[0]
        if work is None:
            self._work.popleft()
            self._settled()
        elif work.stage == "asked":
            if self._broken or work.generation is None:
                self._undone("must be aborted")
            elif self.fenced:
                work.stage = "unknown"
            else:
                self.transaction = self.transaction or self._cluster.begin()
                if self._cluster.add_offsets(self.transaction, self._source, work.points, work.generation):
                    work.stage = "offsets sent"
                else:
                    self._undone("ILLEGAL_GENERATION")
        elif work.stage == "unknown":  # a new producer: what was open is aborted
            self._undone("nobody knows how it ended")
        else:
            self._finish(work, how)

    def die(self, *, landed: bool) -> None:
        """The replica is gone. A commit that was under way may have arrived; else the coordinator finds out in time."""
        if self._work and self._work[0] is not None and self._work[0].stage == "offsets sent" and landed:
            assert self.transaction is not None
            self._cluster.commit_transaction(self.transaction)
            self.transaction = None

    def _finish(self, work: _End, how: How) -> None:
        if self.transaction is None:  # timed out meanwhile
            work.stage = "unknown"
        elif how == "abort":
            self._undone("a known failure")
        elif how == "lost":
            work.stage = "unknown"
        else:
            transaction, self.transaction = self.transaction, None
            self._cluster.commit_transaction(transaction)
            if how == "landed":
                work.stage = "unknown"
            else:
                self._work.popleft()
                self._answer = CommitResult(work.points, {})

    def _undone(self, why: str) -> None:
        self._work.popleft()
        self._settled()
        self._answer = CommitResult({}, {}, undone=why)

    def _settled(self) -> None:
        self._drop()
        self._broken = self.fenced = False
        self.under_way.clear()

    def _drop(self) -> None:
        if self.transaction is not None:
            self._cluster.abort(self.transaction)
            self.transaction = None

    def _append(self, record: OutputRecord) -> None:
        self.transaction = self.transaction or self._cluster.begin()
        self._cluster.append(self.transaction, record)
