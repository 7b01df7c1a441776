"""The run as one HTML page: no script, no request to anywhere, every word of others escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from consumer.bench.report import budget_line, equation, facts, figures, spread

# Only `$name` holes; what goes in them is escaped where it is made.
_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 240, 56, 28, 12
_LINES = (("p50_ms", "p50", "var(--idle)"), ("p95_ms", "p95", "var(--overhead)"), ("p99_ms", "p99", "var(--term)"))


def render(summary: Mapping[str, Any]) -> str:
    """The page of what `summary.summarize` gave."""
    ratio, achieved = summary["ratio"]["median"], summary["achieved"]["median"]
    return _PAGE.substitute(
        summary=escape(f"{achieved:.0f} images/s, {ratio:.0%} of the roofline"),
        equation=escape(f"{summary['formula']} = {equation(summary)} = {summary['roofline']['median']:.0f} images/s"),
        figures="\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures(summary)
        ),
        warnings=_warnings(summary["warnings"]),
        whole=escape(_whole(summary)),
        stack=_stack(summary["parts"]),
        parts=_parts(summary["parts"]),
        terms=_terms(summary),
        latency=_latency(summary),
        facts="\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts(summary)),
    )


def _warnings(warnings: Sequence[str]) -> str:
    rows = "".join(f"<li>{escape(each)}</li>" for each in warnings)
    return f'<ul class="warnings">{rows}</ul>' if rows else ""


def _sum_ms(parts: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(part["cpu_ms"] for part in parts))


def _whole(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['cores']} cores x wall-clock over the images: {_sum_ms(summary['parts']):.2f} ms an image. "
        "The terms are what the machine cannot do without; the rest is what could be had back."
    )


def _stack(parts: Sequence[Mapping[str, Any]]) -> str:
    """A part below zero (a term that cost less in the service) has no width."""
    whole_ms = sum(max(0.0, part["cpu_ms"]) for part in parts)
    return "".join(
        f'<i class="{part["kind"]}" style="width:{max(0.0, part["cpu_ms"]) / whole_ms:.2%}"'
        f' title="{escape(part["name"])}"></i>'
        for part in parts
    )


def _row(cells: Sequence[str], share: float, kind: str, *, used: bool = True) -> str:
    name, *numbers = (escape(cell) for cell in cells)
    figures_of = "".join(f'<td class="number">{number}</td>' for number in numbers)
    bar = (
        f'<td class="bar" aria-hidden="true"><i class="{kind}" style="width:{min(max(share, 0.0), 1.0):.2%}"></i></td>'
    )
    opening = "<tr>" if used else '<tr class="unused">'
    return f"{opening}<td>{name}</td>{figures_of}{bar}</tr>"


def _parts(parts: Sequence[Mapping[str, Any]]) -> str:
    whole_ms, largest_ms = _sum_ms(parts), max(part["cpu_ms"] for part in parts)
    return "\n".join(
        _row(
            (part["name"], f"{part['cpu_ms']:.3f}", f"{part['cpu_ms'] / whole_ms:.1%}"),
            part["cpu_ms"] / largest_ms,
            part["kind"],
        )
        for part in parts
    )


def _terms(summary: Mapping[str, Any]) -> str:
    terms, found = summary["terms"], summary["facts"]
    rows: list[tuple[str, Mapping[str, float], bool]] = [
        *((f"fetch, {form}", each, form == found["form"]) for form, each in terms["fetch_ms"].items()),
        *((f"decode {size} MP", each, float(size) == found["megapixels"]) for size, each in terms["decode_ms"].items()),
        *((f"infer, batch of {size}", each, int(size) in terms["batches"]) for size, each in terms["infer_ms"].items()),
        ("bare Kafka loop", terms["overhead_ms"], True),
    ]
    # A large image's decoding would leave no width to the rest.
    widest_ms = max(each["median"] for _, each, used in rows if used)
    return "\n".join(
        _row((name, spread(each, 3)), each["median"] / widest_ms, "term", used=used) for name, each, used in rows
    )


# --- latency --------------------------------------------------------------------------------------------------------


def _latency(summary: Mapping[str, Any]) -> str:
    latency = summary["latency"]
    if not latency:
        return ""
    levels = [level for level in latency["loads"] if "p99_ms" in level]
    said = f"From the time at which an image was due to its event's arrival. Arrivals: {latency['arrivals']}."
    budget = f"<p>{escape(budget_line(summary['budget']))}</p>" if summary["budget"] else ""
    rows = "\n".join(_level(level) for level in [*latency["loads"], latency["round_trip"]])
    return (
        f"<section><h2>Latency by load</h2><p>{escape(said)}</p>{budget}{_chart(levels)}"
        '<div class="scroll"><table><thead><tr><th>load</th><th class="number">images/s</th>'
        '<th class="number">p50 ms</th><th class="number">p95 ms</th><th class="number">p99 ms</th>'
        f'<th class="number">generator late, p99 ms</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _level(level: Mapping[str, Any]) -> str:
    name = f"{level['load']:.0%}" if level["load"] else "bare round trip"
    found = [spread(level[each], 1) if each in level else "-" for each in ("p50_ms", "p95_ms", "p99_ms")]
    cells = [f"{level['rate']:.0f}", *found, f"{level['late_p99_ms']:.1f}"]
    numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    return f"<tr><td>{escape(name)}</td>{numbers}</tr>"


def _chart(levels: Sequence[Mapping[str, Any]]) -> str:
    """A line for each percentile over the load, from the least to the most of the rounds."""
    if len(levels) < 2:
        return ""
    highest_ms = max(level["p99_ms"]["most"] for level in levels) or 1.0

    def at(load: float, value_ms: float) -> tuple[float, float]:
        across = _LEFT + load * (_WIDTH - _LEFT - 60)
        return across, _HEIGHT - _BOTTOM - value_ms / highest_ms * (_HEIGHT - _BOTTOM - _TOP)

    marks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 60}" y1="{at(0, share * highest_ms)[1]:.1f}" '
        f'y2="{at(0, share * highest_ms)[1]:.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{at(0, share * highest_ms)[1] + 4:.1f}" text-anchor="end">{share * highest_ms:.0f}'
        "</text>"
        for share in (0.0, 0.5, 1.0)
    )
    loads = "".join(
        f'<text x="{at(level["load"], 0)[0]:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{level["load"]:.0%}</text>'
        for level in levels
    )
    lines = "".join(_line(levels, name, title, colour, at) for name, title, colour in _LINES)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="latency over load">{marks}{loads}{lines}</svg>'
    )


def _line(levels: Sequence[Mapping[str, Any]], name: str, title: str, colour: str, at: Any) -> str:
    points = [at(level["load"], level[name]["median"]) for level in levels]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    spans = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at(0, level[name]["least"])[1]:.1f}" '
        f'y2="{at(0, level[name]["most"])[1]:.1f}" stroke="{colour}" stroke-width="4" stroke-opacity=".45"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
        for level, (x, y) in zip(levels, points, strict=True)
    )
    last_x, last_y = points[-1]
    label = f'<text x="{last_x + 10:.1f}" y="{last_y + 4:.1f}">{title}</text>'
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{spans}{label}'
