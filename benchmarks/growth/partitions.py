"""Partitions: what many of them cost one replica and the broker."""

from argparse import Namespace
from typing import TYPE_CHECKING

from benchmarks.growth.curve import Curve, Found, interleaved, middle, series_of, text
from benchmarks.growth.draw import COLOURS, from_zero, legend, line, log_x, panels
from benchmarks.growth.padded import tiny_jpeg
from benchmarks.growth.stream import MODEL, NULL, facts, figures, overrides_of, photographs, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTITIONS = (1, 4, 16, 64)
_MEGAPIXELS = 0.3


def measure(options: Namespace) -> Found:
    """The same backlog in so many partitions: tiny pictures without a model, and photographs with it."""
    counts = {NULL: options.images or (4_000 if options.quick else 60_000)}
    if not options.quick:
        counts[MODEL] = max(500, counts[NULL] // 20)
    sizes = [int(size) for size in options.sizes or (PARTITIONS[::3] if options.quick else PARTITIONS)]
    with stream() as running:
        bodies = {NULL: [tiny_jpeg(seed) for seed in range(16)]}
        bodies[MODEL] = list(photographs(running, _MEGAPIXELS).bodies) if MODEL in counts else []
        backlogs = {
            (series, size): running.fill(f"{number}-{size}", bodies[series], count, partitions=size)
            for number, (series, count) in enumerate(counts.items())
            for size in sizes
        }
        found = interleaved(
            list(backlogs), options.rounds, lambda key, _: figures(running.run(backlogs[key], overrides_of(key[0])))
        )
        about = facts(running, images=counts, rounds=options.rounds, megapixels=_MEGAPIXELS)
    points = [{"series": series, "partitions": size, **point} for (series, size), point in found.items()]
    return {"facts": about, "points": points}


def draw(found: Found, figure: "Figure") -> None:
    """Images/s over those at the fewest partitions; CPU of service and broker."""
    rate, cpu = panels(figure, "images/s over those with the fewest partitions", "CPU-ms an image, service and broker")
    ticks: list[float] = []
    for (series, points), colour in zip(series_of(found).items(), COLOURS, strict=False):
        ticks = [point["partitions"] for point in points]
        rates = [middle(point, "images_per_s") for point in points]
        rate.plot(ticks, [each / rates[0] for each in rates], marker="o", color=colour, label=series)
        line(cpu, points, "partitions", "service_cpu_ms", colour=colour, label=f"service, {series}")
        brokers = [middle(point, "broker_cpu_ms") for point in points]
        cpu.plot(ticks, brokers, marker="s", linestyle=":", color=colour, label=f"broker, {series}")
    log_x(rate, ticks, name="partitions")
    log_x(cpu, ticks, name="partitions")
    from_zero(rate)
    from_zero(cpu)
    legend(rate)
    legend(cpu)


def table(found: Found) -> list[list[str]]:
    """A row for each number of partitions, of each series."""
    rows = [["", "partitions", "images/s", "service, CPU-ms an image", "broker, CPU-ms an image"]]
    for point in found["points"]:
        service, broker = text(point["service_cpu_ms"], 3), text(point["broker_cpu_ms"], 3)
        rows.append([point["series"], str(point["partitions"]), text(point["images_per_s"]), service, broker])
    return rows


CURVE = Curve("partitions", "Images/s and CPU an image by partitions", measure, draw, table)
