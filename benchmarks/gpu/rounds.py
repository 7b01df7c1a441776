"""Measuring several things in turns, where any of them may not work on this machine."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.growth.curve import merged

Figures = Mapping[str, float]


@dataclass(slots=True)
class Turns:
    """What takes turns, and what came of it."""

    steps: dict[str, Callable[[], Figures]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why something is left out: a package, a driver, a kind of GPU that is not there."""
    _found: dict[str, list[Figures]] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Callable[[], Figures]]) -> None:
        """One thing to measure. `make` prepares it, warm-up included, and returns what measures it once."""
        began_s = time.perf_counter()
        try:
            self.steps[name] = make()
        except Exception as error:
            self._fails(name, error)
        else:
            say(f"ready: {name} ({time.perf_counter() - began_s:.1f} s)")

    def run(self, rounds: int) -> None:
        """Each once a round, every other round the other way round, so that a drift of the machine hits all alike."""
        for number in range(rounds):
            names = list(self.steps)
            for name in names if number % 2 == 0 else reversed(names):
                try:
                    figures = self.steps[name]()
                except Exception as error:
                    del self.steps[name]
                    self._fails(name, error)
                    continue
                self._found.setdefault(name, []).append(figures)
                told = ", ".join(f"{figure} {value:.5g}" for figure, value in figures.items())
                say(f"round {number + 1} of {rounds}, {name}: {told}")

    def points(self) -> list[dict[str, Any]]:
        """Each with the spread of its figures."""
        return [{"what": name, **merged(figures)} for name, figures in self._found.items()]

    def _fails(self, name: str, error: Exception) -> None:
        self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        say(f"left out: {name}\n{traceback.format_exc(limit=4)}")


def timed(work: Callable[[], None], *, images: int, seconds: float, settle: Callable[[], None]) -> Figures:
    """Images/s and CPU-ms an image of `work`, over and over for about `seconds`.

    Args:
        work: one call, of so many `images`; it may return before the GPU is done.
        settle: returns when the GPU is done; called before each look at a clock. The calls between are as many as take
            a tenth of the time, so that waiting for the GPU is no part of a call.
    """
    work()
    settle()
    began_s = time.perf_counter()
    work()
    settle()
    calls = max(1, min(1000, int(seconds / 10 / max(1e-6, time.perf_counter() - began_s))))
    done, took_s = 0, 0.0
    began_s, cpu_s = time.perf_counter(), time.process_time()
    while not done or took_s < seconds:
        for _ in range(calls):
            work()
        settle()
        done += calls * images
        took_s = time.perf_counter() - began_s
    cpu_s = time.process_time() - cpu_s
    return {"images_per_s": done / took_s, "cpu_ms": 1000 * cpu_s / done, "call_ms": 1000 * took_s * images / done}


def say(text: str) -> None:
    """For people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def in_turn(items: Sequence[Any]) -> Callable[[], Any]:
    """The items one after the other, for ever: several inputs, so that no call finds its own in a cache."""
    place = -1

    def following() -> Any:
        nonlocal place
        place = (place + 1) % len(items)
        return items[place]

    return following
