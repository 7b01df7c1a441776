"""The run in a terminal: tables, and where the CPU went as bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BAR = 40
_COLOURS = {"term": "cyan", "overhead": "yellow", "outside": "blue", "idle": "bright_black"}


def spread(figure: Mapping[str, float], digits: int = 0, unit: str = "") -> str:
    """The median, and the least and the most in brackets where they differ."""
    median, least, most = (f"{figure[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{median}{unit}" if least == most else f"{median}{unit} ({least} to {most})"


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print it all."""
    out = console or Console(highlight=False)
    out.print(_heading(summary))
    out.print(_terms(summary))
    out.print(_result(summary))
    out.print(_parts(summary))
    if summary["latency"]:
        out.print(_latency(summary))
    for warning in summary["warnings"]:
        out.print(Text(f"! {warning}", "yellow"))


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, on what: name and value."""
    machine, found = summary["machine"], summary["facts"]
    model = found["model"]
    named = f"{model['name']} {model['version']}, {model['runtime']} {model['precision']}"
    flags = ", ".join(machine["cpu_flags"]) or "no flags of note"
    images = (
        f"{found['messages']} of {found['megapixels']:g} MP, {found['image_bytes'] / 1000:.0f} kB, "
        f"sent {found['form']} ({found['workload']}, JPEG quality 90)"
    )
    return [
        ("machine", f"{machine['cores']} cores, {machine['cpu'] or 'CPU unknown'} ({flags})"),
        ("software", f"ouzel {machine['ouzel']}, Python {machine['python']}"),
        ("model", f"{named}; {found['model_threads']} threads, {found['decode_threads']} to decode"),
        ("images", images),
        ("broker", f"{found['broker']}; {found['partitions']} partitions"),
        ("rounds", f"{summary['rounds']}; medians, least to most in brackets"),
    ]


def _heading(summary: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    for name, value in facts(summary):
        table.add_row(Text(name, "dim"), Text(value))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 3, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _terms(summary: Mapping[str, Any]) -> Padding:
    """Each alone; those that the roofline takes are bright."""
    terms, found = summary["terms"], summary["facts"]
    table = _table("What one image costs, each alone", "stage", "CPU-ms an image", "ms")
    rows: list[tuple[str, str, str, bool]] = [
        (f"fetch, {form}", spread(each, 3), "", form == found["form"]) for form, each in terms["fetch_ms"].items()
    ]
    rows += [
        (
            f"decode {size} MP",
            spread(each, 2),
            f"p99 {terms['decode_p99_ms'][size]['median']:.1f}",
            float(size) == found["megapixels"],
        )
        for size, each in terms["decode_ms"].items()
    ]
    rows += [
        (
            f"infer, batch of {size}",
            spread(each, 2),
            f"{terms['batch_ms'][size]['median']:.1f} a batch",
            int(size) in terms["batches"],
        )
        for size, each in terms["infer_ms"].items()
    ]
    rows.append(("bare Kafka loop", spread(terms["overhead_ms"], 3), "", True))
    for name, cpu, wall, used in rows:
        style = "" if used else "dim"
        table.add_row(Text(name, style), Text(cpu, style), Text(wall, style))
    return Padding(table, (1, 0, 0, 0))


def equation(summary: Mapping[str, Any]) -> str:
    """The formula with this run's medians in it."""
    terms = summary["terms"]
    figures = " + ".join(
        f"{terms[name]['median']:.3f}" for name in ("fetch_used_ms", "decode_used_ms", "infer_used_ms", "overhead_ms")
    )
    return f"1000 * {summary['free_cores']['median']:.3f} / ({figures})"


def figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of the service: name and value."""
    rows = [
        ("roofline", spread(summary["roofline"], 0, " images/s")),
        ("achieved", spread(summary["achieved"], 0, " images/s")),
        ("achieved / roofline", spread(summary["ratio"], 3)),
    ]
    if summary["ratio_less_others"]:
        rows.append(("the same, other processes' CPU taken off", spread(summary["ratio_less_others"], 3)))
    rows.append(("CPU of the service", spread(summary["service_cpu_ms"], 2, " ms an image")))
    if summary["broker_cpu_ms"]:
        rows.append(("CPU of the broker", spread(summary["broker_cpu_ms"], 2, " ms an image")))
    return [
        *rows,
        ("memory, at most", spread(summary["peak_rss_mib"], 0, " MiB")),
        ("images in a batch", spread(summary["mean_batch"], 1)),
        ("padding", spread({name: 100 * value for name, value in summary["padding_share"].items()}, 1, " %")),
        ("start to first event", spread(summary["first_event_s"], 1, " s")),
        ("measured over", spread(summary["window_s"], 1, " s")),
    ]


def _result(summary: Mapping[str, Any]) -> Padding:
    table = _table("The service on a filled topic", "", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for name, value in figures(summary):
        bold = "bold" if name == "achieved / roofline" else ""
        table.add_row(Text(name, bold), Text(value, bold))
    formula = Text(f"{summary['formula']}\n  = {equation(summary)}  (medians; each round has its own)", "dim")
    return Padding(Group(table, formula), (1, 0, 0, 0))


def _parts(summary: Mapping[str, Any]) -> Padding:
    """CPU of all cores over the images, part by part."""
    parts: Sequence[Mapping[str, Any]] = summary["parts"]
    whole_ms = sum(part["cpu_ms"] for part in parts)
    table = _table(f"Where the CPU of {summary['cores']} cores went: {whole_ms:.2f} ms an image", "", "ms", "share", "")
    table.columns[3].justify = "left"
    for part in parts:
        share = part["cpu_ms"] / whole_ms
        bar = Text("█" * round(_BAR * max(0.0, share)) or "▏", _COLOURS[part["kind"]])
        table.add_row(part["name"], f"{part['cpu_ms']:.3f}", f"{share:.1%}", bar)
    return Padding(table, (1, 0, 0, 0))


def _latency(summary: Mapping[str, Any]) -> Padding:
    """From due to arrived."""
    latency, budget = summary["latency"], summary["budget"]
    title = f"Latency in ms, from due to arrived ({latency['arrivals']}; {latency['rounds']} rounds)"
    table = _table(title, "load", "images/s", "p50", "p95", "p99", "generator late, p99")
    for level in [*latency["loads"], latency["round_trip"]]:
        name = f"{level['load']:.0%}" if level["load"] else "bare round trip"
        found = [spread(level[each], 1) if each in level else "-" for each in ("p50_ms", "p95_ms", "p99_ms")]
        table.add_row(name, f"{level['rate']:.0f}", *found, f"{level['late_p99_ms']:.1f}")
    if not budget:
        return Padding(table, (1, 0, 0, 0))
    return Padding(Group(table, Text(budget_line(budget), "dim")), (1, 0, 0, 0))


def budget_line(budget: Mapping[str, Any]) -> str:
    """The p99 at 70 % load beside what it cannot do without."""
    parts = (
        f"wait {budget['max_wait_ms']:g}",
        f"decode p99 {budget['decode_p99_ms']:.1f}",
        f"a batch of {budget['batch']} {budget['batch_ms']:.1f}",
        f"round trip p99 {budget['round_trip_p99_ms']:.1f}",
    )
    return f"p99 at {budget['load']:.0%}: {budget['p99_ms']:.1f} ms = {budget['ratio']:.2f} x ({' + '.join(parts)})"
