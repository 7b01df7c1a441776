"""`ouzel bench --tune`: which runtime, batch size, threads and streams label most images here.

runtimes that agree ──> a race at the present settings ──> of each that is near: axis by axis (consumer.tuning)
                                                                  │
   the service, with a broker, in turns <── a gain? <── the best against the present settings, in turns
"""

import math
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from consumer import bootstrap_model, bootstrap_tuning
from consumer.adapters.bench_clients import Topics
from consumer.adapters.kafka_admin import KafkaAdmin
from consumer.adapters.runtimes.choose import agreeing_runtimes
from consumer.adapters.runtimes.kinds import find_kind
from consumer.bench.broker import Broker, configure_groups, fill_topic, given_broker, kafka_broker, run_topics
from consumer.bench.children import Asked, asked
from consumer.bench.kafka_jars import KAFKA_VERSION, KafkaUnavailable, find_java
from consumer.bench.names import TopicNames
from consumer.bench.results import Plan
from consumer.bench.service_run import look_interval_s, run_backlog, running_service
from consumer.bench.session import Told
from consumer.bench.usage import broker_process, check_extra
from consumer.bench.workload import Workload, make_workload, records
from consumer.cpu import quota_cores
from consumer.errors import Fatal
from consumer.kafka_properties import client_properties
from consumer.log import configure
from consumer.settings import Settings, load_with_sources
from consumer.tuning import Axis, Found, Gain, Point, compare, looks_at_most, search
from consumer.tuning_settings import NAMES, STREAMS, THREADS, axes_around, by_name, present

_Answer = TypeVar("_Answer")
_NEAR = 0.7
"""Of the fastest runtime's images/s, at the present settings: slower ones will not make up for it."""
_ROUNDS = 7
_CONFIRM_ROUNDS = 3
_LONG_S = 5.0
_LONG_TIMES = 10
"""A look ends then, whether it was steady or not."""
_FEWEST = 300


@dataclass(frozen=True, slots=True)
class Setup:
    """A runtime, and a point of its own."""

    runtime: str
    point: Point

    @property
    def values(self) -> dict[str, Any]:
        """By the names of the settings; streams only where it has some."""
        values = by_name(self.point)
        if not _kind(self.runtime)[0]:
            del values[NAMES[STREAMS]]
        return {"model.runtime": self.runtime, **values}

    @property
    def toml(self) -> str:
        """Lines for settings.toml."""
        tables: dict[str, dict[str, Any]] = {}
        for name, value in sorted(self.values.items(), key=lambda item: item[0].partition(".")[0]):
            table, key = name.split(".")
            tables.setdefault(table, {})[key] = value
        return tomli_w.dumps(tables)


@dataclass(frozen=True, slots=True)
class Look:
    """All looks at one setup."""

    setup: Setup
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    model: str
    workload: str
    megapixels: float
    present: Setup
    best: Setup
    looks: Sequence[Look]
    passed_over: Sequence[str]
    """Runtimes that were not looked at, and why."""
    gain: Gain
    """Of the best over the present settings, in one process without Kafka."""
    service_gain: Gain | None
    """The same of the service with a broker; None where it was not asked, or a run failed."""
    not_confirmed: str
    """Why the service did not say."""
    took_s: float

    @property
    def is_gain(self) -> bool:
        """Whether the best is to be used: faster each time, wherever it was asked."""
        return (
            self.best != self.present and self.gain.is_one and (self.service_gain is None or self.service_gain.is_one)
        )


def tune(plan: Plan, settings_file: Path | None, told: Told) -> Outcome:
    """Search, hold the best against the present settings, and remember it for `model.autotune`.

    Args:
        plan: of `ouzel bench`: images, form, broker; `stage_seconds` is how long a look takes.
        settings_file: the user's.
        told: where progress goes.

    Raises:
        SettingsError: an extra is missing, or the images cannot be used.
        BrokerUnreachable, NotAuthorized: the broker that was given, before anything is searched.
        Fatal: model or runtime do not come up, or end on the way.
    """
    check_extra()
    began_s = time.monotonic()
    settings = load_with_sources(settings_file, {})[0]
    if plan.bootstrap_servers:
        told.say("asking the broker")
        _ask_given_broker(plan, settings_file)
    configure(settings.log.model_copy(update={"level": "WARNING", "file": ""}))
    with tempfile.TemporaryDirectory(prefix="ouzel-tune-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        told.say("preparing the images")
        workload = make_workload(plan.images, folder / "images", megapixels=plan.megapixels, sizes=[])
        told.say("trying which runtimes agree")
        runtimes, passed_over, runtime = _runtimes(settings, told)
        children = stack.enter_context(_Children(settings, settings_file, workload, folder).open())
        start = Setup(runtime, _streamless(runtime, present(settings)))
        session = _Search(children, runtimes, start, plan, told, settings=settings)
        best = session.best()
        gain = session.against_present(best)
        facts = children.facts(session.present)
        children.close()
        confirmed = _Confirmed(None, "there is no gain to confirm")
        if gain.is_one:
            confirmed = _on_the_service(
                best,
                session.present,
                rate=session.rate(best),
                plan=plan,
                settings_file=settings_file,
                workload=workload,
                folder=folder,
                told=told,
            )
        outcome = Outcome(
            facts["name"],
            workload.source,
            plan.megapixels,
            session.present,
            best,
            session.looks,
            passed_over,
            gain,
            confirmed.gain,
            confirmed.why_not,
            took_s=time.monotonic() - began_s,
        )
    if not confirmed.failed:
        _remember(settings, facts["digest"], outcome)
    return outcome


def _runtimes(settings: Settings, told: Told) -> tuple[list[str], list[str], str]:
    """Those to look at, the lightest first; what is the matter with others; and the present one."""
    if settings.model.runtime == "null":
        return ["null"], [], "null"
    package = bootstrap_model.obtain_package(settings, progress=lambda _share, what: told.say(what))
    now = bootstrap_model.choose_runtime(settings, package).runtime
    agree, passed_over = agreeing_runtimes(
        package,
        threads=settings.model.threads or quota_cores(),
        device=settings.model.device,
        batch_size=settings.batch.max_size,
        cache=bootstrap_model.cache_folder(),
    )
    return list(dict.fromkeys([*agree, now])), passed_over, now


def _kind(runtime: str) -> tuple[bool, bool]:
    """Whether it has streams, and whether a process cannot change its threads."""
    kind = find_kind(runtime)
    return (False, False) if kind is None else (kind.has_streams, kind.threads_stay)


def _streamless(runtime: str, point: Point) -> Point:
    return point if _kind(runtime)[0] else (*point[:STREAMS], 0, *point[STREAMS + 1 :])


# --- the children ---------------------------------------------------------------------------------------------------


class _Children:
    """A process for each runtime, and of TensorFlow for each number of threads; each starts when it is first asked."""

    def __init__(self, settings: Settings, settings_file: Path | None, workload: Workload, folder: Path) -> None:
        self._settings = settings
        self._arguments = [
            str(workload.folder),
            f"{workload.megapixels:g}",
            *([str(settings_file)] if settings_file else []),
        ]
        self._folder = folder
        self._stack = ExitStack()
        self._by_key: dict[tuple[str, int], Asked] = {}

    @contextmanager
    def open(self) -> Iterator["_Children"]:
        """They end with the block."""
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """End them. Idempotent."""
        self._stack.close()
        self._by_key.clear()

    def facts(self, setup: Setup) -> Mapping[str, Any]:
        """Name and digest of the model."""
        return self._child(setup).ask({"ask": "facts"})

    def look(self, setup: Setup, seconds: float, most_s: float) -> float | None:
        """Images/s, or None. Raises Fatal where the child ended."""
        question = {"ask": "look", "point": setup.point, "seconds": seconds, "most_s": most_s}
        rate: float | None = self._child(setup).ask(question)["images_per_s"]
        return rate

    def keep_open(self, setup: Setup) -> None:
        """Its process frees what other points of this runtime needed. Raises Fatal where the child ended."""
        self._child(setup).ask({"ask": "keep_open", "points": [setup.point]})

    def _child(self, setup: Setup) -> Asked:
        has_streams, threads_stay = _kind(setup.runtime)
        key = setup.runtime, setup.point[THREADS] if threads_stay else 0
        if key not in self._by_key:
            overrides = {"model.runtime": setup.runtime, "model.autotune": "false"}
            if threads_stay:
                overrides["model.threads"] = str(setup.point[THREADS])
            if not has_streams:
                overrides["model.streams"] = "0"
            log = self._folder / f"tune-{setup.runtime}-{key[1]}.log"
            self._by_key[key] = self._stack.enter_context(
                asked(setup.runtime, "consumer.bench.tune_process", self._arguments, log=log, overrides=overrides)
            )
        return self._by_key[key]


# --- the search -----------------------------------------------------------------------------------------------------


class _Search:
    def __init__(
        self,
        children: _Children,
        runtimes: Sequence[str],
        start: Setup,
        plan: Plan,
        told: Told,
        *,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._children = children
        self._runtimes = runtimes
        self.present = start
        self._seconds = plan.stage_seconds
        self._told = told
        self._rates: dict[Setup, list[float]] = {}
        self._broken: set[str] = set()
        self._tell: Callable[[int], None] = lambda _done: None
        self._done = 0

    @property
    def looks(self) -> list[Look]:
        """In the order of their first."""
        return [Look(setup, tuple(rates)) for setup, rates in self._rates.items()]

    def rate(self, setup: Setup) -> float:
        """Images/s, the median of all looks at it."""
        return statistics.median(self._rates[setup])

    def best(self) -> Setup:
        """What the search likes best."""
        starts = [Setup(runtime, _streamless(runtime, self.present.point)) for runtime in self._runtimes]
        near = starts
        if len(starts) > 1:
            found = self._race("runtimes at the present settings", starts)
            rates = {starts[each.point[0]]: each.rate for each in found.tried}
            near = [setup for setup in starts if rates.get(setup, 0.0) >= _NEAR * max(rates.values())]
        finalists = [self._along_axes(setup) for setup in near]
        if len(finalists) == 1:
            return finalists[0]
        return finalists[self._race("the best of each runtime", finalists).point[0]]

    def against_present(self, best: Setup) -> Gain:
        """In turns."""
        if best == self.present:
            return Gain(())
        pair = [best, self.present]
        with self._counting("the best against the present settings", 2 * _ROUNDS):
            return compare((0,), (1,), lambda at: self._look(pair[at[0]]), rounds=_ROUNDS, may_go_on=lambda: True)

    def _race(self, what: str, setups: Sequence[Setup]) -> Found:
        axis = Axis("setup", tuple(range(len(setups))))
        with self._counting(what, looks_at_most([axis])):
            return search([axis], (0,), lambda at: self._look(setups[at[0]]))

    def _along_axes(self, start: Setup) -> Setup:
        has_streams, threads_stay = _kind(start.runtime)
        on_gpu = bootstrap_tuning.on_gpu(self._settings)
        axes = axes_around(
            start.point,
            cores=quota_cores(),
            on_gpu=on_gpu,
            threads_stay=start.runtime == "null",
            has_streams=has_streams,
            held={},
            most_batch=bootstrap_tuning.most_batch(self._settings),
        )
        if threads_stay and not on_gpu:  # each number is a process with a model of its own: all cores, or half of them
            cores = quota_cores()
            values = tuple(sorted({start.point[THREADS], max(1, cores // 2), cores}))
            axes = [Axis(axis.name, values) if axis.name == NAMES[THREADS] else axis for axis in axes]

        def settled(point: Point) -> None:
            if not threads_stay:  # else there is one in a process
                self._unless_broken(Setup(start.runtime, point), self._children.keep_open)

        with self._counting(f"settings for {start.runtime}", looks_at_most(axes)):
            found = search(axes, start.point, lambda point: self._look(Setup(start.runtime, point)), settled=settled)
        return Setup(start.runtime, found.point)

    def _look(self, setup: Setup) -> float | None:
        self._done += 1
        self._tell(self._done)
        most_s = max(_LONG_S, _LONG_TIMES * self._seconds)
        rate = self._unless_broken(setup, lambda asked: self._children.look(asked, self._seconds, most_s))
        if rate is not None:
            self._rates.setdefault(setup, []).append(rate)
        return rate

    def _unless_broken(self, setup: Setup, ask: Callable[[Setup], _Answer | None]) -> _Answer | None:
        """None where its process ended, now or before. Raises Fatal where it is that of the present runtime."""
        if setup.runtime in self._broken:
            return None
        try:
            return ask(setup)
        except Fatal:
            if setup.runtime == self.present.runtime:
                raise
            self._broken.add(setup.runtime)
            return None

    @contextmanager
    def _counting(self, what: str, total: int) -> Iterator[None]:
        self._done = 0
        with self._told.counting(what, total) as tell:
            self._tell = tell
            yield


# --- on the service -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Confirmed:
    gain: Gain | None
    """None where the service did not say."""
    why_not: str = ""
    failed: bool = False
    """It was asked, and something went wrong: with the best settings it may go wrong again."""


def _ask_given_broker(plan: Plan, settings_file: Path | None) -> None:
    """Before the minutes of work, not after them. Raises BrokerUnreachable and NotAuthorized."""
    if plan.broker_pid is not None:
        broker_process(plan.broker_pid)
    with given_broker(plan.bootstrap_servers, plan.broker_pid) as broker:
        kafka = load_with_sources(settings_file, broker.overrides)[0].kafka
        KafkaAdmin(client_properties(kafka, "admin"), timeout_s=kafka.request_timeout_ms / 1000).cluster()


def _on_the_service(
    best: Setup,
    present: Setup,
    *,
    rate: float,
    plan: Plan,
    settings_file: Path | None,
    workload: Workload,
    folder: Path,
    told: Told,
) -> _Confirmed:
    """The best against the present settings, in turns, each a run of the service on a filled topic; `rate` images/s are
    expected. Why not where no broker is at hand, or a run fails: what was searched for minutes is not lost by that."""
    names = TopicNames(f"ouzel-tune-{uuid.uuid4().hex[:8]}")
    try:
        with _broker(plan, folder, told) as broker:
            confirm = _Confirm(
                plan=plan,
                settings_file=settings_file,
                workload=workload,
                folder=folder,
                told=told,
                broker=broker,
                names=names,
                rate=rate,
            )
            return _Confirmed(confirm.gain(best, present))
    except Fatal as error:
        why = f"{error}: {error.remedy}" if error.remedy else str(error)
        return _Confirmed(None, why, failed=not isinstance(error, KafkaUnavailable))


@contextmanager
def _broker(plan: Plan, folder: Path, told: Told) -> Iterator[Broker]:
    """Raises KafkaUnavailable where none is at hand: nothing is fetched for this."""
    if plan.bootstrap_servers:
        with given_broker(plan.bootstrap_servers, plan.broker_pid) as broker:
            yield broker
        return
    find_java()
    if plan.embedded or not (plan.jars / KAFKA_VERSION).is_dir():
        raise KafkaUnavailable("no broker at hand", remedy="name one by --bootstrap-servers, or run `ouzel bench` once")
    with kafka_broker(folder, plan.jars, told.say) as broker:
        yield broker


class _Confirm:
    def __init__(
        self,
        *,
        plan: Plan,
        settings_file: Path | None,
        workload: Workload,
        folder: Path,
        told: Told,
        broker: Broker,
        names: TopicNames,
        rate: float,
    ) -> None:
        self._plan = plan
        self._settings_file = settings_file
        self._workload = workload
        self._folder = folder
        self._told = told
        self._broker = broker
        self._names = names
        self._rate = rate
        self._rounds = max(_CONFIRM_ROUNDS, plan.rounds)
        self._count = plan.messages or max(_FEWEST, math.ceil(rate * plan.seconds))
        self._overrides = dict(broker.overrides)
        roots: dict[str, Any] = {}
        if plan.form == "reference":
            root = str(workload.folder.resolve())
            self._overrides["stores.file.roots"], roots = f'["{root}"]', {"stores.file.roots": [root]}
        self._settings = load_with_sources(settings_file, {**broker.overrides, **roots})[0]

    def gain(self, best: Setup, present: Setup) -> Gain:
        """Of the one over the other."""
        parts = [f"{number}-{which}" for number in range(self._rounds) for which in ("best", "present")]
        names = [self._names.images, self._names.letters, *map(self._names.output, parts)]
        topics_of_run = dict.fromkeys(names, self._settings.topics.partitions)
        groups = [self._names.group(part) for part in parts]
        with run_topics(self._settings.kafka, self._broker, topics_of_run, groups) as topics:
            configure_groups(self._settings, groups)
            self._fill()
            numbers = {0: 0, 1: 0}

            def look(at: Point) -> float:
                which = at[0]
                number, numbers[which] = numbers[which], numbers[which] + 1
                return self._run(topics, f"{number}-{('best', 'present')[which]}", (best, present)[which])

            return compare((0,), (1,), look, rounds=self._rounds, may_go_on=lambda: True)

    def _fill(self) -> None:
        messages = records(self._workload.folder, self._workload.megapixels, self._plan.form, self._count)
        with self._told.counting("filling the topic", self._count) as tell:
            fill_topic(self._settings.kafka, self._names.images, messages, tell=tell)

    def _run(self, topics: Topics, part: str, setup: Setup) -> float:
        names = self._names.of_service(part, input_topic=self._names.images)
        values = {name: str(value) for name, value in setup.values.items()}
        overrides = {"model.streams": "0", **self._overrides, **values, "model.autotune": "false"}
        with (
            self._told.counting(f"the service, run {part}", self._count) as tell,
            running_service(names, overrides, self._settings_file, log=self._folder / f"service-{part}.log") as service,
        ):
            return run_backlog(
                service,
                topics,
                names,
                count=self._count,
                in_flight=self._settings.pipeline.max_in_flight_messages,
                broker_pid=self._broker.pid,
                interval_s=look_interval_s(self._count, self._rate),
                tell=tell,
                by_commits=self._settings.delivery.guarantee == "exactly_once",
            ).window.rate


# --- what is kept -----------------------------------------------------------------------------------------------------


def _remember(settings: Settings, digest: str, outcome: Outcome) -> None:
    used = outcome.best if outcome.is_gain else outcome.present
    why = f"by `ouzel bench --tune`: {verdict(outcome)}"
    tuned = bootstrap_tuning.Tuned(by_name(used.point), why)
    bootstrap_tuning.keep(settings, digest, used.runtime, tuned, knows=True, nothing_held=True)


def verdict(outcome: Outcome) -> str:
    """In a sentence."""
    if outcome.best == outcome.present:
        return "nothing tried was faster than the present settings"
    gain, where = outcome.gain, "decoding and inference side by side"
    if outcome.service_gain is not None:
        gain, where = outcome.service_gain, "the service with a broker"
    if not gain.ratios:
        return "the best could not be held against the present settings, so keep these"
    figures = f"{gain.median:.2f} times the present images/s ({gain.least:.2f} to {gain.most:.2f}; {where})"
    return figures if outcome.is_gain else f"{figures} is no gain: a run was not faster, so keep the present settings"
