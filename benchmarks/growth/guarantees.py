"""The three delivery guarantees: what each costs, on the same backlog in one run."""

from argparse import Namespace
from typing import TYPE_CHECKING

from benchmarks.growth.curve import Curve, Found, interleaved, middle, series_of, text
from benchmarks.growth.draw import COLOURS, from_zero, legend, panels
from benchmarks.growth.padded import tiny_jpeg
from benchmarks.growth.stream import MODEL, NULL, facts, figures, overrides_of, photographs, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GUARANTEES = ("at_least_once", "exactly_once", "share")
_MEGAPIXELS = 0.3


def measure(options: Namespace) -> Found:
    """The same backlogs under each guarantee in turn: tiny pictures without a model, and photographs with it."""
    counts = {NULL: options.images or (4_000 if options.quick else 30_000)}
    counts[MODEL] = max(500, counts[NULL] // 10)
    with stream() as running:
        bodies = {NULL: [tiny_jpeg(seed) for seed in range(16)], MODEL: list(photographs(running, _MEGAPIXELS).bodies)}
        backlogs = {
            series: running.fill(str(number), bodies[series], counts[series]) for number, series in enumerate(counts)
        }
        keys = [(series, guarantee) for series in counts for guarantee in GUARANTEES]

        def one(key: tuple[str, str], _round: int) -> dict[str, float]:
            series, guarantee = key
            return figures(running.run(backlogs[series], overrides_of(series) | {"delivery.guarantee": guarantee}))

        found = interleaved(keys, options.rounds, one)
        about = facts(running, images=counts, rounds=options.rounds, megapixels=_MEGAPIXELS)
    points = [{"series": series, "guarantee": guarantee, **point} for (series, guarantee), point in found.items()]
    return {"facts": about, "points": points}


def draw(found: Found, figure: "Figure") -> None:
    """Images/s over those at least once; CPU of service and broker."""
    rate, cpu = panels(figure, "images/s over those of at_least_once", "CPU-ms an image: service, and broker above it")
    all_series = series_of(found)
    width = 0.8 / len(all_series)
    for place, ((series, points), colour) in enumerate(zip(all_series.items(), COLOURS, strict=False)):
        at = [number + place * width for number in range(len(points))]
        rates = [middle(point, "images_per_s") for point in points]
        rate.bar(at, [each / rates[0] for each in rates], width, color=colour, label=series)
        service = [middle(point, "service_cpu_ms") for point in points]
        cpu.bar(at, service, width, color=colour, label=series)
        broker = [middle(point, "broker_cpu_ms") for point in points]
        cpu.bar(at, broker, width, bottom=service, color=colour, alpha=0.5)
        for axes in (rate, cpu):
            axes.set_xticks([number + width / 2 for number in range(len(points))])
            axes.set_xticklabels([point["guarantee"] for point in points])
    from_zero(rate)
    from_zero(cpu)
    legend(rate)
    legend(cpu)


def table(found: Found) -> list[list[str]]:
    """A row for each guarantee, of each series."""
    rows = [["", "guarantee", "images/s", "over at_least_once", "service, CPU-ms an image", "broker, CPU-ms an image"]]
    for points in series_of(found).values():
        first = middle(points[0], "images_per_s")
        for point in points:
            service, broker = text(point["service_cpu_ms"], 3), text(point["broker_cpu_ms"], 3)
            over = f"{middle(point, 'images_per_s') / first:.2f}"
            rows.append([point["series"], point["guarantee"], text(point["images_per_s"]), over, service, broker])
    return rows


CURVE = Curve("guarantees", "Images/s and CPU an image by delivery guarantee", measure, draw, table)
