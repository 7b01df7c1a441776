"""The real service, in a process of its own, on a topic that is filled: how fast, at what cost, with which batches."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from consumer.adapters.bench_clients import Topics
from consumer.bench.children import environment
from consumer.bench.roofline import Window
from consumer.bench.usage import Sample, Usage, others_s
from consumer.cpu import quota_cores
from consumer.demo.processes import Child
from consumer.demo.service import free_port, wait_until_ready
from consumer.errors import CommandRefused

FIRST_SHARE = 0.1
"""Of the images: published before the window opens."""
_LOOKS = 25
_SILENT_S = 60.0
_READY_S = 900.0
_STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Names:
    """The topics and the group of one run of the service."""

    input_topic: str
    output_topic: str
    dead_letter_topic: str
    group_id: str

    def overrides(self) -> dict[str, str]:
        """As settings, by dotted key; with what else a run for measuring needs."""
        return {
            "kafka.group_id": self.group_id,
            "kafka.group_instance_id": "",
            "kafka.input_topics": orjson.dumps([self.input_topic]).decode(),
            "kafka.output_topic": self.output_topic,
            "kafka.dead_letter_topic": self.dead_letter_topic,
            "kafka.start": "earliest",
            "health.enabled": "true",
            "health.host": "127.0.0.1",
            "log.format": "json",
            "log.file": "",
            # Neither a new model nor a notebook is part of what is measured.
            "swap.watch_interval_ms": "0",
            "swap.shadow_topic": "",
            "tracking.enabled": "false",
            # The terms beside it are those of the settings as they are.
            "model.autotune": "false",
        }


@dataclass(frozen=True, slots=True)
class Service:
    """A replica that was started."""

    child: Child
    health_port: int
    started_s: float
    """Monotonic."""

    def wait_until_ready(self, say: Callable[[str], None] = lambda _text: None) -> None:
        """Raises `Fatal` where it does not become so; with the end of its log."""
        wait_until_ready(self.child, self.health_port, within_s=_READY_S, on_progress=say, now=time.monotonic)

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name with labels."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.health_port}/metrics", timeout=5) as answer:
            return read_metrics(answer.read().decode())


_METRIC = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus's text form, by name with labels."""
    return {name: float(value) for name, value in _METRIC.findall(text)}


@contextmanager
def running_service(
    names: Names,
    overrides: Mapping[str, str],
    settings_file: Path | None,
    *,
    log: Path,
) -> Iterator[Service]:
    """`python -m consumer run` with the user's settings and these over them; gone when the block is left."""
    port = free_port()
    child_environment = environment({**names.overrides(), **overrides, "health.port": str(port)})
    named = ["--settings", str(settings_file)] if settings_file is not None else []
    started_s = time.monotonic()
    with Child(
        "service",
        ["-m", "consumer", *named, "run"],
        log=log,
        environment=child_environment,
        stop_within_s=_STOP_S,
    ) as child:
        yield Service(child, port, started_s)


# --- the backlog ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BacklogRun:
    """What the service did with the backlog."""

    window: Window
    peak_rss_bytes: int
    mean_batch: float
    """Images in a batch, padding left out."""
    first_event_s: float
    """Seconds from the service's start to its first label events: mostly the model."""


def look_interval_s(count: int, expected_rate: float) -> float:
    """Seconds between two looks at a backlog that is done at about so many images/s: some 25 of them."""
    return min(0.33, max(0.03, count / expected_rate / _LOOKS))


def run_backlog(
    service: Service,
    topics: Topics,
    names: Names,
    *,
    count: int,
    in_flight: int,
    broker_pid: int | None,
    interval_s: float,
    tell: Callable[[int], None] = lambda _done: None,
    by_commits: bool = False,
) -> BacklogRun:
    """Watch the service label `count` images that wait for it.

    Args:
        service: just started; it takes them as soon as it can.
        topics: asks the broker how far the output is: the one thing that is done meanwhile.
        names: of its topics.
        count: images on the input topic.
        in_flight: messages that it holds at most (`pipeline.max_in_flight_messages`).
        broker_pid: whose CPU is subtracted.
        interval_s: between two looks.
        tell: told how many are done.
        by_commits: ask what is committed instead, as the markers of transactions lengthen the output, too.

    Raises:
        CommandRefused: an image became a dead letter.
        Fatal: it ended, or nothing came for a minute.
    """
    usage = Usage(service.child.process.pid, broker_pid)
    samples: list[tuple[int, Sample]] = []
    progress_s, known, first_s = service.started_s, 0, 0.0
    while True:
        done = topics.committed(names.group_id, names.input_topic) if by_commits else topics.records(names.output_topic)
        samples.append((done, usage.sample()))
        tell(done)
        if done >= count:
            break
        if done != known:
            first_s = first_s or time.monotonic() - service.started_s
            known, progress_s = done, time.monotonic()
        elif time.monotonic() - progress_s > (_SILENT_S if known else _READY_S) or service.child.exit_code is not None:
            _refuse_letters(topics, names)
            raise service.child.failure(f"{done} of {count} images are labelled, and no more come")
        time.sleep(interval_s)
    first_s = first_s or time.monotonic() - service.started_s
    _refuse_letters(topics, names)
    found = service.metrics()
    batches, images = found.get("ouzel_batch_images_count", 0.0), found.get("ouzel_batch_images_sum", 0.0)
    padding = found.get("ouzel_batch_padding_images_total", 0.0)
    return BacklogRun(
        window_of(samples, count=count, in_flight=in_flight, padding_share=padding / images if images else 0.0),
        usage.peak_rss_bytes,
        images / batches if batches else 0.0,
        first_s,
    )


def _refuse_letters(topics: Topics, names: Names) -> None:
    letters = topics.records(names.dead_letter_topic)
    if letters:
        raise CommandRefused(
            f"{letters} of the images became dead letters, so that nothing can be said of speed",
            remedy="see why: ouzel classify on the same images",
        )


def window_of(
    samples: Sequence[tuple[int, Sample]], *, count: int, in_flight: int, padding_share: float = 0.0
) -> Window:
    """The steady part: from the first look with a tenth of the images published to the last one at which messages were
    still waiting on the topic. Short of such looks, to the last one before the end, or to the end.

    Args:
        samples: images published, and what was used; in order, the last one with all.
        count: images in all.
        in_flight: messages that the service holds at most.
        padding_share: goes into the window.
    """
    first = next(place for place, (done, _) in enumerate(samples) if done >= FIRST_SHARE * count or done >= count)
    last = len(samples) - 1
    for most in (count - in_flight, count - 1):
        places = [place for place, (done, _) in enumerate(samples) if place > first and done <= most]
        # Half of the images at least are to be in it.
        if places and samples[places[-1]][0] - samples[first][0] >= count / 2:
            last = places[-1]
            break
    if last == first:
        first = max(0, first - 1)
    (began, one), (ended, other) = samples[first], samples[last]
    broker_s = None if one.broker_s is None or other.broker_s is None else other.broker_s - one.broker_s
    cores = quota_cores()
    return Window(
        images=max(1, ended - began),
        wall_s=max(1e-6, other.at_s - one.at_s),
        cores=cores,
        service_cpu_s=other.service_s - one.service_s,
        bench_cpu_s=other.bench_s - one.bench_s,
        broker_cpu_s=broker_s,
        others_cpu_s=others_s(one, other, cores),
        padding_share=padding_share,
    )
