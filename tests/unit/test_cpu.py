"""Cores by cgroup quota and affinity, on made-up cgroup files."""

import os
from pathlib import Path

import pytest

from consumer.cpu import quota_cores, quota_share


@pytest.fixture(autouse=True)
def eight_cores_by_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


class Host:
    """A cgroup tree below a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.process = folder / "self"

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text + "\n")

    def cores(self, process: str) -> int:
        self.process.write_text(process)
        return quota_cores(cgroup_root=self.root, process_cgroups=self.process)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_a_quota_the_affinity_counts_and_never_the_hosts_cores(host: Host) -> None:
    assert host.cores("0::/\n") == 8


def test_a_missing_proc_file_leaves_the_affinity(tmp_path: Path) -> None:
    assert quota_cores(cgroup_root=tmp_path, process_cgroups=tmp_path / "absent") == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1000 100000", 1), ("max 100000", 8)],
)
def test_a_version_2_quota_is_rounded_up_to_whole_cores(host: Host, quota: str, cores: int) -> None:
    host.write("cpu.max", quota)
    assert host.cores("0::/\n") == cores


def test_a_quota_above_the_affinity_does_not_add_cores(host: Host) -> None:
    host.write("cpu.max", "3200000 100000")
    assert host.cores("0::/\n") == 8


def test_the_tightest_level_of_the_hierarchy_binds(host: Host) -> None:
    host.write("pods/cpu.max", "300000 100000")
    host.write("pods/one/cpu.max", "max 100000")
    assert host.cores("0::/pods/one\n") == 3


@pytest.mark.parametrize(("line", "mount"), [("4:cpu,cpuacct:/", "cpu,cpuacct"), ("1:cpu:/", "cpu")])
def test_a_version_1_quota_is_read_wherever_it_is_mounted(host: Host, line: str, mount: str) -> None:
    host.write(f"{mount}/cpu.cfs_quota_us", "400000")
    host.write(f"{mount}/cpu.cfs_period_us", "100000")
    assert host.cores(f"5:memory:/x\n{line}\n0::/\n") == 4


def test_minus_one_is_no_quota_in_version_1(host: Host) -> None:
    host.write("cpu/cpu.cfs_quota_us", "-1")
    host.write("cpu/cpu.cfs_period_us", "100000")
    assert host.cores("1:cpu:/\n") == 8


def test_a_path_of_the_host_that_a_container_does_not_see_falls_back_to_its_mount(host: Host) -> None:
    host.write("cpu/cpu.cfs_quota_us", "200000")
    host.write("cpu/cpu.cfs_period_us", "100000")
    assert host.cores("1:cpu:/docker/0123456789ab\n") == 2


def test_nonsense_in_the_files_is_no_quota(host: Host) -> None:
    host.write("cpu.max", "lots of it")
    assert host.cores("garbage\n0::/\n") == 8


def test_this_machine_has_at_least_one_core() -> None:
    assert quota_cores() >= 1


def test_a_share_of_a_core_is_told_as_it_is(host: Host) -> None:
    host.write("cpu.max", "150000 100000")
    host.process.write_text("0::/\n")
    assert quota_share(cgroup_root=host.root, process_cgroups=host.process) == 1.5
    assert host.cores("0::/\n") == 2
