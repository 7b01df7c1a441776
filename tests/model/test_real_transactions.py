"""The real loop and publisher in exactly-once, against transactions that end in every way, in any order."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from consumer.messages import CommitPoint, Lease
from consumer.pipeline import Pipeline
from consumer.stages import publish
from consumer.stages.commit import PartitionLedger
from consumer.stages.order import KeyOrder
from consumer.transactional_commits import TransactionalCommits
from tests.model.group import GroupCluster, PromiseBroken
from tests.model.test_real_pipeline import MOST_FAULTS, PARTITIONS, Group, _quiet, replicas, run
from tests.model.transactions import How, OpenTransaction, StepTransactions, TransactionalCluster

__all__ = ["_quiet"]


class TransactionalGroup(Group):
    """Up to three replicas on two partitions, in exactly-once."""

    cluster: TransactionalCluster

    def make_cluster(self) -> GroupCluster:
        return TransactionalCluster(len(PARTITIONS))

    def _transactions(self, number: int) -> StepTransactions:
        found = self._one(number).transactions
        assert found is not None
        return found

    @precondition(lambda self: any(each.transactions.busy for each in self.replicas))
    @rule(number=replicas, times=st.integers(1, 3))
    def transaction_goes_on(self, number: int, times: int) -> None:
        for _ in range(times):
            self._transactions(number).step("commit")

    @precondition(lambda self: self.faults < MOST_FAULTS and any(each.transactions.busy for each in self.replicas))
    @rule(number=replicas, how=st.sampled_from(["abort", "landed", "lost"]), steps=st.integers(1, 3))
    def transaction_ends_otherwise(self, number: int, how: How, steps: int) -> None:
        self.faults += 1
        for _ in range(steps):
            self._transactions(number).step(how)

    @precondition(
        lambda self: self.faults < MOST_FAULTS and any(each.transactions.transaction for each in self.replicas)
    )
    @rule(number=replicas)
    def transaction_times_out(self, number: int) -> None:
        self.faults += 1
        self._transactions(number).times_out()

    @precondition(lambda self: self.cluster.open)
    @rule()
    def transactions_of_the_dead_time_out(self) -> None:
        alive = [each.transactions.transaction for each in self.replicas if each.transactions is not None]
        for transaction in [each for each in self.cluster.open if each not in alive]:
            self.cluster.abort(transaction)

    def _well_again(self) -> None:
        self.transactions_of_the_dead_time_out()
        super()._well_again()

    def _all_done(self) -> bool:
        return not self.cluster.open and super()._all_done()


class FailingGroup(TransactionalGroup):
    """... of which some end by an error that a poll brings, with a message."""

    @precondition(lambda self: self.faults < MOST_FAULTS and any(each.inside for each in self.replicas))
    @rule(number=replicas)
    def ends_in_an_error(self, number: int) -> None:
        self.faults += 1
        replica = self._one(number)
        if replica.inside and replica.fail():
            self.replicas.remove(replica)


@pytest.mark.parametrize("machine", [TransactionalGroup, FailingGroup])
def test_exactly_once_is_kept_whatever_the_order(machine: type[TransactionalGroup]) -> None:
    run(machine, examples=100, steps=50)


# --- each checker is shown to fail (I8) ------------------------------------------------------------------------------
# Bugs that need several faults in one order are found where every order is tried: `test_protocols.py`.


def _commit_before_publish(patch: pytest.MonkeyPatch) -> None:
    point = PartitionLedger.point

    def taken(self: PartitionLedger, position: int | None) -> CommitPoint | None:
        self._finished_to = self.next_offset
        return point(self, position)

    patch.setattr(PartitionLedger, "point", taken)


def _order_keys_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publish, "KeyOrder", lambda **_: KeyOrder())


def _publish_late_results(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "ended", property(lambda _self: False))


def _commit_offsets_outside(patch: pytest.MonkeyPatch) -> None:
    add_offsets = TransactionalCluster.add_offsets

    def land(self: TransactionalCluster, transaction: OpenTransaction, *rest: Any) -> bool:
        taken = add_offsets(self, transaction, *rest)
        self.committed.update(transaction.points)
        transaction.points.clear()
        return taken

    patch.setattr(TransactionalCluster, "add_offsets", land)


def _go_on_without_rewinding(patch: pytest.MonkeyPatch) -> None:
    def undo(self: TransactionalCommits, _why: str) -> None:
        if not self._undoing:
            self._undoing, self._to_commit, self._sealing = True, False, True
            self._publisher.halt()
            self._transactions.undo()

    patch.setattr(TransactionalCommits, "undo", undo)


@pytest.mark.parametrize(
    ("bug", "promise"),
    [
        (_commit_before_publish, "I1, I2"),
        (_order_keys_alone, "I"),
        (_publish_late_results, "I1|I4"),
        (_commit_offsets_outside, "I"),
        (_go_on_without_rewinding, "I"),
    ],
)
def test_a_bug_in_the_real_code_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(PromiseBroken, match=f"^({promise})"):
        run(TransactionalGroup, examples=500, steps=60, shrink=False)  # it ends at the first that is found


def test_a_commit_of_what_a_failed_poll_brought_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "_end_in_error", lambda self: self._commits.save())
    with pytest.raises(PromiseBroken, match=r"^I1, I2"):
        run(FailingGroup, examples=500, steps=60, shrink=False)
