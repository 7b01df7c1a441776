"""Backlog: whether the millionth image is labelled as fast as the first, and what memory does meanwhile."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.growth.curve import Curve, Found, Point, say, series_of, short
from benchmarks.growth.draw import COLOURS, from_zero, legend, panels
from benchmarks.growth.padded import tiny_jpeg
from benchmarks.growth.stream import MODEL, NULL, Course, Stream, facts, figures, overrides_of, photographs, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {NULL: (10_000, 100_000, 1_000_000), MODEL: (1_000, 10_000, 100_000)}
_MEGAPIXELS = 0.1
_PARTS = 10
_SERIES = {"null": NULL, "model": MODEL}


def measure(options: Namespace) -> Found:
    """One run a size and series; `--sizes` is of both."""
    sizes = {series: [int(each) for each in options.sizes or found] for series, found in SIZES.items()}
    if options.quick and not options.sizes:
        sizes = {NULL: [3_000, 10_000], MODEL: [1_000]}
    if options.series:
        sizes = {series: found for series, found in sizes.items() if series == _SERIES[options.series]}
    points: list[Point] = []
    with stream() as running:
        for series, found in sizes.items():
            bodies = _bodies(running, series)
            for size in found:
                points.append({"series": series, "images": size, **_run(running, series, bodies, size)})
                rates = points[-1]["rate_by_part"]
                say(f"{series}, {size:,}: {' '.join(f'{rate:,.0f}' for rate in rates)} images/s")
        about = facts(running, megapixels=_MEGAPIXELS)
    return {"facts": about, "points": points}


def _bodies(running: Stream, series: str) -> Sequence[bytes]:
    if series == NULL:
        return [tiny_jpeg(seed) for seed in range(16)]
    return photographs(running, _MEGAPIXELS).bodies


def _run(running: Stream, series: str, bodies: Sequence[bytes], size: int) -> dict[str, Any]:
    backlog, course = running.fill(f"backlog-{len(bodies[0])}-{size}", bodies, size), Course()
    run = running.run(backlog, overrides_of(series), course)
    running.drop(backlog)
    whole = {name: short(value) for name, value in figures(run).items()}
    return {**whole, **by_part(course.done, course.at_s, course.rss_bytes, size)}


def by_part(done: Sequence[int], at_s: Sequence[float], rss_bytes: Sequence[float], size: int) -> dict[str, Any]:
    """Images/s of each tenth of the backlog, and the resident MiB at its end.

    The first tenth is left out of the rates: connecting and the first fetch are in it. Between two looks progress is
    taken as steady.
    """
    import numpy as np

    marks = [size * part / _PARTS for part in range(1, _PARTS + 1)]
    # Of looks that saw the same count the last: the time at which it still was so.
    times = dict(zip(done, at_s, strict=True))
    counts = sorted(times)
    crossed = np.interp(marks, counts, [times[count] for count in counts])
    held = np.interp(crossed, at_s, rss_bytes)
    took = np.diff(crossed)
    return {
        "rate_by_part": [short(size / _PARTS / max(1e-9, float(each))) for each in took],
        "rss_mib_by_part": [short(float(each) / 2**20) for each in held],
    }


def flatness(point: Point) -> float:
    """Images/s of the last third of the parts over those of the first third."""
    rates = point["rate_by_part"]
    third = len(rates) // 3
    return float(harmonic(rates[-third:]) / harmonic(rates[:third]))


def harmonic(rates: Sequence[float]) -> float:
    """The mean rate of equal amounts of work."""
    return len(rates) / sum(1 / rate for rate in rates)


def draw(found: Found, figure: "Figure") -> None:
    """By how much is done: images/s over the run's own mean, and memory."""
    rate, memory = panels(figure, "images/s, over the run's mean", "resident MiB")
    colour = iter(COLOURS)
    for series, points in series_of(found).items():
        for point in points:
            name, this = f"{point['images']:,}, {series}", next(colour)
            rates, held = point["rate_by_part"], point["rss_mib_by_part"]
            mean = harmonic(rates)
            rate.plot(_percents(len(rates)), [each / mean for each in rates], marker="o", color=this, label=name)
            memory.plot(_percents(len(held)), held, marker="o", color=this, label=name)
    for panel in (rate, memory):
        panel.set_xlabel("% of the backlog done")
        from_zero(panel)
    legend(rate)


def _percents(parts: int) -> list[float]:
    """The last `parts` tenths' ends."""
    return [100 * (_PARTS - parts + number + 1) / _PARTS for number in range(parts)]


def table(found: Found) -> list[list[str]]:
    """A row a run."""
    heading = ["", "images", "images/s", "last third over first", "CPU-ms an image", "MiB at a tenth", "MiB at the end"]
    rows = [heading]
    for point in found["points"]:
        held = point["rss_mib_by_part"]
        rows.append(
            [
                point["series"],
                f"{point['images']:,}",
                f"{point['images_per_s']:,.0f}",
                f"{flatness(point):.3f}",
                f"{point['service_cpu_ms']:.3f}",
                f"{held[0]:,.0f}",
                f"{held[-1]:,.0f}",
            ]
        )
    return rows


CURVE = Curve("backlog", "Images/s and memory by how much of a backlog is done", measure, draw, table)
