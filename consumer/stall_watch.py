"""Asks the broker about partitions that stand still, and does what `stages/stalls.py` decides."""

from collections.abc import Callable, Iterable, Mapping

from consumer.errors import Stalled
from consumer.leases import Leases
from consumer.messages import CommitPoint, Lease, Partition, StallRemedy
from consumer.observer import Observer
from consumer.owner import Questions
from consumer.ports import AssignmentListener, Clock, GroupView, MessageSource
from consumer.stages.commit import PartitionLedger
from consumer.stages.stalls import Stalls, Standing

_LOOKS = 10  # at what stands still, in `stall_s`


class StallWatch:
    """Only the owner's thread calls it, `hopeless` apart."""

    def __init__(
        self,
        *,
        source: MessageSource,
        view: GroupView,
        questions: Questions,
        leases: Leases,
        listener: AssignmentListener,
        clock: Clock,
        observer: Observer,
        stall_s: float,
    ) -> None:
        """`listener` is who joins the group again. With 0 `stall_s` nobody looks."""
        self._source = source
        self._view = view
        self._questions = questions
        self._leases = leases
        self._listener = listener
        self._clock = clock
        self._observer = observer
        self._stall_s = stall_s
        self._stalls = Stalls(stall_s)
        self._look_at_s = 0.0
        self._asking = False
        self._rejoining = False

    @property
    def hopeless(self) -> frozenset[Partition]:
        """Partitions that stand still though the broker has more of them, and that a rejoin did not help. Any
        thread."""
        return self._stalls.hopeless

    def turn(self, now_s: float, is_excused: Callable[[Partition], bool]) -> None:
        """Once in each turn of the loop; `is_excused` says whether it is known what a partition waits for.

        Raises:
            Stalled: nothing else is left to try.
        """
        leases = self._leases
        if self._rejoining and not leases.ledgers and not leases.pending:
            self._rejoining = False
            self._source.subscribe(self._listener)
        if not self._stall_s or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + self._stall_s / _LOOKS
        standings = {partition: _standing(ledger) for partition, ledger in leases.ledgers.items()}
        standings |= {partition: _not_begun(lease) for partition, lease in leases.pending.items()}
        suspects = self._stalls.look(standings, is_excused, now_s)
        if suspects and not self._asking:
            self._ask(suspects)
        found = self._stalls.due(now_s)
        if found is not None:
            self._act(*found)

    def _ask(self, suspects: frozenset[Partition]) -> None:
        """Whether the broker has more of these than was read, or less than was finished; where those begin that have
        not begun, it told long ago. One that does not answer is away, which is no stall."""
        self._asking = True
        asked = sorted(suspects)

        def heard(behind: Iterable[Partition]) -> None:
            self._asking = False
            self._stalls.heard(asked, behind, self._clock.monotonic_s())

        def compare(found: tuple[Mapping[Partition, int], Mapping[Partition, CommitPoint]]) -> None:
            ends, committed = found
            heard(
                each
                for each in asked
                if (ledger := self._leases.ledgers.get(each)) is None
                or ends[each] > self._leases.read_to(each)
                or each not in committed
                or committed[each].offset < ledger.finished_to
            )

        self._questions.ask(
            lambda: (self._view.offsets(asked, "stable"), self._view.committed(asked)), compare, lambda: heard(())
        )

    def _act(self, remedy: StallRemedy, partitions: frozenset[Partition]) -> None:
        leases = self._leases
        self._observer.stalled(remedy, partitions, self._stall_s)
        if remedy == "restart":
            for partition in partitions & leases.ledgers.keys() - leases.unmarked:
                leases.read_from(leases.ledgers[partition], leases.ledgers[partition].next_offset)
            for partition in partitions & leases.pending.keys():
                leases.await_start(partition)
        elif remedy == "rejoin":
            self._rejoining = True
            self._source.leave()
        else:
            raise Stalled(
                f"no progress in {', '.join(map(str, sorted(partitions)))} though the broker has more, and neither "
                "beginning anew nor joining the group again helped",
                remedy="start again, as a supervisor does; where it comes back, look at the broker's log and at "
                '`ouzel offsets show`, and report it with the log at kafka.client debug = "cgrp,fetch"',
            )


def _standing(ledger: PartitionLedger) -> Standing:
    committed = ledger.committed
    return Standing(
        epoch=ledger.lease.epoch,
        read=ledger.next_offset,
        finished=ledger.finished_to,
        committed=-1 if committed is None else committed.offset,
    )


def _not_begun(lease: Lease) -> Standing:
    return Standing(epoch=-lease.epoch, read=-1, finished=-1, committed=-1)  # to begin is no progress yet
