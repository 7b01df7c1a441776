"""Key order (I4): the outcomes of one key leave in the order in which its messages came in.

Stages overlap, so a later message may be done first. It then waits here for the earlier ones of its key, and for
nothing else: messages without a key, and other keys, pass. With `whole_partitions` it waits for the earlier ones of its
partition: what has left is then always a prefix of it, and one offset says all of it, as a transaction needs.

A message that is abandoned (its partition goes away) takes the later ones of its key with it: the next owner reads it
first, so one that was published here would have come too early.
"""

import threading
from collections import deque
from dataclasses import dataclass, field

from consumer.messages import Abandoned, Delivery, Outcome


@dataclass(slots=True)
class _Queue:
    deliveries: deque[Delivery] = field(default_factory=deque)
    abandoned: bool = False


class KeyOrder:
    """A queue a key. `took` is called by the thread that owns the consumer, `release` by the one that publishes."""

    def __init__(self, *, whole_partitions: bool = False) -> None:
        self._whole_partitions = whole_partitions
        self._lock = threading.Lock()
        self._queues: dict[tuple[int, bytes], _Queue] = {}
        self._done: dict[int, Outcome] = {}

    @property
    def waiting(self) -> int:
        """Messages that are in a queue and have not left."""
        with self._lock:
            return sum(len(queue.deliveries) for queue in self._queues.values())

    def took(self, delivery: Delivery) -> None:
        """A message came in; call it in the order of delivery, before its outcome can be there."""
        name = self._queue_of(delivery)
        if name is None:
            return
        with self._lock:
            self._queues.setdefault(name, _Queue()).deliveries.append(delivery)

    def release(self, outcome: Outcome) -> list[Outcome]:
        """The outcomes that may leave now that this one is there, in their order."""
        delivery = outcome.delivery
        name = self._queue_of(delivery)
        if name is None:
            return [outcome]
        with self._lock:
            queue = self._queues[name]
            self._done[id(delivery)] = outcome
            free: list[Outcome] = []
            while queue.deliveries and id(queue.deliveries[0]) in self._done:
                done = self._done.pop(id(queue.deliveries.popleft()))
                queue.abandoned = queue.abandoned or isinstance(done, Abandoned)
                free.append(Abandoned(done.delivery) if queue.abandoned else done)
            if not queue.deliveries:
                del self._queues[name]
            return free

    def _queue_of(self, delivery: Delivery) -> tuple[int, bytes] | None:
        """None where it waits for nothing."""
        if self._whole_partitions:
            return id(delivery.lease), b""
        return None if delivery.key is None else (id(delivery.lease), delivery.key)
