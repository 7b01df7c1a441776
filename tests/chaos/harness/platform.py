"""What this machine lets the harness do beyond the processes that it starts."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.chaos.harness import clock
from tests.chaos.harness.disk import SmallDisk
from tests.chaos.harness.namespaces import Network, NotPossible, Room
from tests.chaos.harness.plan import PLATFORM, Platform

_CONNECT_S = 10.0
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()"


def _namespaces() -> None:
    """A firewall may keep a room from us though it can be made: so it is tried."""
    import socket

    with Network() as network, socket.create_server((network.address("clients"), 0)) as door:
        host, port = door.getsockname()
        command = [*network.seat("clients").enter, sys.executable, "-c", _CONNECT, host, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CONNECT_S, check=False)
        if done.returncode:
            raise NotPossible(f"a network namespace does not reach this one: {done.stderr.strip().splitlines()[-1]}")


def _disk() -> None:
    with tempfile.TemporaryDirectory(prefix="ouzel-disk-") as folder:
        room = Room(network=False, mounts=True)
        try:
            SmallDisk(room, Path(folder), size_bytes=1024 * 1024)
        finally:
            room.close()


def _clock() -> None:
    clock.library()


_TRIALS: Mapping[Platform, Callable[[], None]] = {"namespaces": _namespaces, "disk": _disk, "clock": _clock}


@functools.cache
def why_not(what: Platform) -> str:
    """Why this machine does not have it; empty where it does. Tried once, by doing it; from the main thread."""
    try:
        _TRIALS[what]()
    except (NotPossible, OSError, TimeoutError, subprocess.TimeoutExpired) as error:
        return str(error) or type(error).__name__
    return ""


def possible() -> tuple[Platform, ...]:
    """All that this machine has."""
    return tuple(what for what in PLATFORM if not why_not(what))


def chosen(text: str) -> tuple[Platform, ...]:
    """What a command line asks for: `auto`, `none`, or names with commas between.

    Raises:
        SystemExit: an unknown name, or one that is not possible here, with the reason.
    """
    if text == "auto":
        return possible()
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    unknown = set(names) - set(PLATFORM)
    if unknown:
        raise SystemExit(f"--platform: {', '.join(sorted(unknown))}: take auto, none, or of {', '.join(PLATFORM)}")
    found = tuple(what for what in PLATFORM if what in names)
    require(found, "--platform")
    return found


def require(wanted: tuple[Platform, ...], of: str) -> None:
    """Raises:
    SystemExit: `of` needs what is not possible here; the text says why.
    """
    missing = [f"{what} ({why_not(what)})" for what in wanted if why_not(what)]
    if missing:
        raise SystemExit(f"{of} needs what this machine does not let us do: {'; '.join(missing)}")


def told() -> list[str]:
    """A line for each, for people."""
    return [f"{what}: {f'left out: {why_not(what)}' if why_not(what) else 'possible'}" for what in PLATFORM]
