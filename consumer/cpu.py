"""How many cores are ours. `os.cpu_count` counts the host's, and a container has often fewer."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def quota_cores(
    *, cgroup_root: Path = Path("/sys/fs/cgroup"), process_cgroups: Path = Path("/proc/self/cgroup")
) -> int:
    """Cores that this process may keep busy: the least of its CPU affinity and its cgroup quotas; at least 1.

    Part of a core counts as a whole one (a quota of 1.5 is 2), as the JVM and Go count. A quota binds from any level
    of the hierarchy, so each parent is asked too.
    """
    return max(1, math.ceil(quota_share(cgroup_root=cgroup_root, process_cgroups=process_cgroups)))


def quota_share(
    *, cgroup_root: Path = Path("/sys/fs/cgroup"), process_cgroups: Path = Path("/proc/self/cgroup")
) -> float:
    """The same, not rounded: what the kernel gives at most, in cores."""
    return min([float(_affinity()), *_quotas(cgroup_root, process_cgroups)])


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(cgroup_root: Path, process_cgroups: Path) -> Iterator[float]:
    for line in _read(process_cgroups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2
            yield from _unified_quotas(cgroup_root, path)
        elif "cpu" in controllers.split(","):  # version 1
            for mount in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                yield from _legacy_quotas(cgroup_root / mount, path)


def _unified_quotas(mount: Path, path: str) -> Iterator[float]:
    for folder in cgroup_levels(mount, path):
        yield from _cores(*[*_read(folder / "cpu.max").split(), "", ""][:2])


def _legacy_quotas(mount: Path, path: str) -> Iterator[float]:
    for folder in cgroup_levels(mount, path):
        yield from _cores(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _cores(quota_us: str, period_us: str) -> Iterator[float]:
    """Nothing where there is no quota: `max` in version 2, -1 in version 1, no file."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period


def cgroup_levels(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and its parents up to the mount. In a container the path may be the host's and absent here;
    the mount itself is then the container's own cgroup."""
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
