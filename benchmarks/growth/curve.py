"""What a curve is, and what is told of its points."""

import platform
import shlex
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from consumer import __version__
from consumer.adapters.cpu_flags import cpu_flags, cpu_name, noted
from consumer.cpu import quota_cores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = dict[str, Any]
"""What stands on the x axis, `series` where there are several, and spreads."""
Found = dict[str, Any]
"""`points` and `facts`, and what `document` adds."""
Key = TypeVar("Key")
NOISY_SHARE = 0.1
"""Of the cores: what others use above it is told with the figures."""
_VERSIONS = ("confluent-kafka", "numpy", "pillow", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorflow-cpu")


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve of docs/performance.md."""

    name: str
    says: str
    measure: Callable[[Namespace], Found]
    draw: "Callable[[Found, Figure], None]"
    table: Callable[[Found], list[list[str]]]
    """Rows of text, the first the heading."""
    panels: tuple[int, int] = (1, 2)
    """Rows and columns of the picture."""


def document(curve: Curve, found: Found, arguments: Sequence[str]) -> Found:
    """The JSON of a curve: its points, and what they were made by and on."""
    whole = {
        "curve": curve.name,
        "says": curve.says,
        "command": shlex.join(["python", "-m", "benchmarks.growth", *arguments]),
        "machine": machine(),
        **found,
    }
    return whole | {"others_share": others_share(whole)}


def others_share(found: Found) -> float | None:
    """What share of the cores other processes used while the points were measured; None where nobody could tell."""
    if "others_share" in found:
        known: float | None = found["others_share"]
        return known
    told = [each for each in (found["facts"], *found["points"]) if "others_cores" in each]
    seconds = sum(_figure(each["window_s"]) for each in told)
    if not seconds:
        return None
    used_s = sum(_figure(each["others_cores"]) * _figure(each["window_s"]) for each in told)
    return short(used_s / seconds / found["machine"]["cores"])


def was_quiet(found: Found) -> bool:
    """Whether others used so little that it need not be told; also where nobody could tell."""
    return (others_share(found) or 0.0) <= NOISY_SHARE


def _figure(value: float | Mapping[str, float]) -> float:
    """Of one run, or the median of several."""
    return value["median"] if isinstance(value, Mapping) else value


def machine() -> dict[str, Any]:
    """What was measured on, and with which versions."""
    installed: dict[str, str] = {}
    for each in metadata.distributions():  # of two the first on the path is the one that is imported
        installed.setdefault(each.metadata["Name"].lower(), each.version)
    versions = {name: installed[name] for name in _VERSIONS if name in installed}
    return {
        "cores": quota_cores(),
        "cpu": cpu_name(),
        "cpu_flags": noted(cpu_flags()),
        "versions": {"ouzel": __version__, "python": platform.python_version(), **versions},
    }


def say(text: str) -> None:
    """What is done, for people."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# --- rounds ---------------------------------------------------------------------------------------------------------


def interleaved(
    keys: Sequence[Key], rounds: int, measure: Callable[[Key, int], Mapping[str, float]]
) -> dict[Key, dict[str, Any]]:
    """Each key once a round, every other round the other way round, so that a drift of the machine hits all alike.

    Returns for each key a spread of each figure.
    """
    found: dict[Key, list[Mapping[str, float]]] = {key: [] for key in keys}
    for number in range(rounds):
        for key in keys if number % 2 == 0 else reversed(keys):
            found[key].append(measure(key, number))
            figures = ", ".join(f"{name} {value:.4g}" for name, value in found[key][-1].items())
            say(f"round {number + 1} of {rounds}, {key}: {figures}")
    return {key: merged(each) for key, each in found.items()}


def merged(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of each figure that all rounds have its spread."""
    names = [name for name in rounds[0] if all(name in each for each in rounds)]
    return {name: spread(each[name] for each in rounds) for name in names}


def spread(values: Iterable[float]) -> dict[str, float]:
    """The median, the least and the most; 5 digits, so that a file of figures can be read."""
    found = sorted(values)
    return {"median": short(statistics.median(found)), "least": short(found[0]), "most": short(found[-1])}


def short(value: float) -> float:
    """5 digits of it."""
    return float(f"{value:.5g}")


# --- telling --------------------------------------------------------------------------------------------------------


def middle(point: Mapping[str, Any], name: str) -> float:
    """The median of a figure."""
    return float(point[name]["median"])


def text(figure: Mapping[str, float], digits: int = 0) -> str:
    """`812 (790-840)`, or the median alone where all rounds agree on it."""
    median, least, most = (f"{figure[part]:,.{digits}f}" for part in ("median", "least", "most"))
    return median if least == most else f"{median} ({least}-{most})"


def series_of(found: Found) -> dict[str, list[Point]]:
    """The points by series, in their order."""
    by_series: dict[str, list[Point]] = {}
    for point in found["points"]:
        by_series.setdefault(point.get("series", ""), []).append(point)
    return by_series
