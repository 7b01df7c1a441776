"""How what is finished reaches the group, exactly once: records, and the offsets that they answer, in one transaction.

A transaction ends so:

    seal      the publisher comes to rest: all that was produced is acknowledged and on the books, nothing more follows
    commit    offsets and records hold, or neither; the answer comes by `read_result`
    unseal    the publisher goes on, in the next transaction

or, when it broke, or it is not known whether it holds, or partitions go away before it has ended:

    halt      nothing that is under way counts any more
    undo      all partitions are set aside, fenced before another record is produced; the transaction is given up
    unseal    once that is settled for good, all begin anew from what is committed then, and do this work again
"""

from collections.abc import Callable, Mapping, Sequence

from loguru import logger

from consumer.commits import POLL_FOR_ANSWER_S, Commits
from consumer.errors import OutputRefused
from consumer.leases import Leases
from consumer.messages import CommitPoint, Partition
from consumer.observer import Observer
from consumer.ports import Clock, CommitResult, Transactions
from consumer.stages.commit import PartitionLedger
from consumer.stages.publish import Publisher

_POLL_S = 0.01  # readers wait for its end, and its last record may be in any moment
_SAVE_S = 3.0
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.2, 5.0
"""Before work that was undone is done again, when it was undone before."""
_MOST_IN_A_ROW = 30
"""Transactions that were undone, and none committed between: some two minutes."""


class TransactionalCommits(Commits):
    """See `Commits`."""

    transactional = True

    def __init__(
        self,
        transactions: Transactions,
        *,
        leases: Leases,
        clock: Clock,
        observer: Observer,
        interval_s: float,
        read_settled: Callable[[], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """
        Args:
            transactions: commits offsets together with the records that answer them.
            leases, clock, observer, interval_s: as for `Commits`.
            read_settled: enters what the publisher has told so far on the books. May call `undo`.
            on_crash: ends the loop, from within a callback too.
        """
        super().__init__(transactions, leases=leases, clock=clock, observer=observer, interval_s=interval_s)
        self._transactions = transactions
        self._read_settled = read_settled
        self._on_crash = on_crash
        self._publisher: Publisher
        # Where the end of a transaction stands.
        self._sealing = False
        """Whether the publisher is asked to rest."""
        self._to_commit = False
        """Whether it rests for a commit that has not been sent."""
        self._undoing = False
        self._undone_in_a_row = 0
        """Transactions that were undone since the last one that was committed."""
        self._again_at_s = 0.0
        """Before that no other is begun."""
        self._told_unresolved = False

    def begin(self, publisher: Publisher) -> None:
        """See `Commits`."""
        self._publisher = publisher

    # --- in each turn -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """See `Commits`."""
        super().turn()
        self._go_on()
        if self.unresolved != self._told_unresolved:
            self._told_unresolved = self.unresolved
            self._observer.transaction_unresolved(unresolved=self._told_unresolved)

    def poll_at_most_s(self) -> float:
        """See `Commits`."""
        if self._sealing:
            return POLL_FOR_ANSWER_S
        longest_s = super().poll_at_most_s()
        return min(longest_s, _POLL_S) if self._leases.in_flight or self.unresolved else longest_s

    @property
    def unresolved(self) -> bool:
        """See `Commits`."""
        return self._transactions.unresolved

    @property
    def undoing(self) -> bool:
        """See `Commits`."""
        return self._undoing

    def _is_due(self, now_s: float) -> bool:
        if super()._is_due(now_s) or self._sealing:
            return True
        # Readers wait for a transaction's end, so one with nothing to wait for ends at once.
        leases = self._leases
        return not leases.in_flight and any(
            ledger.ahead for partition, ledger in leases.ledgers.items() if partition not in leases.unmarked
        )

    def _ready(self) -> bool:
        """Whether the open transaction holds what the ledgers say is finished, no more and no less; else sees to it."""
        if self.unresolved or self._undoing:
            return False
        self._to_commit = True
        if not self._sealing:
            self._sealing = True
            self._publisher.seal()
        if not self._publisher.sealed:
            return False
        self._read_settled()
        self._to_commit = False
        return not self._undoing  # what was read may have said that it is broken

    def _ready_within(self, timeout_s: float) -> bool:
        """Whether `_ready`, waiting up to so many seconds."""
        if self._ready():
            return True
        return self._publisher.wait_sealed(timeout_s) and self._ready()

    def _heed(self, result: CommitResult) -> None:
        if result.undone:
            self.undo(result.undone)
        else:
            self._undone_in_a_row = 0
        super()._heed(result)

    def _go_on(self) -> None:
        """Publish again once a transaction has ended, either way; after one that was undone begin anew."""
        if not self._sealing or self._to_commit or not self._publisher.sealed:
            return
        if self.unresolved or self._transactions.commit_under_way:
            return
        if self._undoing and self._clock.monotonic_s() < self._again_at_s:
            return
        self._sealing = False
        self._publisher.unseal()
        self._undoing = False
        self._leases.take_up()

    # --- undoing ----------------------------------------------------------------------------------------------------

    def undo(self, why: str) -> None:
        """Nothing since the last commit holds. Fence while nothing is published, so that no record of what is given up
        enters another transaction; then every partition goes on from what is committed, and does this work again."""
        if self._undoing:
            return
        self._undoing = True
        self._to_commit = False
        self._undone_in_a_row += 1
        again = self._undone_in_a_row - 3  # the first ones are done again at once
        pause_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2**again) if again >= 0 else 0.0
        self._again_at_s = self._clock.monotonic_s() + pause_s
        logger.warning("the transaction is undone: {}", why)
        self._observer.transaction_undone()
        self._sealing = True
        self._publisher.halt()
        self._leases.set_aside()
        self._transactions.undo()
        if self._undone_in_a_row >= _MOST_IN_A_ROW:
            self._on_crash(_no_transaction_ends(self._undone_in_a_row, why))

    # --- where partitions go away -----------------------------------------------------------------------------------

    def while_draining(self) -> None:
        """A transaction that is about to end ends first: what the drain waits for goes into the next."""
        self._to_commit = False
        self.read_result()
        self._go_on()

    def last(self, _ledgers: Sequence[PartitionLedger], deadline_s: float) -> None:
        """See `Commits`. What is finished of all partitions: it is in the transaction that is to end."""
        if not self.leaving:
            self._end(deadline_s)

    def finish(self, deadline_s: float, _poll: Callable[[], None]) -> None:
        """See `Commits`."""
        self._end(deadline_s)

    def _end(self, deadline_s: float) -> None:
        """Commit what is finished of all partitions, and see it land, before some of them go away; else undo it."""
        committed = not self._transactions.commit_under_way or self._sees_committed(self._sent, deadline_s)
        if committed and not self.unresolved:
            committed = self._ready_within(self._left_s(deadline_s))
        if committed and not self.unresolved:
            points = self._send(self._leases.ledgers.values())
            committed = not points or self._sees_committed(points, deadline_s)
        if not committed:
            self.undo("it did not end before partitions went away")

    def save(self) -> None:
        """The loop ends in an error: what is finished is committed all the same, if that needs nothing but a moment."""
        if self._undoing or self.unresolved or self._transactions.commit_under_way:
            return
        try:
            deadline_s = self._clock.monotonic_s() + _SAVE_S
            if self._ready_within(_SAVE_S):
                self._sees_committed(self._send(self._leases.ledgers.values()), deadline_s)
        except Exception as error:
            logger.warning("the last transaction is given up, its images will be labelled again: {}", error)

    def _sees_committed(self, points: Mapping[Partition, CommitPoint], deadline_s: float) -> bool:
        landed = self._transactions.confirm_commit(points, self._left_s(deadline_s))
        self.read_result()
        return landed


def _no_transaction_ends(count: int, why: str) -> OutputRefused:
    """Why, librdkafka may have told its log alone. A right that is missing does not come here: the sink knows it."""
    return OutputRefused(
        f"{count} transactions were undone and none was committed; the last one: {why}",
        remedy="look at what the kafka logger and the brokers' logs say before this; `ouzel doctor` looks closer",
    )
