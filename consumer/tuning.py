"""The search for the settings that label most images, by any measure of images/s. Pure; nothing is measured here.

    axis by axis ──> a race between its values ──> the smallest within 3 % of the best goes on ──> next axis
                     looked at in turns, the worse half out after each turn

A full grid is 600 points on eight cores; this looks at a tenth of them, since the axes hardly depend on each other. A
second way through, which tries the neighbours only, catches most of what is left of that; on a ridge, where one axis
gives what another takes, it may stop a twentieth short. Values are compared only with what was looked at beside them,
so that what else the machine does meets all of them; and what the search liked is held against where it began at the
end, in turns again (`compare`), since the best of many looks is partly luck.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[int, ...]
"""A value for each axis, in the order of the axes."""
Look = Callable[[Point], float | None]
"""Images/s over a short while; None where this point cannot be run, or would take too long."""

TIE = 0.97
"""A larger value must do more than 3 % more images: it costs latency or memory, or takes cores from others."""
ROUNDS = 3
_LEAST_ROUNDS = 3
_NEIGHBOURS = 3
"""Values of an axis that the second way tries: the one it has, and one to each side."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What is searched along: a setting, and its values, ascending."""

    name: str
    values: tuple[int, ...]


@dataclass(slots=True)
class Tried:
    """A point, and the images/s of each look at it."""

    point: Point
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median; 0 where it could not be looked at."""
        return statistics.median(self.rates) if self.rates else 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """Where a search ended."""

    point: Point
    tried: Sequence[Tried]
    """In the order in which they were first looked at."""
    looks: int
    finished: bool
    """False where it was stopped on the way: by its budget."""


@dataclass(frozen=True, slots=True)
class Gain:
    """One point held against another: how many times as fast, in each round."""

    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """1 where there was no round."""
        return statistics.median(self.ratios) if self.ratios else 1.0

    @property
    def least(self) -> float:
        """0 where there was no round."""
        return min(self.ratios, default=0.0)

    @property
    def most(self) -> float:
        """0 where there was no round."""
        return max(self.ratios, default=0.0)

    @property
    def is_known(self) -> bool:
        """Whether there were rounds enough to say: one of two that are equally fast wins twice running every fourth
        time."""
        return len(self.ratios) >= _LEAST_ROUNDS

    @property
    def is_one(self) -> bool:
        """Whether it was faster each time: a gain within the spread is none."""
        return self.is_known and self.least > 1.0

    @property
    def is_no_loss(self) -> bool:
        """Whether it is as fast, to 3 %."""
        return self.is_known and self.median >= TIE


def looks_at_most(axes: Sequence[Axis]) -> int:
    """How many looks `search` takes at most."""
    several = [axis for axis in axes if len(axis.values) > 1]
    return ROUNDS * sum(len(axis.values) + min(_NEIGHBOURS, len(axis.values)) for axis in several)


def search(
    axes: Sequence[Axis],
    start: Point,
    look: Look,
    *,
    may_go_on: Callable[[], bool] = lambda: True,
    settled: Callable[[Point], None] = lambda _point: None,
) -> Found:
    """The best point that a race along each axis leads to, twice around at most.

    Args:
        axes: what is searched along, that which matters most first. An axis of one value is held.
        start: where it begins; each value among its axis's.
        look: measures a point. Called at most `looks_at_most(axes)` times.
        may_go_on: asked before each look. When it says no, what the last whole round of a race showed holds.
        settled: told after each race where it led to: what the others needed may go.
    """
    races = _Races(look, may_go_on)
    at = start
    for way in range(2):
        before = at
        for place, axis in enumerate(axes):
            values = axis.values if way == 0 else _beside(axis.values, at[place])
            if len(values) > 1:
                at = races.run([(*at[:place], value, *at[place + 1 :]) for value in values], at)
                settled(at)
        if at == before:
            break
    return Found(at, list(races.tried.values()), races.looks, not races.stopped)


def compare(challenger: Point, holder: Point, look: Look, *, rounds: int, may_go_on: Callable[[], bool]) -> Gain:
    """Both in turns, `rounds` times at most; every other time the other way round."""
    ratios = []
    for number in range(rounds):
        if not may_go_on():
            break
        pair = (challenger, holder) if number % 2 == 0 else (holder, challenger)
        rates = {point: look(point) for point in pair}
        mine, other = rates[challenger], rates[holder]
        if mine and other:
            ratios.append(mine / other)
    return Gain(tuple(ratios))


def smallest_of_the_best(rates: Mapping[Point, float]) -> Point:
    """The first, in the mapping's order, of those within 3 % of the best. Raises ValueError where there is none."""
    best = max(rates.values())
    return next(point for point, rate in rates.items() if rate >= TIE * best)


def _beside(values: tuple[int, ...], value: int) -> tuple[int, ...]:
    place = values.index(value)
    return values[max(0, place - 1) : place + 2]


class _Races:
    """Races one after the other, and all looks at all points."""

    def __init__(self, look: Look, may_go_on: Callable[[], bool]) -> None:
        self._look = look
        self._may_go_on = may_go_on
        self.tried: dict[Point, Tried] = {}
        self.looks = 0
        self.stopped = False

    def run(self, points: Sequence[Point], holder: Point) -> Point:
        """The winner; `holder` where no round came to its end."""
        rates: dict[Point, list[float]] = {point: [] for point in points}
        left, winner = list(points), holder
        for number in range(ROUNDS):
            for point in left if number % 2 == 0 else reversed(left):
                if self.stopped or not self._may_go_on():
                    self.stopped = True
                    return winner
                rate = self._looked(point)
                if rate is not None:
                    rates[point].append(rate)
            medians = {point: statistics.median(rates[point]) for point in left if rates[point]}
            if not medians:
                return holder
            winner = smallest_of_the_best(medians)
            left = _better_half(medians)
            if len(left) == 1:
                break
        return winner

    def _looked(self, point: Point) -> float | None:
        self.looks += 1
        rate = self._look(point)
        tried = self.tried.setdefault(point, Tried(point))
        if rate is not None:
            tried.rates.append(rate)
        return rate


def _better_half(medians: Mapping[Point, float]) -> list[Point]:
    """And whoever is within 3 % of the best; in the same order."""
    ranked = sorted(medians, key=lambda point: -medians[point])
    near = {point for point, rate in medians.items() if rate >= TIE * medians[ranked[0]]}
    kept = near.union(ranked[: -(-len(ranked) // 2)])
    return [point for point in medians if point in kept]
