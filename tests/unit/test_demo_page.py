"""The demo's page: what strangers wrote stays text, and nothing is fetched."""

import base64
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from consumer.demo.page import render
from consumer.demo.results import Result, RunFacts

FACTS = RunFacts(ready_s=6.4, labelling_s=0.43)
HOSTILE = "\"'><script>alert(1)</script><img src=https://example.com/x>$summary&amp;.jpg"
VOID = {"meta", "link", "img", "br", "path", "circle", "input"}


class Page(HTMLParser):
    """Elements, texts and addresses; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def event(image_id: str, label: str = "tabby, tabby cat", score: float = 0.93) -> dict[str, Any]:
    return {
        "event_id": "ab" * 16,
        "image_id": image_id,
        "labels": [
            {"index": 281, "label": label, "score": score},
            {"index": 282, "label": "tiger cat", "score": 0.05},
        ],
        "model": {
            "name": "lite0",
            "version": "1",
            "digest": "sha256:3fa9",
            "runtime": "tensorflow",
            "precision": "f32",
        },
        "timings_ms": {"fetch": 0.1, "decode": 3.1, "queue": 4.0, "infer": 9.8},
    }


def labelled(image_id: str, **of_event: Any) -> Result:
    return Result(image_id, 41.2, event=event(image_id, **of_event))


def test_a_label_stands_beside_its_photograph() -> None:
    html = render([labelled("cat.jpg")], {"cat.jpg": b"RIFF"}, FACTS)
    page = Page(html)
    (picture,) = page.all("img")
    assert picture["src"] == "data:image/webp;base64," + base64.b64encode(b"RIFF").decode()
    assert picture["alt"] == "cat.jpg"
    assert {"tabby", "tabby, tabby cat", "93.0%", "tiger cat", "5.0%"} <= set(page.texts)
    assert "lite0 1" in page.texts


def test_the_raw_event_is_on_the_page_whole() -> None:
    page = Page(render([labelled("cat.jpg", label="<b>&amp;")], {}, FACTS))
    (raw,) = [text for text in page.texts if text.startswith("{")]
    assert json.loads(raw) == event("cat.jpg", label="<b>&amp;")


@pytest.mark.parametrize("where", ["name", "label", "model", "reason"])
def test_what_strangers_wrote_stays_text(where: str) -> None:
    result = labelled(HOSTILE if where == "name" else "a.jpg", label=HOSTILE if where == "label" else "tabby")
    if where == "model":
        assert result.event is not None
        model = dict.fromkeys(result.event["model"], HOSTILE)
        result = Result("a.jpg", 1.0, event={**result.event, "model": model})
    if where == "reason":
        result = Result("a.jpg", 1.0, reason=HOSTILE)
    page = Page(render([result], {}, FACTS))
    assert page.all("script") == []
    assert page.all("img") == []
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_nothing_is_fetched_from_anywhere() -> None:
    html = render([labelled("cat.jpg"), labelled("https://example.com/x.jpg")], {"cat.jpg": b"x"}, FACTS)
    page = Page(html)
    addresses = [attrs[name] or "" for _, attrs in page.elements for name in ("src", "href") if name in attrs]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_a_refused_image_says_why() -> None:
    page = Page(render([Result("torn.jpg", 12.0, reason="NotAnImage: cut short")], {}, FACTS))
    assert "0 photographs labelled, 1 image refused" in page.texts
    assert any("NotAnImage: cut short" in text for text in page.texts)
    assert page.all("details") == []


def test_an_event_without_labels_or_timings_is_shown() -> None:
    bare = {**event("cat.jpg"), "labels": [], "timings_ms": {}}
    page = Page(render([Result("cat.jpg", 5.0, event=bare)], {}, FACTS))
    assert "No label reached the least score." in page.texts


@pytest.mark.parametrize("score", [-1.0, 0.0, 1.0, 7.0])
def test_a_bar_stays_within_its_track(score: float) -> None:
    page = Page(render([labelled("cat.jpg", score=score)], {}, FACTS))
    widths = [
        float(attrs["style"].removeprefix("width:").removesuffix("%")) for attrs in page.all("i") if attrs["style"]
    ]
    assert all(0.0 <= width <= 100.0 for width in widths)


def test_every_picture_and_bar_has_words_for_those_who_do_not_see_it() -> None:
    page = Page(render([labelled("a.jpg"), labelled("b.jpg")], {"a.jpg": b"x"}, FACTS))
    assert all(attrs.get("alt") for attrs in page.all("img"))
    bars = [attrs for name, attrs in page.elements if attrs.get("class") in {"bar", "stages"}]
    assert bars
    assert all(attrs.get("aria-hidden") == "true" for attrs in bars)
    assert page.all("html")[0]["lang"] == "en"
