"""The tally of many runs: it adds up, comes back from its file, and its figures are told."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.harness.campaign import Campaign, Tally, load_tally, tally_path
from tests.chaos.harness.episode import Result
from tests.chaos.harness.report import figures, table


def result(**more: object) -> Result:
    given: dict[str, object] = {
        "seed": 5, "guarantee": "at_least_once", "replicas": 2, "partitions": 3, "protocol": "classic",
        "faults": (("broker killed", 2.0), ("broker killed", 4.0), ("poison", 0.0), ("slow store", None)),
        "inputs": 100, "lost": 0, "duplicates": 7, "phantoms": 0, "uncommitted": 0, "violations": (), "promises": (),
        "exits": {"5": 1}, "good_letters": {"StoreFailed": 2}, "seconds": 60.0, "folder": "run-0000",
    }  # fmt: skip
    return Result(**given | more)  # type: ignore[arg-type]


def test_runs_add_up() -> None:
    tally = Tally("at_least_once", 1, (1, 6), (1, 12))
    tally.add(result())
    tally.add(result(violations=("I1: lost",), promises=("I1",), lost=1, stories=("a story",)))
    assert (tally.episodes, tally.done, tally.inputs, tally.duplicates, tally.lost) == (2, 8, 200, 14, 1)
    assert tally.faults == {"broker killed": 4, "poison": 2, "slow store": 2}
    assert tally.recoveries_s == {"broker killed": [2.0, 4.0, 2.0, 4.0], "poison": [0.0, 0.0]}
    assert (tally.exits, tally.good_letters) == ({"5": 2}, {"StoreFailed": 4})
    assert [each["stories"] for each in tally.broken] == [["a story"]]


def test_a_campaign_goes_on_where_it_was_and_not_with_other_sizes(tmp_path: Path) -> None:
    tally = Tally("share", 3, (1, 2), (1, 4))
    tally.add(result())
    folder = tmp_path / "share-3"
    folder.mkdir()
    (folder / "tally.json").write_text(json.dumps(asdict(tally)))
    assert load_tally(folder / "tally.json") == tally
    went_on = Campaign("share", 3, replicas=(1, 2), partitions=(1, 4), folder=tmp_path, photographs=[])
    assert went_on.tally == tally
    path = tally_path(tmp_path, "share", 3)
    path.write_text(json.dumps({name: value for name, value in asdict(tally).items() if name != "platform"}))
    assert load_tally(path) == tally  # written before there were platforms
    with pytest.raises(SystemExit, match="--platform none goes on with it"):
        Campaign(
            "share", 3, replicas=(1, 2), partitions=(1, 4), folder=tmp_path, photographs=[], platform=("disk", "clock")
        )
    with pytest.raises(SystemExit, match="other sizes"):
        Campaign("share", 3, replicas=(1, 3), partitions=(1, 4), folder=tmp_path, photographs=[])


def test_its_figures_are_told_by_kind_of_fault() -> None:
    tally = Tally("at_least_once", 1, (1, 6), (1, 12))
    tally.add(result(violations=("I1: images[0]@3 was never answered",)))
    assert figures(tally)["recovery_s"]["broker killed"] == {"faults": 2, "p50": 2.0, "p95": 4.0, "max": 4.0}
    assert figures(tally)["recovery_s"]["slow store"]["p50"] is None
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(tally))
    text = console.export_text()
    assert "images[0]@3 was never answered" in text
    assert "4 faults, 100 inputs" in text


def test_its_platform_is_told() -> None:
    tally = Tally("at_least_once", 1, (1, 6), (1, 12), platform=("namespaces", "disk"))
    assert figures(tally)["platform"] == ["namespaces", "disk"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(tally))
    assert "platform: namespaces, disk" in console.export_text()
