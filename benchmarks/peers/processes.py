"""A server as a tree of processes: started in a group of its own, watched, and ended by its own ids."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.work import BUILD, PeerError
from tests.processes import start_process, tail

_GRACE_S = 15


class Tree:
    """A process and all that it started."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def members(self) -> list[psutil.Process]:
        """Those that live, the first of all first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """CPU that it has used, with that of children that ended and were waited for."""
        total = 0.0
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def resident_mib(self) -> float:
        """Memory that it holds now, what processes share counted once (PSS)."""
        total = 0
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
        return total / 2**20

    def signal(self, number: signal.Signals) -> None:
        """To every member."""
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def end(process: subprocess.Popen[bytes], tree: Tree) -> None:
    """SIGTERM to the first, and what is left of the tree and of its group is killed."""
    members = tree.members()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(_GRACE_S)


@contextmanager
def server(command: list[str], settings: Mapping[str, Any], *, ready: str, timeout_s: float = 120) -> Iterator[Tree]:
    """A peer's server, from when `ready` (a URL, asked by GET) answers 200.

    Raises:
        PeerError: it ends, or is not ready in time; with the end of its log.
    """
    logs = BUILD / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{Path(command[1]).stem}.log"
    with path.open("wb") as log:
        process = start_process(command, output=log, env=peer_environment(settings))
        tree = Tree(process.pid)
        try:
            _wait_ready(process, ready, timeout_s, path)
            yield tree
            if process.poll() is not None and process.returncode != -signal.SIGKILL:
                raise PeerError(f"{path.stem} ended with {process.returncode}:\n{tail(path)}")
        finally:
            end(process, tree)


def peer_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of a process in a peer's environment: nothing of the project's, and no proxy between it and this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUZEL_", "PYTHON", "VIRTUAL"))}
    return {**kept, "PEER": json.dumps(settings), "NO_PROXY": "*", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _wait_ready(process: subprocess.Popen[bytes], url: str, timeout_s: float, log: Path) -> None:
    deadline_s = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise PeerError(f"{log.stem} ended with {process.returncode} at its start:\n{tail(log)}")
        with contextlib.suppress(OSError), opener.open(url, timeout=2):
            return
        time.sleep(0.1)
    raise PeerError(f"{log.stem} was not ready after {timeout_s:g} s:\n{tail(log)}")


def busy_s() -> float:
    """CPU seconds that anybody has used on this machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
