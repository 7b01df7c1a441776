"""Stalls: lag without progress, told from no traffic and from waiting for what is known to be away.

A partition that has not moved for half of `stall_s`, and that nothing excuses, is suspect: the broker is asked about
it. If all it has was read and committed, or if it does not answer, the clock begins anew. Else the partition is stuck
once `stall_s` is over, and something is done about it; each time more:

    restart   the partition is begun anew where it stands. Known cause: a pause and a resume that cross an assignment
              (librdkafka #5591) leave it paused for good
    rejoin    the replica leaves the group and joins it again
    exit      the process ends

A partition that moves again begins with the first of these the next time. Pure; only the owner's thread calls it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from consumer.messages import Partition, StallRemedy

_REMEDIES: tuple[StallRemedy, ...] = ("restart", "rejoin", "exit")
_SUSPECT_AFTER = 0.5
"""Of `stall_s`. An excuse seen between this and the end begins the clock anew, so it need not hold all the time."""
_FORGET_AFTER = 4.0
"""Times `stall_s`: a rejoin takes the partition away for a while, and what was tried must be known when it is back."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a partition stands. Any change of the offsets is progress."""

    epoch: int
    """Of its lease: another one is neither progress nor the lack of it."""
    read: int
    finished: int
    committed: int
    """As far as the broker has acknowledged; -1 for nowhere."""


@dataclass(slots=True)
class _Watched:
    standing: Standing
    since_s: float
    behind: bool = False
    """Whether the broker said so since the clock began."""
    tried: int = 0
    """How many remedies, since it last moved."""

    def begin(self, now_s: float) -> None:
        self.since_s, self.behind = now_s, False


class Stalls:
    """Watches the partitions of one replica."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._watched: dict[Partition, _Watched] = {}
        self._there: frozenset[Partition] = frozenset()
        self._looked_at_s: float | None = None
        self.hopeless: frozenset[Partition] = frozenset()
        """Those that a rejoin did not help either, half of `stall_s` before the exit. Read from any thread."""

    def look(
        self, standings: Mapping[Partition, Standing], excused: Callable[[Partition], bool], now_s: float
    ) -> frozenset[Partition]:
        """Call it several times in `stall_s`, with every partition that was begun. A look that comes late counts
        nothing: it was the replica that stood still.

        Args:
            standings: where each stands now.
            excused: whether what a partition waits for is known; asked only of those that stand still.
            now_s: monotonic seconds.

        Returns:
            those of which the broker is to be asked (see `heard`).
        """
        late = self._looked_at_s is not None and now_s - self._looked_at_s >= _SUSPECT_AFTER * self._stall_s
        self._looked_at_s, self._there = now_s, frozenset(standings)
        for partition, standing in standings.items():
            watched = self._watched.setdefault(partition, _Watched(standing, now_s))
            if standing != watched.standing:
                if standing.epoch == watched.standing.epoch:
                    watched.tried = 0
                watched.standing = standing
                watched.begin(now_s)
            elif late or (self._is_suspect(partition, now_s) and excused(partition)):
                watched.begin(now_s)
        for partition in self._watched.keys() - self._there:
            if now_s - self._watched[partition].since_s > _FORGET_AFTER * self._stall_s:
                del self._watched[partition]
        suspects = {each for each in self._there if self._is_suspect(each, now_s)}
        self.hopeless = frozenset(
            each for each in suspects if self._watched[each].behind and self._remedy(each) == _REMEDIES[-1]
        )
        return frozenset(each for each in suspects if not self._watched[each].behind)

    def heard(self, asked: Iterable[Partition], behind: Iterable[Partition], now_s: float) -> None:
        """The broker's answer: which of those `asked` about it has more of. None of them where it did not answer."""
        behind = frozenset(behind)
        for partition in asked:
            watched = self._watched.get(partition)
            if watched is None or partition not in self._there or not self._is_suspect(partition, now_s):
                continue  # it has moved, or gone, since
            if partition in behind:
                watched.behind = True
            else:
                watched.begin(now_s)

    def due(self, now_s: float) -> tuple[StallRemedy, frozenset[Partition]] | None:
        """The strongest remedy whose time has come, and for which partitions; it counts as tried then."""
        stuck: dict[StallRemedy, set[Partition]] = {}
        for partition in self._there:
            watched = self._watched[partition]
            if watched.behind and now_s - watched.since_s >= self._stall_s:
                stuck.setdefault(self._remedy(partition), set()).add(partition)
        for remedy in reversed(_REMEDIES):
            if remedy in stuck:
                for partition in stuck[remedy]:
                    self._watched[partition].tried += 1
                    self._watched[partition].begin(now_s)
                return remedy, frozenset(stuck[remedy])
        return None

    def _remedy(self, partition: Partition) -> StallRemedy:
        return _REMEDIES[min(self._watched[partition].tried, len(_REMEDIES) - 1)]

    def _is_suspect(self, partition: Partition, now_s: float) -> bool:
        return now_s - self._watched[partition].since_s >= _SUSPECT_AFTER * self._stall_s
