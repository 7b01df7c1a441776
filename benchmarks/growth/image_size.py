"""Image size: what it costs, and how much of what the machine could do is done."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from benchmarks.growth.curve import Curve, Found, Point, middle, say, short, spread, text, was_quiet
from benchmarks.growth.draw import COLOURS, legend, line, log_x, panels, stacked
from benchmarks.growth.stream import model_overrides, model_says
from benchmarks.harness import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES_MP = (0.1, 0.3, 1.0, 3.0, 12.0)
_PARTS = ("fetch", "decode", "infer", "Kafka", "service beyond", "broker")


def measure(options: Namespace) -> Found:
    """`ouzel bench` at each size, without its latencies."""
    points: list[Point] = []
    facts: dict[str, Any] = {}
    for size in options.sizes or ((0.1, 1.0) if options.quick else SIZES_MP):
        summary = _bench(float(size), options)
        facts = {"models": [model_says(summary["facts"]["model"])], "broker": summary["facts"]["broker"]}
        points.append(_point(float(size), summary))
        say(f"{size:g} MP: {middle(points[-1], 'images_per_s'):.1f} images/s, ratio {middle(points[-1], 'ratio'):.3f}")
    return {"facts": facts | {"rounds": options.rounds}, "points": points}


def _bench(megapixels: float, options: Namespace) -> dict[str, Any]:
    import os

    from consumer.bench.children import environment
    from consumer.bench.results import QUICK, Plan
    from consumer.bench.session import Told, bench
    from consumer.bench.summary import summarize

    plan = Plan(
        megapixels=megapixels,
        rounds=options.rounds,
        seconds=2.0 if options.quick else options.seconds,
        stage_seconds=QUICK.stage_seconds if options.quick else 1.0,
        sizes=(),
        loads=(),
        jars=ROOT / ".kafka",
    )
    kept = dict(os.environ)
    try:
        # The bench takes the user's settings: these are in their place, for this process and its children.
        os.environ.update({name: v for name, v in environment(model_overrides()).items() if name.startswith("OUZEL_")})
        return summarize(bench(plan, None, Told(say=lambda what: say(f"{megapixels:g} MP: {what}"))))
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _point(megapixels: float, summary: dict[str, Any]) -> Point:
    parts = {part["name"].partition(" (")[0]: short(part["cpu_ms"]) for part in summary["parts"]}
    # What the service uses beside its terms, padding among it; broker and bench are not the service's.
    beyond = short(parts["service beyond these"] + parts["padding"])
    windows = [each["window"] for each in summary["each_round"]]
    point: Point = {
        "megapixels": megapixels,
        "image_bytes": round(summary["facts"]["image_bytes"]),
        "images_per_s": _short(summary["achieved"]),
        "roofline_images_per_s": _short(summary["roofline"]),
        "ratio": _short(summary["ratio"]),
        "service_cpu_ms": _short(summary["service_cpu_ms"]),
        "window_s": _short(summary["window_s"]),
        "parts_cpu_ms": {
            "fetch": parts["fetch"],
            "decode": parts["decode"],
            "infer": parts["infer"],
            "Kafka": parts["bare Kafka loop"],
            "service beyond": beyond,
            "broker": parts["broker"],
        },
    }
    if summary["ratio_less_others"] is not None:
        point["ratio_less_others"] = _short(summary["ratio_less_others"])
    if all(window["others_cpu_s"] is not None for window in windows):
        point["others_cores"] = spread(window["others_cpu_s"] / window["wall_s"] for window in windows)
    return point


def _short(figure: dict[str, float]) -> dict[str, float]:
    return {name: short(value) for name, value in figure.items()}


def draw(found: Found, figure: "Figure") -> None:
    """Images/s with the roofline; the parts of the CPU."""
    points = found["points"]
    sizes = [point["megapixels"] for point in points]
    rate, cpu = panels(figure, "images/s", "shares of the CPU an image, %")
    line(rate, points, "megapixels", "roofline_images_per_s", label="roofline", colour=COLOURS[2])
    line(rate, points, "megapixels", "images_per_s", label="achieved")
    log_x(rate, sizes, name="megapixels")
    rate.set_yscale("log")
    legend(rate)
    parts = {name: [max(0.0, point["parts_cpu_ms"][name]) for point in points] for name in _PARTS}
    wholes = [sum(column) for column in zip(*parts.values(), strict=True)]
    shares = {
        name: [100 * v / whole for v, whole in zip(values, wholes, strict=True)] for name, values in parts.items()
    }
    stacked(cpu, [f"{size:g}" for size in sizes], shares)
    cpu.set_xlabel("megapixels")
    cpu.set_xlim(right=1.75 * len(sizes) - 0.75)  # room for the names of the parts
    legend(cpu)


def table(found: Found) -> list[list[str]]:
    """A row a size; where others had much of the machine, the ratio without them, too."""
    less = [] if was_quiet(found) else ["others taken off"]
    heading = ["MP", "KB", "images/s", "roofline", "ratio", *less, *(f"{name}, CPU-ms" for name in _PARTS)]
    return [
        heading,
        *(
            [
                f"{point['megapixels']:g}",
                f"{point['image_bytes'] / 1000:,.0f}",
                text(point["images_per_s"], 1),
                f"{middle(point, 'roofline_images_per_s'):,.1f}",
                text(point["ratio"], 3),
                *(text(point["ratio_less_others"], 3) if "ratio_less_others" in point else "" for _ in less),
                *(f"{point['parts_cpu_ms'][name]:.2f}" for name in _PARTS),
            ]
            for point in found["points"]
        ),
    ]


CURVE = Curve("image-size", "Images/s and CPU an image by image size", measure, draw, table)
