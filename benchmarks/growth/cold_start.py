"""Cold start: from a process's start to a warm model, by `benchmarks.cold_start`."""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cold_start import started
from benchmarks.growth.curve import Curve, Found, interleaved, middle, say, short, text
from benchmarks.growth.draw import COLOURS, legend, panels
from benchmarks.growth.others import Others
from consumer.adapters.runtimes.kinds import KINDS, is_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure(options: Namespace) -> Found:
    """Every installed runtime: once with an empty cache, then in turn."""
    installed = ["null", *(kind.name for kind in KINDS if is_installed(kind))]
    if options.quick:
        installed = [name for name in installed if name in ("null", "openvino")]
    with tempfile.TemporaryDirectory(prefix="ouzel-cold-start-") as cache:
        others = Others()
        first = {name: started(name, Path(cache)) for name in installed}
        say(f"with an empty cache: {first}")
        found = interleaved(installed, options.rounds, lambda name, _: started(name, Path(cache)))
        told = others.figures()
    points = [{"runtime": name, "first_warm_s": short(first[name]["warm_s"]), **point} for name, point in found.items()]
    return {"facts": {"rounds": options.rounds, **told}, "points": points}


def draw(found: Found, figure: "Figure") -> None:
    """Seconds and MiB by runtime."""
    points = found["points"]
    names = [point["runtime"] for point in points]
    places = range(len(points))
    seconds, memory = panels(figure, "seconds to a warm model", "resident MiB, warm")
    first = [point["first_warm_s"] for point in points]
    seconds.barh([place - 0.2 for place in places], first, 0.4, color=COLOURS[3], label="empty cache")
    warm = [middle(point, "warm_s") for point in points]
    seconds.barh([place + 0.2 for place in places], warm, 0.4, color=COLOURS[0], label="after that")
    held = [middle(point, "resident_mib") for point in points]
    memory.barh(list(places), held, 0.5, color=COLOURS[2])
    for panel in (seconds, memory):
        panel.set_yticks(list(places), names)
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
    legend(seconds)


def table(found: Found) -> list[list[str]]:
    """A row a runtime."""
    return [
        ["runtime", "empty cache, s", "after that, s", "CPU-s", "resident MiB"],
        *(
            [
                f"`{point['runtime']}`",
                f"{point['first_warm_s']:.2f}",
                text(point["warm_s"], 2),
                text(point["cpu_s"], 2),
                text(point["resident_mib"]),
            ]
            for point in found["points"]
        ),
    ]


CURVE = Curve("cold-start", "From a process's start to a warm model", measure, draw, table)
