"""Pictures: SVG without a background, in colours that read on white and on black, the same bytes each time."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.growth.curve import Curve, Found, Point, middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#7b8794"
COLOURS = ("#12877a", "#d0563b", "#4c78c8", "#b07d1e", "#8a63b8", "#5f8f2f")
_PANEL_INCHES = (4.6, 3.1)
_STYLE: Any = {
    "svg.hashsalt": "ouzel",
    "svg.fonttype": "none",  # words stay words: small, and found by a search
    "font.size": 9,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


def digest_of(found: Found) -> str:
    """Of the figures a picture was drawn from; the picture carries it, so that an old one is noticed."""
    return "sha256:" + hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def draw(curve: Curve, found: Found, path: Path) -> None:
    """Draw what was found into an SVG file."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    rows, columns = curve.panels
    with mpl.rc_context(_STYLE):
        size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
        figure = Figure(figsize=size, layout="constrained")
        curve.draw(found, figure)
        about = {"Date": None, "Creator": None, "Title": curve.says, "Identifier": digest_of(found)}
        figure.savefig(path, format="svg", transparent=True, metadata=about)
    # matplotlib ends some lines with a blank.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


# --- parts ----------------------------------------------------------------------------------------------------------


def panels(figure: "Figure", *titles: str, rows: int = 1) -> "list[Axes]":
    """One beside the other, in `rows` rows."""
    axes = [figure.add_subplot(rows, len(titles) // rows, number + 1) for number in range(len(titles))]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, loc="left")
    return axes


def line(
    panel: "Axes", points: Sequence[Point], x: str, y: str, *, label: str | None = None, colour: str = COLOURS[0]
) -> None:
    """Medians joined, with bars from the least to the most."""
    xs = [float(point[x]) for point in points]
    medians = [middle(point, y) for point in points]
    below = [middle(point, y) - point[y]["least"] for point in points]
    above = [point[y]["most"] - middle(point, y) for point in points]
    panel.errorbar(xs, medians, yerr=[below, above], marker="o", capsize=2, label=label, color=colour)


def log_x(panel: "Axes", ticks: Sequence[float], *, name: str, texts: Sequence[str] | None = None) -> None:
    """A logarithmic axis with ticks where points are."""
    panel.set_xscale("log")
    panel.set_xticks(list(ticks), list(texts) if texts else [f"{tick:,g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(name)


def from_zero(panel: "Axes", *, name: str = "") -> None:
    """The y axis begins at 0: what looks twice as high is."""
    panel.set_ylim(bottom=0)
    if name:
        panel.set_ylabel(name)


def stacked(panel: "Axes", xs: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    """Bars of parts, each on top of the one before."""
    below = [0.0] * len(xs)
    for (name, values), colour in zip(parts.items(), COLOURS, strict=False):
        panel.bar(list(xs), list(values), bottom=below, label=name, color=colour, width=0.6)
        below = [one + other for one, other in zip(below, values, strict=True)]
    panel.grid(visible=False, axis="x")


def legend(panel: "Axes") -> None:
    """Where there is room."""
    panel.legend(loc="best", fontsize=8, labelcolor=GREY)
