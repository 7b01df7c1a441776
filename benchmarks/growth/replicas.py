"""Replicas: one and two of the service, each on a core of its own, broker and all on the same machine."""

import os
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.growth.curve import Curve, Found, interleaved, middle, short, spread, text
from benchmarks.growth.draw import COLOURS, from_zero, legend, panels
from benchmarks.growth.stream import LOOK_S, Backlog, Stream, facts, model_overrides, photographs, stream
from consumer.bench.service_run import Names, Service
from consumer.bench.usage import Sample, Usage, others_s
from consumer.cpu import quota_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = 1.05
_MEGAPIXELS = 0.3
_ONE_THREAD = {"model.threads": "1", "pipeline.decode_threads": "1"}
_LAG = "ouzel_consumer_lag{"
_GIVE_UP_S = 600.0


@dataclass(frozen=True, slots=True)
class Look:
    """One moment of a run."""

    done: int
    waiting: tuple[int, ...]
    """Messages that wait for each replica; of one without partitions -1."""
    used: tuple[Sample, ...]
    """By each replica, and by broker, this process and the machine."""


def measure(options: Namespace) -> Found:
    """One replica and as many as there are cores (at most 4), in turn on the same backlog."""
    cores = sorted(os.sched_getaffinity(0))
    counts = [int(each) for each in options.sizes or range(1, min(4, len(cores)) + 1)]
    if max(counts) > len(cores):
        raise ValueError(f"{max(counts)} replicas do not have a core each: there are {len(cores)}")
    images = options.images or (1_800 if options.quick else 6_000)
    with stream() as running:
        bodies = list(photographs(running, _MEGAPIXELS).bodies)
        # As many partitions as every number of replicas divides: each has its share of the work.
        backlog = running.fill("replicas", bodies, images, partitions=12)
        found = interleaved(counts, options.rounds, lambda count, _: _once(running, backlog, cores[:count]))
        about = facts(running, rounds=options.rounds, megapixels=_MEGAPIXELS, images=images, pinned=True)
    points = [{"replicas": count, **point} for count, point in found.items()]
    return {"facts": about, "points": points, **_ratios(points)}


def _ratios(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """CPU-ms an image over that of one replica."""
    alone = middle(points[0], "service_cpu_ms")
    ratios = {str(point["replicas"]): short(middle(point, "service_cpu_ms") / alone) for point in points[1:]}
    return {"cpu_ratio": ratios, "target": TARGET}


def _once(running: Stream, backlog: Backlog, cores: Sequence[int]) -> dict[str, float]:
    names = running.names(backlog.topic, partitions=backlog.partitions)
    with ExitStack() as stack:
        services = []
        for core in cores:
            with pinned([core]):
                services.append(stack.enter_context(running.service(names, model_overrides() | _ONE_THREAD)))
        looks = watch(running, names, services, backlog.count)
    running.topics.delete([names.output_topic, names.dead_letter_topic], [names.group_id])
    return figures(looks, running.settings.pipeline.max_in_flight_messages)


@contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores alone, all its threads: a child inherits it from this thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def watch(running: Stream, names: Names, services: Sequence[Service], count: int) -> list[Look]:
    """Look at all of them, from when each is ready until `count` images are labelled."""
    for service in services:
        service.wait_until_ready()
    usages = [Usage(service.child.process.pid, running.broker.pid) for service in services]
    looks: list[Look] = []
    running.note_model(services[0])
    until_s = time.monotonic() + _GIVE_UP_S
    while not looks or looks[-1].done < count:
        waiting = tuple(_waiting(service) for service in services)
        done = running.topics.records(names.output_topic)
        looks.append(Look(done, waiting, tuple(usage.sample() for usage in usages)))
        if time.monotonic() > until_s:
            raise services[0].child.failure(f"{done} of {count} images are labelled after {_GIVE_UP_S:g} s")
        time.sleep(LOOK_S)
    return looks


def _waiting(service: Service) -> int:
    lags = [value for name, value in service.metrics().items() if name.startswith(_LAG)]
    return int(sum(lags)) if lags else -1


def steady(looks: Sequence[Look], in_flight: int) -> tuple[Look, Look]:
    """From the first look at which every replica has partitions and a tenth is done to the last one at which each has
    more waiting than it holds.

    Raises ValueError where there are no two such looks: the backlog is too short.
    """
    count = looks[-1].done
    busy = [each for each in looks if min(each.waiting) > in_flight and each.done >= 0.1 * count]
    if len(busy) < 2 or busy[-1].done == busy[0].done:
        raise ValueError(f"all replicas worked together for less than two looks: raise --images above {count}")
    return busy[0], busy[-1]


def figures(looks: Sequence[Look], in_flight: int) -> dict[str, float]:
    """What the steady part of a run tells. Raises ValueError where there is none."""
    one, other = steady(looks, in_flight)
    images, wall_s = other.done - one.done, other.used[0].at_s - one.used[0].at_s
    service_s = sum(last.service_s - first.service_s for first, last in zip(one.used, other.used, strict=True))
    first, last = one.used[0], other.used[0]
    broker_s = (last.broker_s or 0.0) - (first.broker_s or 0.0)
    bench_s = last.bench_s - first.bench_s
    found = {
        "images_per_s": images / wall_s,
        "service_cpu_ms": 1000 * service_s / images,
        "broker_cpu_ms": 1000 * broker_s / images,
        "service_cores": service_s / wall_s,
        "broker_cores": broker_s / wall_s,
        "watching_cores": bench_s / wall_s,
        "window_s": wall_s,
    }
    others = others_s(first, last, quota_cores())
    if others is not None:
        # That count takes all but the first replica for others.
        rest_s = sum(b.service_s - a.service_s for a, b in zip(one.used[1:], other.used[1:], strict=True))
        found["others_cores"] = max(0.0, others - rest_s) / wall_s
    return found


def draw(found: Found, figure: "Figure") -> None:
    """Images/s, CPU an image, and who had the cores."""
    points = found["points"]
    names = [str(point["replicas"]) for point in points]
    rate, cpu, cores = panels(figure, "images/s, all replicas", "CPU-ms an image", "cores in use")
    for panel, figure_name in ((rate, "images_per_s"), (cpu, "service_cpu_ms")):
        heights = [middle(point, figure_name) for point in points]
        below = [height - point[figure_name]["least"] for height, point in zip(heights, points, strict=True)]
        above = [point[figure_name]["most"] - height for height, point in zip(heights, points, strict=True)]
        panel.bar(names, heights, 0.5, yerr=[below, above], color=COLOURS[0], ecolor=COLOURS[1], capsize=3)
        from_zero(panel)
    bottom = [0.0] * len(points)
    for part, colour in zip(("service", "broker", "watching", "others"), COLOURS, strict=False):
        values = [middle(point, f"{part}_cores") if f"{part}_cores" in point else 0.0 for point in points]
        cores.bar(names, values, 0.5, bottom=bottom, color=colour, label=part)
        bottom = [one + other for one, other in zip(bottom, values, strict=True)]
    for panel in (rate, cpu, cores):
        panel.set_xlabel("replicas, a core each")
        panel.grid(visible=False, axis="x")
    legend(cores)


def table(found: Found) -> list[list[str]]:
    """A row a number of replicas."""
    rows = [
        ["replicas", "images/s", "CPU-ms an image", "over one", "broker, CPU-ms an image", "cores: service", "broker"]
    ]
    rows[0] += ["watching", "others"]
    none = spread([0.0])
    for point in found["points"]:
        ratio = found["cpu_ratio"].get(str(point["replicas"]))
        rows.append(
            [
                str(point["replicas"]),
                text(point["images_per_s"], 1),
                text(point["service_cpu_ms"], 3),
                f"{ratio:.3f}" if ratio else "",
                text(point["broker_cpu_ms"], 3),
                *(f"{middle(point, f'{part}_cores'):.2f}" for part in ("service", "broker", "watching")),
                f"{point.get('others_cores', none)['median']:.2f}",
            ]
        )
    return rows


CURVE = Curve("replicas", "Images/s and CPU an image by replicas, a core each", measure, draw, table, panels=(1, 3))
