"""What is said of a run: in JSON, in a terminal and on the page."""

import json
from io import StringIO

import orjson
import pytest
from rich.console import Console

from consumer.bench.open_loop import LOADS
from consumer.bench.page import render
from consumer.bench.report import show
from consumer.bench.results import LatencyRound
from consumer.bench.summary import summarize, warnings
from tests.unit.bench_results import FACTS, level, one_round, result
from tests.unit.test_demo_page import Page

HOSTILE = "\"'><script>alert(1)</script><img src=https://example.com/x>$summary&amp;"


def test_the_summary_is_json_and_its_parts_sum_to_the_whole() -> None:
    summary = json.loads(orjson.dumps(summarize(result())))
    assert sum(part["cpu_ms"] for part in summary["parts"]) == pytest.approx(8.0)
    assert summary["ratio"]["least"] <= summary["ratio"]["median"] <= summary["ratio"]["most"]
    assert summary["achieved"]["median"] == pytest.approx(250.0)
    assert summary["roofline"]["median"] == pytest.approx(1000 * 1.85 / 5.5)
    assert list(summary["terms"]["infer_ms"]) == ["1", "2"]
    assert [each["load"] for each in summary["latency"]["loads"]] == list(LOADS)


def test_the_p99_at_70_percent_is_held_against_what_it_cannot_do_without() -> None:
    budget = summarize(result())["budget"]
    # 20 to wait, 6 p99 of decoding, 8 a batch of 2 (its p50), 4 p99 of the bare round trip.
    assert budget["sum_ms"] == pytest.approx(20 + 6 + 8 + 4)
    assert budget["ratio"] == pytest.approx(40 / 38)


def test_without_loads_there_is_no_latency_and_nothing_stumbles_over_it() -> None:
    summary = summarize(result(latency=()))
    assert summary["latency"] is None
    assert summary["budget"] is None
    assert "Latency" not in render(summary)
    show(summary, Console(file=StringIO()))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", result(one_round(others_cpu_s=0.1))),
        ("other processes used up to 10%", result(one_round(others_cpu_s=0.8))),
        ("broker's CPU is not known", result(broker_cpu_known=False)),
        ("not a real one", result(broker_kind="embedded")),
        ("over 1.0 s only", result(one_round(wall_s=1.0, others_cpu_s=0.0, images=200))),
        ("above the roofline", result(one_round(images=1400))),
        ("generator itself was late (70%)", result(latency=(LatencyRound([level(0.7, lagged=True)], level(0.0)),))),
        ("3 images of the latency loads", result(latency=(LatencyRound([level(0.7, unanswered=3)], level(0.0)),))),
    ],
)
def test_what_makes_figures_doubtful_is_said(said: str, found: object) -> None:
    told = list(warnings(found))  # type: ignore[arg-type]
    assert [text for text in told if said in text] if said else told == []


def test_a_terminal_shows_each_part_its_bar_and_the_formula() -> None:
    out = StringIO()
    summary = summarize(result())
    show(summary, Console(file=out, width=160))
    text = out.getvalue()
    for part in summary["parts"]:
        assert part["name"] in text
    assert "X = 1000 * C / (t_fetch + t_decode + t_infer(b) + t_ovh)" in text
    assert "1000 * 1.850 / (0.100 + 2.000 + 3.000 + 0.400)" in text
    assert "█" in text
    assert "bare round trip" in text


def test_the_page_is_whole_and_asks_nobody_for_anything() -> None:
    page = Page(render(summarize(result())))
    assert not page.all("script")
    assert not [attrs for tag, attrs in page.elements if tag in {"img", "link"} and attrs.get("src", "")]
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]
    (title,) = page.all("svg")
    assert title["aria-label"] == "latency over load"
    assert "service beyond these" in page.texts


def test_what_others_wrote_stays_text_on_the_page() -> None:
    model = {**FACTS.model, "name": HOSTILE}
    page = Page(render(summarize(result(model=model, workload=HOSTILE, broker=HOSTILE))))
    assert not page.all("script")
    assert not page.all("img")
    assert any(HOSTILE in text for text in page.texts)


def test_a_part_below_nothing_has_no_width() -> None:
    page = render(summarize(result(one_round(service_cpu_s=4.0))))
    assert "width:-" not in page
