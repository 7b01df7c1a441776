"""`make audit`: security rules, known vulnerabilities, licences, and the bill of materials. A line each; exit code 1
where one fails, and with CI=true where one could not be done.

Vulnerabilities are looked up by pip-audit, which asks OSV, then PyPI. Without a network that reaches either, give a
clone of https://github.com/pypa/advisory-database: `make audit ADVISORIES=DIR`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from consumer import __version__
from scripts import licences
from scripts.licences import AUDIT_LOCK, LOCKS, ROOT, normal

Result = Literal["pass", "fail", "not done"]
SERVICES = ("osv", "pypi")
SBOM = ROOT / "build" / f"ouzel-{__version__}.cdx.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step found."""

    result: Result
    said: str


def rules(_options: argparse.Namespace) -> Finding:
    """ruff's security rules (flake8-bandit) over everything; pyproject.toml has the exceptions and their reasons."""
    done = _run(sys.executable, "-m", "ruff", "check", "--select", "S", "--output-format", "concise", ".")
    return Finding("pass" if done.returncode == 0 else "fail", done.stdout.strip() or done.stderr.strip())


# --- vulnerabilities ------------------------------------------------------------------------------------------------


def pins() -> set[tuple[str, str]]:
    """Every locked package with its version, or versions where the lock files differ."""
    found = set()
    for file in (*LOCKS.values(), AUDIT_LOCK):
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / file).read_text(), re.MULTILINE):
            found.add((normal(name), version))
    return found


def vulnerabilities(options: argparse.Namespace) -> Finding:
    """Known ones in any locked version."""
    if options.advisories:
        found = [f"{name} {version}: {known}" for name, version, known in offline(Path(options.advisories), pins())]
        said = "; ".join(found) or f"none known in {len(pins())} locked packages, by {options.advisories}"
        return Finding("fail" if found else "pass", said)
    silent = []
    for service in SERVICES:
        checked, skipped, found = _asked(options.tools, service)
        if checked:
            said = "; ".join(found) or f"none known in {checked} locked packages, by {service}"
            # What the service does not know was not checked: that is no pass.
            missing = f"; {skipped} packages are unknown there" if skipped else ""
            return Finding("fail" if found else "not done" if skipped else "pass", said + missing)
        silent.append(f"{service} knows none of {skipped}" if skipped else f"{service} does not answer")
    return Finding("not done", f"{', '.join(silent)}; give a copy of the advisories: make audit ADVISORIES=DIR")


def _asked(tools: str, service: str) -> tuple[int, int, list[str]]:
    """Packages checked, packages that the service does not know, and vulnerabilities."""
    checked: set[str] = set()
    skipped: set[str] = set()
    found: list[str] = []
    for file in (*LOCKS.values(), AUDIT_LOCK):
        done = _run(
            *(f"{tools}/pip-audit", "--disable-pip", "--require-hashes", "--requirement", file, "--format", "json"),
            *("--vulnerability-service", service, "--progress-spinner", "off", "--timeout", "10"),
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            return 0, 0, []
        for package in answer["dependencies"]:
            (skipped if "skip_reason" in package else checked).add(package["name"])
            for known in package.get("vulns", []):
                fixed = ", ".join(known["fix_versions"]) or "no release yet"
                found.append(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    return len(checked), len(skipped), sorted(set(found))


def offline(advisories: Path, pinned: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Package, version and advisory of each match in a clone of PyPA's advisory database (OSV's format, in YAML).

    Its entries name every version that is affected, so no range has to be judged. Raises FileNotFoundError where there
    is no such database.
    """
    folder = advisories / "vulns"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: give a clone of https://github.com/pypa/advisory-database")
    for name, version in sorted(pinned):
        for path in sorted((folder / name).glob("*.yaml")):
            entry = yaml.safe_load(path.read_text())
            if "withdrawn" not in entry and version in {
                str(each) for one in entry["affected"] for each in one.get("versions", ())
            }:
                yield name, version, entry["id"]


# --- licences and bill of materials ---------------------------------------------------------------------------------


def licence_table(_options: argparse.Namespace) -> Finding:
    """docs/licences.md against the lock files and the packages."""
    found = list(licences.problems())
    return Finding("fail" if found else "pass", "; ".join(found) or f"{len(licences.locked())} packages are listed")


def bill_of_materials(options: argparse.Namespace) -> Finding:
    """CycloneDX of requirements.lock, with hashes and licences and without the addresses of an index."""
    SBOM.parent.mkdir(exist_ok=True)
    done = _run(
        *(f"{options.tools}/cyclonedx-py", "requirements", LOCKS["run"], "--pyproject", "pyproject.toml"),
        *("--output-reproducible", "--of", "JSON", "--validate", "-o", str(SBOM)),
    )
    if done.returncode != 0:
        return Finding("fail", done.stderr.strip()[-500:])
    bill = json.loads(SBOM.read_text())
    rows = {row.name: row.licence for row in licences.listed()}
    for component in bill["components"]:
        _tidy(component, rows.get(normal(component["name"])))
    bill["metadata"]["component"]["version"] = __version__
    SBOM.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")
    return Finding("pass", f"{len(bill['components'])} components in {SBOM.relative_to(ROOT)}")


def _tidy(component: dict[str, Any], licence: str | None) -> None:
    component["hashes"] = [each for link in component.pop("externalReferences", []) for each in link.get("hashes", [])]
    component.pop("description", None)  # the line of the lock file, hashes and all
    if licence is not None:
        component["licenses"] = [{"expression": licence}]


# --- all of them ----------------------------------------------------------------------------------------------------

STEPS: Mapping[str, Callable[[argparse.Namespace], Finding]] = {
    "security rules": rules,
    "vulnerabilities": vulnerabilities,
    "licences": licence_table,
    "bill of materials": bill_of_materials,
}


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603 - our own words


def main() -> int:
    """0 where all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tools", required=True, help="folder with pip-audit and cyclonedx-py")
    parser.add_argument("--advisories", default="", help="clone of pypa/advisory-database, to ask no network")
    options = parser.parse_args()
    bad = {"fail", "not done"} if os.environ.get("CI", "").lower() == "true" else {"fail"}
    results = []
    for name, step in STEPS.items():
        finding = step(options)
        results.append(finding.result)
        sys.stdout.write(f"{finding.result:>8}  {name}: {finding.said}\n")
    return 1 if bad.intersection(results) else 0


if __name__ == "__main__":
    sys.exit(main())
