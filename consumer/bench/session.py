"""A whole run: broker, workload, rounds of terms, bare loop and service in turn, then latency by load."""

import math
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consumer.adapters.bench_clients import Topics
from consumer.bench.broker import (
    EMBEDDED_BYTES,
    Broker,
    configure_groups,
    embedded_broker,
    fill_topic,
    given_broker,
    kafka_broker,
    run_topics,
)
from consumer.bench.children import Asked, asked
from consumer.bench.latency import Level, Load
from consumer.bench.names import TopicNames
from consumer.bench.results import Facts, LatencyRound, Plan, Result, Round, StageTerms
from consumer.bench.roofline import Terms, account, cheapest_batch, roofline
from consumer.bench.service_run import BacklogRun, look_interval_s, run_backlog, running_service
from consumer.bench.stages import Measured
from consumer.bench.usage import broker_process, check_extra
from consumer.bench.workload import FORMS, Workload, make_workload, records
from consumer.kafka_properties import consumer_properties, producer_properties
from consumer.settings import Settings, load_with_sources

_FEWEST = 200
_MOST_BYTES = 2_000_000_000
_PROBE_S = 0.3


@dataclass(frozen=True, slots=True)
class Told:
    """Where progress goes."""

    say: Callable[[str], None] = lambda _text: None
    bar: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] | None = None
    """A bar for a part of so many images; yields what is told how many are done."""

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar where there are bars."""
        if self.bar is None:
            yield lambda _done: None
            return
        with self.bar(what, total) as done:
            yield done


def bench(plan: Plan, settings_file: Path | None, told: Told) -> Result:
    """Measure it all; whatever was started is gone when it returns or raises.

    Raises:
        SettingsError: an extra is missing, or the images cannot be used.
        Fatal: broker, model or service do not come up, or end on the way.
        CommandRefused: images became dead letters.
    """
    check_extra()
    if plan.broker_pid is not None:
        broker_process(plan.broker_pid)
    names = TopicNames(f"ouzel-bench-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="ouzel-bench-") as scratch:
        folder = Path(scratch)
        told.say("preparing the images")
        workload = make_workload(plan.images, folder / "images", megapixels=plan.megapixels, sizes=plan.sizes)
        with _broker(plan, names, folder, told) as broker:
            overrides = dict(broker.overrides)
            if plan.form == "reference":
                overrides["stores.file.roots"] = f'["{workload.folder.resolve()}"]'
            overrides_for_stages = overrides | {"stores.file.roots": f'["{workload.folder.resolve()}"]'}
            settings = load_with_sources(settings_file, _typed(overrides))[0]
            topics_of_plan = dict.fromkeys(names.all(plan), settings.topics.partitions)
            arguments = [str(workload.folder), f"{plan.megapixels:g}", *([str(settings_file)] if settings_file else [])]
            with (
                run_topics(settings.kafka, broker, topics_of_plan, names.groups(plan)) as topics,
                asked(
                    "stages",
                    "consumer.bench.stage_process",
                    arguments,
                    log=folder / "stages.log",
                    overrides=overrides_for_stages,
                ) as stages,
            ):
                configure_groups(settings, names.groups(plan))
                session = _Session(
                    plan=plan,
                    settings=settings,
                    settings_file=settings_file,
                    overrides=overrides,
                    names=names,
                    topics=topics,
                    broker=broker,
                    workload=workload,
                    folder=folder,
                    stages=stages,
                    told=told,
                )
                return session.run()


def _typed(overrides: Mapping[str, str]) -> dict[str, Any]:
    """As values of settings: lists are no text there."""
    import orjson

    return {key: orjson.loads(value) if value.startswith("[") else value for key, value in overrides.items()}


@contextmanager
def _broker(plan: Plan, names: TopicNames, folder: Path, told: Told) -> Iterator[Broker]:
    if plan.bootstrap_servers:
        opened: AbstractContextManager[Broker] = given_broker(plan.bootstrap_servers, plan.broker_pid)
    elif plan.embedded:
        opened = embedded_broker(folder, names.all(plan))
    else:
        opened = kafka_broker(folder, plan.jars, told.say)
    with opened as broker:
        yield broker


class _Session:
    """The run, once everything is there."""

    def __init__(
        self,
        *,
        plan: Plan,
        settings: Settings,
        settings_file: Path | None,
        overrides: Mapping[str, str],
        names: TopicNames,
        topics: Topics,
        broker: Broker,
        workload: Workload,
        folder: Path,
        stages: Asked,
        told: Told,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._settings_file = settings_file
        self._overrides = overrides
        self._names = names
        self._topics = topics
        self._broker = broker
        self._workload = workload
        self._folder = folder
        self._stages = stages
        self._told = told
        self._event: Mapping[str, Any] = {}
        self._batch_sizes: list[int] = []
        self._expected = 1.0
        self._count = 0

    def run(self) -> Result:
        """All rounds."""
        self._told.say("loading the model")
        facts = self._stages.ask({"ask": "facts", "form": self._plan.form})
        self._event = facts
        self._batch_sizes = list(facts["batch_sizes"])
        self._expected = self._probe()
        self._count = self._messages()
        self._fill()
        rounds = [self._round(number) for number in range(self._plan.rounds)]
        latency = self._latency(rounds) if self._plan.loads else []
        return Result(self._plan, self._facts(facts), rounds, latency)

    def _facts(self, found: Mapping[str, Any]) -> Facts:
        return Facts(
            model=found["model"],
            decode_threads=found["decode_threads"],
            model_threads=found["model_threads"],
            batch_sizes=found["batch_sizes"],
            event_bytes=len(found["event"]) * 3 // 4,
            workload=self._workload.source,
            megapixels=self._plan.megapixels,
            form=self._plan.form,
            image_bytes=self._workload.mean_bytes,
            messages=self._count,
            partitions=4 if self._broker.kind == "embedded" else self._settings.topics.partitions,
            broker=self._broker.says,
            broker_kind=self._broker.kind,
            broker_cpu_known=self._broker.pid is not None,
            max_wait_ms=self._settings.batch.max_wait_ms,
        )

    # --- how many ---------------------------------------------------------------------------------------------------

    def _probe(self) -> float:
        """About how many images/s these cores can do, for the size of the backlog."""
        fetch = self._ask("fetch", form=self._plan.form, seconds=_PROBE_S)
        decode = self._ask("decode", megapixels=self._plan.megapixels, seconds=_PROBE_S)
        infer = self._ask("infer", batch=self._batch_sizes[-1], seconds=_PROBE_S)
        from consumer.cpu import quota_cores

        return 1000 * quota_cores() / (fetch.cpu_ms + decode.cpu_ms + infer.cpu_ms + 0.1)

    def _messages(self) -> int:
        wanted = self._plan.messages or max(_FEWEST, math.ceil(self._expected * self._plan.seconds))
        most_bytes = EMBEDDED_BYTES if self._broker.kind == "embedded" else _MOST_BYTES
        size = self._workload.mean_bytes * (4 / 3 if self._plan.form == "inline" else 1)
        if self._plan.form == "reference":
            size = 200
        return max(1, min(wanted, int(most_bytes / size)))

    def _fill(self) -> None:
        messages = records(self._workload.folder, self._plan.megapixels, self._plan.form, self._count)
        with self._told.counting("filling the topic", self._count) as tell:
            fill_topic(self._settings.kafka, self._names.images, messages, tell=tell)

    # --- a round ----------------------------------------------------------------------------------------------------

    def _round(self, number: int) -> Round:
        """Every other round the other way round, so that a drift of the machine hits all alike."""
        forward = number % 2 == 0
        steps: dict[str, Callable[[], Any]] = {
            "stages": lambda: self._stage_terms(number, forward=forward),
            "bare": lambda: self._bare_loop(number),
            "service": lambda: self._backlog(number),
        }
        found = {name: steps[name]() for name in (steps if forward else reversed(steps))}
        stages: StageTerms = found["stages"]
        bare: tuple[int, float] = found["bare"]
        run: BacklogRun = found["service"]
        batch = cheapest_batch({size: each.cpu_ms for size, each in stages.infer.items()})
        terms = Terms(
            fetch_ms=stages.fetch[self._plan.form].cpu_ms,
            decode_ms=stages.decode[self._plan.megapixels].cpu_ms,
            infer_ms=stages.infer[batch].cpu_ms,
            overhead_ms=bare[1],
            batch=batch,
        )
        window = run.window
        limit = roofline(terms, window.free_cores)
        less_others = None
        if window.others_cpu_s is not None:
            left = window.free_cores - window.others_cpu_s / window.wall_s
            less_others = window.rate / roofline(terms, left) if left > 0 else None
        return Round(
            stages=stages,
            bare_images=bare[0],
            bare_cpu_ms=bare[1],
            terms=terms,
            window=window,
            roofline=limit,
            ratio=window.rate / limit,
            ratio_less_others=less_others,
            parts=account(terms, window),
            peak_rss_bytes=run.peak_rss_bytes,
            mean_batch=run.mean_batch,
            first_event_s=run.first_event_s,
        )

    def _stage_terms(self, number: int, *, forward: bool) -> StageTerms:
        seconds = self._plan.stage_seconds
        questions: list[tuple[str, dict[str, Any]]] = [
            *(("fetch", {"form": form}) for form in FORMS),
            *(("decode", {"megapixels": size}) for size in self._workload.sizes),
            *(("infer", {"batch": size}) for size in self._batch_sizes),
        ]
        found: dict[tuple[str, Any], Measured] = {}
        with self._told.counting(f"{self._which(number)}: stage terms", len(questions)) as tell:
            for done, (what, arguments) in enumerate(questions if forward else reversed(questions)):
                found[what, *arguments.values()] = self._ask(what, **arguments, seconds=seconds)
                tell(done + 1)
        return StageTerms(
            {form: found["fetch", form] for form in FORMS},
            {size: found["decode", size] for size in self._workload.sizes},
            {size: found["infer", size] for size in self._batch_sizes},
        )

    def _bare_loop(self, number: int) -> tuple[int, float]:
        """Messages, and CPU-milliseconds of each."""
        kafka = self._settings.kafka.model_copy(update={"group_id": self._names.group(f"bare-{number}")})
        self._told.say(f"{self._which(number)}: bare Kafka loop")
        with asked(
            "bare loop",
            "consumer.bench.bare_loop",
            [],
            log=self._folder / f"bare-{number}.log",
            overrides={},
        ) as loop:
            answer = loop.ask(
                {
                    "consumer_properties": consumer_properties(kafka, "bench"),
                    "producer_properties": producer_properties(kafka, "bench"),
                    "input_topic": self._names.images,
                    "output_topic": self._names.bare(number),
                    "value": self._event["event"],
                    "headers": self._event["event_headers"],
                    "count": self._count,
                    "commit_s": self._settings.commit.interval_ms / 1000,
                }
            )
        return answer["images"], 1000 * answer["cpu_s"] / max(1, answer["images"])

    def _backlog(self, number: int) -> BacklogRun:
        names = self._names.of_service(str(number), input_topic=self._names.images)
        with (
            self._told.counting(f"{self._which(number)}: the service", self._count) as tell,
            running_service(
                names, self._overrides, self._settings_file, log=self._folder / f"service-{number}.log"
            ) as service,
        ):
            return run_backlog(
                service,
                self._topics,
                names,
                count=self._count,
                in_flight=self._settings.pipeline.max_in_flight_messages,
                broker_pid=self._broker.pid,
                interval_s=look_interval_s(self._count, self._expected),
                tell=tell,
                by_commits=self._settings.delivery.guarantee == "exactly_once",
            )

    def _which(self, number: int) -> str:
        return f"round {number + 1} of {self._plan.rounds}"

    def _ask(self, what: str, **arguments: Any) -> Measured:
        return Measured(**self._stages.ask({"ask": what, **arguments}))

    # --- latency ----------------------------------------------------------------------------------------------------

    def _latency(self, rounds: Sequence[Round]) -> list[LatencyRound]:
        rate = sorted(each.window.rate for each in rounds)[len(rounds) // 2]
        names = self._names.of_service("latency", input_topic=self._names.latency)
        load = Load(self._settings.kafka, self._workload, self._plan.form, self._names.latency)
        echo = replace(load, input_topic=self._names.echo)
        self._told.say("starting the service for latency")
        with (
            running_service(
                names, self._overrides, self._settings_file, log=self._folder / "service-latency.log"
            ) as service,
            self._generator() as generator,
        ):
            service.wait_until_ready()
            load.measure(
                generator,
                load=0,
                rate=0.3 * rate,
                seconds=1.0,
                seed=0,
                read_topic=names.output_topic,
                prefix="warm",
            )
            return [
                self._latency_round(
                    number,
                    load=load,
                    echo=echo,
                    generator=generator,
                    rate=rate,
                    output_topic=names.output_topic,
                )
                for number in range(self._plan.latency_rounds)
            ]

    def _latency_round(
        self, number: int, *, load: Load, echo: Load, generator: Asked, rate: float, output_topic: str
    ) -> LatencyRound:
        """The loads upwards, every other time downwards; the bare round trip between."""
        loads = list(self._plan.loads)
        order: list[float] = [0.0, *loads] if number % 2 == 0 else [*reversed(loads), 0.0]
        levels: dict[float, Level] = {}
        for share in order:
            what = f"at {share:.0%} load" if share else "of a bare round trip"
            self._told.say(f"latency {what}, {number + 1} of {self._plan.latency_rounds}")
            levels[share] = (load if share else echo).measure(
                generator,
                load=share,
                rate=(share or 0.7) * rate,
                seconds=self._plan.latency_seconds or self._plan.seconds,
                seed=1000 * number + round(100 * share),
                read_topic=output_topic if share else self._names.echo,
                prefix=f"load-{number}-{share:g}",
            )
        return LatencyRound([levels[share] for share in loads], levels[0.0])

    @contextmanager
    def _generator(self) -> Iterator[Asked]:
        with asked(
            "generator", "consumer.bench.generator", [], log=self._folder / "generator.log", overrides={}
        ) as generator:
            yield generator
