"""A real broker, topics that are filled, and runs of the real service on them: what most curves are made of."""

import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.growth.curve import say
from benchmarks.harness import ROOT, BirdModel
from consumer.adapters.bench_clients import Record, Topics
from consumer.adapters.kafka_admin import KafkaAdmin, TopicPlan
from consumer.bench.broker import Broker, configure_groups, create_topics, fill_topic, kafka_broker
from consumer.bench.service_run import BacklogRun, Names, Service, run_backlog, running_service
from consumer.bench.workload import Workload, make_workload
from consumer.errors import BrokerUnreachable
from consumer.headers import CONTENT_TYPE, IMAGE_ID
from consumer.kafka_properties import HEADROOM_BYTES, client_properties
from consumer.settings import Settings, load_with_sources

_LEADERS_S = 30.0
LOOK_S = 0.2
"""Seconds between two looks at how far the service is."""
NULL = "the stream alone"
MODEL = "with the model"
_ALONE = {"model.runtime": "null", "model.source": "default", "model.labels": ""}


def model_overrides() -> dict[str, str]:
    """The model of the settings, if they name one; else the bird model where it lies beside the project. In OpenVINO
    where that is installed and no runtime is named: a search for the fastest at each start would be part of nothing."""
    found: dict[str, str] = {}
    birds = BirdModel.find()
    if birds is not None and "OUZEL_MODEL__SOURCE" not in os.environ:
        found = {"model.source": str(birds.folder / "model"), "model.labels": str(birds.folder / "labelmap.csv")}
        found["model.name"] = "birds"
    if "OUZEL_MODEL__RUNTIME" not in os.environ and importlib.util.find_spec("openvino") is not None:
        found["model.runtime"] = "openvino"
    return found


def overrides_of(series: str) -> dict[str, str]:
    """The settings of a series: with the model, or without."""
    return dict(_ALONE) if series == NULL else model_overrides()


@dataclass(frozen=True, slots=True)
class Backlog:
    """A topic that was filled."""

    topic: str
    count: int
    partitions: int
    mean_bytes: float


@dataclass(slots=True)
class Course:
    """How a run went on: at each look the seconds, the images done, and the service's resident bytes."""

    at_s: list[float] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)

    def look(self, service: Service, done: int) -> None:
        """Note it."""
        self.at_s.append(time.monotonic())
        self.done.append(done)
        self.rss_bytes.append(psutil.Process(service.child.process.pid).memory_info().rss)


class Stream:
    """A broker and what runs on it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.settings: Settings = load_with_sources(None, dict(broker.overrides))[0]
        self.topics = Topics(client_properties(self.settings.kafka, "admin"))
        self._runs = 0
        self.models: set[str] = set()
        """Those that labelled."""

    @property
    def partitions(self) -> int:
        """As many as `ouzel topics create` makes."""
        return self.settings.topics.partitions

    def fill(self, name: str, bodies: Sequence[bytes], count: int, *, partitions: int | None = None) -> Backlog:
        """A topic with `count` messages, the JPEGs in turn, each with a key of its own."""
        partitions = partitions or self.partitions
        create_topics(self.settings.kafka, {name: partitions})
        fill_topic(self.settings.kafka, name, raw_records(bodies, count))
        return Backlog(name, count, partitions, sum(map(len, bodies)) / len(bodies))

    def names(self, input_topic: str, *, partitions: int) -> Names:
        """The topics and the group of one more run of the service, output and letters made."""
        self._runs += 1
        run = f"{input_topic}-run{self._runs}"
        names = Names(input_topic, f"{run}-predictions", f"{run}-letters", run)
        create_topics(self.settings.kafka, {names.output_topic: partitions, names.dead_letter_topic: 1})
        self._wait_for_leaders(names.output_topic)
        return names

    def _wait_for_leaders(self, topic: str) -> None:
        """Each partition of a new topic is led by the broker a moment after the topic is there."""
        until_s = time.monotonic() + _LEADERS_S
        while True:
            try:
                self.topics.records(topic)
            except BrokerUnreachable:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.1)
            else:
                return

    def create_kept_briefly(self, name: str, *, retention_ms: int) -> None:
        """A topic whose messages go after so long: for runs whose messages together are more than a disk has."""
        config = {
            "max.message.bytes": str(self.settings.kafka.max_message_bytes + HEADROOM_BYTES),
            "retention.ms": str(retention_ms),
            "segment.ms": str(retention_ms),
            "segment.bytes": str(64 * 2**20),
        }
        admin = KafkaAdmin(client_properties(self.settings.kafka, "admin"), timeout_s=30)
        admin.create([TopicPlan(name, self.partitions, -1, config)])

    @contextmanager
    def service(self, names: Names, overrides: Mapping[str, str]) -> Iterator[Service]:
        """One replica; gone when the block is left."""
        log = self.folder / f"{names.group_id}-{time.monotonic_ns()}.log"
        with running_service(names, {**self.broker.overrides, **overrides}, None, log=log) as service:
            yield service

    def run(self, backlog: Backlog, overrides: Mapping[str, str], course: Course | None = None) -> BacklogRun:
        """The service on the backlog, under a group and an output of its own, which are gone after it."""
        names = self.names(backlog.topic, partitions=backlog.partitions)
        settings = load_with_sources(None, {**self.broker.overrides, **overrides})[0]
        configure_groups(settings, [names.group_id])
        with self.service(names, overrides) as service:

            def tell(done: int) -> None:
                if course is not None:
                    course.look(service, done)

            found = run_backlog(
                service,
                self.topics,
                names,
                count=backlog.count,
                in_flight=self.settings.pipeline.max_in_flight_messages,
                broker_pid=self.broker.pid,
                interval_s=LOOK_S,
                tell=tell,
                by_commits=overrides.get("delivery.guarantee") == "exactly_once",
            )
            self.note_model(service)
        self.topics.delete([names.output_topic, names.dead_letter_topic], [names.group_id])
        return found

    def note_model(self, service: Service) -> None:
        """Which model a replica says it has."""
        self.models |= models_in(service.metrics())

    def drop(self, backlog: Backlog) -> None:
        """Its room on the disk is free again."""
        self.topics.delete([backlog.topic], [])


_MODEL_INFO = re.compile(r"ouzel_model_info\{(.*)\}$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def models_in(metrics: Iterable[str]) -> set[str]:
    """What a replica's metrics, by name with labels, say of its model."""
    found = filter(None, map(_MODEL_INFO.match, metrics))
    return {model_says(dict(_LABEL.findall(each[1]))) for each in found}


def model_says(about: Mapping[str, str]) -> str:
    """A model in a few words, from its name, runtime and precision."""
    if about["runtime"] == "null":
        return "no model"
    return f"{about['name']} in {about['runtime']} {about['precision']}"


@contextmanager
def stream() -> Iterator[Stream]:
    """A broker for the purpose, in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="ouzel-growth-") as scratch:
        folder = Path(scratch)
        with kafka_broker(folder, ROOT / ".kafka", say) as broker:
            yield Stream(broker, folder)


def photographs(stream_: Stream, megapixels: float) -> Workload:
    """Cuts of the demo's photographs in that size."""
    return make_workload(None, stream_.folder / f"images-{megapixels:g}", megapixels=megapixels, sizes=())


def raw_records(bodies: Sequence[bytes], count: int) -> Iterator[Record]:
    """The JPEGs themselves as messages, in turn, as `ouzel send` writes them."""
    for number in range(count):
        name = f"image-{number}"
        yield Record(name, bodies[number % len(bodies)], ((IMAGE_ID, name.encode()), (CONTENT_TYPE, b"image/jpeg")))


def figures(run: BacklogRun) -> dict[str, float]:
    """What every run tells."""
    window = run.window
    found = {
        "images_per_s": window.rate,
        "service_cpu_ms": window.per_image_ms(window.service_cpu_s),
        "broker_cpu_ms": window.per_image_ms(window.broker_cpu_s or 0.0),
        "peak_rss_mib": run.peak_rss_bytes / 2**20,
        "window_s": window.wall_s,
    }
    if window.others_cpu_s is not None:
        found["others_cores"] = window.others_cpu_s / window.wall_s
    return found


def facts(stream_: Stream, **more: Any) -> dict[str, Any]:
    """What is the same for all points of a curve."""
    return {"broker": stream_.broker.says, "models": sorted(stream_.models), **more}
