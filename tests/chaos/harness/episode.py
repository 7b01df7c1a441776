"""One run: replicas, a steady sender, the schedule of faults, then quiet, and the verdict."""

import contextlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from confluent_kafka import KafkaException

from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.faults import Playing
from tests.chaos.harness.plan import KINDS, Plan
from tests.chaos.harness.recovery import recoveries
from tests.chaos.harness.sender import Sender, Store
from tests.chaos.harness.stage import Stage
from tests.chaos.harness.story import story
from tests.history import Promise, Violation, load, summarize, verify
from tests.kafka_clients import count_records, stable_and_high
from tests.runs import Run
from tests.share_lag import ShareLag

_TURN_S = 0.1
_VERIFY_EVERY_S = 10.0
_READY_S = 180.0
_SETTLE_S = 60.0
"""For transactions to end, and for the observer's last round."""

_NOT_PROMISED: Mapping[str, frozenset[Promise]] = {
    # Share groups have no committed offsets and keep no order; that lag returns to zero is asked of the answers, and
    # that nothing is acknowledged before its answer (I2) of the broker's count.
    "share": frozenset({"I3", "I4", "I6"}),
}
_ONLY_AT_THE_END: frozenset[Promise] = frozenset({"phantom"})
"""An answer may be read before the sender has heard that its input was taken."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    seed: int
    guarantee: str
    replicas: int
    partitions: int
    protocol: str
    faults: tuple[tuple[str, float | None], ...]
    """Kind of each fault that was done, and the seconds from its end to recovery."""
    inputs: int
    lost: int
    duplicates: int
    """Answers beyond the first, as a read_committed reader sees them."""
    phantoms: int
    uncommitted: int
    """Records of the output and the dead letters that only a read_uncommitted reader sees."""
    violations: tuple[str, ...]
    promises: tuple[str, ...]
    """Which promises were broken."""
    exits: Mapping[str, int]
    """How often a replica ended by itself, by exit code."""
    good_letters: Mapping[str, int]
    """Dead letters of photographs that were whole, by error."""
    seconds: float
    folder: str
    stories: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not self.violations

    def dump(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


class _Judge:
    """Verifies the history every now and then, in a thread of its own."""

    def __init__(self, plan: Plan, history: Path) -> None:
        self._plan = plan
        self._history = history
        self._done = threading.Event()
        self.found: list[Violation] = []
        self._thread = threading.Thread(target=self._work, name="judge", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    @property
    def done_with_it(self) -> bool:
        """Whether a seeded bug was seen: then there is nothing more to learn from the run."""
        return bool(self._plan.bug and self.found)

    def _work(self) -> None:
        every_s = 1.0 if self._plan.bug else _VERIFY_EVERY_S
        while not self._done.wait(every_s):
            found = judged(self._plan, load(self._history), final=False)
            self.found = [each for each in found if each.promise not in _ONLY_AT_THE_END]


def judged(plan: Plan, history: Sequence[dict[str, Any]], *, final: bool) -> list[Violation]:
    """The broken promises, of those that this guarantee makes."""
    exactly_once = plan.guarantee == "exactly_once"
    found = verify(
        history,
        final=final,
        exactly_once=exactly_once,
        zombies=plan.zombies and not exactly_once,
        share=plan.guarantee == "share",
        undisturbed=not plan.faults,
    )
    not_promised = _NOT_PROMISED.get(plan.guarantee, frozenset[Promise]())
    if not plan.keeps_order:
        not_promised |= {"I4"}
    return [violation for violation in found if violation.promise not in not_promised]


def run_episode(
    plan: Plan,
    brokers: Brokers,
    folder: Path,
    photographs: Sequence[Path],
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Play a plan in `folder` (made, with `plan.json`, `history.jsonl`, logs and `result.json`) and judge it.

    With a seeded bug it ends with the first broken promise.

    Raises:
        ValueError: it asks for more of the platform than `brokers` have, or its faults for more than it says.
    """
    _check_platform(plan, brokers)
    began_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    plan.dump(folder / "plan.json")
    brokers.ensure_running()
    (folder / "history.jsonl").unlink(missing_ok=True)
    with _staged(plan, brokers, folder, photographs) as (stage, run):
        say("replicas start")
        if plan.backlog:
            run.send(stage.sender.inputs(plan.backlog))
        for number in range(plan.replicas):
            stage.members.append(stage.member(f"replica-{number}"))
            stage.members[-1].start()
        with _Judge(plan, run.history_path) as judge:
            _until(lambda: all(member.ready for member in stage.members), stage, _READY_S)
            stage.sender.start()
            say("faults")
            _play(stage, judge)
            if not judge.done_with_it:
                say("healed")
                _heal(stage, run, judge)
        result = _verdict(plan, stage, run, judge, folder, began_s)
    result.dump(folder / "result.json")
    return result


def _check_platform(plan: Plan, brokers: Brokers) -> None:
    needed = {need for fault in plan.faults if (need := KINDS[fault.kind].needs)}
    if missing := needed - set(plan.platform):
        raise ValueError(f"the plan has faults that need {', '.join(sorted(missing))}, and does not say so")
    if missing := set(plan.platform) - set(brokers.platform):
        raise ValueError(f"the brokers were made without {', '.join(sorted(missing))}")


@contextlib.contextmanager
def _staged(plan: Plan, brokers: Brokers, folder: Path, photographs: Sequence[Path]) -> Iterator[tuple[Stage, Run]]:
    with Store(photographs, host=brokers.host("clients")) as store:
        # The run opens its recorder at once, and the stage names the topics that it watches.
        stage = Stage(plan, brokers, folder)
        stage.make_topics()
        share = plan.guarantee == "share"
        with (
            contextlib.closing(ShareLag(brokers, stage.topics.group)) as lag,
            Run(brokers, stage.topics, folder, share=share, lag=lag if share else None) as run,
        ):
            stage.recorder = run.recorder
            stage.store = store
            stage.sender = Sender(run, plan, photographs, store)
            try:
                yield stage, run
            finally:
                stage.close()
                with contextlib.suppress(AssertionError, RuntimeError):
                    stage.sender.stop(30)
        stage.delete_topics()


def _play(stage: Stage, judge: _Judge) -> None:
    """The schedule, and images all the while."""
    playing = Playing(stage)
    begun_s = time.monotonic()
    try:
        while not playing.over or time.monotonic() - begun_s < stage.plan.seconds:
            playing.turn()
            stage.tend()
            if judge.done_with_it:
                break
            time.sleep(_TURN_S)
    finally:
        playing.heal()


def _heal(stage: Stage, run: Run, judge: _Judge) -> None:
    """No fault is left: the brokers are whole, the sender has its acknowledgements, the lag comes to zero."""
    plan = stage.plan
    stage.brokers.ensure_running()
    stage.wait_errands()
    stage.sender.stop()
    run.recorder.healed(within_s=plan.healed_within_s)
    deadline_s = time.monotonic() + plan.healed_within_s
    no_lag = threading.Event()

    def wait() -> None:
        with contextlib.suppress(AssertionError, RuntimeError):
            if plan.guarantee == "share":
                run.observer.wait_answered(run.owed, timeout_s=plan.healed_within_s)
            else:
                run.observer.wait_no_lag(timeout_s=plan.healed_within_s)
        no_lag.set()

    waiting = threading.Thread(target=wait, name="healing", daemon=True)
    waiting.start()
    while not no_lag.is_set() and time.monotonic() < deadline_s + 5:
        if judge.done_with_it:
            return
        stage.tend()
        time.sleep(_TURN_S)
    waiting.join(10)
    _note_ends(stage)


def _note_ends(stage: Stage) -> None:
    """I5: the ends of output and dead letters, once they agree or the time for it is over."""
    topics = (stage.topics.predictions, stage.topics.dead_letters)
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        stage.tend()
        stable, high = stable_and_high(stage.brokers, topics)
        if stable == high or time.monotonic() > deadline_s:
            break
        time.sleep(1)
    for (topic, partition), offset in high.items():
        stage.recorder.ends(topic, partition, stable=stable[topic, partition], high=offset)


def _until(condition: Callable[[], bool], stage: Stage, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"the replicas are not ready after {timeout_s:g} s: see {stage.folder}"
        stage.tend()
        time.sleep(_TURN_S)


def _verdict(plan: Plan, stage: Stage, run: Run, judge: _Judge, folder: Path, began_s: float) -> Result:
    early = judge.done_with_it
    if early:
        history, found = load(run.history_path), judge.found
    else:
        with contextlib.suppress(AssertionError, RuntimeError):  # what it did not see shows as a broken promise
            run.observer.stop(timeout_s=_SETTLE_S)
        history = run.history()
        found = judged(plan, history, final=True)
        found += _unanswered_share(plan, run)
    summary = summarize(history)
    replay = f"python -m tests.chaos replay {folder / 'plan.json'}"
    stories = tuple(story(history, violation, replay=replay, seed=plan.seed) for violation in found[:3])
    if stories:
        (folder / "stories.txt").write_text("\n\n".join(stories) + "\n")
    return Result(
        seed=plan.seed,
        guarantee=plan.guarantee,
        replicas=plan.replicas,
        partitions=plan.partitions,
        protocol=plan.protocol,
        faults=tuple((each.kind, each.recovery_s) for each in recoveries(history)),
        inputs=summary.inputs,
        lost=sum("was never answered" in each.message for each in found),
        duplicates=summary.duplicate_events + summary.duplicate_letters,
        phantoms=sum(each.promise == "phantom" for each in found),
        uncommitted=0 if early else _uncommitted(stage, summary.events + summary.letters),
        violations=tuple(str(each) for each in found),
        promises=tuple(sorted({each.promise for each in found})),
        exits={str(code): times for code, times in stage.exits().items()},
        good_letters=_good_letters(history),
        seconds=round(time.monotonic() - began_s, 1),
        folder=str(folder),
        stories=stories,
    )


def _unanswered_share(plan: Plan, run: Run) -> list[Violation]:
    """I6 of a share group: everything was answered in the stated time."""
    if plan.guarantee != "share" or run.observer.answered >= run.owed:
        return []
    message = f"{run.owed - run.observer.answered} inputs were not answered within {plan.healed_within_s:g} s"
    return [Violation("I6", message, 0)]


def _good_letters(history: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Photographs are sent with an image id, poison is not."""
    good = {
        (line["topic"], line["partition"], line["offset"])
        for line in history
        if line["kind"] == "sent" and line["image_id"] is not None
    }
    errors: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for line in history:
        if line["kind"] == "output" and line["form"] == "letter":
            where = (line["source_topic"], line["source_partition"], line["source_offset"])
            if where in good:
                errors[str(line["error"])].add(where)
    return dict(Counter({error: len(places) for error, places in errors.items()}))


def _uncommitted(stage: Stage, committed: int) -> int:
    topics = (stage.topics.predictions, stage.topics.dead_letters)
    with contextlib.suppress(KafkaException, TimeoutError):
        return sum(count_records(stage.brokers, topic) for topic in topics) - committed
    return 0
