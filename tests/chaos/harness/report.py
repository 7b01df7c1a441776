"""What many runs came to, as a table."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.chaos.harness.campaign import Tally
from tests.chaos.harness.recovery import quantile


def figures(tally: Tally) -> dict[str, Any]:
    """The same as `table`, for programs."""
    every = [seconds for times in tally.recoveries_s.values() for seconds in times]
    return {
        "guarantee": tally.guarantee,
        "seed": tally.seed,
        "platform": list(tally.platform),
        "runs": tally.episodes,
        "seconds": tally.seconds,
        "faults": tally.done,
        "inputs": tally.inputs,
        "lost": tally.lost,
        "duplicates": tally.duplicates,
        "phantoms": tally.phantoms,
        "uncommitted": tally.uncommitted,
        "broken_runs": [each["seed"] for each in tally.broken],
        "exits": tally.exits,
        "good_letters": tally.good_letters,
        "recovery_s": {"all": _quantiles(every)} | {
            kind: {"faults": count, **_quantiles(tally.recoveries_s.get(kind, []))}
            for kind, count in sorted(tally.faults.items())
        },
    }  # fmt: skip


def _quantiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None, "max": None}
    return {"p50": quantile(values, 0.5), "p95": quantile(values, 0.95), "max": max(values)}


def table(tally: Tally) -> RenderableType:
    """For people."""
    found = figures(tally)
    rows = Table(title=f"{tally.guarantee}, seed {tally.seed}: seconds from a fault's end to recovery")
    rows.add_column("fault")
    for name in ("faults", "p50", "p95", "max"):
        rows.add_column(name, justify="right")
    for kind, row in found["recovery_s"].items():
        count = found["faults"] if kind == "all" else row["faults"]
        rows.add_row(kind, str(count), *(_seconds(row[name]) for name in ("p50", "p95", "max")))
    summary = (
        f"{tally.episodes} runs, {tally.done} faults, {tally.inputs} inputs in {tally.seconds / 60:.0f} min: "
        f"{tally.lost} lost, {tally.duplicates} duplicates, {tally.phantoms} phantoms; "
        f"{tally.uncommitted} records that only read_uncommitted sees"
    )
    more = [
        f"platform: {', '.join(tally.platform) or 'none'}",
        f"replicas that ended by themselves, by exit code: {_counts(tally.exits)}",
        f"dead letters of whole photographs: {_counts(tally.good_letters)}",
        f"runs that broke a promise: {len(tally.broken)}",
        *(f"  seed {each['seed']}: {each['violations'][0]} ({each['folder']})" for each in tally.broken),
    ]
    return Group(rows, Text(summary), *(Text(line) for line in more))


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(found.items())) or "none"
