"""Faults that ask for more than processes: the network, a disk, the wall clock. Skipped where the machine does not let
us, with what it said."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.chaos.harness.clock import WallClock
from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.disk import SmallDisk
from tests.chaos.harness.episode import run_episode
from tests.chaos.harness.namespaces import Network, Room
from tests.chaos.harness.plan import BROKER_SESSION_S, PLATFORM, SESSION_S, Fault, Plan, Platform
from tests.chaos.harness.platform import why_not
from tests.conftest import or_skip
from tests.history import Line, load
from tests.kafka_broker import Cluster
from tests.processes import wait_until

LONG_S = 30.0
SOON_S = 0.5
AHEAD_S = 1800.0


def need(*wanted: Platform) -> None:
    for what in wanted:
        if why_not(what):
            pytest.skip(f"the platform has no {what}: {why_not(what)}")


# --- each by itself -------------------------------------------------------------------------------------------------

_ECHO = """
import socket, sys
wire = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while data := wire.recv(1000):
    wire.sendall(data)
"""


def test_an_unplugged_wire_loses_packets_and_no_connection() -> None:
    need("namespaces")
    with Network() as network, socket.create_server((network.address("clients"), 0)) as door:
        seat = network.seat("peers", "clients")
        host, port = door.getsockname()
        with subprocess.Popen([*seat.enter, sys.executable, "-c", _ECHO, host, str(port)]) as other:
            door.settimeout(LONG_S)
            wire, peer = door.accept()
            assert peer[0] == seat.addresses["clients"]
            with wire:
                wire.settimeout(LONG_S)
                assert _echoed(wire, b"before")
                seat.unplug("peers")
                assert _echoed(wire, b"by the other wire")
                seat.unplug()
                wire.settimeout(SOON_S)
                assert not _echoed(wire, b"meanwhile")
                seat.plug()
                wire.settimeout(LONG_S)
                assert wire.recv(1000) == b"meanwhile"  # the kernel has sent it again
            assert other.wait(LONG_S) == 0


def _echoed(wire: socket.socket, text: bytes) -> bool:
    wire.sendall(text)
    try:
        return wire.recv(1000) == text
    except TimeoutError:
        return False


_CRASH = """
import os, signal, sys
from pathlib import Path
from tests.chaos.harness.disk import SmallDisk
from tests.chaos.harness.namespaces import Network
network = Network()
seat = network.seat("peers", "clients", mounts=True)
SmallDisk(seat, Path(sys.argv[1]), size_bytes=1024 * 1024)
print(network.address("peers"), seat.enter[1].rpartition("=")[2], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_of_the_harness_leaves_no_namespace_no_link_and_no_mount(tmp_path: Path) -> None:
    need("namespaces", "disk")
    done = subprocess.run([sys.executable, "-c", _CRASH, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    address, holder = done.stdout.split()

    def gone() -> bool:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, 0))
            return False
        return not Path("/proc", holder, "ns").exists()

    wait_until(gone, timeout_s=LONG_S, what="what a killed harness had made to go")
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_a_full_disk_takes_nothing_until_it_is_cleared(tmp_path: Path) -> None:
    need("disk")
    room = Room(network=False, mounts=True)
    try:
        disk = SmallDisk(room, tmp_path, size_bytes=1024 * 1024)
        command = [*room.enter, sys.executable, "-c", f"open('{tmp_path}/file', 'wb').write(bytes(10_000))"]
        first = room.outside(tmp_path) / "first"
        first.write_bytes(bytes(10_000))
        disk.fill()
        assert disk.free_bytes == 0
        full = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "No space left on device" in full.stderr
        assert first.read_bytes() == bytes(10_000)
        disk.clear()
        assert subprocess.run(command, check=False).returncode == 0
    finally:
        room.close()


_TIMES = """
import ctypes, datetime, threading, time
sys_s = ctypes.CDLL(None).time
while True:
    input()
    print(time.time(), datetime.datetime.now().timestamp(), sys_s(None), time.monotonic(), flush=True)
"""


def test_a_stepped_clock_is_the_process_s_alone_and_not_its_monotonic_one(tmp_path: Path) -> None:
    need("clock")
    clock = WallClock(tmp_path / "clock")
    command = [sys.executable, "-c", _TIMES]
    environment = os.environ | dict(clock.environment)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for ahead_s in (0.0, AHEAD_S, -AHEAD_S, 0.0):
            clock.step(ahead_s)
            other.stdin.write("\n")
            other.stdin.flush()
            *walls_s, monotonic_s = map(float, other.stdout.readline().split())
            assert [round((wall_s - time.time()) / 60) for wall_s in walls_s] == [ahead_s // 60] * 3
            assert round((monotonic_s - time.monotonic()) / 60) == 0
        other.stdin.close()
        other.kill()


_WAIT = """
import sys
from confluent_kafka import Producer
producer = Producer({"log_level": 0})  # without brokers: nothing comes that would end a wait
print("waits", flush=True)
for _ in range(15):
    producer.poll(0.2)
"""


def test_librdkafka_s_waits_are_by_the_wall_clock(tmp_path: Path) -> None:
    """A clock that is set back prolongs them (librdkafka #2145). Where this fails they became better: see the docs."""
    need("clock")
    clock = WallClock(tmp_path / "clock")
    environment = os.environ | dict(clock.environment)
    with subprocess.Popen([sys.executable, "-c", _WAIT], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
        process = psutil.Process(other.pid)
        # A step before it waits would be no news to it.
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, timeout_s=LONG_S, what="it to wait")
        clock.step(-AHEAD_S)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(5.0)
        clock.step(0.0)
        assert other.wait(LONG_S) == 0


# --- in a run -------------------------------------------------------------------------------------------------------


class Watch:
    """Which brokers some partition had not in its ISR, while a run goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self._admin = AdminClient(cluster.client_properties())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.out_of_sync: set[int] = set()

    def _run(self) -> None:
        while not self._stopping.wait(0.2):
            with suppress(KafkaException):
                for topic in self._admin.list_topics(timeout=2).topics.values():
                    for partition in topic.partitions.values():
                        self.out_of_sync |= set(partition.replicas) - set(partition.isrs)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join(LONG_S)


@pytest.mark.kafka
def test_what_only_the_platform_can_do_breaks_no_promise(small_photographs: list[Path], tmp_path: Path) -> None:
    need(*PLATFORM)
    faults = (
        Fault(1.0, "clock step", {"replica": 1, "seconds": AHEAD_S}, 14.0),
        Fault(7.0, "replica unplugged", {"replica": 0}, SESSION_S + 4.0),
        Fault(17.0, "broker cut off from its peers", {"broker": 1}, BROKER_SESSION_S + 5.0),
        Fault(33.0, "disk full", {"broker": 2}, 6.0),
    )
    plan = Plan("exactly_once", 0, replicas=2, partitions=4, faults=faults, platform=PLATFORM)
    with or_skip(lambda: Brokers(PLATFORM)) as brokers:
        watch = Watch(brokers)
        with watch.on():
            result = run_episode(plan, brokers, tmp_path / "run", small_photographs)
        log = brokers.nodes[2].log_path.read_text(errors="replace")
    assert result.kept, "\n".join(result.stories)
    assert len(result.faults) == len(faults)
    assert {1, 2} <= watch.out_of_sync
    assert "No space left on device" in log
    history = load(tmp_path / "run" / "history.jsonl")
    assert _most_ahead_s(history, tmp_path / "run" / "replica-1.log") > AHEAD_S / 2
    cut_off_s = _begun_s(history, "broker cut off from its peers")
    assert _session_ended(tmp_path / "run" / "replica-0.log", before_s=cut_off_s)


def _begun_s(history: list[Line], kind: str) -> float:
    return _wall_s(next(line for line in history if line["kind"] == "fault" and line["name"] == kind))


def _session_ended(log: Path, *, before_s: float) -> bool:
    """Whether librdkafka says so: without an answer for so long it leaves the group."""
    lines = [json.loads(text) for text in log.read_text().splitlines() if "SESSTMOUT" in text]
    return any(datetime.fromisoformat(line["time"]).timestamp() < before_s for line in lines)


def _most_ahead_s(history: list[Line], log: Path) -> float:
    """How far a label event's time is ahead of when it was seen, or a log line's ahead of the next one's; at most."""
    events = [
        datetime.fromisoformat(line["headers"]["ce_time"]).timestamp() - _wall_s(line)
        for line in history
        if line["kind"] == "output" and line["form"] == "event"
    ]
    logged = [datetime.fromisoformat(json.loads(text)["time"]).timestamp() for text in log.read_text().splitlines()]
    return max(*events, *(one - after for one, after in pairwise(logged)))


def _wall_s(line: Line) -> float:
    return float(line["at_s"] + time.time() - time.monotonic())
