"""The chaos harness's figures in the docs are those of the reports that are there."""

from scripts.chaos_tables import DOCS, kinds, rendered, with_figures, with_recovery_times
from tests.chaos.harness.plan import KINDS

REPORT = {
    "guarantee": "share",
    "seed": 7,
    "runs": 40,
    "faults": 1000,
    "inputs": 123_456,
    "lost": 0,
    "duplicates": 12,
    "recovery_s": {
        "all": {"p50": 1.0, "p95": 9.0, "max": 33.0},
        "replica killed": {"faults": 10, "p50": 30.04, "p95": 31.0, "max": 33.0},
        "poison": {"faults": 3, "p50": None, "p95": None, "max": None},
    },
}


def test_the_documents_have_what_the_reports_say() -> None:
    """After new figures: python -m scripts.chaos_tables."""
    for name, text in rendered(DOCS).items():
        assert (DOCS / name).read_text() == text, name


def test_a_kind_of_fault_has_one_cell_and_each_cell_its_times() -> None:
    text = (DOCS / "operations.md").read_text()
    assert sorted(kinds(text)) == sorted(KINDS)
    changed = with_recovery_times(text, [REPORT])
    assert "<!-- recovery: replica killed --> - · - · 30.0 / 31.0 |" in changed
    assert "<!-- recovery: poison --> |" in changed
    assert with_recovery_times(changed, []) == with_recovery_times(text, [])


def test_long_runs_are_told_with_their_command() -> None:
    text = with_figures((DOCS / "guarantees.md").read_text(), [REPORT])
    assert (
        "| `share` | 40 | 1,000 | 123,456 | 0 | 12 | `python -m tests.chaos --guarantee share --seed 7 --faults 1000` |"
    ) in text
    assert text.count("<!-- chaos:end -->") == 1


def test_a_command_names_the_platform_that_its_run_had() -> None:
    text = (DOCS / "guarantees.md").read_text()
    for platform, said in ([], "none"), (["namespaces", "clock"], "namespaces,clock"):
        found = with_figures(text, [REPORT | {"platform": platform}])
        assert f"--seed 7 --platform {said} --faults 1000`" in found
