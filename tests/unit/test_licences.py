"""Licences and advisories: a package that nobody has judged does not come in by a lock file."""

from pathlib import Path

import pytest

from scripts import audit, licences


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with three locks and a table of its own."""
    for file in (*licences.LOCKS.values(), licences.AUDIT_LOCK):
        (tmp_path / file).write_text("numpy==2.0 \\\n    --hash=sha256:00\nNot.There_Yet==1.0 ; python_version > '3'\n")
    monkeypatch.setattr(licences, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(licences, "TABLE", tmp_path / "licences.md")
    return tmp_path


def _table(*rows: str) -> None:
    licences.TABLE.write_text("\n".join(rows) + "\n")


def test_every_locked_package_is_listed_under_a_licence_that_is_allowed() -> None:
    assert list(licences.problems()) == []


def test_a_new_package_is_a_problem_until_it_is_listed(locks: Path) -> None:
    _table(f"| `numpy` | {licences.installed_licence('numpy')} | run |")
    assert list(licences.problems()) == ["not-there-yet is locked and not listed: python -m scripts.licences --write"]
    with pytest.raises(LookupError, match="not-there-yet: install it, or add its row"):
        licences.write()
    _table("| `not-there-yet` | MIT OR (Apache-2.0 AND 0BSD) | run |")
    licences.write()
    assert list(licences.problems()) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| `numpy` | AGPL-3.0-only | run |", "numpy: AGPL-3.0-only is not among the licences"),
        ("| `numpy` | MIT | run |", "numpy: listed as MIT, and now says BSD-3-Clause"),
        ("| `gone` | MIT | run |", "gone is listed and no longer locked"),
    ],
)
def test_a_licence_that_is_not_allowed_or_has_changed_is_a_problem(locks: Path, row: str, problem: str) -> None:
    _table("| `not-there-yet` | MIT | run |", row)
    assert any(each.startswith(problem) for each in licences.problems())


def test_an_advisory_is_matched_by_package_and_version(locks: Path) -> None:
    folder = locks / "database" / "vulns" / "numpy"
    folder.mkdir(parents=True)
    for name, versions, more in (("A", "['1.0', '2.0']", ""), ("B", "['1.0']", ""), ("C", "['2.0']", "withdrawn: x\n")):
        text = f"id: PYSEC-{name}\n{more}affected:\n- package: {{name: numpy}}\n  versions: {versions}\n"
        (folder / f"{name}.yaml").write_text(text)
    assert list(audit.offline(locks / "database", audit.pins())) == [("numpy", "2.0", "PYSEC-A")]


def test_what_is_no_database_of_advisories_is_no_pass(locks: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pypa/advisory-database"):
        list(audit.offline(locks, audit.pins()))
