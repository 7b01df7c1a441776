"""One HTML page of what two models say of the same images: no script, no request to anywhere, every word of others
escaped. Sorting and showing more is done by radio buttons and style alone."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from consumer.model_spec import ModelPackage
from consumer.stages.comparison import ComparedImage, Comparison, Side

_AGREEING_SHOWN = 24
"""Of the images that agree, those with the largest shift."""
_PAIRS_SHOWN = 20

# Only `$name` holes; what goes in them is escaped where it is made.
_PAGE = Template((Path(__file__).parent / "compare_page.html").read_text(encoding="utf-8"))
_ORDERS: dict[str, Callable[[ComparedImage, str], Any]] = {
    "shift": lambda each, _name: -each.shift,
    "name": lambda _each, name: name,
    "first": lambda each, _name: each.first.labels[:1],
    "second": lambda each, _name: each.second.labels[:1],
    "score": lambda each, _name: each.first.scores[:1],
}
"""By what cards may be sorted; the page has a radio button for each."""


def render(
    packages: Sequence[ModelPackage],
    comparison: Comparison,
    names: Sequence[str],
    thumbnails: Sequence[bytes | None],
) -> str:
    """The page, as HTML. `packages` are the two models; `names` and `thumbnails` (WebP) are by the image's place."""
    agreeing = sorted((each for each in comparison.images if each.agrees), key=lambda each: -each.shift)
    shown = [*comparison.disagreements, *agreeing[:_AGREEING_SHOWN]]
    places = {
        order: {each.index: place for place, each in enumerate(sorted(shown, key=lambda e: key(e, names[e.index])))}
        for order, key in _ORDERS.items()
    }
    return _PAGE.substitute(
        summary=_summary(comparison),
        first=_model(packages[0]),
        second=_model(packages[1]),
        figures="\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _figures(comparison)
        ),
        method=escape(comparison.top1.method),
        pairs=_pairs(comparison),
        agreeing=str(len(agreeing[:_AGREEING_SHOWN])),
        cards="\n".join(
            _card(
                each,
                names[each.index],
                thumbnails[each.index],
                {order: found[each.index] for order, found in places.items()},
            )
            for each in shown
        ),
    )


def _summary(comparison: Comparison) -> str:
    top1 = comparison.top1
    return f"{top1.images - top1.disagreements} of {top1.images} images get the same first label"


def _figures(comparison: Comparison) -> Sequence[tuple[str, str]]:
    top1 = comparison.top1
    return (
        ("Same first label", f"{top1.share:.2%}"),
        ("Surely at least", f"{top1.lower_bound:.2%}"),
        ("First label among five", f"{comparison.top5_share:.2%}"),
        ("Largest shift of a score", f"{comparison.largest_shift:.3f}"),
        ("Photographs", str(top1.photographs)),
    )


def _model(package: ModelPackage) -> str:
    spec = package.spec
    how = ", ".join(filter(None, (spec.precision, spec.runtime, spec.gate if spec.gate != "original" else "")))
    return (
        f"<b>{escape(f'{spec.name} {spec.version}')}</b> {escape(how)} "
        f'<code title="{escape(package.digest)}">{escape(package.digest[:19])}…</code>'
    )


def _pairs(comparison: Comparison) -> str:
    pairs = comparison.confused()
    if not pairs:
        return "<p>No image gets another first label.</p>"
    rows = "".join(
        f"<tr><td>{escape(one)}</td><td>{escape(other)}</td><td>{count}</td></tr>"
        for one, other, count in pairs[:_PAIRS_SHOWN]
    )
    more = f"<p>And {len(pairs) - _PAIRS_SHOWN} more.</p>" if len(pairs) > _PAIRS_SHOWN else ""
    head = "<tr><th>A says</th><th>B says</th><th>Images</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{more}"


def _card(each: ComparedImage, name: str, thumbnail: bytes | None, places: dict[str, int]) -> str:
    text = escape(name)
    if thumbnail:
        data = base64.b64encode(thumbnail).decode()
        picture = f'<img loading="lazy" src="data:image/webp;base64,{data}" alt="{text}">'
    else:
        picture = '<div class="blank" role="img" aria-label="no picture">no picture</div>'
    order = ";".join(f"--{order}:{place}" for order, place in places.items())
    kind = "same" if each.agrees else "differs"
    return (
        f'<article class="card {kind}" style="{order}">{picture}<div class="body">'
        f'<p class="name"><span title="{text}">{text}</span><span class="shift">shift {each.shift:.3f}</span></p>'
        f'<div class="sides">{_side("A", each.first, each.second)}{_side("B", each.second, each.first)}</div>'
        "</div></article>"
    )


def _side(title: str, side: Side, other: Side) -> str:
    rows = "".join(
        _label(label, score, known=label in other.labels) for label, score in zip(side.labels, side.scores, strict=True)
    )
    return f'<section><h3>{title}</h3><ol class="labels">{rows}</ol></section>'


def _label(label: str, score: float, *, known: bool) -> str:
    """A label that the other model does not have among its own is marked."""
    text, share = escape(label), min(max(score, 0.0), 1.0)
    mark = "" if known else ' class="alone"'
    return (
        f'<li{mark}><span class="label" title="{text}">{text}</span><span class="score">{share:.1%}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{share:.1%}"></i></span></li>'
    )
