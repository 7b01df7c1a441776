"""The fault proxy passes Kafka's frames on whole, and does with them what its rules say."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.harness.proxy import FaultProxy, Rule
from tests.processes import free_port

BROKER = 1
END_TXN, PRODUCE = 26, 0
SOON_S, LONG_S = 0.3, 10.0


def request(number: int, *, api: int = PRODUCE, client: bytes = b"replica-0", body: bytes = b"") -> bytes:
    """A request with a header as Kafka's."""
    inside = struct.pack(">hhih", api, 1, number, len(client)) + client + body
    return struct.pack(">i", len(inside)) + inside


def frame_of(wire: socket.socket) -> bytes:
    """One whole frame, without its length; empty where the connection is over."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = wire.recv(count - len(data))
            if not piece:
                return b""
            data += piece
        return data

    head = exactly(4)
    return exactly(struct.unpack(">i", head)[0]) if head else b""


class FakeBroker:
    """Answers each request with its correlation id and the request; keeps what came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.came: list[bytes] = []
        self.arrived = threading.Semaphore(0)
        self._wires: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            self._wires.append(wire)
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: socket.socket) -> None:
        try:
            while frame := frame_of(wire):
                self.came.append(frame)
                self.arrived.release()
                answer = frame[4:8] + frame
                wire.sendall(struct.pack(">i", len(answer)) + answer)
        except OSError:
            pass
        finally:
            wire.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self._wires:
            wire.close()


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    made = FakeBroker()
    yield made
    made.close()


@pytest.fixture
def proxy(broker: FakeBroker) -> Iterator[FaultProxy]:
    made = FaultProxy({BROKER: free_port()})
    made.start({BROKER: broker.port})
    yield made
    made.close()


@contextmanager
def connected(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.ports[BROKER]), timeout=LONG_S) as wire:
        yield wire


def number_of(answer: bytes) -> int:
    return int.from_bytes(answer[:4], "big") if answer else -1


def rest_of(wire: socket.socket) -> bytes:
    """What still comes until the connection ends, one way or the other."""
    came = b""
    try:
        while piece := wire.recv(10_000):
            came += piece
    except ConnectionError:
        pass
    return came


def nothing_comes(wire: socket.socket) -> bool:
    wire.settimeout(SOON_S)
    try:
        wire.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        wire.settimeout(LONG_S)
    return False


def test_without_a_rule_frames_pass_both_ways_whole(proxy: FaultProxy) -> None:
    with connected(proxy) as wire:
        body = bytes(range(256)) * 1000
        wire.sendall(request(1, body=body) + request(2))
        first, second = frame_of(wire), frame_of(wire)
        assert (number_of(first), number_of(second)) == (1, 2)
        assert first.endswith(body)


def test_a_black_hole_holds_a_way_and_lets_it_go_when_it_is_over(proxy: FaultProxy, broker: FakeBroker) -> None:
    with connected(proxy) as wire:
        rule = proxy.add(Rule("hold", direction="down"))
        wire.sendall(request(1))
        assert broker.arrived.acquire(timeout=LONG_S), "the way up is open"
        assert nothing_comes(wire)
        proxy.remove(rule)
        assert number_of(frame_of(wire)) == 1


@pytest.mark.parametrize("arrives_late", [True, False])
def test_what_a_client_sent_into_a_black_hole_and_left_arrives_late_or_never(
    proxy: FaultProxy, broker: FakeBroker, arrives_late: bool
) -> None:
    with connected(proxy) as wire:
        wire.sendall(request(1))
        assert number_of(frame_of(wire)) == 1
        rule = proxy.add(Rule("hold", direction="up", value=float(arrives_late)))
        wire.sendall(request(2))
        assert nothing_comes(wire)
    with connected(proxy) as other:  # its way is held too, and it stays
        other.sendall(request(3))
        assert nothing_comes(other)
        proxy.remove(rule)
        assert number_of(frame_of(other)) == 3
        while proxy.connections > 1:
            assert nothing_comes(other)
    assert [number_of(frame[4:8]) for frame in broker.came if number_of(frame[4:8]) == 2] == [2] * arrives_late


def test_a_rule_for_one_replica_leaves_the_others_alone(proxy: FaultProxy) -> None:
    proxy.add(Rule("hold", client="replica-1"))
    with connected(proxy) as one, connected(proxy) as other:
        one.sendall(request(1, client=b"replica-0"))
        other.sendall(request(2, client=b"replica-1"))
        assert number_of(frame_of(one)) == 1
        assert nothing_comes(other)


def test_a_rule_for_a_replica_is_for_all_of_its_clients(proxy: FaultProxy) -> None:
    proxy.add(Rule("hold", client="replica-1"))
    for client, held in ((b"replica-1-producer", True), (b"replica-1-0", True), (b"replica-10", False)):
        with connected(proxy) as wire:
            wire.sendall(request(1, client=client))
            assert nothing_comes(wire) if held else number_of(frame_of(wire)) == 1


def test_a_rule_for_another_broker_does_nothing_here(proxy: FaultProxy) -> None:
    proxy.add(Rule("hold", broker=2))
    with connected(proxy) as wire:
        wire.sendall(request(1))
        assert number_of(frame_of(wire)) == 1


def test_the_answer_of_one_kind_of_request_is_late_and_others_are_not(proxy: FaultProxy) -> None:
    proxy.add(Rule("late", value=1.0, api=END_TXN))
    with connected(proxy) as wire, connected(proxy) as other:
        wire.sendall(request(1, api=END_TXN))
        other.sendall(request(2, api=PRODUCE))
        assert number_of(frame_of(other)) == 2
        assert nothing_comes(wire)
        assert number_of(frame_of(wire)) == 1


def test_connections_are_reset_and_new_ones_too(proxy: FaultProxy) -> None:
    with connected(proxy) as wire:
        wire.sendall(request(1))
        frame_of(wire)
        rule = proxy.add(Rule("reset"))
        with pytest.raises(ConnectionResetError):
            wire.recv(1)
    with connected(proxy) as wire:
        with contextlib.suppress(ConnectionError):
            wire.sendall(request(2))
        assert rest_of(wire) == b""
    proxy.remove(rule)
    with connected(proxy) as wire:
        wire.sendall(request(3))
        assert number_of(frame_of(wire)) == 3


def test_a_connection_is_cut_in_the_midst_of_a_frame(proxy: FaultProxy) -> None:
    with connected(proxy) as wire:
        wire.sendall(request(1, body=b"x" * 1000))
        whole = frame_of(wire)
        proxy.add(Rule("cut", direction="down", value=500))
        wire.sendall(request(2, body=b"x" * 1000))
        assert len(rest_of(wire)) <= 500 < len(whole)


def test_a_rate_and_a_delay_lose_nothing(proxy: FaultProxy) -> None:
    proxy.add(Rule("rate", value=1_000_000))
    proxy.add(Rule("delay", value=0.05))
    with connected(proxy) as wire:
        for number in range(20):
            wire.sendall(request(number, body=b"x" * 10_000))
        assert [number_of(frame_of(wire)) for _ in range(20)] == list(range(20))


def test_a_broker_that_is_away_is_a_connection_that_ends(broker: FakeBroker) -> None:
    proxy = FaultProxy({BROKER: free_port()})
    proxy.start({BROKER: free_port()})
    try:
        with connected(proxy) as wire:
            assert rest_of(wire) == b""
    finally:
        proxy.close()
