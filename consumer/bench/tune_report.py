"""`ouzel bench --tune`: what was tried, and what came of it, as JSON and in a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumer.bench.summary import machine
from consumer.bench.tune import Look, Outcome, verdict
from consumer.tuning import Gain, Tried
from consumer.tuning_settings import NAMES


def summarize(outcome: Outcome) -> dict[str, Any]:
    """As one JSON document; the terminal shows the same."""
    return {
        "machine": machine(),
        "model": outcome.model,
        "workload": outcome.workload,
        "megapixels": outcome.megapixels,
        "tried": [_tried(look) for look in sorted(outcome.looks, key=lambda each: -_median(each))],
        "passed_over": list(outcome.passed_over),
        "present": outcome.present.values,
        "best": outcome.best.values,
        "gain": _gain(outcome.gain),
        "service_gain": None if outcome.service_gain is None else _gain(outcome.service_gain),
        "not_confirmed": outcome.not_confirmed,
        "is_gain": outcome.is_gain,
        "verdict": verdict(outcome),
        "settings": outcome.best.toml if outcome.is_gain else "",
        "looks": sum(len(look.rates) for look in outcome.looks),
        "took_s": outcome.took_s,
    }


def _tried(look: Look) -> dict[str, Any]:
    return {
        **look.setup.values,
        "images_per_s": _median(look),
        "least": min(look.rates),
        "most": max(look.rates),
        "looks": len(look.rates),
    }


def _median(look: Look) -> float:
    return Tried((), list(look.rates)).rate


def _gain(gain: Gain) -> dict[str, Any]:
    return {"median": gain.median, "least": gain.least, "most": gain.most, "rounds": len(gain.ratios)}


def as_file(summary: Mapping[str, Any]) -> str:
    """What --write writes: a settings file of those settings and no others, which says where they are from."""
    where = summary["machine"]
    on = f"{where['cores']} cores, {where['cpu'] or 'CPU unknown'}"
    about = [
        f"# Found by `ouzel bench --tune` for {summary['model']}, images of {summary['megapixels']:g} MP, on {on}:",
        f"# {summary['verdict']}",
    ]
    if summary["not_confirmed"]:
        about.append(f"# not confirmed on the service: {summary['not_confirmed'].splitlines()[0]}")
    return "\n".join((*about, "", summary["settings"]))


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """In a terminal."""
    out = console or Console(highlight=False)
    where = summary["machine"]
    out.print(Text(f"{summary['model']} on {where['cores']} cores, {where['cpu'] or 'CPU unknown'}", "bold"))
    images = f"{summary['megapixels']:g} MP, {summary['workload']}"
    out.print(Text(f"images: {images}; {summary['looks']} looks, {summary['took_s']:.0f} s", "dim"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    names = ("model.runtime", *NAMES)
    for name in names:
        table.add_column(name.partition(".")[2], justify="left" if name == "model.runtime" else "right")
    for column in ("images/s", "least to most", "looks", ""):
        table.add_column(column, justify="right")
    for each in summary["tried"]:
        values = {name: each[name] for name in names if name in each}
        mark = "best" if values == summary["best"] else ""
        mark = "present" if values == summary["present"] else mark
        cells = [str(values.get(name, "-")) for name in names]
        spread = f"{each['least']:.0f} to {each['most']:.0f}"
        style = "bold" if mark else ""
        row = [*cells, f"{each['images_per_s']:.0f}", spread, str(each["looks"]), mark]
        table.add_row(*(Text(cell, style) for cell in row))
    out.print(table)
    for said in summary["passed_over"]:
        out.print(Text(said, "dim"))
    out.print(Text(summary["verdict"], "bold green" if summary["is_gain"] else "bold"))
    if summary["not_confirmed"] and summary["is_gain"]:
        out.print(Text(f"not confirmed on the service: {summary['not_confirmed']}", "yellow"))
    if summary["settings"]:
        out.print(Text("\nFor settings.toml:\n", "dim"))
        out.print(Text(summary["settings"]))
