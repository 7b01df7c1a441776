"""An environment of its own for each peer: `python -m benchmarks.peers environments`.

`requirements/NAME.txt` pins every package. They are installed from whatever index pip is set to use. With `--resolve`
they are resolved anew from `requirements/NAME.in`, and the pins written.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.work import BUILD, PeerError

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
_DONE = "installed.txt"


def names() -> list[str]:
    """Every environment that there are requirements for."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.in"))


def python_of(name: str) -> Path:
    """Its interpreter.

    Raises:
        PeerError: it is not made yet, or of other pins.
    """
    folder = BUILD / name
    done, wanted = folder / _DONE, REQUIREMENTS / f"{name}.txt"
    if not done.exists() or done.read_text() != wanted.read_text():
        raise PeerError(f"the environment {name} is not made: run `python -m benchmarks.peers environments {name}`")
    return folder / "bin" / "python"


def versions(name: str, packages: Sequence[str]) -> dict[str, str]:
    """The pinned versions of these packages, by name."""
    pins = {}
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        package, _, version = line.partition("==")
        pins[package.lower().replace("_", "-")] = version  # pip writes either
    return {package: pins[package] for package in packages if package in pins}


def make(name: str, *, resolve: bool = False) -> None:
    """Make it, unless it is there with these pins.

    Raises:
        PeerError: pip does not install it.
    """
    pins, wanted = REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}.in"
    if not wanted.exists():
        raise PeerError(f"there is no environment {name}: {', '.join(names())}")
    folder = BUILD / name
    if not resolve:
        try:
            python_of(name)
        except PeerError:
            pass
        else:
            return
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", "-r", str(wanted if resolve else pins)])
    if resolve:
        pins.write_text(_run([*pip, "freeze"]))
    (folder / _DONE).write_text(pins.read_text())


def _run(command: Sequence[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise PeerError(f"{' '.join(command[:6])} ... ended with {answer.returncode}:\n{answer.stderr[-2000:]}")
    return answer.stdout
