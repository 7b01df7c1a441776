"""An HTTP server on loopback that does as a test tells it, well or badly. Raw sockets: no library mends what it sends.

with HttpServer() as server:
    server.routes["/a.jpg"] = answer(b"...")
    server.routes["/slow"] = stall
    ... server.origin ...; server.requests; server.connections
"""

import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

Handler = Callable[["Exchange"], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""
    connection: int
    """Which connection it came on, from 0."""


@dataclass(slots=True)
class Exchange:
    """One request and the wire to answer it on."""

    request: Request
    server: "HttpServer"
    wire: socket.socket = field(repr=False)
    keep_alive: bool = True

    def send(self, data: bytes) -> None:
        """These very bytes."""
        self.wire.sendall(data)

    def wait_released(self) -> None:
        """Until the test says so, or the server closes."""
        self.server.stalled.release()
        self.server.released.wait()

    def drip(self, data: bytes) -> None:
        """`data` over and over, a byte at a time, until the client has had enough or the server closes."""
        self.keep_alive = False
        while not self.server.closing.is_set():
            for number in range(len(data)):
                self.wire.sendall(data[number : number + 1])
                self.server.closing.wait(0.005)


def head(status: int = 200, **headers: str) -> bytes:
    """A status line and headers, `_` in their names being `-`."""
    lines = [f"HTTP/1.1 {status} Said", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(body: bytes = b"", status: int = 200, **headers: str) -> Handler:
    """A whole, correct answer."""

    def handle(exchange: Exchange) -> None:
        exchange.send(head(status, Content_Length=str(len(body)), **headers) + body)

    return handle


def raw(data: bytes, *, keep_alive: bool = False) -> Handler:
    """These bytes, whatever they are; then the connection is closed."""

    def handle(exchange: Exchange) -> None:
        exchange.keep_alive = keep_alive
        exchange.send(data)

    return handle


def redirect(location: str, status: int = 302) -> Handler:
    """To there."""
    return answer(b"moved", status, Location=location)


def stall(exchange: Exchange) -> None:
    """Nothing at all, until the test releases it."""
    exchange.keep_alive = False
    exchange.wait_released()


def reset(exchange: Exchange) -> None:
    """The beginning of a body, then RST."""
    exchange.keep_alive = False
    exchange.send(head(Content_Length="1000") + b"x" * 10)
    exchange.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class HttpServer:
    """Listens on 127.0.0.1, or with `tls` as HTTPS. Use as a context manager."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.routes: dict[str, Handler] = {}
        """By path; what is not in it is 404."""
        self.requests: list[Request] = []
        self.connections = 0
        self.released = threading.Event()
        self.stalled = threading.Semaphore(0)
        """Released once by each exchange that waits."""
        self.closing = threading.Event()
        self._tls = tls
        self._lock = threading.Lock()
        self._wires: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.origin = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gone, with all connections. Idempotent."""
        if self.closing.is_set():
            return
        self.closing.set()
        self.released.set()
        # Closing alone would not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            wires = list(self._wires)
        for wire in wires:
            try:
                wire.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a thread of the HTTP server hangs"

    def targets(self) -> list[str]:
        """What was asked for so far, in order."""
        return [request.target for request in list(self.requests)]

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                number = self.connections
                self.connections += 1
                self._wires.add(wire)
            self._run(self._serve, wire, number)

    def _serve(self, wire: socket.socket, number: int) -> None:
        connection = wire
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(wire, server_side=True)
                with self._lock:
                    self._wires.add(connection)
            reader = connection.makefile("rb")
            while not self.closing.is_set() and (request := _read(reader, number)) is not None:
                self.requests.append(request)
                exchange = Exchange(request, self, connection)
                self.routes.get(request.target.partition("?")[0], answer(b"absent", 404))(exchange)
                if not exchange.keep_alive:
                    return
        except OSError:
            return  # the client went away, or refused our certificate
        finally:
            with self._lock:
                self._wires -= {wire, connection}
            connection.close()


def _read(reader: object, number: int) -> Request | None:
    lines: list[str] = []
    while True:
        line: bytes = reader.readline()  # type: ignore[attr-defined]
        if not line:
            return None
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            break
        lines.append(text)
    if not lines or lines[0].count(" ") != 2:
        return None  # no HTTP
    method, target, _ = lines[0].split(" ")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return Request(method, target, {name.lower(): value for name, value in headers.items()}, number)
