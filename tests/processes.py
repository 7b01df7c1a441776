"""Child processes that never outlive the test run, free ports, and waiting with a deadline."""

import atexit
import ctypes
import fcntl
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_process(
    command: Sequence[str], *, output: BinaryIO, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A child with stdout and stderr in `output`, in a session of its own (a Ctrl-C at pytest is not its SIGINT).

    The kernel kills it when the thread that called this ends, so call it from the main thread.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=None if env is None else dict(env),
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    atexit.register(process.kill)  # where the kernel does not; does nothing once it has ended
    return process


_ours: list[BinaryIO] = []


def free_port() -> int:
    """A TCP port nobody listens on, below the range from which the kernel takes ports for outgoing connections: a
    stopped broker finds its port free again. It is this process's until that ends: nothing else that draws here gets
    it, in this test run or in one beside it."""
    while True:
        port = random.randint(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if claim(str(port)):
                return port


def claim(name: str) -> bool:
    """Whether it is this process's until that ends: nobody else who claims it here gets it."""
    claims = Path(tempfile.gettempdir()) / "ouzel-test-ports"
    claims.mkdir(exist_ok=True)
    file = (claims / name).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _ours.append(file)  # the lock goes with the process
    return True


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, interval_s: float = 0.05) -> None:
    """Return once `condition()` holds.

    Raises:
        TimeoutError: it did not within `timeout_s`; says `what` was waited for.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(interval_s)


def tail(path: Path, lines: int = 40) -> str:
    """The last lines of a file, for an error message."""
    if not path.exists():
        return f"({path} does not exist)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
