"""The recovery times of docs/operations.md, from what the chaos harness measured: python -m scripts.recovery_times

Each stands in a cell behind a marker that names the kind of fault:

| <!-- recovery: replica killed --> 1.2 s (0.9 to 6.1) |
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "operations.md"
REPORT = ROOT / "docs" / "figures" / "chaos.json"
_CELL = re.compile(r"(<!-- recovery: ([^>]+) -->)([^|\n]*)\|")


def kinds(text: str) -> list[str]:
    """The kinds of fault that have a cell."""
    return [found[2] for found in _CELL.finditer(text)]


def rendered(text: str, report: Mapping[str, Any]) -> str:
    """The text with each cell as the report has it; empty where it knows nothing of that kind."""
    times: Mapping[str, Mapping[str, float]] = report.get("recovery_s", {})
    return _CELL.sub(lambda found: f"{found[1]} {_say(times.get(found[2]))}|", text)


def _say(time_s: Mapping[str, float] | None) -> str:
    if not time_s:
        return ""
    return f"{time_s['p50']:.1f} s, p99 {time_s['p99']:.1f} s ({time_s['count']:.0f}) "


def main() -> int:
    """Writes the document anew."""
    if not REPORT.exists():
        sys.stderr.write(f"{REPORT} is not there: python -m tests.chaos ... --json {REPORT.relative_to(ROOT)}\n")
        return 1
    DOCUMENT.write_text(rendered(DOCUMENT.read_text(), json.loads(REPORT.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
