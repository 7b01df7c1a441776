"""Commit: which offset of a partition may be committed. Pure; only the thread that owns the consumer touches it.

Invariant I2: the committed offset never passes the end of the finished prefix *in the order of delivery*. Offsets have
gaps (compaction, transaction markers, aborted records), so nothing here counts from one offset to the next.
"""

from collections import deque
from dataclasses import dataclass

from consumer.messages import CommitPoint, Delivery, Lease


@dataclass(slots=True)
class _Taken:
    end: int
    """The offset after it."""
    delivery: Delivery | None
    """None for a range that the log no longer has."""
    finished: bool = False


class PartitionLedger:
    """The books of one lease: what was taken, what of it is finished, what is committed."""

    def __init__(
        self, lease: Lease, *, start: int, committed: CommitPoint | None, note: str, end: int | None = None
    ) -> None:
        self.lease = lease
        self.note = note
        """Goes with every commit, as its metadata: what the next owner must know."""
        self.end = end
        """The first offset that is not wanted, where a range is relabelled: no commit passes it."""
        self.past_end = end is not None and start >= end
        """Whether reading has come to the end of the range."""
        self.next_offset = start
        """Where reading would go on if it had to begin anew: after the newest message taken."""
        self._finished_to = start
        self._open: deque[_Taken] = deque()
        self._by_offset: dict[int, _Taken] = {}
        self._committed = committed
        self._asked_to = start if committed is None else committed.offset
        """The furthest that was ever to be committed: it may have been, whether or not an answer came."""
        self._taken_count = 0
        self._closed_count = 0
        self._committed_count = 0
        self._count_at: dict[CommitPoint, int] = {}

    @property
    def in_flight(self) -> int:
        """Messages taken and not finished."""
        return len(self._by_offset)

    @property
    def uncommitted(self) -> int:
        """Messages that a crash would repeat: taken since the committed offset."""
        return self._taken_count - self._committed_count

    @property
    def committed(self) -> CommitPoint | None:
        """What the broker last acknowledged, as far as known."""
        return self._committed

    @property
    def finished_to(self) -> int:
        """The end of the finished prefix, in the order of delivery."""
        return self._finished_to

    @property
    def ahead(self) -> bool:
        """Whether more is finished than the broker knows of."""
        return self._committed is None or self._finished_to > self._committed.offset

    def unfinished(self) -> list[Delivery]:
        """What is in flight, in the order of delivery."""
        return [taken.delivery for taken in self._open if taken.delivery is not None and not taken.finished]

    def wants(self, offset: int) -> bool:
        """Whether a message at this offset is to be labelled: False at and after the range's end."""
        if self.end is None or offset < self.end:
            return True
        self.past_end = True
        return False

    def take(self, delivery: Delivery) -> None:
        """Enter a message that the source handed over."""
        taken = _Taken(delivery.offset + 1, delivery)
        self._open.append(taken)
        self._by_offset[delivery.offset] = taken
        self._taken_count += 1
        self.next_offset = delivery.offset + 1

    def finish(self, delivery: Delivery) -> bool:
        """Its event or dead letter is with the broker. False where it was not on the books (a late result)."""
        if delivery.lease is not self.lease:
            return False
        taken = self._by_offset.pop(delivery.offset, None)
        if taken is None:
            return False
        taken.finished = True
        self._close_prefix()
        return True

    def skip_to(self, offset: int) -> None:
        """The log has nothing between the newest message taken and `offset` any more; what is in flight stays."""
        self._open.append(_Taken(offset, None, finished=True))
        self._taken_count += 1
        self.next_offset = offset
        self._close_prefix()

    def _close_prefix(self) -> None:
        while self._open and self._open[0].finished:
            self._finished_to = self._open.popleft().end
            self._closed_count += 1

    def point(self, position: int | None) -> CommitPoint | None:
        """What may be committed now; None where the broker has it already.

        `position` is the source's own, past transaction markers. It counts only with nothing in flight: without it a
        topic written in transactions would never show lag 0, as its last record is a marker.
        """
        offset = self._finished_to
        if not self._open and position is not None:
            offset = max(offset, position)
        if self.end is not None:
            offset = min(offset, self.end)
        offset = self._asked_to = max(offset, self._asked_to)  # never back (I3)
        point = CommitPoint(offset, self.note)
        if point == self._committed:
            return None
        self._count_at = {point: self._closed_count}
        return point

    def committed_to(self, point: CommitPoint) -> None:
        """The broker has taken this point. One that was not asked for last is an older lease's, and says nothing."""
        if point not in self._count_at:
            return
        self._committed = point
        self._committed_count = max(self._committed_count, self._count_at[point])
