"""The wall clock of a process under test, stepped while it runs: Python's, librdkafka's and any other library's in it.

Only what asks the C library for the time of day is told another one; monotonic time goes on as it is, and the machine's
own clock is not touched. See `wall_clock.c`.
"""

import atexit
import functools
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.harness.namespaces import NotPossible, tool

_SOURCE = Path(__file__).with_name("wall_clock.c")
_NS = struct.Struct("=q")
_COMPILE_S = 60.0


@functools.cache
def library() -> Path:
    """Compiled once a process.

    Raises:
        NotPossible: not Linux, no compiler, or it fails.
    """
    if sys.platform != "linux":
        raise NotPossible("LD_PRELOAD is Linux's")
    folder = Path(tempfile.mkdtemp(prefix="ouzel-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "wall_clock.so"
    command = [tool("cc"), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", str(made), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
    if done.returncode:
        raise NotPossible(f"{' '.join(command)}: {done.stderr.strip()}")
    return made


class WallClock:
    """Of the processes that have `environment`; `path` is a file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0.0)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library()), "OUZEL_TEST_WALL_CLOCK": str(path)}

    def step(self, ahead_s: float) -> None:
        """From now on it is so much ahead of the machine's; behind where negative."""
        self._path.touch()
        with self._path.open("r+b", buffering=0) as file:  # in place: the processes have it mapped
            file.write(_NS.pack(round(ahead_s * 1e9)))
