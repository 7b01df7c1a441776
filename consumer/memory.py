"""How much memory this process may still take."""

from collections.abc import Iterator
from pathlib import Path

from consumer.cpu import cgroup_levels


def available_bytes(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    process_cgroups: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """The least of what the host has left and what the cgroup's limits (version 2) leave, at every level; None where
    nothing says.

    What a cgroup holds of files that nobody reads now counts as free: the kernel gives it up first.
    """
    return min([*_of_host(meminfo), *_of_cgroups(cgroup_root, process_cgroups)], default=None)


def _of_host(meminfo: Path) -> Iterator[int]:
    found = _fields(meminfo).get("MemAvailable:")
    if found is not None:
        yield found * 1024


def _of_cgroups(root: Path, process_cgroups: Path) -> Iterator[int]:
    for line in _read(process_cgroups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            for folder in cgroup_levels(root, path):
                limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
                if limit.isdigit() and used.isdigit():  # `max` where there is no limit
                    unused = _fields(folder / "memory.stat").get("inactive_file", 0)
                    yield max(0, int(limit) - int(used) + unused)


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
