"""The page of a comparison: what strangers wrote stays text, nothing is fetched, and it sorts without a script."""

import base64
from pathlib import Path

import numpy as np
import pytest

from consumer.commands.model.compare_page import render
from consumer.model_spec import InputSpec, ModelPackage, ModelSpec, OutputSpec
from consumer.stages.comparison import Comparison, compare
from tests.unit.test_demo_page import HOSTILE, Page

NAMES = ["ant", "bee", "cat"]


def package(name: str = "birds") -> ModelPackage:
    spec = ModelSpec(name, "3", "saved_model", InputSpec("x", "uint8", "NHWC", 8, 8), OutputSpec("y"))
    return ModelPackage(spec, Path(), Path(), None, "sha256:" + "ab" * 32)


def comparison(names: list[str] = NAMES) -> Comparison:
    """Of three images; the second differs, the third shifts most among those that agree."""
    first = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], np.float32)
    second = np.array([[0.79, 0.11, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], np.float32)
    return compare((first, second), (names, names), ["p", "q", "r"])


def page(**changes: object) -> Page:
    of = {
        "packages": [package(), package("birds-int8")],
        "comparison": comparison(),
        "names": ["a.jpg", "b.jpg", "c.jpg"],
        "thumbnails": [b"RIFFa", b"RIFFb", None],
    } | changes
    return Page(render(**of))  # type: ignore[arg-type]


def test_both_answers_stand_beside_the_image() -> None:
    found = page()
    assert "2 of 3 images get the same first label" in found.texts
    sources = {attrs["alt"]: attrs["src"] for attrs in found.all("img")}
    assert sources["b.jpg"] == "data:image/webp;base64," + base64.b64encode(b"RIFFb").decode()
    assert {"birds 3", "birds-int8 3", "shift 0.200", "50.0%", "60.0%"} <= set(found.texts)
    cells = [text for text in found.texts if text in {"ant", "bee", "1"}]
    assert cells[:3] == ["ant", "bee", "1"]  # the pair that is confused, and how often


def test_images_that_differ_come_first_and_the_others_are_hidden_until_wanted() -> None:
    cards = page().all("article")
    assert [attrs["class"] for attrs in cards] == ["card differs", "card same", "card same"]
    assert "--shift:0;--name:1;" in (cards[0]["style"] or "")
    assert "--name:2;" in (cards[1]["style"] or "")  # c.jpg shifts more than a.jpg


def test_every_order_has_a_button_and_a_label_for_it() -> None:
    found = page()
    buttons = {attrs["id"] for attrs in found.all("input")}
    assert buttons == {attrs["for"] for attrs in found.all("label")}
    orders = {part.split(":")[0].removeprefix("--") for part in (found.all("article")[0]["style"] or "").split(";")}
    assert buttons == {f"by-{order}" for order in orders} | {"also"}


@pytest.mark.parametrize("where", ["image", "label", "model"])
def test_what_strangers_wrote_stays_text(where: str) -> None:
    found = page(
        names=[HOSTILE if where == "image" else "a.jpg", "b.jpg", "c.jpg"],
        comparison=comparison([HOSTILE if where == "label" else "ant", "bee", "cat"]),
        packages=[package(HOSTILE if where == "model" else "birds"), package()],
    )
    assert found.all("script") == []
    assert len(found.all("img")) == 2
    assert any("<script>alert(1)</script>" in text for text in found.texts)
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)


def test_nothing_is_fetched_from_anywhere() -> None:
    html = render([package(), package()], comparison(), ["a", "b", "c"], [b"x", b"y", b"z"])
    found = Page(html)
    addresses = [attrs[name] or "" for _, attrs in found.elements for name in ("src", "href") if name in attrs]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] or "" for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_models_that_agree_everywhere_say_so() -> None:
    scores = np.array([[0.8, 0.1, 0.1]], np.float32)
    same = compare((scores, scores), (NAMES, NAMES), ["p"])
    found = page(comparison=same, names=["a.jpg"], thumbnails=[None])
    assert "No image gets another first label." in found.texts
    assert found.all("table") == []
