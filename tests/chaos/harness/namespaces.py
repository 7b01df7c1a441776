"""Network and mount namespaces for processes under test, where this machine lets us make them.

A `Room` is held by a process that sleeps; others are started in it by `nsenter`. The kernel ends the holder with us,
and what was made in its namespaces (links, bridges, mounts) goes with it: a crash leaves nothing behind.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from tests.processes import claim, start_process, wait_until

Wire = Literal["peers", "clients"]
"""`peers`: brokers and controller among themselves, and who watches them. `clients`: the proxy's way to the brokers,
and all of the replicas'."""
WIRES: tuple[Wire, ...] = ("peers", "clients")

# 198.18.0.0/15 is set aside for tests of network devices (RFC 2544): one /24 of each half is ours.
_SUBNETS: Mapping[Wire, str] = {"peers": "198.18", "clients": "198.19"}
_HOST = 1
_FIRST_SEAT, _LAST_SEAT = 10, 250
_COMMAND_S = 20.0
_SBIN = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class NotPossible(Exception):
    """This machine does not let us; the text says what failed."""


def tool(name: str) -> str:
    """Where a command lies.

    Raises:
        NotPossible: it is not installed.
    """
    found = shutil.which(name, path=_SBIN)
    if found is None:
        raise NotPossible(f"the command {name} is not there")
    return found


def _run(command: Sequence[str], given: str = "") -> None:
    done = subprocess.run(command, input=given, text=True, capture_output=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise NotPossible(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def _ip(enter: Sequence[str], lines: Iterable[str]) -> None:
    _run([*enter, tool("ip"), "-batch", "-"], "\n".join(lines) + "\n")


class Room:
    """Namespaces that a process of ours holds. From the main thread, as the kernel ends the holder with that thread.

    Raises:
        NotPossible: they cannot be made.
    """

    def __init__(self, *, network: bool, mounts: bool) -> None:
        kinds = [f"--{kind}" for kind, wanted in (("net", network), ("mount", mounts)) if wanted]
        command = [tool("unshare"), *kinds, tool("sleep"), "infinity"]
        with tempfile.TemporaryFile() as said:
            self._holder = start_process(command, output=said)

            def made() -> bool:
                if self._holder.poll() is not None:
                    said.seek(0)
                    raise NotPossible(f"{' '.join(command)}: {said.read().decode(errors='replace').strip()}")
                return (self._proc / "comm").read_text().strip() == "sleep"

            wait_until(made, timeout_s=_COMMAND_S, what="namespaces to be made", interval_s=0.005)
        self.enter: tuple[str, ...] = (tool("nsenter"), f"--target={self._holder.pid}", *kinds, "--")
        """Before a command line: it runs in here, as the same process."""

    @property
    def _proc(self) -> Path:
        return Path("/proc") / str(self._holder.pid)

    @property
    def network(self) -> str:
        """Its network namespace, as `ip` takes it."""
        return str(self._proc / "ns" / "net")

    def outside(self, path: Path) -> Path:
        """What lies under an absolute path in here, by its name out there."""
        return self._proc / "root" / path.relative_to("/")

    def run(self, *command: str) -> None:
        """Runs a command to its end.

        Raises:
            NotPossible: it failed.
        """
        _run([*self.enter, tool(command[0]), *command[1:]])

    def close(self) -> None:
        """The namespaces go with the last process in them."""
        self._holder.kill()
        self._holder.wait(_COMMAND_S)


class Seat(Room):
    """A room that is wired to the others. `addresses` is where it is reached, by wire."""

    def __init__(self, network: "Network", number: int, wires: Sequence[Wire], *, mounts: bool) -> None:
        super().__init__(network=True, mounts=mounts)
        self._network = network
        self.number = number
        self.addresses: Mapping[Wire, str] = {wire: network.address(wire, number) for wire in wires}

    def unplug(self, *wires: Wire) -> None:
        """Packets on these wires vanish, both ways; all of them where none is named. Connections know nothing of it."""
        self._network.switch(self, wires or tuple(self.addresses), on=False)

    def plug(self) -> None:
        """Undoes every `unplug`."""
        self._network.switch(self, tuple(self.addresses), on=True)

    def close(self) -> None:
        """Whatever still runs in it is cut off."""
        super().close()
        self._network.give_back(self)


class Network:
    """Two wires, and the host's end of each.

    The wires are bridges in a namespace of their own: neither forwarding nor a firewall's rules of the machine have a
    part in it. Addresses are this process's alone, so that several harnesses run side by side.

    Raises:
        NotPossible: not here; nothing is left of what was tried.
    """

    def __init__(self) -> None:
        self._number = _free_subnet()
        self._free = list(range(_LAST_SEAT, _FIRST_SEAT - 1, -1))
        self._seats: dict[int, Seat] = {}
        self._hub = Room(network=True, mounts=False)
        try:
            _ip(self._hub.enter, [f"link add {wire} type bridge" for wire in WIRES])
            _ip(self._hub.enter, [f"link set {wire} up" for wire in WIRES])
            for wire in WIRES:
                port, end = f"{wire}-host", f"oz{self._number}{wire[0]}"
                _ip((), [f"link add {end} type veth peer name {port} netns {self._hub.network}"])
                _ip(self._hub.enter, [f"link set {port} master {wire} up"])
                _ip((), [f"address add {self.address(wire, _HOST)}/24 dev {end}", f"link set {end} up"])
        except BaseException:
            self.close()
            raise

    def address(self, wire: Wire, number: int = _HOST) -> str:
        """Of a seat; without a number the host's own."""
        return f"{_SUBNETS[wire]}.{self._number}.{number}"

    def seat(self, *wires: Wire, mounts: bool = False) -> Seat:
        """A new room, on these wires, with a loopback of its own."""
        number = self._free.pop()
        seat = Seat(self, number, wires, mounts=mounts)
        self._seats[number] = seat
        _ip(
            self._hub.enter,
            [
                line
                for wire in wires
                for line in (
                    f"link add {wire}-{number} type veth peer name {wire} netns {seat.network}",
                    f"link set {wire}-{number} master {wire} up",
                )
            ],
        )
        ups = [
            line
            for wire, address in seat.addresses.items()
            for line in (f"address add {address}/24 dev {wire}", f"link set {wire} up")
        ]
        _ip(seat.enter, ["link set lo up", *ups])
        return seat

    def switch(self, seat: Seat, wires: Sequence[Wire], *, on: bool) -> None:
        """Takes a seat's ends off their bridges, or puts them back: the links stay up, and nothing arrives."""
        what = "master {}" if on else "nomaster"
        _ip(self._hub.enter, [f"link set {wire}-{seat.number} {what.format(wire)}" for wire in wires])

    def plug_all(self) -> None:
        """No seat is unplugged any more."""
        for seat in self._seats.values():
            seat.plug()

    def give_back(self, seat: Seat) -> None:
        """Its number is another's from now on. Its links go some time after its last process: not waited for."""
        if self._seats.pop(seat.number, None) is not None:
            with contextlib.suppress(NotPossible):  # gone already
                _ip(self._hub.enter, [f"link del {wire}-{seat.number}" for wire in seat.addresses])
            self._free.insert(0, seat.number)

    def close(self) -> None:
        """All that was made is gone."""
        for seat in list(self._seats.values()):
            seat.close()
        self._hub.close()
        for wire in WIRES:  # at once: the kernel takes its time with the namespace that has the other end
            with contextlib.suppress(NotPossible):
                _ip((), [f"link del oz{self._number}{wire[0]}"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_subnet() -> int:
    """One that no other harness has, nor this machine."""
    for number in range(256):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((f"{_SUBNETS['peers']}.{number}.{_HOST}", 0))
            continue  # an address of this machine
        if claim(f"subnet-{number}"):
            return number
    raise NotPossible("no subnet is free")
