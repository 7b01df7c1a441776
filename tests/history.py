"""What happened in a run, as JSON lines, and the verifier that holds the promises I1 to I7 against it.

`Recorder` writes the lines, `verify` judges them; `tests/observer.py` watches a real cluster and feeds a recorder.

Lines, by `kind`:

* `sent`        an input that the broker acknowledged
* `maybe_sent`  an input whose acknowledgement never came: it may be there, and nothing is owed for it
* `sample`      the group's committed offsets and the input's end offsets at one moment
* `output`      one record of the output or the dead-letter topic
* `settled`     how many messages of each partition a share group is through with: no fewer at sample N, or soon after
* `checkpoint`  every output up to the end *as of after* sample N and its `settled` has been written before this line
* `excused`     inputs below an offset for which nothing is owed: retention took them, the topic was deleted, the
                group began behind them
* `reset`       a person moved the group's offsets: going back is no fault from here on
* `healed`      a fault is over; the lag has to be zero once within so many seconds from here
* `ends`        a partition's last stable offset and its high watermark, once all faults are over
* `fault`       a fault begins or ends; no promise depends on it
"""

import base64
import hashlib
import json
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

SCORE_TOLERANCE = 1e-3

Promise = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7", "phantom", "altered"]


class Coordinates(NamedTuple):
    """Where an input lies. A recreated topic has another id."""

    topic: str
    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    promise: Promise
    message: str
    at_line: int
    """Number of the line of the history at which it showed, from 0."""
    place: tuple[str, int, int | None] | None = None
    """Topic, partition and offset of the input that it is about, or of the partition alone, where it is about one."""

    def __str__(self) -> str:
        return f"{self.promise}: {self.message} (line {self.at_line})"


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts that are no fault but worth a line."""

    inputs: int
    events: int
    letters: int
    duplicate_events: int
    duplicate_letters: int
    samples: int


@dataclass(frozen=True, slots=True)
class SentInput:
    """Line `sent`, or `maybe_sent` with `acknowledged` False (its offset is then -1)."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    key: str | None
    """Base64."""
    image_id: str | None
    """What a label event of it says; None where the sender leaves that to the service."""
    sha256: str | None
    """Of the message's value; None for a tombstone."""
    acknowledged: bool = True

    @property
    def owes_nothing(self) -> bool:
        """Whether no answer is due: a tombstone, or never acknowledged."""
        return self.sha256 is None or not self.acknowledged


@dataclass(frozen=True, slots=True)
class Output:
    """Line `output`: a label event or a dead letter, with the coordinates of the input that it says it answers."""

    form: Literal["event", "letter"]
    topic: str
    partition: int
    offset: int
    key: str | None
    source_topic: str
    source_partition: int
    source_offset: int
    image_id: str | None = None
    event_id: str | None = None
    model_digest: str | None = None
    labels: tuple[tuple[int, float], ...] = ()
    """(class index, score), best first."""
    sha256: str | None = None
    """Of a letter's value, or what its header says of a value that was too large."""
    error: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class CommittedPartition(NamedTuple):
    """One partition in a sample."""

    topic: str
    topic_id: str
    partition: int
    committed: int | None
    begin: int
    end: int

    @property
    def lag(self) -> int:
        """Offsets from what is committed (or the beginning) to the last stable offset."""
        return self.end - (self.begin if self.committed is None else self.committed)


def place_of(where: Coordinates) -> tuple[str, int, int | None]:
    """Where it lies, whatever the topic's id."""
    return where.topic, where.partition, where.offset


def base64_or_none(data: bytes | None) -> str | None:
    """How keys stand in a history."""
    return None if data is None else base64.b64encode(data).decode()


def sha256_or_none(data: bytes | None) -> str | None:
    """How values stand in a history."""
    return None if data is None else hashlib.sha256(data).hexdigest()


class Recorder:
    """Appends lines to a history. Thread-safe; each line is flushed, so that a verifier may read along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._samples = 0

    def write(self, kind: str, **fields: Any) -> None:
        """One line of any kind, stamped with monotonic seconds."""
        with self._lock:
            self._file.write(json.dumps({"kind": kind, "at_s": time.monotonic(), **fields}) + "\n")
            self._file.flush()

    def sent(self, message: SentInput) -> None:
        """An input."""
        self.write("sent" if message.acknowledged else "maybe_sent", **asdict(message))

    def output(self, output: Output) -> None:
        """A record of the output or the dead-letter topic."""
        self.write("output", **asdict(output))

    def sample(self, partitions: Iterable[CommittedPartition]) -> int:
        """Committed offsets; returns the number for `checkpoint`."""
        self._samples += 1
        self.write("sample", number=self._samples, partitions=[list(partition) for partition in partitions])
        return self._samples

    def settled(self, sample: int, counts: Mapping[tuple[str, int], int]) -> None:
        """At this sample the group had acknowledged, or given up, at least so many messages, by topic and partition."""
        self.write("settled", sample=sample, counts=[[*place, count] for place, count in counts.items()])

    def checkpoint(self, sample: int) -> None:
        """All outputs up to the ends as of after this sample are written."""
        self.write("checkpoint", sample=sample)

    def excused(self, topic: str, topic_id: str, partition: int, *, before_offset: int, why: str) -> None:
        """Nothing is owed for these inputs any more."""
        self.write("excused", topic=topic, topic_id=topic_id, partition=partition, before_offset=before_offset, why=why)

    def reset(self) -> None:
        """The group's offsets were moved on purpose."""
        self.write("reset")

    def healed(self, *, within_s: float) -> None:
        """A fault is over and nothing more is sent: lag must reach zero within this time."""
        self.write("healed", within_s=within_s)

    def ends(self, topic: str, partition: int, *, stable: int, high: int) -> None:
        """Where a partition ends for readers of committed records, and for all."""
        self.write("ends", topic=topic, partition=partition, stable=stable, high=high)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Line = dict[str, Any]


def load(path: Path) -> list[Line]:
    """The lines of a history; a last one that is still being written is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


# --- the verifier --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Parsed:
    """A history sorted into what the checks ask for."""

    inputs: dict[Coordinates, SentInput] = field(default_factory=dict)
    unacknowledged: list[SentInput] = field(default_factory=list)
    outputs: list[tuple[int, Output]] = field(default_factory=list)
    answers: dict[Coordinates, list[tuple[int, Output]]] = field(default_factory=lambda: defaultdict(list))
    excused: dict[tuple[str, str, int], int] = field(default_factory=dict)
    samples: list[tuple[int, float, int, list[CommittedPartition]]] = field(default_factory=list)
    """(line, at_s, number, partitions)"""
    settled: list[tuple[int, int, dict[tuple[str, int], int]]] = field(default_factory=list)
    """(line, number of the sample, how many by topic and partition)"""
    checkpoints: dict[int, int] = field(default_factory=dict)
    """number of the sample -> line"""
    resets: list[int] = field(default_factory=list)
    healed: list[tuple[int, float, float]] = field(default_factory=list)
    """(line, at_s, within_s)"""
    strangers: list[tuple[int, Output]] = field(default_factory=list)
    ends: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)
    """(topic, partition) -> (line, last stable offset, high watermark), as last seen"""

    def owed(self) -> list[Coordinates]:
        """Inputs that must be answered, by place."""
        return sorted(
            where
            for where, message in self.inputs.items()
            if not message.owes_nothing and where.offset >= self.excused.get(where[:3], 0)
        )


def _parse(lines: Sequence[Line]) -> _Parsed:
    parsed = _Parsed()
    for number, line in enumerate(lines):
        fields = {name: value for name, value in line.items() if name not in {"kind", "at_s"}}
        match line["kind"]:
            case "sent":
                message = SentInput(**fields)
                where = Coordinates(message.topic, message.topic_id, message.partition, message.offset)
                parsed.inputs[where] = message
            case "maybe_sent":
                parsed.unacknowledged.append(SentInput(**fields))
            case "output":
                labels = tuple((int(index), float(score)) for index, score in fields.pop("labels"))
                parsed.outputs.append((number, Output(labels=labels, **fields)))
            case "sample":
                partitions = [CommittedPartition(*partition) for partition in fields["partitions"]]
                parsed.samples.append((number, line["at_s"], fields["number"], partitions))
            case "settled":
                counts = {(topic, partition): count for topic, partition, count in fields["counts"]}
                parsed.settled.append((number, fields["sample"], counts))
            case "checkpoint":
                parsed.checkpoints[fields["sample"]] = number
            case "excused":
                place = (fields["topic"], fields["topic_id"], fields["partition"])
                parsed.excused[place] = max(parsed.excused.get(place, 0), fields["before_offset"])
            case "reset":
                parsed.resets.append(number)
            case "healed":
                parsed.healed.append((number, line["at_s"], fields["within_s"]))
            case "ends":
                parsed.ends[fields["topic"], fields["partition"]] = (number, fields["stable"], fields["high"])
            case "fault":
                pass
            case other:
                raise ValueError(f"line {number}: unknown kind {other!r}")
    _match_answers(parsed)
    return parsed


def _match_answers(parsed: _Parsed) -> None:
    """Hand each output to the input that it answers. Of a topic that was recreated two inputs may have the same
    partition and offset: the image id, or a letter's bytes, tell which."""
    by_place: dict[tuple[str, int, int], list[Coordinates]] = defaultdict(list)
    for where in parsed.inputs:
        by_place[where.topic, where.partition, where.offset].append(where)
    for number, output in parsed.outputs:
        candidates = by_place.get((output.source_topic, output.source_partition, output.source_offset), [])
        fitting = [where for where in candidates if _fits(output, parsed.inputs[where])]
        if not fitting and len(candidates) == 1:
            fitting = candidates  # the right place and the wrong content: `altered` says so
        if fitting:
            parsed.answers[fitting[-1]].append((number, output))
        else:
            parsed.strangers.append((number, output))


def _fits(output: Output, message: SentInput) -> bool:
    if output.form == "event":
        return message.image_id is None or output.image_id == message.image_id
    return output.sha256 == message.sha256


def verify(
    history: Sequence[Line],
    *,
    final: bool = True,
    exactly_once: bool = False,
    zombies: bool = False,
    share: bool = False,
    undisturbed: bool = False,
) -> list[Violation]:
    """Every broken promise in a history; empty when all were kept.

    Args:
        final: the run is over. False leaves out what may still come (I1, I6).
        exactly_once: a second answer breaks I1 too. I2 is not looked at in passing: the markers that make a committed
            transaction visible are written to each partition by itself, the offsets' often before the events'. That
            nothing is committed without its answer then shows at the end (I1).
        zombies: a replica was held past its session and went on later, so that two redeliveries of a key may lie
            inside one another; I4 then only looks at the first event of each input.
        share: a share group has read it, which has no order (I4); nor has it committed offsets (I3, I6), and a
            history without them shows no such fault. For I2 its `settled` lines are looked at.
        undisturbed: nothing was broken and nobody came or went, so that no guarantee has a reason for a second answer.
    """
    parsed = _parse(history)
    found = [
        *(() if exactly_once else _check_commits_cover_answers(parsed)),
        *_check_settled_are_answered(parsed),
        *_check_commits_never_go_back(parsed),
        *([] if share else _check_order_of_keys(parsed, zombies=zombies)),
        *_check_same_answer_again(parsed),
        *_check_strangers(parsed),
        *_check_content(parsed),
    ]
    if final:
        end = len(history)
        found += _check_all_answered(parsed, end, once=exactly_once or undisturbed)
        found += _check_no_transaction_hangs(parsed)
        found += _check_lag_returns_to_zero(parsed)
    return sorted(found, key=lambda violation: violation.at_line)


def summarize(history: Sequence[Line]) -> Summary:
    """Counts of a run."""
    parsed = _parse(history)
    times: Counter[tuple[Coordinates, str]] = Counter()
    for where, answers in parsed.answers.items():
        times.update((where, output.form) for _, output in answers)

    def duplicates(form: str) -> int:
        return sum(count - 1 for (_, of), count in times.items() if of == form)

    forms = Counter(output.form for _, output in parsed.outputs)
    return Summary(
        inputs=len(parsed.inputs),
        events=forms["event"],
        letters=forms["letter"],
        duplicate_events=duplicates("event"),
        duplicate_letters=duplicates("letter"),
        samples=len(parsed.samples),
    )


def _check_all_answered(parsed: _Parsed, end: int, *, once: bool) -> list[Violation]:
    """I1: at least one event or letter for every acknowledged input that is not a tombstone; with `once` only one."""
    found = []
    for where in parsed.owed():
        answers = parsed.answers.get(where, [])
        if not answers:
            found.append(Violation("I1", f"{where} was never answered", end, place_of(where)))
        if once and len(answers) > 1:
            message = f"{where} was answered {len(answers)} times"
            found.append(Violation("I1", message, answers[1][0], place_of(where)))
    return found


def _check_commits_cover_answers(parsed: _Parsed) -> list[Violation]:
    """I2: a committed offset lies behind no input that is unanswered.

    A sample is read first and the outputs after it, to their ends as of then: an answer that the broker had
    acknowledged before the commit is certainly among the lines before the checkpoint. So what is missing there was
    committed too early, however slow the observer is.
    """
    owed: dict[tuple[str, str, int], list[Coordinates]] = defaultdict(list)
    for where in reversed(parsed.owed()):
        owed[where[:3]].append(where)  # the lowest is the last
    first_answer = {where: answers[0][0] for where, answers in parsed.answers.items()}
    found = []
    for line, _, number, partitions in parsed.samples:
        read_until = parsed.checkpoints.get(number)
        if read_until is None:  # the observer was interrupted: this sample proves nothing
            continue
        for partition in partitions:
            left = owed[partition[:3]]
            while left and left[-1].offset < (partition.committed or 0):
                where = left.pop()  # the first commit past it tells: answered by now, it is answered later too
                if first_answer.get(where, read_until + 1) > read_until:
                    message = f"{partition.committed} was committed while {where} had no answer yet"
                    found.append(Violation("I2", message, line, place_of(where)))
    return found


SAMPLES_OF_A_LOSS = 20
"""In a row, some seconds' worth."""


def _check_settled_are_answered(parsed: _Parsed) -> list[Violation]:
    """I2 of a share group: it is through with no more messages than have an answer, or ask for none.

    Acknowledged without an answer, or given up by the broker for its many deliveries: what the group no longer has, and
    nobody has answered, is lost. Which message it was the broker does not tell, only how many there are.

    A loss stays. For a moment the count may be ahead: a broker that has just become the partition's leader takes its
    end for earlier than it is, and so the lag for less (seen with Kafka 4.4).
    """
    if not parsed.settled:
        return []
    places: set[tuple[str, int, int]] = set()
    first_answers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for line, output in parsed.outputs:
        place = (output.source_topic, output.source_partition, output.source_offset)
        if place not in places:
            places.add(place)
            first_answers[place[:2]].append(line)
    free: Counter[tuple[str, int]] = Counter()
    for where, message in parsed.inputs.items():
        free[where.topic, where.partition] += message.sha256 is None
    unplaced = sum(message.sha256 is None for message in parsed.unacknowledged)
    found = []
    ahead: Counter[tuple[str, int]] = Counter()
    for line, number, counts in parsed.settled:
        read_until = parsed.checkpoints.get(number)
        if read_until is None:
            continue
        for of, count in counts.items():
            answers = bisect_left(first_answers[of], read_until)
            owed_nothing = free[of] + unplaced
            ahead[of] = ahead[of] + 1 if count > answers + owed_nothing else 0
            if ahead[of] == SAMPLES_OF_A_LOSS:
                text = (
                    f"the share group is through with {count} messages of {of[0]}[{of[1]}], of which {answers} have an"
                    f" answer and {owed_nothing} ask for none"
                )
                found.append(Violation("I2", text, line, (*of, None)))
    return found


def _check_commits_never_go_back(parsed: _Parsed) -> list[Violation]:
    """I3: of one topic id and partition, over time."""
    found = []
    highest: dict[tuple[str, str, int], int] = {}
    resets = list(parsed.resets)
    for line, _, _, partitions in parsed.samples:
        while resets and resets[0] < line:
            highest.clear()
            resets.pop(0)
        for partition in partitions:
            place = partition[:3]
            before = highest.get(place)
            if before is not None and (partition.committed is None or partition.committed < before):
                message = f"{partition.topic}[{partition.partition}] went back from {before} to {partition.committed}"
                found.append(Violation("I3", message, line, (partition.topic, partition.partition, None)))
            if partition.committed is not None:
                highest[place] = partition.committed
    return found


def _check_order_of_keys(parsed: _Parsed, *, zombies: bool) -> list[Violation]:
    """I4: the events of a key follow its inputs; a redelivery may go back and repeat a run of them.

    From one event to the next of the same key the input may go on by one, go back, or take up again after the
    furthest that was reached. It may not jump over an input that has not had its event.
    """
    owner = {id(output): where for where, answers in parsed.answers.items() for _, output in answers}
    events: dict[tuple[Any, ...], list[tuple[int, Output, Coordinates]]] = defaultdict(list)
    for number, output in parsed.outputs:
        where = owner.get(id(output))
        if output.form == "event" and where is not None and output.key is not None:
            chain = (output.topic, output.partition, output.key, *where[:3])
            events[chain].append((number, output, where))
    found = []
    for chain, sequence in sorted(events.items()):
        by_letter = {where for _, _, where in sequence if any(o.form == "letter" for _, o in parsed.answers[where])}
        inputs = sorted({where.offset for _, _, where in sequence if where not in by_letter})
        rank = {offset: place for place, offset in enumerate(inputs)}
        current = furthest = -1
        for number, _, where in sequence:
            if where in by_letter:
                continue
            at = rank[where.offset]
            steps_on = at == furthest + 1 or (zombies and at <= furthest)
            if not (steps_on or at == current + 1 or at <= current):
                last = inputs[current] if current >= 0 else "nothing"
                message = (
                    f"key {chain[2]}: after {last} came {where}, and {inputs[max(current, -1) + 1]} was passed over"
                )
                found.append(Violation("I4", message, number, place_of(where)))
            current = at
            furthest = max(furthest, at)
    return found


def _check_no_transaction_hangs(parsed: _Parsed) -> list[Violation]:
    """I5: readers of committed records come to the end of every partition."""
    return [
        Violation("I5", f"{topic}[{partition}] ends at {high}, and its last stable offset is {stable}", line)
        for (topic, partition), (line, stable, high) in parsed.ends.items()
        if stable < high
    ]


def _check_lag_returns_to_zero(parsed: _Parsed) -> list[Violation]:
    """I6: within the stated time after a fault, one sample without lag."""
    found = []
    for line, healed_s, within_s in parsed.healed:
        in_time = [partitions for _, at_s, _, partitions in parsed.samples if healed_s <= at_s <= healed_s + within_s]
        if any(all(partition.lag <= 0 for partition in partitions) for partitions in in_time):
            continue
        last = {f"{p.topic}[{p.partition}]": p.lag for p in in_time[-1] if p.lag > 0} if in_time else "no sample"
        found.append(Violation("I6", f"lag did not return to zero within {within_s:g} s: {last}", line))
    return found


def _check_same_answer_again(parsed: _Parsed) -> list[Violation]:
    """I7: same input and model, same event id and labels; and no event id belongs to two inputs."""
    found = []
    owner_of_id: dict[str, Coordinates] = {}
    for where, answers in parsed.answers.items():
        first_of_model: dict[str | None, Output] = {}
        for number, output in answers:
            if output.form != "event" or output.event_id is None:
                continue
            if owner_of_id.setdefault(output.event_id, where) != where:
                message = f"{where} and {owner_of_id[output.event_id]} share event id {output.event_id}"
                found.append(Violation("I7", message, number, place_of(where)))
            first = first_of_model.setdefault(output.model_digest, output)
            if first.event_id != output.event_id:
                message = f"{where} has event ids {first.event_id} and {output.event_id} from one model"
                found.append(Violation("I7", message, number, place_of(where)))
            if not same_labels(first.labels, output.labels):
                message = f"{where} was labelled {first.labels} and then {output.labels} by one model"
                found.append(Violation("I7", message, number, place_of(where)))
    return found


def same_labels(one: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> bool:
    """Whether two answers agree: the same classes in the same order, except among scores within 1e-3."""
    if len(one) != len(other):
        return False
    scores = dict(other)
    for (index, score), (other_index, other_score) in zip(one, other, strict=True):
        if abs(score - other_score) > SCORE_TOLERANCE:
            return False
        if index == other_index:
            continue
        # Changed places with a near tie, or fell off the end of the list by one.
        its_score = scores.get(index, other[-1][1])
        if abs(score - its_score) > SCORE_TOLERANCE:
            return False
    return True


def _check_strangers(parsed: _Parsed) -> list[Violation]:
    """No answer without an input."""
    maybe_ids = {message.image_id for message in parsed.unacknowledged}
    maybe_values = {message.sha256 for message in parsed.unacknowledged}
    return [
        Violation(
            "phantom",
            f"{output.form} for {output.source_topic}[{output.source_partition}]@{output.source_offset}"
            f" ({output.image_id}), which was never sent",
            number,
            (output.source_topic, output.source_partition, output.source_offset),
        )
        for number, output in parsed.strangers
        if not (output.image_id in maybe_ids if output.form == "event" else output.sha256 in maybe_values)
    ]


def _check_content(parsed: _Parsed) -> list[Violation]:
    """Answers keep the key; an event names its image; a letter has the original bytes."""
    found = []
    for where, answers in parsed.answers.items():
        message = parsed.inputs[where]
        for number, output in answers:
            if output.key != message.key:
                text = f"{where}: key {message.key} became {output.key}"
                found.append(Violation("altered", text, number, place_of(where)))
            if not _fits(output, message):
                kept = "image id" if output.form == "event" else "bytes"
                text = f"{where}: its {output.form} has other {kept}"
                found.append(Violation("altered", text, number, place_of(where)))
    return found
