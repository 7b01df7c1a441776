"""Retry: what to do when a store cannot serve an image for now. Pure: it takes the time and the dice.

An image that keeps failing becomes a dead letter only if the same store has served another image since its first
attempt. Otherwise the store is presumed down: one image at a time, the oldest first, goes on trying without limit and
the others wait, so that an outage never empties a topic into the dead letters. They take turns, because the store may
fail for the oldest alone: when another is served, that one tries anew, and the second time that this happens it is its
own fault.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from consumer.errors import Retryable, StoreBusy, StoreFailed
from consumer.messages import ImageJob

_PASSED_OVER = 2
_MOST_STORES = 1_000
"""That are remembered: below a wild card (`*.example.org`) there are hosts without number."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One image's tries at its store."""

    job: ImageJob
    store: str
    """The store's health key: scheme and host or bucket."""
    first_s: float
    tries: int = 0
    passed_over: int = 0
    """How often its store served another right after it had failed for this one, while it was presumed down."""
    schema: int | str | None = None
    """Set where it is a schema that is asked for, before the message can be parsed; the store is the registry then."""


@dataclass(slots=True)
class _Store:
    last_success_s: float = float("-inf")
    down_since_s: float | None = None
    probe: Attempt | None = None
    failed_probe: Attempt | None = None
    """The last one to fail."""
    failed_probes: int = 0
    """Since it was presumed down."""
    parked: list[Attempt] = field(default_factory=list)
    crowded: list[Attempt] = field(default_factory=list)
    """Those that our own bounds left no room for, oldest first. They are in the waiting room, too."""


class Retries:
    """The retry policy and its waiting room. One thread at a time (the caller holds the lock).

    Backoff with full jitter: a uniform draw from [0, min(max, initial * 2^(try-1))]
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), after the least wait that the store
    asked for, which is heeded up to a bound. An error of our own bounds (`StoreBusy`) is no try.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        initial_backoff_ms: float,
        max_backoff_ms: float,
        max_retry_after_ms: float,
        dice: Callable[[], float],
    ) -> None:
        self._max_attempts = max_attempts
        self._initial_s = initial_backoff_ms / 1000
        self._max_s = max_backoff_ms / 1000
        self._max_retry_after_s = max_retry_after_ms / 1000
        self._dice = dice
        self._stores: dict[str, _Store] = {}
        self._waiting: list[tuple[float, int, Attempt]] = []
        self._number = itertools.count()

    def down_stores(self) -> dict[str, float]:
        """Stores presumed down, with the monotonic second since when."""
        return {name: s.down_since_s for name, s in self._stores.items() if s.down_since_s is not None}

    def admit(self, attempt: Attempt) -> bool:
        """Whether a first try makes sense now; otherwise it is kept until its store is back."""
        store = self._stores.pop(attempt.store, None) or _Store()
        self._stores[attempt.store] = store  # the one asked last is the last
        if len(self._stores) > 2 * _MOST_STORES:
            self._forget_stores()
        if store.down_since_s is None:
            return True
        store.parked.append(attempt)
        return False

    def _forget_stores(self) -> None:
        """Those asked longest ago, if they are well and nobody waits for them."""
        waited_for = {entry[2].store for entry in self._waiting}
        idle = [
            name
            for name, store in self._stores.items()
            if store.down_since_s is None and not store.parked and not store.crowded and name not in waited_for
        ]
        for name in idle[: len(self._stores) - _MOST_STORES]:
            del self._stores[name]

    def succeeded(self, attempt: Attempt, now_s: float) -> bool:
        """The store served this one. True where it was presumed down and is back: what waited for it is due now."""
        store = self._stores.setdefault(attempt.store, _Store())
        store.last_success_s = now_s
        if store.down_since_s is None:
            return False
        store.down_since_s, store.probe = None, None
        if store.failed_probe is not None and store.failed_probe is not attempt:
            store.failed_probe.passed_over += 1
        store.failed_probe, store.failed_probes = None, 0
        parked, store.parked = store.parked, []
        for waiting in parked:
            waiting.tries, waiting.first_s = 0, now_s  # the outage was the store's fault: they start anew
            self._wait(waiting, now_s)
        return True

    def failed(self, attempt: Attempt, error: Retryable, now_s: float, *, last: bool = False) -> StoreFailed | None:
        """The store could not serve this one now. None: it is kept and will be due; otherwise its dead letter. `last`:
        there is no time for more attempts, so that this one decides."""
        store = self._stores.setdefault(attempt.store, _Store())
        if isinstance(error, StoreBusy):
            self._crowd_out(store, attempt, error, now_s)
            return None
        attempt.tries += 1
        if store.down_since_s is not None:
            self._probe_or_park(store, attempt, error, now_s)
            return None
        if attempt.tries < self._max_attempts and not last:
            self._wait(attempt, now_s + self._backoff_s(attempt.tries, error))
            return None
        if store.last_success_s > attempt.first_s or attempt.passed_over >= _PASSED_OVER:
            return StoreFailed(f"{attempt.tries} attempts failed while the store served other images: {error}")
        store.down_since_s = now_s
        self._probe_or_park(store, attempt, error, now_s)
        return None

    def next_crowded(self, name: str) -> Attempt | None:
        """One to try now that another of its store is over, and there is room again; None where none waits for that."""
        store = self._stores.get(name)
        if store is None or not store.crowded or store.down_since_s is not None:
            return None
        attempt = store.crowded.pop(0)
        self._waiting = [entry for entry in self._waiting if entry[2] is not attempt]
        heapq.heapify(self._waiting)
        return attempt

    def tells(self, attempt: Attempt) -> bool:
        """Whether its next try tells the others of its store: it failed before, or it is the probe."""
        return attempt.tries > 0 or attempt is self._stores.setdefault(attempt.store, _Store()).probe

    def left(self, attempt: Attempt) -> None:
        """It is over, and not by `succeeded` or `failed`: a dead letter, abandoned. A probe hands over to the next
        oldest; else nobody would ever ask its store again."""
        store = self._stores.get(attempt.store)
        if store is not None and store.probe is attempt:
            self._next_probe(store)

    def due(self, now_s: float) -> list[Attempt]:
        """What is to be tried now."""
        ready: list[Attempt] = []
        while self._waiting and self._waiting[0][0] <= now_s:
            attempt = heapq.heappop(self._waiting)[2]
            store = self._stores[attempt.store]
            if attempt in store.crowded:
                store.crowded.remove(attempt)
            if store.down_since_s is None or attempt is store.probe:
                ready.append(attempt)
            else:
                store.parked.append(attempt)
        return ready

    def forget(self, unwanted: Callable[[ImageJob], bool]) -> list[Attempt]:
        """Take out and return what nobody waits for any more; a probe among them hands over to the next oldest."""
        gone = [entry[2] for entry in self._waiting if unwanted(entry[2].job)]
        if gone:
            self._waiting = [entry for entry in self._waiting if not unwanted(entry[2].job)]
            heapq.heapify(self._waiting)
        for store in self._stores.values():
            gone += [attempt for attempt in store.parked if unwanted(attempt.job)]
            store.parked = [attempt for attempt in store.parked if not unwanted(attempt.job)]
            store.crowded = [attempt for attempt in store.crowded if not unwanted(attempt.job)]
            if store.probe is not None and unwanted(store.probe.job):
                self._next_probe(store)
        return gone

    def _crowd_out(self, store: _Store, attempt: Attempt, error: StoreBusy, now_s: float) -> None:
        if error.retry_after_s is not None:
            self._wait(attempt, now_s + self._backoff_s(1, error))
            return
        # Whoever takes the room up calls the next one. The time is only for when he did so just before this one came.
        store.crowded.append(attempt)
        self._wait(attempt, now_s + self._dice() * self._max_s)

    def _probe_or_park(self, store: _Store, attempt: Attempt, error: Retryable, now_s: float) -> None:
        probe = store.probe
        if probe is None or probe is attempt:
            store.failed_probe = attempt
            store.failed_probes += 1
            store.parked.append(attempt)
            store.probe = min(store.parked, key=lambda a: (a.tries, a.first_s))
            store.parked.remove(store.probe)
            tries = max(attempt.tries, store.failed_probes)
            self._wait(store.probe, now_s + self._backoff_s(tries, error))
            return
        waits = [entry for entry in self._waiting if entry[2] is not probe]
        if attempt.first_s < probe.first_s and len(waits) < len(self._waiting):  # older, and the probe is not out now
            self._waiting = waits
            heapq.heapify(self._waiting)
            store.probe = attempt
            self._wait(attempt, now_s + self._backoff_s(attempt.tries, error))
            attempt = probe
        store.parked.append(attempt)

    def _next_probe(self, store: _Store) -> None:
        if store.parked:
            store.probe = min(store.parked, key=lambda a: a.first_s)
            store.parked.remove(store.probe)
            self._wait(store.probe, 0.0)
        else:
            store.probe = None
            store.down_since_s = None  # nobody is left to find out; the next image will

    def _wait(self, attempt: Attempt, until_s: float) -> None:
        heapq.heappush(self._waiting, (until_s, next(self._number), attempt))

    def _backoff_s(self, tries: int, error: Retryable) -> float:
        bound_s = min(self._max_s, self._initial_s * 2.0 ** min(tries - 1, 30))
        # Never before the store wants to be asked, and then not all at one moment.
        asked_s = min(error.retry_after_s or 0.0, self._max_retry_after_s)
        return float(asked_s + self._dice() * bound_s)
