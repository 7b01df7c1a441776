"""Soak: a steady load for an hour. Memory, CPU, latency, lag, threads, files; and nothing lost at the end.

The load is open (images come when they are due, whatever became of those before) and comes from a process of its own,
minute by minute: a minute's answers are all in before the next one begins, which takes about a second.
"""

import threading
import time
from argparse import Namespace
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import psutil

from benchmarks.growth.curve import Curve, Found, say, short
from benchmarks.growth.draw import COLOURS, GREY, from_zero, legend, panels
from benchmarks.growth.memory import says, slope_of, thinned
from benchmarks.growth.others import Others
from benchmarks.growth.stream import Stream, facts, model_overrides, photographs, stream
from consumer.bench.children import asked
from consumer.bench.latency import Level, Load
from consumer.bench.service_run import Names, Service
from consumer.bench.workload import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINUTES = 60.0
LOAD = 0.5
"""Of what the service does on a backlog, where no rate is given."""
_SAMPLE_S = 5.0
_MEGAPIXELS = 0.3
_RETENTION_MS = 60_000
_MINUTE_S = 60.0


class Sampler:
    """Looks at the service every few seconds, in a thread of its own."""

    def __init__(self, service: Service, period_s: float) -> None:
        self._service = service
        self._process = psutil.Process(service.child.process.pid)
        self._period_s = period_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._began_s = time.monotonic()
        self.samples: list[dict[str, float]] = []
        self.missed = 0
        """Looks at which /metrics did not answer."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            self.look()

    def look(self) -> None:
        """Note one sample."""
        try:
            metrics = self._service.metrics()
        except OSError:
            self.missed += 1
            return
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            self.samples.append(
                {
                    "at_s": round(time.monotonic() - self._began_s, 2),
                    "images": metrics.get('ouzel_images_total{outcome="labelled"}', 0.0),
                    "rss_bytes": float(self._process.memory_info().rss),
                    "cpu_s": round(cpu.user + cpu.system, 2),
                    "lag": total(metrics, "ouzel_consumer_lag"),
                    "dead_letters": total(metrics, "ouzel_dead_letters_total"),
                    "threads": float(self._process.num_threads()),
                    "open_files": float(self._process.num_fds()),
                }
            )


def total(metrics: Mapping[str, float], name: str) -> float:
    """Over all its labels."""
    return sum(value for label, value in metrics.items() if label.partition("{")[0] == name)


def measure(options: Namespace) -> Found:
    """The capacity first where no rate is given, then minute after minute, then the count of what came in and out."""
    minutes = options.minutes or (0.5 if options.quick else MINUTES)
    part_s = min(_MINUTE_S, minutes * _MINUTE_S / 3)
    period_s = min(_SAMPLE_S, part_s / 10)
    with stream() as running:
        workload = photographs(running, _MEGAPIXELS)
        rate = options.rate or LOAD * _capacity(running, workload, 1_000 if options.quick else 6_000)
        say(f"{rate:.1f} images/s for {minutes:g} minutes")
        running.create_kept_briefly("soak", retention_ms=_RETENTION_MS)
        names = running.names("soak", partitions=running.partitions)
        with running.service(names, model_overrides()) as service:
            service.wait_until_ready()
            running.note_model(service)
            pids = [service.child.process.pid, *([running.broker.pid] if running.broker.pid is not None else [])]
            others = Others(*pids)
            levels, sampler = _load(
                running, workload, service, names, rate=rate, minutes=minutes, part_s=part_s, period_s=period_s
            )
            told = others.figures()  # the generator has ended, and counts as ours
            counted = {
                "inputs": running.topics.records("soak"),
                "events": running.topics.records(names.output_topic),
                "dead_letters": running.topics.records(names.dead_letter_topic),
                "unanswered": sum(level.unanswered for level in levels),
            }
        about = facts(running, megapixels=_MEGAPIXELS, minutes=minutes, rate=short(rate), sample_s=period_s)
    slope = slope_of([int(each["images"]) for each in sampler.samples], [each["rss_bytes"] for each in sampler.samples])
    say(says(slope))
    say(f"{counted}: {'nothing was lost' if nothing_lost(counted) else 'NOT ALL CAME BACK'}")
    return {
        "facts": about | {"looks_missed": sampler.missed} | told,
        "counted": counted | {"nothing_lost": nothing_lost(counted)},
        "slope": slope,
        "minutes": [_minute(level, part_s) for level in levels],
        "points": [_shown(sample, before) for before, sample in pairwise(thinned(sampler.samples, 721))],
    }


def nothing_lost(counted: Mapping[str, Any]) -> bool:
    """Every image that was sent has been answered by its id, by one event each, and none by a letter."""
    return counted["inputs"] == counted["events"] and not counted["dead_letters"] and not counted["unanswered"]


def _capacity(running: Stream, workload: Workload, images: int) -> float:
    backlog = running.fill("capacity", workload.bodies, images)
    rate = running.run(backlog, model_overrides()).window.rate
    running.drop(backlog)
    say(f"on a backlog {rate:.1f} images/s")
    return rate


def _load(
    running: Stream,
    workload: Workload,
    service: Service,
    names: Names,
    *,
    rate: float,
    minutes: float,
    part_s: float,
    period_s: float,
) -> tuple[list[Level], Sampler]:
    load = Load(running.settings.kafka, workload, "raw", "soak")
    levels: list[Level] = []
    log = running.folder / "generator.log"
    with (
        asked("generator", "consumer.bench.generator", [], log=log, overrides={}) as generator,
        Sampler(service, period_s) as sampler,
    ):
        parts = max(1, round(minutes * _MINUTE_S / part_s))
        for number in range(parts):
            level = load.measure(
                generator,
                load=0.0,
                rate=rate,
                seconds=part_s,
                seed=number,
                read_topic=names.output_topic,
                prefix=f"part-{number}",
            )
            levels.append(level)
            p99 = f"p99 {level.latency.p99_ms:.1f} ms" if level.latency else "no answers"
            held = sampler.samples[-1]["rss_bytes"] / 2**20 if sampler.samples else 0.0
            say(f"{number + 1} of {parts}: {p99}, {held:.0f} MiB, {level.unanswered} without an answer")
    return levels, sampler


def _minute(level: Level, seconds: float) -> dict[str, Any]:
    latency = level.latency
    return {
        "seconds": seconds,
        "images": latency.images if latency else 0,
        "p50_ms": short(latency.p50_ms) if latency else None,
        "p99_ms": short(latency.p99_ms) if latency else None,
        "unanswered": level.unanswered,
        "generator_lagged": level.generator_lagged,
    }


def _shown(sample: dict[str, float], before: dict[str, float]) -> dict[str, Any]:
    images = sample["images"] - before["images"]
    return {
        "minute": short(sample["at_s"] / 60),
        "images": int(sample["images"]),
        "rss_mib": short(sample["rss_bytes"] / 2**20),
        "service_cpu_ms": short(1000 * (sample["cpu_s"] - before["cpu_s"]) / images) if images else None,
        **{name: int(sample[name]) for name in ("lag", "dead_letters", "threads", "open_files")},
    }


def draw(found: Found, figure: "Figure") -> None:
    """Four panels over the minutes."""
    points = found["points"]
    titles = ("resident MiB", "CPU-ms an image", "latency, ms", "threads, open files, lag")
    memory, cpu, latency, counts = panels(figure, *titles, rows=2)
    at = [point["minute"] for point in points]
    memory.plot(at, [point["rss_mib"] for point in points], color=COLOURS[0])
    out = next(point["minute"] for point in points if point["images"] >= found["slope"]["left_out_images"])
    memory.axvspan(0, out, color=GREY, alpha=0.15, label="left out of the slope")
    worked = [point for point in points if point["service_cpu_ms"] is not None]
    cpu.plot([p["minute"] for p in worked], [p["service_cpu_ms"] for p in worked], color=COLOURS[0], linewidth=0.8)
    ends, end = [], 0.0
    for minute in found["minutes"]:
        end += minute["seconds"] / 60
        ends.append(end)
    for name, colour in (("p50_ms", COLOURS[0]), ("p99_ms", COLOURS[1])):
        values = [minute[name] if minute[name] is not None else float("nan") for minute in found["minutes"]]
        latency.plot(ends, values, marker="o", markersize=2.5, color=colour, label=name.removesuffix("_ms"))
    for name, colour in (("threads", COLOURS[0]), ("open_files", COLOURS[2]), ("lag", COLOURS[1])):
        counts.plot(at, [point[name] for point in points], color=colour, label=name.replace("_", " "), linewidth=1)
    for panel in (memory, cpu, latency, counts):
        panel.set_xlabel("minutes")
        from_zero(panel)
    for panel in (memory, latency, counts):
        legend(panel)


def table(found: Found) -> list[list[str]]:
    """The run in one row."""
    about, counted, slope, points = found["facts"], found["counted"], found["slope"], found["points"]
    p99 = sorted(minute["p99_ms"] for minute in found["minutes"] if minute["p99_ms"] is not None)
    threads = sorted(point["threads"] for point in points)
    files = sorted(point["open_files"] for point in points)
    heading = ["minutes", "images/s", "sent", "events", "dead letters", "MiB at the end", "bytes an image"]
    return [
        [*heading, "p99, ms: median minute", "worst", "threads", "open files", "most lag"],
        [
            f"{about['minutes']:g}",
            f"{about['rate']:g}",
            f"{counted['inputs']:,}",
            f"{counted['events']:,}",
            str(counted["dead_letters"]),
            f"{points[-1]['rss_mib']:,.0f}",
            f"{slope['bytes_an_image']:+,.2f} ({slope['low']:+,.2f} to {slope['high']:+,.2f})",
            f"{p99[len(p99) // 2]:.0f}" if p99 else "",
            f"{p99[-1]:.0f}" if p99 else "",
            f"{threads[0]}-{threads[-1]}",
            f"{files[0]}-{files[-1]}",
            str(max(point["lag"] for point in points)),
        ],
    ]


CURVE = Curve("soak", "A steady load: memory, CPU, latency, threads and files by minute", measure, draw, table, (2, 2))
