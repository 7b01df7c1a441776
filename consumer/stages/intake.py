"""Intake: how much is in flight, and which partitions pause for it.

A pause throws away what librdkafka has fetched ahead, and a resume fetches it again. So a replica that is merely busy
does not pause: it takes the next message when there is room, many times a second. Partitions pause when a bound holds
for longer than that, and resume with hysteresis. The same for one that has more than its share in flight: a broker
hands over many messages of one partition and then many of the next, and so each has all the room in turn.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumer.messages import Partition

RESUME_AT = 0.75
"""Share of a bound below which partitions resume."""

PAUSE_AFTER_S = 1.0
"""Seconds for which intake may be full, or a partition over its share, before partitions pause. Intake that is full for
longer would keep the group waiting for a poll."""

_FEW = 0.125
"""Of `max_in_flight_messages`: by default 32, two batches."""


class ByteBudget:
    """Bytes of what is held: messages, fetched bodies, pixels. Any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[int, int] = {}
        self._used = 0
        self._reserved = 0
        self._fetching: set[int] = set()
        self._closed = False
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0

    @property
    def used_bytes(self) -> int:
        """All that is held and reserved now."""
        return self._used

    def hold(self, owner: object, size_bytes: int) -> None:
        """Account for bytes that are there already. Never blocks: intake is what waits, not work that is under way."""
        with self._changed:
            self._held[id(owner)] = self._held.get(id(owner), 0) + size_bytes
            self._used += size_bytes

    def release(self, owner: object) -> None:
        """All that `owner` holds is gone."""
        with self._changed:
            self._used -= self._held.pop(id(owner), 0)
            self._wake()

    def drop(self, owner: object, size_bytes: int) -> None:
        """A part of what `owner` holds is gone; nothing where it was released already."""
        with self._changed:
            held = self._held.get(id(owner))
            if held is None:
                return
            size_bytes = min(size_bytes, held)
            self._held[id(owner)] = held - size_bytes
            self._used -= size_bytes
            self._wake()

    def reserve(self, size_bytes: int) -> None:
        """Wait until `size_bytes` of pixels fit, or until nobody else decodes: one image larger than what is free is
        then admitted alone, so that no mixture of sizes can stop all decoding."""
        with self._changed:
            while self._reserved and self._used + size_bytes > self.max_bytes:
                self._wait()
            self._reserved += size_bytes
            self._used += size_bytes

    def begin_fetch(self, owner: object) -> None:
        """Wait until there is room for a body whose size nobody knows yet, or until no other is between its fetch and
        its pixels: fetching must not run ahead of decoding, and a body is admitted alone, whatever else is held."""
        with self._changed:
            while self._fetching - {id(owner)} and self._used >= self.max_bytes and not self._closed:
                self._wait()
            self._fetching.add(id(owner))

    def end_fetch(self, owner: object) -> None:
        """Its body became pixels, or never came. Idempotent."""
        with self._changed:
            self._fetching.discard(id(owner))
            self._wake()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._wake()

    def unreserve(self, size_bytes: int) -> None:
        """Give a reservation back."""
        with self._changed:
            self._reserved -= size_bytes
            self._used -= size_bytes
            self._wake()

    def _wait(self) -> None:
        self._waiting += 1
        self._changed.wait()
        self._waiting -= 1

    def _wake(self) -> None:
        if self._waiting:  # seldom, and asked several times an image
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class PartitionLoad:
    """What one partition has on the books, for the intake's decision."""

    in_flight: int
    uncommitted: int
    has_work: bool
    """Whether it has messages in flight or, as far as known, more to read."""


class Intake:
    """Decides which partitions are paused. Only the thread that owns the consumer calls it."""

    def __init__(self, *, max_messages: int, max_bytes: int, max_uncommitted: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_uncommitted = max_uncommitted
        self._full = False
        self._full_since_s: float | None = None
        self._over_share_since_s: dict[Partition, float] = {}
        self._paused: frozenset[Partition] = frozenset()

    def room(self, in_flight: int, used_bytes: int) -> bool:
        """Whether one more message may be taken. With nothing in flight always: a message larger than the whole
        bound is admitted alone."""
        return in_flight == 0 or (in_flight < self._max_messages and used_bytes < self._max_bytes)

    def few(self, in_flight: int) -> bool:
        """Whether so little is in flight that stages may stand idle: then a wait for messages is one of them."""
        return in_flight < _FEW * self._max_messages

    def decide(
        self, loads: Mapping[Partition, PartitionLoad], *, used_bytes: int, now_s: float, hold: bool = False
    ) -> frozenset[Partition]:
        """The partitions that are to be paused now.

        Args:
            loads: every started partition.
            used_bytes: what the byte budget holds.
            now_s: monotonic seconds.
            hold: pause all, whatever the load.
        """
        in_flight = sum(load.in_flight for load in loads.values())
        bound = RESUME_AT if self._full else 1.0
        over = in_flight > 0 and (in_flight >= bound * self._max_messages or used_bytes >= bound * self._max_bytes)
        if not over:
            self._full_since_s = None
        elif self._full_since_s is None:
            self._full_since_s = now_s
        self._full = self._full_since_s is not None and now_s - self._full_since_s >= PAUSE_AFTER_S
        if hold or self._full:
            self._paused = frozenset(loads)
            return self._paused
        share = self._share(list(loads.values()))
        self._note_shares(loads, share, now_s)
        self._paused = frozenset(partition for partition, load in loads.items() if self._over(partition, load, now_s))
        return self._paused

    def _share(self, loads: Sequence[PartitionLoad]) -> float:
        """No partition takes more than its share while another has work; alone it may have all."""
        busy = sum(load.has_work for load in loads)
        return self._max_messages / max(1, busy)

    def _note_shares(self, loads: Mapping[Partition, PartitionLoad], share: float, now_s: float) -> None:
        """Since when each partition has more than its share."""
        over = {
            partition
            for partition, load in loads.items()
            if load.in_flight >= share * (RESUME_AT if partition in self._paused else 1.0)
        }
        self._over_share_since_s = {
            partition: self._over_share_since_s.get(partition, now_s) for partition in loads if partition in over
        }

    def _over(self, partition: Partition, load: PartitionLoad, now_s: float) -> bool:
        since_s = self._over_share_since_s.get(partition)
        if since_s is not None and now_s - since_s >= PAUSE_AFTER_S:
            return True
        return load.uncommitted >= self._max_uncommitted * (RESUME_AT if partition in self._paused else 1.0)
