"""How what is finished reaches the group, at least once: its offsets are committed from time to time, while records are
published all along. `transactional_commits` has the other way.

No commit is waited for, but where partitions go away.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from loguru import logger

from consumer.leases import Leases
from consumer.messages import CommitPoint, Partition
from consumer.observer import Observer
from consumer.ports import Clock, CommitResult, OffsetCommitter
from consumer.stages.commit import PartitionLedger
from consumer.stages.publish import Publisher

POLL_FOR_ANSWER_S = 0.005
"""An answer is read after a poll, and partitions wait for it."""
_MARK_AGAIN_S = 0.1


class Commits:
    """Only the owner's thread calls it, `unresolved` apart."""

    transactional = False
    """Whether records hold only once they are committed, together with the offsets that they answer."""

    def __init__(
        self,
        committer: OffsetCommitter,
        *,
        leases: Leases,
        clock: Clock,
        observer: Observer,
        interval_s: float,
    ) -> None:
        self._committer = committer
        self._leases = leases
        self._clock = clock
        self._observer = observer
        self._interval_s = interval_s
        self._due_at_s = 0.0
        self._sent: dict[Partition, CommitPoint] = {}
        """The commit that was sent last."""
        self._sent_at_s = 0.0
        self.leaving = False
        """Whether `leave` was called."""

    def begin(self, publisher: Publisher) -> None:
        """Before all else: this is who publishes."""

    # --- in each turn -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Read the answer to the last commit, and send another when it is due."""
        self.read_result()
        now_s = self._clock.monotonic_s()
        if not self._is_due(now_s) or self._committer.commit_under_way or not self._ready():
            return
        self._due_at_s = now_s + self._interval_s
        self._leases.mark_is_due = False
        self._send(self._leases.ledgers.values())

    def soon(self) -> None:
        """The next commit is due at once."""
        self._due_at_s = 0.0

    def read_result(self) -> None:
        """Read the answer to the last commit, if there is one."""
        result = self._committer.commit_result()
        if result is not None:
            self._heed(result)

    def _heed(self, result: CommitResult) -> None:
        for partition, point in result.committed.items():
            ledger = self._leases.ledgers.get(partition)
            if ledger is not None:
                ledger.committed_to(point)
        self._leases.start_marked()
        if self._leases.unmarked and result.errors:
            # Refused in the midst of a rebalance, say, and partitions wait for it.
            self._due_at_s = min(self._due_at_s, self._clock.monotonic_s() + _MARK_AGAIN_S)
        self._observer.committed(result)
        self._observer.stage_seconds("commit", self._clock.monotonic_s() - self._sent_at_s)

    def _is_due(self, now_s: float) -> bool:
        return self._leases.mark_is_due or now_s >= self._due_at_s

    def _ready(self) -> bool:
        return True

    def _send(self, ledgers: Iterable[PartitionLedger]) -> dict[Partition, CommitPoint]:
        points: dict[Partition, CommitPoint] = {}
        for ledger in ledgers:
            partition = ledger.lease.partition
            # Once the group is being left, a message may have been read that nobody took: what ended the loop came
            # with it. The position is past it.
            point = ledger.point(None if self.leaving else self._leases.position(partition))
            if point is not None:
                points[partition] = point
        if points:
            self._sent, self._sent_at_s = points, self._clock.monotonic_s()
            self._committer.commit(points)
        return points

    def poll_at_most_s(self) -> float:
        """How long the loop may wait in a poll, for what is done here."""
        return POLL_FOR_ANSWER_S if self._leases.unmarked else math.inf

    # --- where partitions go away -----------------------------------------------------------------------------------

    def while_draining(self) -> None:
        """The owner waits until what has begun is finished."""

    def last(self, ledgers: Sequence[PartitionLedger], deadline_s: float) -> None:
        """Commit what is finished of partitions that go away, and see it land."""
        if self.leaving:
            self._send(ledgers)  # no answer can be had, but it is sent before the group is left
            return
        # An older commit that is still under way could land after this one, and take the group back.
        older = self._sent if self._committer.commit_under_way else {}
        if not self._committer.confirm_commit(older, self._left_s(deadline_s)):
            logger.warning("an earlier commit is not answered: the next owner may repeat some images")
            return
        points = self._send(ledgers)
        if not self._committer.confirm_commit(points, self._left_s(deadline_s)):
            logger.warning("the last commit is not confirmed: the next owner may repeat some images")

    def finish(self, deadline_s: float, poll: Callable[[], None]) -> None:
        """The service stops: commit what is finished of all, and see it land. `poll` waits, serving the group."""
        sent = False
        while self._clock.monotonic_s() < deadline_s:
            poll()
            self.read_result()
            if self._committer.commit_under_way:
                continue
            if sent or not self._send(self._leases.ledgers.values()):
                return
            sent = True

    def leave(self) -> None:
        """The loop is over and the group is being left: no answer can be had any more, and no position counts."""
        self.leaving = True

    def _left_s(self, deadline_s: float) -> float:
        return max(1.0, deadline_s - self._clock.monotonic_s())

    # --- what only transactions know --------------------------------------------------------------------------------

    @property
    def unresolved(self) -> bool:
        """Whether it is unknown how the last transaction ended: what is committed means nothing then. Any thread."""
        return False

    @property
    def undoing(self) -> bool:
        """Whether partitions wait for a transaction to be undone."""
        return False

    def undo(self, why: str) -> None:
        """Nothing since the last commit holds. Where records hold by themselves, there is nothing to undo."""

    def save(self) -> None:
        """The loop ends in an error. Where records hold by themselves, the group is left in order, and that commits."""
