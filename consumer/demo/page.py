"""One HTML page of what the demo did: no script, no request to anywhere, every word of others escaped."""

import base64
import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from consumer.demo.results import Result, RunFacts

STAGES = ("fetch", "decode", "queue", "infer")

# Only `$name` holes; what goes in them is escaped where it is made.
_PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def render(results: Sequence[Result], thumbnails: Mapping[str, bytes], facts: RunFacts) -> str:
    """The page, as HTML. `thumbnails` are WebP by image id; an image without one gets a blank in its place."""
    labelled = [result for result in results if result.event]
    return _PAGE.substitute(
        summary=_summary(results, labelled),
        figures="\n".join(_figure(name, value) for name, value in _figures(results, labelled, facts)),
        model=_model(labelled),
        cards="\n".join(_card(result, thumbnails.get(result.image_id)) for result in results),
    )


def _summary(results: Sequence[Result], labelled: Sequence[Result]) -> str:
    refused = len(results) - len(labelled)
    text = f"{_count(len(labelled), 'photograph')} labelled"
    return text if not refused else f"{text}, {_count(refused, 'image')} refused"


def _figures(
    results: Sequence[Result], labelled: Sequence[Result], facts: RunFacts
) -> Sequence[tuple[str, tuple[str, str]]]:
    """Name, value and unit of each figure at the top."""
    infer_ms = [_timing(result, "infer") for result in labelled]
    return (
        ("Images", (str(len(results)), "")),
        ("All answered in", _duration(facts.labelling_s * 1000)),
        ("Median latency", _duration(statistics.median(result.latency_ms for result in results)) if results else _NONE),
        ("Median inference", _duration(statistics.median(infer_ms)) if infer_ms else _NONE),
        ("Service ready after", _duration(facts.ready_s * 1000)),
    )


_NONE = ("-", "")


def _figure(name: str, value: tuple[str, str]) -> str:
    number, unit = (escape(part) for part in value)
    return f"<div><dt>{escape(name)}</dt><dd>{number}{f' <small>{unit}</small>' if unit else ''}</dd></div>"


def _model(labelled: Sequence[Result]) -> str:
    if not labelled:
        return ""
    model = labelled[0].event["model"] if labelled[0].event else {}
    name, version, digest = (str(model.get(key, "")) for key in ("name", "version", "digest"))
    how = ", ".join(str(model[key]) for key in ("runtime", "precision") if model.get(key))
    return (
        f'<p class="model">Model <b>{escape(" ".join(filter(None, (name, version))))}</b> on {escape(how)} '
        f'<code title="{escape(digest)}">{escape(digest[:19])}…</code></p>'
    )


def _card(result: Result, thumbnail: bytes | None) -> str:
    name = escape(result.image_id)
    if thumbnail:
        data = base64.b64encode(thumbnail).decode()
        picture = f'<img src="data:image/webp;base64,{data}" alt="{name}">'
    else:
        picture = '<div class="blank" role="img" aria-label="no picture">no picture</div>'
    body = _labels(result) if result.event else f'<p class="refused"><b>Refused.</b> {escape(result.reason)}</p>'
    number, unit = _duration(result.latency_ms)
    return (
        f'<article class="card">{picture}<div class="body">'
        f'<p class="name"><span title="{name}">{name}</span>'
        f'<span class="latency">{escape(number)} {escape(unit)}</span></p>'
        f"{body}{_event(result)}</div></article>"
    )


def _labels(result: Result) -> str:
    if not result.labels:
        return '<p class="refused">No label reached the least score.</p>'
    first, *_ = result.labels
    rows = "".join(_label(label) for label in result.labels)
    return f'<h2>{escape(_short(str(first["label"])))}</h2><ol class="labels">{rows}</ol>{_stages(result)}'


def _label(label: Mapping[str, Any]) -> str:
    name, score = escape(str(label["label"])), min(max(float(label["score"]), 0.0), 1.0)
    return (
        f'<li><span class="label" title="{name}">{name}</span>'
        f'<span class="score">{score:.1%}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{score:.1%}"></i></span></li>'
    )


def _stages(result: Result) -> str:
    """Where the time inside the service went."""
    parts = [(stage, _timing(result, stage)) for stage in STAGES]
    whole = sum(value for _, value in parts)
    if not whole:
        return ""
    bars = "".join(f'<i class="{stage}" style="width:{value / whole:.1%}"></i>' for stage, value in parts)
    words = "".join(f'<li class="{stage}">{stage} {" ".join(_duration(value))}</li>' for stage, value in parts)
    return f'<div class="stages" aria-hidden="true">{bars}</div><ul class="legend">{words}</ul>'


def _event(result: Result) -> str:
    if not result.event:
        return ""
    text = json.dumps(result.event, indent=2, ensure_ascii=False)
    return f"<details><summary>Label event</summary><pre>{escape(text)}</pre></details>"


def _timing(result: Result, stage: str) -> float:
    timings = result.event.get("timings_ms", {}) if result.event else {}
    return float(timings.get(stage, 0.0))


def _duration(milliseconds: float) -> tuple[str, str]:
    """A number a person can read, and its unit."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f}", "s"
    return (f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"), "ms"


def _short(name: str) -> str:
    """The first of a class's names: ImageNet gives them all, parted by commas."""
    return name.split(",", 1)[0].strip() or name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
