"""Message size: the same tiny picture in ever larger messages, so that nothing but their carriage grows."""

from argparse import Namespace
from typing import TYPE_CHECKING

from benchmarks.growth.curve import Curve, Found, Point, interleaved, middle, spread, text
from benchmarks.growth.draw import COLOURS, from_zero, legend, line, log_x, panels
from benchmarks.growth.padded import padded, tiny_jpeg
from benchmarks.growth.stream import NULL, facts, figures, overrides_of, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_FEWEST = 1_500
_BYTES = 2_000_000_000


def measure(options: Namespace) -> Found:
    """A backlog of each size, through the service without a model."""
    most = options.images or (3_000 if options.quick else 60_000)
    sizes = [int(size) for size in options.sizes or (SIZES[:3] if options.quick else SIZES)]
    with stream() as running:
        backlogs = {}
        for size in sizes:
            bodies = [padded(tiny_jpeg(seed), size, seed=seed) for seed in range(16)]
            count = min(most, max(_FEWEST, _BYTES // size))
            backlogs[size] = running.fill(f"messages-{size}", bodies, count)
        found = interleaved(
            sizes, options.rounds, lambda size, _: figures(running.run(backlogs[size], overrides_of(NULL)))
        )
        about = facts(running, rounds=options.rounds, images={size: each.count for size, each in backlogs.items()})
    return {"facts": about, "points": [_point(size, point) for size, point in found.items()]}


def _point(size: int, point: Point) -> Point:
    rate = point["images_per_s"]
    return {"message_bytes": size, **point, "mb_per_s": spread(each * size / 1e6 for each in rate.values())}


def draw(found: Found, figure: "Figure") -> None:
    """Images/s and MB/s; CPU of service and broker."""
    points = found["points"]
    sizes = [point["message_bytes"] for point in points]
    names = [f"{size / 1000:,g} kB" for size in sizes]
    rate, cpu = panels(figure, "images/s, and MB/s", "CPU-ms an image")
    line(rate, points, "message_bytes", "images_per_s", label="images/s")
    line(rate, points, "message_bytes", "mb_per_s", label="MB/s", colour=COLOURS[1])
    rate.set_yscale("log")
    line(cpu, points, "message_bytes", "service_cpu_ms", label="service")
    line(cpu, points, "message_bytes", "broker_cpu_ms", label="broker", colour=COLOURS[1])
    for panel in (rate, cpu):
        log_x(panel, sizes, name="bytes of a message", texts=names)
        legend(panel)
    from_zero(cpu)


def table(found: Found) -> list[list[str]]:
    """A row a size."""
    return [
        ["message", "images/s", "MB/s", "service, CPU-ms an image", "broker, CPU-ms an image"],
        *(
            [
                f"{point['message_bytes'] / 1000:,g} kB",
                text(point["images_per_s"]),
                f"{middle(point, 'mb_per_s'):,.1f}",
                text(point["service_cpu_ms"], 3),
                text(point["broker_cpu_ms"], 3),
            ]
            for point in found["points"]
        ),
    ]


CURVE = Curve("message-size", "Images/s, MB/s and CPU an image by message size, without a model", measure, draw, table)
