"""How a child process of ours begins: tied to its parent, and with its pipes out of the way of what libraries print."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Where the kernel can; elsewhere the end of the requests ends it."""
    parent = os.getppid()
    if sys.platform == "linux":
        _ask_to_die()
        if os.getppid() != parent:
            os._exit(0)


def tie_grandchildren() -> None:
    """From now on what a library starts in this process stays in our group, and is killed when the thread that started
    it ends: W&B's own process, which its client puts into a session of its own, may outlive us otherwise."""

    class Tied(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **how: Any) -> None:
            how["start_new_session"] = False
            if sys.platform == "linux":
                how["preexec_fn"] = _ask_to_die
            super().__init__(*args, **how)

    subprocess.Popen = Tied  # type: ignore[misc]


_libc = ctypes.CDLL(None)


def _ask_to_die() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def take_pipes() -> tuple[int, int]:
    """Requests and answers, under other numbers: what a library prints must not get between them."""
    requests, answers = os.dup(0), os.dup(1)
    with Path(os.devnull).open("r+b", buffering=0) as nowhere:
        os.dup2(nowhere.fileno(), 0)
        os.dup2(nowhere.fileno(), 1)
    return requests, answers
