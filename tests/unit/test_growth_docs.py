"""The figures of the docs, their pictures and tables: made from one another, and all there."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.growth.__main__ import DOCS, figures_path, main, picture_path
from benchmarks.growth.curve import Curve
from benchmarks.growth.curves import CURVES
from benchmarks.growth.draw import digest_of, draw
from benchmarks.growth.tables import BENCH, DOCUMENTS, marked, parts, rendered

every_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=list(CURVES))
_PERFORMANCE = (DOCS / "performance.md").read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_tables_of_the_docs_are_those_of_the_figures(name: str) -> None:
    """After new figures: python -m benchmarks.growth tables."""
    text = (DOCS / name).read_text()
    assert text.count("<!-- growth:end -->") == len(marked(text)) > 0
    assert rendered(text, dict(parts(DOCS, CURVES))) == text


def test_every_table_has_its_place() -> None:
    placed = [name for document in DOCUMENTS for name in marked((DOCS / document).read_text())]
    assert sorted(placed) == sorted(dict(parts(DOCS, CURVES)))
    assert set(CURVES) <= set(placed)
    assert (DOCS / "figures" / BENCH).exists()


@every_curve
def test_figures_say_what_they_were_made_by_and_on(curve: Curve) -> None:
    found = json.loads(figures_path(DOCS, curve).read_text())
    assert found["curve"] == curve.name
    assert found["command"].startswith(f"python -m benchmarks.growth {curve.name}")
    assert found["machine"]["cores"] > 0
    assert {"cpu", "cpu_flags", "versions"} <= found["machine"].keys()
    assert len({len(row) for row in curve.table(found)}) == 1


@every_curve
def test_the_picture_is_of_the_figures_that_are_there(curve: Curve) -> None:
    """After new figures: python -m benchmarks.growth redraw."""
    picture = picture_path(DOCS, curve)
    assert digest_of(json.loads(figures_path(DOCS, curve).read_text())) in picture.read_text()
    assert f"(images/{picture.name})" in _PERFORMANCE


@every_curve
def test_a_picture_is_drawn_the_same_twice_and_reads_on_black_and_white(curve: Curve, tmp_path: Path) -> None:
    found = json.loads(figures_path(DOCS, curve).read_text())
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    for path in (first, second):
        draw(curve, found, path)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    ET.fromstring(text)  # noqa: S314  (ours)
    assert "<dc:date>" not in text
    # No word and no background in black or white.
    assert not re.search(r"(?:fill|stroke): ?(?:#000000|#ffffff|black|white)\b(?![^\"]*opacity: 0)", text)
    assert "<text" in text


def test_a_marker_without_figures_is_an_error() -> None:
    with pytest.raises(KeyError):
        rendered("<!-- growth:no-such -->\n<!-- growth:end -->", {})


def test_labels_are_measured_noted_drawn_and_drawn_again(tmp_path: Path) -> None:
    """The one curve that needs no broker, from the command line to the picture."""
    assert main(["labels", "--quick", "--sizes", "10", "1000", "--out", str(tmp_path)]) == 0
    curve = CURVES["labels"]
    found = json.loads(figures_path(tmp_path, curve).read_text())
    assert [point["classes"] for point in found["points"]] == [10, 1000]
    assert all(point["rank_cpu_ms"]["median"] > 0 for point in found["points"])
    before = picture_path(tmp_path, curve).read_bytes()
    picture_path(tmp_path, curve).unlink()
    assert main(["redraw", "--out", str(tmp_path)]) == 0
    assert picture_path(tmp_path, curve).read_bytes() == before


def test_a_bench_that_is_none_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{}")
    assert main(["planner", "--bench", str(tmp_path / "bench.json")]) == 1
    assert "this is not what `ouzel bench --json` writes" in capsys.readouterr().err
