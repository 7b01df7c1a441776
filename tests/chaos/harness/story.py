"""The smallest story of a broken promise: what the history has of that input or partition, the faults around it, and
how to see it again. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.history import Violation

Line = Mapping[str, Any]

_MAX_LINES = 60
_FAULTS_BEFORE_S = 30.0
_CUT = 300
_COMMITS_AROUND = 20


def story(history: Sequence[Line], violation: Violation, *, replay: str, seed: int) -> str:
    """For people. Times are seconds since the history's begin."""
    begun_s = history[0]["at_s"] if history else 0.0
    lines: list[str] = []
    committed = ""
    progress = "settled" if any(line["kind"] == "settled" for line in history) else "sample"
    for number, line in enumerate(history):
        if line["kind"] in {"settled", "sample"} - {progress}:  # a share group commits no offsets
            continue
        text = _told(line, violation)
        if line["kind"] == progress:  # a commit is told of once
            text, committed = (None if text == committed else text), text or committed
        if text is not None:
            lines.append(f"{line['at_s'] - begun_s:9.3f} s  line {number}: {text}")
    if len(lines) > _MAX_LINES:
        half = _MAX_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - _MAX_LINES} lines ...", *lines[-half:]]
    at_line = min(violation.at_line, len(history) - 1)
    at_s = history[at_line]["at_s"] if history else 0.0
    return "\n".join(
        [
            f"{violation}",
            f"  seed {seed}; again: {replay}",
            "  faults around it:",
            *(f"    {text}" for text in _faults(history, begun_s, at_s - _FAULTS_BEFORE_S, at_s)),
            "  what the history has of it:",
            *(f"    {text}" for text in lines),
        ]
    )


def _told(line: Line, violation: Violation) -> str | None:
    """What a line says of what the violation is about; None where it says nothing."""
    if violation.place is None:
        return None
    topic, partition, offset = violation.place
    match line["kind"]:
        case "sent" if (line["topic"], line["partition"]) == (topic, partition) and line["offset"] == offset:
            return _cut(line)
        case "output" if (line["source_topic"], line["source_partition"]) == (topic, partition) and (
            line["source_offset"] == offset
        ):
            return _cut({name: value for name, value in line.items() if name not in {"headers", "labels"}})
        case "sample":
            return _of_partition(line, topic, partition, offset)
        case "settled":
            counts = [each[2] for each in line["counts"] if tuple(each[:2]) == (topic, partition)]
            return f"the share group is through with {counts[0]} messages" if counts else None
        case "excused" | "ends" if (line["topic"], line["partition"]) == (topic, partition):
            return _cut(line)
        case "healed" | "reset":
            return _cut(line)
    return None


def _of_partition(sample: Line, topic: str, partition: int, offset: int | None) -> str | None:
    for name, _id, number, committed, begin, end in sample["partitions"]:
        near = offset is None or (committed is not None and abs(committed - offset) <= _COMMITS_AROUND)
        if (name, number) == (topic, partition) and near:
            return f"committed {committed} of the log from {begin} to {end}"
    return None


def _faults(history: Iterable[Line], begun_s: float, from_s: float, to_s: float) -> list[str]:
    open_: dict[int, Line] = {}
    found = []
    for line in history:
        if line["kind"] != "fault":
            continue
        if line["phase"] == "begin":
            open_[line["number"]] = line
            continue
        began = open_.pop(line["number"], line)
        if line["at_s"] >= from_s and began["at_s"] <= to_s:
            found.append(_fault(began, f"{line['at_s'] - begun_s:.1f}", begun_s))
    found += [_fault(line, "(still on)", begun_s) for line in open_.values() if line["at_s"] <= to_s]
    return found or ["none"]


def _fault(began: Line, until: str, begun_s: float) -> str:
    params = ", ".join(f"{name} {value}" for name, value in began["params"].items())
    return f"{began['at_s'] - begun_s:.1f} to {until} s: {began['name']} ({params or 'as it is'})"


def _cut(line: Line) -> str:
    text = json.dumps({name: value for name, value in line.items() if name != "at_s"})
    return text if len(text) <= _CUT else f"{text[:_CUT]}..."
