"""Every state that a small model can reach, breadth first, so that the first violation met has the shortest trace.

A model is a start, the steps out of a state, and what is wrong with a state. States are immutable and hashable; two
ways to one state are one state. Steps are marked as faults or not, for the promise that the work gets done: from every
state, however it came about, there must be a way without further faults to one where all is done. Where there is none
the system hangs.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

HANGS = "I5, I6: from here the work is never done, though no fault comes any more"


class Step(NamedTuple, Generic[S]):
    """One thing that may happen next."""

    label: tuple[object, ...]
    """Words; put together only where a trace is shown."""
    to: S
    fault: bool = False
    """Whether nothing obliges it to happen, or it must not be needed: a crash, a time-out, a rebalance."""


class Model(Protocol[S]):
    """What is explored."""

    def start(self) -> S:
        """The one first state."""
        ...

    def steps(self, state: S) -> Iterable[Step[S]]:
        """All that may happen in this state."""
        ...

    def broken(self, state: S) -> str:
        """The promise that this state breaks; empty where it keeps all."""
        ...

    def done(self, state: S) -> bool:
        """Whether all work is done and settled."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What an exploration came to."""

    states: int
    steps: int
    depth: int
    """Steps of the longest of the shortest ways: from the start to the state that is furthest from it."""
    complete: bool
    """Whether no state was left out."""
    broken: str = ""
    """The promise that was broken first; empty for none."""
    trace: tuple[str, ...] = ()
    """The shortest way there."""

    def __str__(self) -> str:
        whole = "all" if self.complete else "the first"
        counts = f"{whole} {self.states:,} states, {self.steps:,} steps, at most {self.depth} deep"
        if not self.broken:
            return f"{counts}: every promise is kept"
        return "\n".join([self.broken, *(f"{number:4} {step}" for number, step in enumerate(self.trace, 1)), counts])


class TooManyStates(Exception):
    """The model is larger than it was meant to be: an exploration that stops half-way proves nothing."""


def explore(model: Model[S], *, most_states: int = 1_000_000) -> Found:
    """Go through all states, or to the first that breaks a promise.

    Raises:
        TooManyStates: there are more than `most_states`.
    """
    start = model.start()
    states, numbers = [start], {start: 0}
    came: list[tuple[int, tuple[object, ...]]] = [(-1, ())]
    depths, back = [0], [[-1]]
    steps = at = 0

    def found(number: int, broken: str, *, complete: bool) -> Found:
        return Found(len(states), steps, max(depths), complete, broken, _trace(came, number) if broken else ())

    if broken := model.broken(start):
        return found(0, broken, complete=False)
    while at < len(states):
        for label, to, fault in model.steps(states[at]):
            steps += 1
            number = numbers.get(to)
            if number is None:
                number = numbers[to] = len(states)
                states.append(to)
                came.append((at, label))
                depths.append(depths[at] + 1)
                back.append([])
                if broken := model.broken(to):
                    return found(number, broken, complete=False)
                if number >= most_states:
                    raise TooManyStates(f"more than {most_states:,}")
            if not fault:
                back[number].append(at)
        at += 1
    hangs = _first_that_hangs(model, states, back)
    return found(0, "", complete=True) if hangs is None else found(hangs, HANGS, complete=True)


def _first_that_hangs(model: Model[S], states: list[S], back: list[list[int]]) -> int | None:
    """The state nearest to the start from which no way without a fault leads to one that is done."""
    reaches = bytearray(len(states))
    waiting = deque(number for number, state in enumerate(states) if model.done(state))
    for number in waiting:
        reaches[number] = True
    while waiting:
        for before in back[waiting.popleft()]:
            if before >= 0 and not reaches[before]:
                reaches[before] = True
                waiting.append(before)
    first = reaches.find(0)
    return None if first < 0 else first


def _trace(came: list[tuple[int, tuple[object, ...]]], number: int) -> tuple[str, ...]:
    words = []
    while number > 0:
        number, label = came[number]
        words.append(" ".join(map(str, label)))
    return tuple(reversed(words))
