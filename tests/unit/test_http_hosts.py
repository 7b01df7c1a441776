"""How much is asked of one host at a time: requests a second, and pools that are let go of."""

from typing import Any

import pytest
from urllib3.connectionpool import HTTPConnectionPool

from consumer.adapters.stores.http_hosts import Hosts
from consumer.errors import StoreBusy


class Pool(HTTPConnectionPool):
    """Knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


class Paced:
    """Hosts with a clock that only sleeping moves."""

    def __init__(self, per_second: float) -> None:
        self.now_s = 0.0
        self.pools: dict[str, Pool] = {}
        self.hosts = Hosts(max_connections=2, per_second=per_second, monotonic_s=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def ask(self, origin: str = "https://a", left_s: float = 30.0) -> float:
        """When the request began."""
        with self.hosts.turn(origin, left_s, lambda: self._made(origin)):
            return self.now_s

    def _made(self, origin: str) -> Pool:
        self.pools[origin] = Pool("host")
        return self.pools[origin]


def test_requests_to_one_host_keep_their_pace_and_those_to_another_theirs() -> None:
    paced = Paced(per_second=10)
    assert [round(paced.ask(), 3) for _ in range(4)] == [0.0, 0.1, 0.2, 0.3]
    assert round(paced.ask("https://b"), 3) == 0.3
    paced.now_s = 60.0
    assert [round(paced.ask(), 3) for _ in range(2)] == [60.0, 60.1]  # what was not used is not saved up


def test_a_long_wait_is_not_made_in_a_thread_but_said() -> None:
    paced = Paced(per_second=0.5)
    assert paced.ask() == 0.0
    for _ in range(3):
        with pytest.raises(StoreBusy, match=r"stores\.http\.requests_per_second_per_host") as caught:
            paced.ask()
        assert caught.value.retry_after_s == 2.0
    paced.now_s = 2.0
    assert paced.ask() == 2.0


def test_without_a_bound_nothing_waits() -> None:
    paced = Paced(per_second=0)
    assert [paced.ask() for _ in range(100)] == [0.0] * 100


def test_a_connection_is_given_back_when_the_request_fails() -> None:
    paced = Paced(per_second=0)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), paced.hosts.turn("https://a", 0.0, lambda: paced._made("https://a")):
            raise ZeroDivisionError


def test_idle_connections_of_names_without_number_are_let_go_of() -> None:
    paced = Paced(per_second=0)
    held: Any = paced.hosts.turn("https://held", 1.0, lambda: paced._made("https://held"))
    with held:
        for number in range(200):
            paced.ask(f"https://{number}")
        assert not paced.pools["https://held"].closed
    open_pools = [origin for origin, pool in paced.pools.items() if not pool.closed]
    assert len(open_pools) == 64
    assert "https://199" in open_pools
