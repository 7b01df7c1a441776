"""The dead-letter limit: too many letters mean that something else is wrong, and then the replica holds. Pure.

Nothing is dropped. Over the limit no letter is published any more: its message stays in flight, uncommitted, until a
person says go on. The trip travels in the offset commit's metadata, so that the next owner of the partition is on
probation: it publishes no letter of that family there until one image has succeeded.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from consumer.errors import Family
from consumer.messages import Partition


class Verdict(Enum):
    """What to do with one dead letter."""

    PUBLISH = "publish"
    WITHHOLD = "withhold"


@dataclass(frozen=True, slots=True)
class Trip:
    """Why the replica holds."""

    family: Family
    reason: str


class DeadLetterLimit:
    """Counts images and letters over a sliding window. For the thread that publishes; `put_on_probation` and `forget`
    are the owner's and change one entry each."""

    def __init__(
        self,
        *,
        window_s: float,
        min_sample: int,
        content_ratio: float,
        system_ratio: float,
        system_consecutive: int,
    ) -> None:
        self._window_s = window_s
        self._min_sample = min_sample
        self._ratio: dict[Family, float] = {"content": content_ratio, "system": system_ratio}
        self._system_consecutive = system_consecutive
        self._window: deque[tuple[float, Family | None]] = deque()
        self._counts: dict[Family | None, int] = {None: 0, "content": 0, "system": 0}
        self._consecutive = 0
        self._probation: dict[Partition, Family] = {}
        self._withheld_since_s: dict[Partition, float] = {}  # on probation
        self.trip: Trip | None = None

    def put_on_probation(self, partition: Partition, family: Family) -> None:
        """An earlier owner of this partition tripped over this family."""
        self._probation[partition] = family

    def forget(self, partition: Partition) -> None:
        """The partition is another's now."""
        self._probation.pop(partition, None)
        self._withheld_since_s.pop(partition, None)

    def on_probation(self, partition: Partition) -> bool:
        """Whether letters of a family are withheld there until one image succeeds."""
        return partition in self._probation

    def succeeded(self, partition: Partition, now_s: float) -> bool:
        """An image of this partition has its labels. True where that ends a probation: the letters withheld there may
        go, unless the limit is reached."""
        self._count(None, now_s)
        self._consecutive = 0
        self._withheld_since_s.pop(partition, None)
        return self._probation.pop(partition, None) is not None

    def judge(self, partition: Partition, family: Family, now_s: float, *, undecided: int = 0) -> Verdict:
        """What to do with a new letter; may trip.

        `undecided` messages are in flight with no outcome yet. Letters are quicker than images, so a burst begins with
        letters alone: for the ratio, what is undecided counts as if it will succeed.
        """
        self._count(family, now_s)
        self._consecutive = self._consecutive + 1 if family == "system" else 0
        if self.trip is None:
            self.trip = self._tripped(family, undecided)
        if self.trip is not None:
            return Verdict.WITHHOLD
        if self._probation.get(partition) == family:
            self._withheld_since_s.setdefault(partition, now_s)
            return Verdict.WITHHOLD
        return Verdict.PUBLISH

    def check_probation(self, now_s: float) -> None:
        """Trips where letters were withheld on probation for a whole window and no image has succeeded: nobody would
        look at a partition that stands still in silence."""
        for partition, since_s in list(self._withheld_since_s.items()):
            family = self._probation.get(partition)
            if self.trip is None and family is not None and now_s - since_s >= self._window_s:
                reason = f"no image of {partition} has succeeded for {self._window_s:g} s after an earlier trip"
                self.trip = Trip(family, reason)

    def resume(self) -> None:
        """A person says go on: the count begins anew."""
        self.trip = None
        self._window.clear()
        self._counts = {None: 0, "content": 0, "system": 0}
        self._consecutive = 0
        self._probation.clear()
        self._withheld_since_s.clear()

    def _count(self, kind: Family | None, now_s: float) -> None:
        self._window.append((now_s, kind))
        self._counts[kind] += 1
        while self._window[0][0] < now_s - self._window_s:
            self._counts[self._window.popleft()[1]] -= 1

    def _tripped(self, family: Family, undecided: int) -> Trip | None:
        if family == "system" and self._consecutive >= self._system_consecutive:
            return Trip(family, f"{self._consecutive} letters in a row point at the service or a store")
        sample, letters = len(self._window), self._counts[family]
        if sample >= self._min_sample and letters >= self._ratio[family] * (sample + undecided):
            return Trip(family, f"{letters} of the last {sample} messages ended as {family} letters")
        return None
