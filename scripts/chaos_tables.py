"""The chaos harness's figures in the docs, from what it wrote: python -m scripts.chaos_tables

    python -m tests.chaos --guarantee share --seed 1 --faults 1000 --json > docs/figures/chaos-share.json
    python -m tests.chaos --guarantee share --apart-s 15 --faults 100 --json > docs/figures/chaos-share-apart.json

The sums of the long runs stand in docs/guarantees.md, between markers. Recovery times are in docs/operations.md, each
in a cell behind a marker that names the kind of fault: of runs with one fault at a time, as with several at once each
would be that of the longest outage.

| <!-- recovery: replica killed --> 1.2 / 6.1 |

<!-- chaos:figures -->
...
<!-- chaos:end -->
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUARANTEES = ("at_least_once", "exactly_once", "share")
_CELL = re.compile(r"(<!-- recovery: ([^>]+) -->)([^|\n]*)\|")
_PART = re.compile(r"(<!-- chaos:figures -->\n)(.*?)(<!-- chaos:end -->)", re.DOTALL)

Report = Mapping[str, Any]
"""Of one guarantee: `tests.chaos.harness.report.figures`."""


def reports(docs: Path, *, apart: bool = False) -> list[Report]:
    """Those that are there: of the long runs, or with `apart` of those with one fault at a time."""
    paths = [docs / "figures" / f"chaos-{guarantee}{'-apart' if apart else ''}.json" for guarantee in GUARANTEES]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def kinds(text: str) -> list[str]:
    """The kinds of fault that have a cell."""
    return [found[2] for found in _CELL.finditer(text)]


def with_recovery_times(text: str, found: Sequence[Report]) -> str:
    """The text with each cell as the reports have it; empty where none knows of that kind."""
    return _CELL.sub(lambda cell: f"{cell[1]} {_times(cell[2], found)}|", text)


def _times(kind: str, found: Sequence[Report]) -> str:
    by_guarantee = {report["guarantee"]: report["recovery_s"].get(kind, {}) for report in found}
    if not any(times.get("p50") is not None for times in by_guarantee.values()):
        return ""
    return " · ".join(_pair(by_guarantee.get(guarantee, {})) for guarantee in GUARANTEES) + " "


def _pair(times: Mapping[str, float | None]) -> str:
    p50, p95 = times.get("p50"), times.get("p95")
    return "-" if p50 is None or p95 is None else f"{p50:.1f} / {p95:.1f}"


def with_figures(text: str, found: Sequence[Report]) -> str:
    """The text with the sums of the long runs; as it is where there are none."""
    if not found:
        return text
    rows = [
        "| guarantee | runs | faults | messages | lost | seen twice | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(report) for report in found),
    ]
    return _PART.sub(lambda part: part[1] + "\n".join(rows) + "\n" + part[3], text)


def _row(report: Report) -> str:
    command = f"python -m tests.chaos --guarantee {report['guarantee']} --seed {report['seed']}"
    if "platform" in report:
        command += f" --platform {','.join(report['platform']) or 'none'}"
    cells = (
        f"`{report['guarantee']}`",
        f"{report['runs']:,}",
        f"{report['faults']:,}",
        f"{report['inputs']:,}",
        f"{report['lost']:,}",
        f"{report['duplicates']:,}",
        f"`{command} --faults {report['faults']}`",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Writes the documents anew."""
    if not reports(DOCS):
        sys.stderr.write(f"{DOCS / 'figures'} has no chaos-{GUARANTEES[0]}.json: see the head of {__file__}\n")
        return 1
    for name, text in rendered(DOCS).items():
        (DOCS / name).write_text(text)
    return 0


def rendered(docs: Path) -> dict[str, str]:
    """The documents as the reports have them, by name."""
    return {
        "operations.md": with_recovery_times((docs / "operations.md").read_text(), reports(docs, apart=True)),
        "guarantees.md": with_figures((docs / "guarantees.md").read_text(), reports(docs)),
    }


if __name__ == "__main__":
    sys.exit(main())
