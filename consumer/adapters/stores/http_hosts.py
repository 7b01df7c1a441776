"""How much is asked of one host at a time: connections, and requests a second. A slow host keeps few threads."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from urllib3.connectionpool import HTTPConnectionPool

from consumer.errors import StoreBusy

# Names below a wild card are without number: idle connections are kept to so many hosts.
_MAX_HOSTS = 64
# A thread waits no longer than this to keep the pace; the image goes back to the waiting room instead.
_LONGEST_PACE_S = 0.25


@dataclass(slots=True)
class _Host:
    pool: HTTPConnectionPool
    users: int = 0
    active: int = 0
    waiting: int = 0
    next_s: float = 0.0
    freed: threading.Condition = field(default_factory=threading.Condition)


class Hosts:
    """Pools of connections by host, of which at most `max_connections` are in use at a time, and `per_second` requests
    begin (0: no bound). Thread-safe."""

    def __init__(
        self,
        *,
        max_connections: int,
        per_second: float,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._max_connections = max_connections
        self._interval_s = 1 / per_second if per_second else 0.0
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, origin: str, left_s: float, make: Callable[[], HTTPConnectionPool]) -> Iterator[HTTPConnectionPool]:
        """The host's pool, one connection of which is this caller's.

        Waits up to `left_s` seconds for one, behind no more callers than the host may have connections: else one slow
        host would take every thread there is.

        Raises:
            StoreBusy: no room, or not in time.
        """
        host = self._enter(origin, make)
        try:
            self._take_connection(host, origin, left_s)
            try:
                self._keep_pace(host, origin, left_s)
                yield host.pool
            finally:
                with host.freed:
                    host.active -= 1
                    host.freed.notify()
        finally:
            with self._lock:
                host.users -= 1

    def _enter(self, origin: str, make: Callable[[], HTTPConnectionPool]) -> _Host:
        with self._lock:
            host = self._hosts.get(origin)
            if host is None:
                self._forget_idle()
                host = self._hosts[origin] = _Host(make())
            self._hosts.move_to_end(origin)
            host.users += 1
            return host

    def _forget_idle(self) -> None:
        idle = [origin for origin, host in self._hosts.items() if host.users == 0]
        for origin in idle[: max(0, len(self._hosts) + 1 - _MAX_HOSTS)]:
            self._hosts.pop(origin).pool.close()

    def _take_connection(self, host: _Host, origin: str, left_s: float) -> None:
        with host.freed:
            if host.active >= self._max_connections:
                if host.waiting >= self._max_connections:
                    raise StoreBusy(f"{origin}: all connections are in use (stores.http.max_connections_per_host)")
                host.waiting += 1
                try:
                    free = host.freed.wait_for(lambda: host.active < self._max_connections, left_s)
                finally:
                    host.waiting -= 1
                if not free:
                    raise StoreBusy(f"{origin}: no connection came free (stores.http.max_connections_per_host)")
            host.active += 1

    def _keep_pace(self, host: _Host, origin: str, left_s: float) -> None:
        if not self._interval_s:
            return
        with host.freed:
            now_s = self._monotonic_s()
            wait_s = host.next_s - now_s
            if wait_s > min(left_s, _LONGEST_PACE_S):
                raise StoreBusy(
                    f"{origin}: as many requests as are allowed (stores.http.requests_per_second_per_host)",
                    retry_after_s=wait_s,
                )
            host.next_s = max(host.next_s, now_s) + self._interval_s
        if wait_s > 0:
            self._sleep(wait_s)
