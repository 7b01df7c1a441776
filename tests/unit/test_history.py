"""The verifier of histories is itself tried (I8): a model of a consumer whose bugs can be switched on.

Without a bug no history of the model is faulted, whatever the seed; with one, the check that is there for it fires.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.history import (
    SAMPLES_OF_A_LOSS,
    CommittedPartition,
    Line,
    Output,
    Promise,
    Recorder,
    SentInput,
    load,
    same_labels,
    sha256_or_none,
    summarize,
    verify,
)

Bug = Literal[
    "commit before publish",
    "commit the highest finished",
    "drop a message",
    "reorder a key",
    "a zombie commits",
    "random event ids",
    "other labels on redelivery",
    "stuck partition",
    "letter with other bytes",
    "event without an input",
    "other key",
]
PARTITIONS = 2
MESSAGES = 60  # in each partition
KEYS = 3
IN_FLIGHT = 8


class ModelConsumer:
    """A consumer of two partitions in memory: takes work in order, finishes it out of order but each key in order,
    commits the finished prefix, and crashes now and then. An observer samples it as the real one does."""

    def __init__(self, recorder: Recorder, seed: int, bug: Bug | None = None) -> None:
        self._recorder = recorder
        self._random = random.Random(seed)
        self._bug = bug
        self._inputs: dict[int, list[SentInput]] = defaultdict(list)
        self._committed: dict[int, int | None] = dict.fromkeys(range(PARTITIONS))
        self._published: list[Output] = []
        self._observed = 0
        self._answered_before: set[tuple[int, int]] = set()
        self._victim = (self._random.randrange(PARTITIONS), self._random.randrange(10, MESSAGES - 10))
        self._old_commits: list[tuple[int, int]] = []
        self._start_anew()

    def _start_anew(self) -> None:
        """A crash, and the start after it: only what is committed and published remains."""
        self._next = {partition: offset or 0 for partition, offset in self._committed.items()}
        self._taken: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
        self._finished: dict[int, set[int]] = {partition: set() for partition in range(PARTITIONS)}

    def run(self) -> None:
        for number in range(PARTITIONS * MESSAGES):
            partition = number % PARTITIONS
            name = f"image-{number}"
            tombstone = number % 17 == 0
            message = SentInput(
                "images", "id-1", partition, len(self._inputs[partition]), f"key-{self._random.randrange(KEYS)}", name,
                None if tombstone else sha256_or_none(name.encode()),
            )  # fmt: skip
            self._inputs[partition].append(message)
            self._recorder.sent(message)
        for _ in range(4000):
            self._step()
            if all(offset == MESSAGES for offset in self._committed.values()):
                break
        self._recorder.healed(within_s=60)
        self._observe()

    def _step(self) -> None:
        partition = self._random.randrange(PARTITIONS)
        if self._bug == "stuck partition" and partition == self._victim[0] and self._next[partition] > self._victim[1]:
            return
        self._random.choices(
            [
                lambda: self._take(partition),
                lambda: self._finish(partition),
                lambda: self._commit(partition),
                self._observe,
                self._start_anew,
            ],
            weights=[30, 30, 10, 10, 1],
        )[0]()

    def _take(self, partition: int) -> None:
        if len(self._taken[partition]) < IN_FLIGHT and self._next[partition] < MESSAGES:
            self._taken[partition].append(self._next[partition])
            self._next[partition] += 1
            if self._bug == "commit before publish":
                self._committed[partition] = max(self._committed[partition] or 0, self._next[partition])

    def _finish(self, partition: int) -> None:
        waiting = [offset for offset in self._taken[partition] if offset not in self._finished[partition]]
        if not waiting:
            return
        offset = self._random.choice(waiting)
        if self._bug != "reorder a key":  # the first of its key goes first
            key = self._inputs[partition][offset].key
            offset = next(other for other in waiting if self._inputs[partition][other].key == key)
        self._finished[partition].add(offset)
        message = self._inputs[partition][offset]
        if message.sha256 is None or (self._bug == "drop a message" and (partition, offset) == self._victim):
            return
        self._publish(message)

    def _publish(self, message: SentInput) -> None:
        place = (message.partition, message.offset)
        again = place in self._answered_before
        self._answered_before.add(place)
        out = Output(
            form="event",
            topic="predictions",
            partition=message.partition,
            offset=len(self._published),
            key=message.key,
            source_topic=message.topic,
            source_partition=message.partition,
            source_offset=message.offset,
            image_id=message.image_id,
            event_id=f"event-{place}",
            model_digest="sha256:1",
            labels=((7, 0.5 + self._random.uniform(-2e-4, 2e-4)), (3, 0.2)),
        )
        if message.offset % 11 == 5:
            out = replace(out, form="letter", image_id=None, event_id=None, labels=(), sha256=message.sha256)
            if self._bug == "letter with other bytes":
                out = replace(out, sha256=sha256_or_none(b"cut"))
        elif self._bug == "random event ids":
            out = replace(out, event_id=f"{self._random.random()}")
        elif self._bug == "other labels on redelivery" and again:
            out = replace(out, labels=(out.labels[1], out.labels[0]))
        elif self._bug == "event without an input" and place == self._victim:
            self._published.append(replace(out, source_offset=out.source_offset + 10_000))
        if self._bug == "other key" and place == self._victim:
            out = replace(out, key=None)
        self._published.append(out)

    def _commit(self, partition: int) -> None:
        finished = self._finished[partition]
        start = self._committed[partition] or 0
        if self._bug == "commit the highest finished":
            self._committed[partition] = max([start, *(offset + 1 for offset in finished)])
            return
        if self._bug == "a zombie commits" and self._old_commits and self._random.random() < 0.2:
            old_partition, old = self._random.choice(self._old_commits)
            self._committed[old_partition] = old
            return
        end = start
        while end in finished:
            end += 1
        self._committed[partition] = end
        self._old_commits.append((partition, end))

    def _observe(self) -> None:
        """As the real observer: the sample first, then (the consumer having gone on meanwhile) the outputs."""
        sample = self._recorder.sample(
            CommittedPartition("images", "id-1", partition, self._committed[partition], 0, MESSAGES)
            for partition in range(PARTITIONS)
        )
        for output in self._published[self._observed :]:
            self._recorder.output(output)
        self._observed = len(self._published)
        self._recorder.checkpoint(sample)


def history_of_a_model(path: Path, seed: int, bug: Bug | None = None) -> list[Line]:
    with Recorder(path) as recorder:
        ModelConsumer(recorder, seed, bug).run()
    return load(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_consumer_without_a_bug_is_never_faulted(tmp_path: Path, seed: int) -> None:
    history = history_of_a_model(tmp_path / "history.jsonl", seed)
    assert verify(history) == []
    assert verify(history, zombies=True) == []
    summary = summarize(history)
    assert summary.inputs == PARTITIONS * MESSAGES
    assert summary.samples > 10


def test_the_model_redelivers_so_that_its_redeliveries_are_tried(tmp_path: Path) -> None:
    summary = summarize(history_of_a_model(tmp_path / "history.jsonl", seed=1))
    assert summary.duplicate_events > 0
    assert summary.duplicate_letters > 0


@pytest.mark.parametrize(
    ("bug", "promises", "may_follow"),
    [
        ("commit before publish", {"I1", "I2"}, set()),
        ("commit the highest finished", {"I1", "I2"}, set()),
        ("drop a message", {"I1", "I2"}, set()),
        ("reorder a key", {"I4"}, set()),
        ("a zombie commits", {"I3"}, {"I1", "I4", "I6"}),  # the prefix that it took back is never committed again
        ("random event ids", {"I7"}, set()),
        ("other labels on redelivery", {"I7"}, set()),
        ("stuck partition", {"I1", "I6"}, set()),
        ("letter with other bytes", {"altered"}, set()),
        ("event without an input", {"phantom"}, set()),
        ("other key", {"altered"}, set()),
    ],
)
def test_each_seeded_bug_breaks_its_promise(
    tmp_path: Path, bug: Bug, promises: set[Promise], may_follow: set[Promise]
) -> None:
    seeds = range(10)
    caught: dict[Promise, int] = defaultdict(int)
    for seed in seeds:
        for promise in {
            violation.promise for violation in verify(history_of_a_model(tmp_path / f"{seed}.jsonl", seed, bug))
        }:
            caught[promise] += 1
    assert all(caught[promise] >= len(seeds) // 2 for promise in promises), dict(caught)
    assert set(caught) <= promises | may_follow, "no other promise is faulted for it"


# --- one history at a time -----------------------------------------------------------------------------------------


def message(offset: int, *, key: str | None = "a", topic_id: str = "id-1") -> SentInput:
    name = f"image-{topic_id}-{offset}"
    return SentInput("images", topic_id, 0, offset, key, name, sha256_or_none(name.encode()))


def event(to: SentInput, **changes: object) -> Output:
    out = Output(
        form="event",
        topic="predictions",
        partition=0,
        offset=0,
        key=to.key,
        source_topic=to.topic,
        source_partition=to.partition,
        source_offset=to.offset,
        image_id=to.image_id,
        event_id=f"{to.topic_id}-{to.offset}",
        model_digest="sha256:1",
    )
    return replace(out, **changes)  # type: ignore[arg-type]


def committed(offset: int | None, *, end: int = 3, topic_id: str = "id-1") -> CommittedPartition:
    return CommittedPartition("images", topic_id, 0, offset, 0, end)


Write = Callable[[Recorder], None]


def promises_broken(tmp_path: Path, write: Write, **how: bool) -> list[Promise]:
    path = tmp_path / "history.jsonl"
    path.unlink(missing_ok=True)
    with Recorder(path) as recorder:
        write(recorder)
    found = verify(load(path), **how)
    return [violation.promise for violation in found]


def answer_in_order(recorder: Recorder, *offsets: int) -> None:
    for offset in sorted(set(offsets)):
        recorder.sent(message(offset))
    for offset in offsets:
        recorder.output(event(message(offset)))


@pytest.mark.parametrize(
    ("offsets", "fine", "fine_with_zombies"),
    [
        ((0, 1, 2, 3), True, True),
        ((0, 1, 2, 1, 2, 3), True, True),  # a run again
        ((0, 1, 2, 0, 3), True, True),  # one again, then on from the furthest
        ((0, 1, 0, 1, 2, 3), True, True),
        ((0, 2, 1, 3), False, False),
        ((0, 1, 2, 0, 2, 3), False, True),  # a redelivery that leaves one out
    ],
)
def test_order_of_a_key(tmp_path: Path, offsets: tuple[int, ...], fine: bool, fine_with_zombies: bool) -> None:
    assert (promises_broken(tmp_path, lambda r: answer_in_order(r, *offsets)) == []) is fine
    with_zombies = promises_broken(tmp_path, lambda r: answer_in_order(r, *offsets), zombies=True)
    assert (with_zombies == []) is fine_with_zombies


def test_records_without_a_key_have_no_order(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        for offset in (0, 1):
            recorder.sent(message(offset, key=None))
        for offset in (1, 0):
            recorder.output(event(message(offset, key=None)))

    assert promises_broken(tmp_path, write) == []


def test_an_answer_that_the_observer_read_late_is_no_early_commit(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        sample = recorder.sample([committed(1)])
        recorder.output(event(message(0)))
        recorder.checkpoint(sample)

    assert promises_broken(tmp_path, write) == []


def test_a_sample_whose_outputs_were_never_read_to_the_end_proves_nothing(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.sample([committed(1)])
        recorder.checkpoint(recorder.sample([committed(None)]))
        recorder.output(event(message(0)))

    assert promises_broken(tmp_path, write, final=False) == ["I3"], "and only the offset that vanished is seen"


def test_an_answer_after_the_checkpoint_shows_an_early_commit(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.checkpoint(recorder.sample([committed(1)]))
        recorder.output(event(message(0)))

    assert promises_broken(tmp_path, write) == ["I2"]


def test_a_recreated_topic_begins_its_offsets_anew(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        for topic_id in ("id-1", "id-2"):
            recorder.sent(message(0, topic_id=topic_id))
            recorder.sent(message(1, topic_id=topic_id))
            recorder.output(event(message(0, topic_id=topic_id)))
            recorder.output(event(message(1, topic_id=topic_id)))
            recorder.checkpoint(recorder.sample([committed(2 if topic_id == "id-1" else 1, topic_id=topic_id)]))

    assert promises_broken(tmp_path, write) == []


def test_what_retention_took_is_not_owed(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        for offset in range(3):
            recorder.sent(message(offset))
        recorder.excused("images", "id-1", 0, before_offset=2, why="retention")
        recorder.output(event(message(2)))
        recorder.checkpoint(recorder.sample([committed(3)]))

    assert promises_broken(tmp_path, write) == []


def test_an_offset_that_was_reset_may_go_back(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        answer_in_order(recorder, 0, 1)
        recorder.sample([committed(2)])
        recorder.reset()
        recorder.sample([committed(0)])

    assert promises_broken(tmp_path, write) == []


def test_an_answer_to_an_unacknowledged_input_is_neither_owed_nor_a_phantom(tmp_path: Path) -> None:
    maybe = replace(message(0), acknowledged=False)

    def write(recorder: Recorder) -> None:
        recorder.sent(replace(maybe, offset=-1))
        recorder.output(event(maybe))

    assert promises_broken(tmp_path, write) == []


def test_a_second_answer_breaks_exactly_once_only(tmp_path: Path) -> None:
    assert promises_broken(tmp_path, lambda r: answer_in_order(r, 0, 0)) == []
    assert promises_broken(tmp_path, lambda r: answer_in_order(r, 0, 0), exactly_once=True) == ["I1"]


def test_a_second_answer_has_no_reason_where_nothing_was_broken(tmp_path: Path) -> None:
    assert promises_broken(tmp_path, lambda r: answer_in_order(r, 0, 1), undisturbed=True) == []
    assert promises_broken(tmp_path, lambda r: answer_in_order(r, 0, 0), undisturbed=True) == ["I1"]


@pytest.mark.parametrize(("through", "broken"), [(0, []), (2, []), (3, ["I2"])])
def test_a_share_group_is_through_with_no_more_than_is_answered_or_asks_for_nothing(
    tmp_path: Path, through: int, broken: list[Promise]
) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.sent(replace(message(1), sha256=None))
        recorder.sent(message(2))
        recorder.output(event(message(2)))
        recorder.output(event(message(2)))  # a second answer is no other message's
        for _ in range(SAMPLES_OF_A_LOSS):
            group_is_through_with(recorder, through)
        recorder.output(event(message(0)))

    assert promises_broken(tmp_path, write, share=True, final=False) == broken


def test_a_share_group_may_seem_to_be_through_with_more_for_a_moment(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.sent(message(1))
        recorder.output(event(message(0)))
        for _ in range(2):
            for _ in range(SAMPLES_OF_A_LOSS - 1):
                group_is_through_with(recorder, 2)
            group_is_through_with(recorder, 1)

    assert promises_broken(tmp_path, write, share=True, final=False) == []


def group_is_through_with(recorder: Recorder, count: int) -> None:
    sample = recorder.sample([committed(None)])
    recorder.settled(sample, {("images", 0): count})
    recorder.checkpoint(sample)


def test_what_a_share_group_said_proves_nothing_before_the_outputs_were_read_to_their_ends(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.settled(recorder.sample([committed(None)]), {("images", 0): 1})
        recorder.checkpoint(recorder.sample([committed(None)]))

    assert promises_broken(tmp_path, write, share=True, final=False) == []


def test_another_model_may_give_another_id_and_other_labels(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        recorder.sent(message(0))
        recorder.output(event(message(0), labels=((1, 0.9),)))
        recorder.output(event(message(0), labels=((2, 0.9),), event_id="other", model_digest="sha256:2"))

    assert promises_broken(tmp_path, write) == []


def test_two_inputs_may_not_share_an_event_id(tmp_path: Path) -> None:
    def write(recorder: Recorder) -> None:
        for offset in (0, 1):
            recorder.sent(message(offset))
            recorder.output(event(message(offset), event_id="one for all"))

    assert promises_broken(tmp_path, write) == ["I7"]


def test_lag_that_returns_to_zero_too_late_is_a_fault(tmp_path: Path) -> None:
    def write(recorder: Recorder, *, within_s: float) -> None:
        answer_in_order(recorder, 0, 1, 2)
        recorder.healed(within_s=within_s)
        recorder.sample([committed(2)])
        recorder.sample([committed(3)])

    assert promises_broken(tmp_path, lambda r: write(r, within_s=60)) == []
    assert promises_broken(tmp_path, lambda r: write(r, within_s=0)) == ["I6"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([(1, 0.5), (2, 0.3)], [(1, 0.5005), (2, 0.3)], True),
        ([(1, 0.5), (2, 0.3)], [(1, 0.502), (2, 0.3)], False),
        ([(1, 0.5), (2, 0.4995)], [(2, 0.5), (1, 0.4995)], True),  # a near tie
        ([(1, 0.5), (2, 0.3)], [(2, 0.5), (1, 0.3)], False),
        ([(1, 0.5), (2, 0.3)], [(1, 0.5), (3, 0.3004)], True),  # a near tie at the end of the list
        ([(1, 0.5), (2, 0.3)], [(3, 0.5), (2, 0.3)], False),
        ([(1, 0.5)], [(1, 0.5), (2, 0.3)], False),
    ],
)
def test_labels_agree_except_among_near_ties(
    one: list[tuple[int, float]], other: list[tuple[int, float]], same: bool
) -> None:
    assert same_labels(one, other) is same


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Recorder(path) as recorder:
        recorder.reset()
    with path.open("a") as file:
        file.write('{"kind": "res')
    assert [line["kind"] for line in load(path)] == ["reset"]


def test_a_partition_whose_last_stable_offset_stays_behind_breaks_i5(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history.jsonl") as recorder:
        recorder.ends("predictions", 0, stable=3, high=7)  # before the broker gave the transaction up
        recorder.ends("predictions", 0, stable=7, high=7)
        recorder.ends("predictions", 1, stable=3, high=7)
    history = load(tmp_path / "history.jsonl")
    (found,) = verify(history)
    assert (found.promise, found.at_line) == ("I5", 2)
    assert "predictions[1] ends at 7" in found.message
    assert verify(history, final=False) == []


def test_faults_in_a_history_break_nothing(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history.jsonl") as recorder:
        recorder.write("fault", phase="begin", number=0, name="broker killed", params={"broker": 1})
    assert verify(load(tmp_path / "history.jsonl")) == []
