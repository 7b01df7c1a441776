"""How long it took after each fault until everything was as without it. Pure.

A fault's recovery is the time from its end until every input that was acknowledged before that end has an answer which
a read_committed reader has read: an event or a dead letter. That counts the start of a process, the rebalance, and the
work that was left over. Faults overlap, so another's outage counts too: the figures are upper bounds. The reader looks
about ten times a second.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recovered:
    """One fault of a run."""

    kind: str
    number: int
    begin_s: float
    end_s: float
    """Monotonic."""
    recovery_s: float | None
    """None where something sent before its end was never answered."""


def recoveries(history: Sequence[Line]) -> list[Recovered]:
    """Of each fault of a history that ended, in the order of their ends."""
    sent: list[tuple[float, tuple[str, int, int]]] = []
    answered_s: dict[tuple[str, int, int], float] = {}
    begun_s: dict[int, float] = {}
    ends: list[Line] = []
    for line in history:
        match line["kind"]:
            case "sent" if line["sha256"] is not None:
                sent.append((line["at_s"], (line["topic"], line["partition"], line["offset"])))
            case "output":
                where = (line["source_topic"], line["source_partition"], line["source_offset"])
                answered_s.setdefault(where, line["at_s"])
            case "fault" if line["phase"] == "begin":
                begun_s[line["number"]] = line["at_s"]
            case "fault":
                ends.append(line)
    sent.sort()
    times = [at_s for at_s, _ in sent]
    last_answer_s: list[float] = []  # of all that was sent up to here
    for _, where in sent:
        at_s = answered_s.get(where, float("inf"))
        last_answer_s.append(max(at_s, last_answer_s[-1] if last_answer_s else 0.0))
    found = []
    for line in ends:
        before = bisect_right(times, line["at_s"])
        caught_up_s = last_answer_s[before - 1] if before else 0.0
        took_s = round(max(0.0, caught_up_s - line["at_s"]), 3)
        number = line["number"]
        begin_s = begun_s[number]
        found.append(Recovered(line["name"], number, begin_s, line["at_s"], None if isinf(took_s) else took_s))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not exceed. Of at least one.

    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def by_kind(recovered: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """Seconds by kind of fault."""
    found: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in recovered:
        found[kind].append(seconds)
    return dict(found)
