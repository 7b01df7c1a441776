"""The tables of the docs, between markers, from the committed figures:

<!-- growth:partitions -->
...
<!-- growth:end -->
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import tables as gpu
from benchmarks.growth import planner
from benchmarks.growth.curve import Curve, Found, others_share, say, was_quiet

DOCUMENTS = ("performance.md", "scaling.md")
BENCH = "bench.json"
"""Of `figures/`: what the planner's tables are made from."""
_PART = re.compile(r"(<!-- growth:([a-z-]+) -->\n)(.*?)(<!-- growth:end -->)", re.DOTALL)


def write(docs: Path, curves: Mapping[str, Curve]) -> None:
    """Every table anew."""
    texts = dict(parts(docs, curves))
    for name in DOCUMENTS:
        path = docs / name
        before = path.read_text()
        after = rendered(before, texts)
        if after != before:
            path.write_text(after)
            say(f"tables: {path}")


def parts(docs: Path, curves: Mapping[str, Curve]) -> Iterator[tuple[str, str]]:
    """Name and Markdown of each table whose figures are there."""
    for curve in curves.values():
        path = docs / "figures" / f"growth-{curve.name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            yield curve.name, f"{planner.markdown(curve.table(found))}\n\n{made_by(found)}"
    bench = docs / "figures" / BENCH
    if bench.exists():
        for name, rows in planner.tables(planner.read(bench), planner.Asked()).items():
            yield name, planner.markdown(rows)
    on_gpu = docs / "figures" / gpu.FIGURES
    if on_gpu.exists():
        for name, rows in gpu.tables(json.loads(on_gpu.read_text())):
            yield name, planner.markdown(rows)


def rendered(text: str, texts: Mapping[str, str]) -> str:
    """The text with each marked part replaced. Raises KeyError for a part that nothing is known of."""

    def replaced(found: re.Match[str]) -> str:
        return f"{found[1]}{texts[found[2]]}\n{found[4]}"

    return _PART.sub(replaced, text)


def marked(text: str) -> list[str]:
    """The names of the parts of a document."""
    return [found[2] for found in _PART.finditer(text)]


def made_by(found: Found) -> str:
    """The command, and what it ran on and beside."""
    machine: Mapping[str, Any] = found["machine"]
    flags = ", ".join(f"`{flag}`" for flag in machine["cpu_flags"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rounds = found["facts"].get("rounds")
    of_rounds = f" {rounds} rounds in turn: median (least-most)." if rounds and rounds > 1 else ""
    cores = f"{machine['cores']} virtual core{'s' if machine['cores'] > 1 else ''}"
    models = "".join(f"{name}; " for name in found["facts"].get("models", []) if name != "no model")
    share = others_share(found) or 0.0
    others = "" if was_quiet(found) else f" Others used {100 * share:.0f} % of the cores meanwhile."
    return f"`{found['command']}`.{others}{of_rounds} {models}{cores} of {machine['cpu']} ({flags}); {versions}."
