"""Memory: what a replica holds over many images, and whether that grows."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.growth.curve import Curve, Found, say, short
from benchmarks.growth.draw import COLOURS, GREY, from_zero, legend, panels
from benchmarks.growth.slope import CONFIDENCE, Slope, fit
from benchmarks.growth.stream import Course, facts, figures, model_overrides, photographs, stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_OUT_SHARE = 0.2
"""Of the images, at the beginning: until librdkafka's queues, malloc's arenas and the pools of threads and tensors have
each been full once. A share, so that a longer run leaves out more and not less of what only looks like growth."""
_MEGAPIXELS = 0.1
_MOST_POINTS = 400


def measure(options: Namespace) -> Found:
    """One backlog through one replica, looked at five times a second."""
    images = options.images or (4_000 if options.quick else 100_000)
    course = Course()
    with stream() as running:
        bodies = list(photographs(running, _MEGAPIXELS).bodies)
        backlog = running.fill("memory", bodies, images)
        run = running.run(backlog, model_overrides(), course)
        about = facts(running, images=images, megapixels=_MEGAPIXELS)
    whole = {name: short(value) for name, value in figures(run).items()}
    slope = slope_of(course.done, course.rss_bytes)
    say(says(slope))
    points = [
        {"images": done, "rss_mib": short(rss / 2**20)}
        for done, rss in thinned(list(zip(course.done, course.rss_bytes, strict=True)))
    ]
    return {"facts": about | whole, "points": points, "slope": slope}


def slope_of(images: Sequence[int], rss_bytes: Sequence[float]) -> dict[str, Any]:
    """Bytes an image, the first part left out, and the same of that part alone would be no figure of growth."""
    first = LEFT_OUT_SHARE * images[-1]
    kept = [(done, held) for done, held in zip(images, rss_bytes, strict=True) if done >= first]
    found = fit([done for done, _ in kept], [held for _, held in kept])
    return {**as_json(found), "left_out_images": round(first)}


def as_json(found: Slope) -> dict[str, Any]:
    """With the verdict."""
    return {
        "bytes_an_image": short(found.slope),
        "low": short(found.low),
        "high": short(found.high),
        "confidence": CONFIDENCE,
        "intercept_bytes": short(found.intercept),
        "looks": found.points,
        "independent_looks": short(found.effective_points),
        "flat": found.flat,
    }


def says(slope: dict[str, Any]) -> str:
    """The slope and its verdict, for people."""
    verdict = "flat: 0 lies within" if slope["flat"] else "NOT flat: 0 lies outside"
    return (
        f"{slope['bytes_an_image']:+,.1f} bytes an image ({slope['low']:+,.1f} to {slope['high']:+,.1f} with "
        f"{slope['confidence']:.0%} confidence), {verdict}"
    )


def thinned(points: Sequence[Any], most: int = _MOST_POINTS) -> list[Any]:
    """Every so many of them, the last among them; enough for a picture."""
    step = max(1, -(-len(points) // most))
    return [*points[:-1:step], points[-1]]


def draw(found: Found, figure: "Figure") -> None:
    """Resident MiB by images, and the line."""
    (panel,) = panels(figure, "resident MiB of a replica")
    points, slope = found["points"], found["slope"]
    panel.plot([p["images"] for p in points], [p["rss_mib"] for p in points], color=COLOURS[0], label="resident")
    ends = (slope["left_out_images"], points[-1]["images"])
    line = [(slope["intercept_bytes"] + slope["bytes_an_image"] * end) / 2**20 for end in ends]
    panel.plot(list(ends), line, color=COLOURS[1], linestyle="--", label="fitted")
    panel.axvspan(0, ends[0], color=GREY, alpha=0.15, label="left out")
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_xlabel("images labelled")
    from_zero(panel)
    legend(panel)


def table(found: Found) -> list[list[str]]:
    """The slope."""
    slope, points = found["slope"], found["points"]
    least = next(point for point in points if point["images"] >= slope["left_out_images"])
    return [
        ["images", "left out", "MiB after that", "MiB at the end", "bytes an image", "95 % interval", "images/s"],
        [
            f"{points[-1]['images']:,}",
            f"{slope['left_out_images']:,}",
            f"{least['rss_mib']:,.0f}",
            f"{points[-1]['rss_mib']:,.0f}",
            f"{slope['bytes_an_image']:+,.1f}",
            f"{slope['low']:+,.1f} to {slope['high']:+,.1f}",
            f"{found['facts']['images_per_s']:,.0f}",
        ],
    ]


CURVE = Curve("memory", "Resident memory of a replica by images labelled", measure, draw, table, panels=(1, 1))
