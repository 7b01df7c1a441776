"""Connections of the `http(s)://` store: opened to an address that was checked, and bound by one deadline.

urllib3 asks `_new_conn` for the socket of every connection that is not in its pool. Ours looks the name up once, holds
every address that it finds against the rules, and connects to one of those very addresses. `Host`, SNI and the
certificate's name stay those of the URI, as urllib3 sets them from its own host.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from consumer.adapters.stores.addresses import Address, Network, is_allowed
from consumer.adapters.stores.http_uri import Place
from consumer.errors import ImageNotFound, ReferenceRefused, StoreUnavailable
from consumer.host_names import is_address

Resolve = Callable[[str, int], Sequence[str]]
"""From a host name and a port to its addresses. Blocks; raises `socket.gaierror`."""
Connect = Callable[[str, int, float], socket.socket]
"""A connected socket to an address and a port, within so many seconds. Raises `OSError`."""

# A lookup cannot be broken off: more than these at once wait for a turn within their deadlines.
_MAX_LOOKUPS = 16
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class Deadline(threading.local):
    """When the fetch of this thread must be over. All of a fetch happens in the thread that asked for it."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._until_s = 0.0
        self.dialled = 0
        """How often this thread's fetches needed a new connection."""

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Begins now and holds inside the `with` block."""
        self._until_s = self._monotonic_s() + seconds
        yield

    def left_s(self) -> float:
        """Seconds left. Raises TimeoutError where there are none."""
        left_s = self._until_s - self._monotonic_s()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    @property
    def passed(self) -> bool:
        """Whether none are left."""
        return self._monotonic_s() >= self._until_s


DEADLINE = Deadline()


class _DeadlineSocket(socket.socket):
    """Each read waits for what is left of the deadline, however few bytes the one before it brought."""

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(DEADLINE.left_s())
        return super().recv_into(*args, **options)

    def sendall(self, *args: Any, **options: Any) -> None:
        self.settimeout(DEADLINE.left_s())
        super().sendall(*args, **options)


class _DeadlineTlsSocket(_DeadlineSocket, ssl.SSLSocket):
    """The same over TLS."""


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Verifies certificates and names, by `ca_file` alone where it is given, else by the system's authorities.

    Raises:
        OSError: the file cannot be read, or holds no certificate (ssl.SSLError).
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.sslsocket_class = _DeadlineTlsSocket
    return context


def system_resolve(host: str, port: int) -> list[str]:
    """The system's own lookup (`getaddrinfo`): every address, in its order."""
    # As bytes, or Python would put the name through its own IDNA codec first.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def system_connect(address: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection to a numeric address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connected = _DeadlineSocket(family, socket.SOCK_STREAM)
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(timeout_s)
        connected.connect((address, port))
        connected.settimeout(DEADLINE.left_s())  # for a TLS handshake, as a whole
    except BaseException:
        connected.close()
        raise
    return connected


@dataclass(frozen=True, slots=True)
class Dialer:
    """Opens sockets to checked addresses, or to the operator's proxy."""

    named: Sequence[Network]
    """Networks that are allowed though they are not public."""
    connect_timeout_s: float
    proxy: tuple[str, int] | None = None
    """Host and port of a proxy, which resolves names itself: what it connects to is not ours to check."""
    resolve: Resolve = system_resolve
    connect: Connect = system_connect

    def check(self, place: Place) -> None:
        """Holds an address that a URI itself names against the rules. Raises ReferenceRefused."""
        if is_address(place.host):
            self._check_all(place, [place.host.strip("[]")])

    def open(self, place: Place, *, by_wild_card: bool) -> socket.socket:
        """A socket for this place.

        Raises:
            ReferenceRefused: the name leads to an address that is not allowed.
            ImageNotFound: there is no such name, and the settings allow it only by a wild card.
            StoreUnavailable: the name cannot be looked up now, or none of its addresses answers.
        """
        DEADLINE.dialled += 1
        if self.proxy is not None:
            host, port = self.proxy
            return self._connect_to_one(host, port, _lookup(self.resolve, host, port))
        if is_address(place.host):
            addresses: Sequence[str] = [place.host.strip("[]")]
        else:
            try:
                addresses = _lookup(self.resolve, place.host, place.port)
            except socket.gaierror as error:
                if error.errno in _NO_SUCH_NAME and by_wild_card:
                    # Anybody can think up names below a wild card: waiting for them would hold up the rest for ever.
                    raise ImageNotFound(f"{place.origin}: there is no such host") from None
                raise
        self._check_all(place, addresses)
        return self._connect_to_one(place.origin, place.port, addresses)

    def _check_all(self, place: Place, addresses: Sequence[str]) -> None:
        """One that is not allowed refuses the name: which of them is taken would be a matter of chance."""
        for text in addresses:
            if not is_allowed(_parsed(text), self.named):
                raise ReferenceRefused(
                    f"{place.origin} leads to {text}, which is no public address: name its network in the setting "
                    "stores.http.allow_networks if it is yours"
                )

    def _connect_to_one(self, said: str, port: int, addresses: Sequence[str]) -> socket.socket:
        failure: OSError | None = None
        for address in addresses:
            try:
                return self.connect(address, port, min(self.connect_timeout_s, DEADLINE.left_s()))
            except OSError as error:
                failure = error
        why = "no address" if failure is None else failure.strerror or "no connection in time"
        raise StoreUnavailable(f"{said}: cannot be connected to ({why})")


def _parsed(text: str) -> Address:
    return ipaddress.ip_address(text)


_lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)


def _lookup(resolve: Resolve, host: str, port: int) -> Sequence[str]:
    """In a thread of its own, which may outlive the deadline. Raises gaierror, TimeoutError."""
    answers: queue.SimpleQueue[Sequence[str] | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(host, port))
        except BaseException as error:
            answers.put(error)
        finally:
            _lookups.release()

    if not _lookups.acquire(timeout=DEADLINE.left_s()):
        raise TimeoutError("the deadline has passed")
    threading.Thread(target=ask, name="lookup", daemon=True).start()
    try:
        answer = answers.get(timeout=DEADLINE.left_s())
    except queue.Empty:
        raise TimeoutError("the deadline has passed") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


# --- urllib3's pools, with our sockets ------------------------------------------------------------------------------


class _Dialled(HTTPConnection):
    def __init__(self, *args: Any, dial: Callable[[], socket.socket], **options: Any) -> None:
        super().__init__(*args, **options)
        self._dial = dial

    def _new_conn(self) -> socket.socket:
        return self._dial()


class _DialledTls(HTTPSConnection):
    def __init__(self, *args: Any, dial: Callable[[], socket.socket], **options: Any) -> None:
        super().__init__(*args, **options)
        self._dial = dial

    def _new_conn(self) -> socket.socket:
        return self._dial()


class HttpPool(HTTPConnectionPool):
    """Kept-alive connections to one host."""

    ConnectionCls = _Dialled


class HttpsPool(HTTPSConnectionPool):
    """Kept-alive TLS connections to one host."""

    ConnectionCls = _DialledTls
