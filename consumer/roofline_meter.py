"""How near the running service comes to what its cores could do: `ouzel_roofline_ratio`.

    ratio = images/s / X        X = 1000 * C / (t_fetch + t_decode + t_infer(b) + t_ovh)

`t` are CPU-milliseconds an image. Fetching (parsing with it) and decoding are measured in the threads that do them, of
some twenty images a second; inference by the CPU of the process over blank batches at the start, when nothing else
runs; `t_ovh`, a bare consume-produce loop's, is no work of ours and given. `C` is cores.

It is told only while the backlog never empties: for `WINDOW_S` there was more to read at every turn of the loop, and
the loop did not wait for messages with next to nothing in flight. With less to do a low rate is no shortfall, and the
ratio is NaN. So it is while the replica holds, a store is down, a new model is prepared, and after a swap, as the new
model's cost cannot be told from the rest then.
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

WINDOW_S = 10.0
_MARK_S = 1.0
_SAMPLE_S = 0.05
"""Between two images whose CPU is taken in a stage: the clock of a thread's CPU is a system call, 0.3 to 3 us."""
_WAITED_SHARE = 0.02
"""Of the window, spent waiting for messages: over it the backlog is not what is asked about."""
_CALIBRATE_S = 0.2
"""A part of every start."""
_RUNS = 2


@dataclass(slots=True)
class _Tally:
    """Of a stage."""

    number: "itertools.count[int]" = field(default_factory=itertools.count)
    seen: int = 0
    sample_at_s: float = -math.inf
    samples: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sums up to a moment."""

    at_s: float
    labelled: int
    waited_s: float
    seen: Mapping[str, int]
    samples: Mapping[str, int]
    cpu_s: Mapping[str, float]


class RooflineMeter:
    """Any thread may tell; `turned` is the loop's alone."""

    def __init__(
        self,
        *,
        cores: float,
        overhead_ms: float,
        thread_cpu_s: Callable[[], float] = time.thread_time,
        tell: Callable[[float], None] = lambda _ratio: None,
    ) -> None:
        """
        Args:
            cores: C, that this process may keep busy.
            overhead_ms: t_ovh.
            thread_cpu_s: CPU-seconds of the calling thread.
            tell: told the ratio whenever it is reckoned or lost.
        """
        self._cores = cores
        self._overhead_ms = overhead_ms
        self._thread_cpu_s = thread_cpu_s
        self._tell = tell
        self._tallies = {stage: _Tally() for stage in ("parse", "fetch", "decode")}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._labelled = 0
        self._infer_ms: tuple[str, float] | None = None
        """Of which model, by its digest."""
        self._digest = ""
        self._down: set[str] = set()
        self._swapping = False
        self._marks: deque[_Mark] = deque()
        self._waited_s = 0.0
        self.ratio = math.nan

    # --- what is told -----------------------------------------------------------------------------------------------

    def begin(self, stage: str, now_s: float) -> float | None:
        """An item enters a stage: the CPU of this thread, where it is this item's turn to be measured."""
        tally = self._tallies.get(stage)
        if tally is None:
            return None
        tally.seen = next(tally.number)
        if now_s < tally.sample_at_s:
            return None
        tally.sample_at_s = now_s + _SAMPLE_S
        return self._thread_cpu_s()

    def end(self, stage: str, began_cpu_s: float) -> None:
        """The same item, in the same thread, has left it."""
        spent_s = self._thread_cpu_s() - began_cpu_s
        tally = self._tallies[stage]
        with self._lock:
            tally.samples += 1
            tally.cpu_s += spent_s

    def labelled(self) -> None:
        """One image has its label event."""
        self._labelled = next(self._numbers)

    def serves(self, digest: str) -> None:
        """This model labels from now on."""
        self._digest = digest

    def calibrated(self, digest: str, infer_ms: Mapping[int, float]) -> None:
        """CPU-milliseconds of an image by batch size, when nothing else ran. The cheapest is the roofline's."""
        self._infer_ms = (digest, min(infer_ms.values()))

    def swapping(self, *, under_way: bool) -> None:
        """A new model is loaded or compared."""
        self._swapping = under_way

    def store(self, store: str, *, down: bool) -> None:
        """Images of this store wait, or do so no more."""
        (self._down.add if down else self._down.discard)(store)

    # --- the loop's -------------------------------------------------------------------------------------------------

    def turned(self, now_s: float, *, backlog: bool, waited_s: float) -> None:
        """One turn of the loop.

        Args:
            now_s: monotonic seconds.
            backlog: whether more is to be read, and we may read it.
            waited_s: how long the loop waited for a message while so few were in flight that cores may have idled.
        """
        infer_ms = self._infer_ms
        known = infer_ms is not None and infer_ms[0] == self._digest
        if not (backlog and known) or self._swapping or self._down:
            if self._marks:
                self._marks.clear()
                self._set(math.nan)
            return
        self._waited_s += waited_s
        if self._marks and now_s < self._marks[-1].at_s + _MARK_S:
            return
        mark = self._mark(now_s)
        self._marks.append(mark)
        while len(self._marks) > 1 and self._marks[1].at_s <= now_s - WINDOW_S:
            self._marks.popleft()
        first = self._marks[0]
        self._set(self._reckoned(first, mark) if now_s - first.at_s >= WINDOW_S else math.nan)

    def _mark(self, now_s: float) -> _Mark:
        with self._lock:
            tallies = self._tallies.items()
            return _Mark(
                now_s,
                self._labelled,
                self._waited_s,
                {stage: tally.seen for stage, tally in tallies},
                {stage: tally.samples for stage, tally in tallies},
                {stage: tally.cpu_s for stage, tally in tallies},
            )

    def _reckoned(self, first: _Mark, last: _Mark) -> float:
        """NaN where the loop waited, or nothing was measured."""
        wall_s = last.at_s - first.at_s
        decoded = last.seen["decode"] - first.seen["decode"]
        if last.waited_s - first.waited_s > _WAITED_SHARE * wall_s or decoded <= 0 or self._infer_ms is None:
            return math.nan
        cpu_ms = 0.0
        for stage in self._tallies:
            samples = last.samples[stage] - first.samples[stage]
            if samples:
                mean_ms = 1000 * (last.cpu_s[stage] - first.cpu_s[stage]) / samples
                cpu_ms += mean_ms * (last.seen[stage] - first.seen[stage]) / decoded
        limit = 1000 * self._cores / (cpu_ms + self._infer_ms[1] + self._overhead_ms)
        return (last.labelled - first.labelled) / wall_s / limit

    def _set(self, ratio: float) -> None:
        self.ratio = ratio
        self._tell(ratio)


def calibrate(
    run: Callable[[int], object],
    sizes: Iterable[int],
    *,
    process_cpu_s: Callable[[], float] = time.process_time,
    now_s: Callable[[], float] = time.monotonic,
) -> dict[int, float]:
    """CPU-milliseconds of an image by batch size, the largest first, for a fifth of a second: one batch at least.

    `run` puts a batch of a size through the model, warm, while nothing else of the process works; of two runs the
    cheaper counts. Raises what it raises.
    """
    until_s = now_s() + _CALIBRATE_S
    found: dict[int, float] = {}
    for size in [size for size in sorted(sizes, reverse=True) for _ in range(_RUNS)]:
        before_s = process_cpu_s()
        run(size)
        found[size] = min(found.get(size, math.inf), 1000 * (process_cpu_s() - before_s) / size)
        if now_s() > until_s:
            break
    return found
