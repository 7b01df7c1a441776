"""Every published trick is refused before anything is connected to: the connector is watched."""

import socket
from collections.abc import Sequence
from functools import cache

import pytest

from consumer.adapters.stores.data_store import DataStore
from consumer.adapters.stores.file_store import FileStore
from consumer.adapters.stores.http_store import HttpStore
from consumer.errors import ReferenceRefused, StoreUnavailable
from consumer.messages import StoredImage
from consumer.stages.fetch import choose_store
from tests.uri_tricks import ALLOWED, NAMES, SPELLINGS


class Watched:
    """An http(s) store whose names lead where `addresses` says, and whose connections are counted and refused."""

    def __init__(
        self, hosts: Sequence[str], *, addresses: dict[str, list[str]] | None = None, otherwise: str = "127.0.0.1"
    ) -> None:
        self.addresses = addresses or {}
        self.otherwise = otherwise
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.store = HttpStore(hosts, schemes=["https", "http"], resolve=self._resolve, connect=self._connect)

    def fetch(self, uri: str) -> StoredImage:
        """The whole way that a reference takes."""
        store = choose_store([DataStore(), FileStore(["/photos"]), self.store], uri)
        store.health_key(uri)
        return store.fetch(uri, max_bytes=1024, deadline_s=30)

    def _resolve(self, host: str, _port: int) -> list[str]:
        self.looked_up.append(host)
        return self.addresses.get(host, [self.otherwise])

    def _connect(self, address: str, port: int, _timeout_s: float) -> socket.socket:
        self.connected.append((address, port))
        raise ConnectionRefusedError(111, "Connection refused")


@cache
def _kept(*hosts: str) -> Watched:
    """For many tests: the system's certificates take long to load. A connection would fail all of them."""
    return Watched(hosts)


# All names, and the addresses of the tricks too where they are written as they should be: even an operator who allows
# them by name has not allowed them by network.
WIDE = ["*", "127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0", "168.63.129.16", "[::1]", "[::]", "[fe80::1]"]
WIDE += ["[::ffff:7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[2002:7f00:1::]", "[fd00:ec2::254]"]


@pytest.mark.parametrize("hosts", [[ALLOWED], WIDE], ids=["one host allowed", "all allowed"])
@pytest.mark.parametrize("uri", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_trick_of_spelling_is_refused_before_a_name_is_looked_up(uri: str, hosts: list[str]) -> None:
    watched = _kept(*hosts)
    with pytest.raises(ReferenceRefused):
        watched.fetch(uri)
    assert (watched.looked_up, watched.connected) == ([], [])


@pytest.mark.parametrize("uri", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_store_itself_refuses_it_too_whoever_asks(uri: str) -> None:
    watched = _kept(*WIDE)
    with pytest.raises(ReferenceRefused):
        watched.store.fetch(uri, max_bytes=1024, deadline_s=30)
    assert (watched.looked_up, watched.connected) == ([], [])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("host", "addresses"), NAMES.values(), ids=NAMES.keys())
def test_a_name_that_leads_to_a_private_address_is_refused_before_it_is_connected_to(
    host: str, addresses: list[str], scheme: str
) -> None:
    watched = Watched(["*"], addresses={host: addresses})
    with pytest.raises(ReferenceRefused, match=r"stores\.http\.allow_networks"):
        watched.fetch(f"{scheme}://{host}/a.jpg")
    assert (watched.looked_up, watched.connected) == ([host], [])


def test_a_name_that_changes_between_check_and_connect_is_connected_to_where_it_was_checked() -> None:
    watched = Watched([ALLOWED], addresses={ALLOWED: ["1.1.1.1"]})
    resolve = watched._resolve

    def rebinding(host: str, port: int) -> list[str]:
        found = resolve(host, port)
        watched.addresses[host] = ["127.0.0.1"]  # whoever asks again gets this
        return found

    watched.store = HttpStore([ALLOWED], resolve=rebinding, connect=watched._connect)
    with pytest.raises(StoreUnavailable):
        watched.fetch(f"https://{ALLOWED}/a.jpg")
    assert (watched.looked_up, watched.connected) == ([ALLOWED], [("1.1.1.1", 443)])
    with pytest.raises(ReferenceRefused):
        watched.fetch(f"https://{ALLOWED}/a.jpg")
    assert len(watched.connected) == 1


@pytest.mark.parametrize(
    ("address", "networks"),
    [
        *(("1.1.1.1", []), ("2606:4700::1111", []), ("::ffff:1.1.1.1", []), ("64:ff9b::101:101", [])),
        *(("2002:101:101::1", []), ("10.1.2.3", ["10.1.0.0/16"]), ("64:ff9b::a01:203", ["10.1.0.0/16"])),
        *(("::1", ["::1/128"]), ("127.0.0.1", ["127.0.0.0/8"]), ("64:ff9b:1::a01:203", ["64:ff9b:1::/48"])),
    ],
)
def test_public_addresses_and_those_that_an_operator_names_are_connected_to(address: str, networks: list[str]) -> None:
    watched = Watched([ALLOWED], addresses={ALLOWED: [address]})
    watched.store = HttpStore([ALLOWED], allow_networks=networks, resolve=watched._resolve, connect=watched._connect)
    with pytest.raises(StoreUnavailable):
        watched.fetch(f"https://{ALLOWED}/a.jpg")
    assert watched.connected == [(address, 443)]


@pytest.mark.parametrize(
    ("hosts", "uri", "connected"),
    [
        ([ALLOWED], "https://images.example.org/a.jpg", 443),
        ([ALLOWED], "HTTPS://IMAGES.example.ORG:443/a.jpg?q=@b#@c", 443),
        ([ALLOWED], "http://images.example.org/a.jpg", 80),
        ([ALLOWED], "https://images.example.org:8443/a.jpg", None),
        ([ALLOWED], "https://images.example.org:80/a.jpg", None),
        ([ALLOWED], "https://www.images.example.org/a.jpg", None),
        ([ALLOWED], "https://example.org/a.jpg", None),
        ([ALLOWED], "https://images.example.org.evil.example/a.jpg", None),
        ([ALLOWED], "https://evilimages.example.org/a.jpg", None),
        (["images.example.org:8443"], "https://images.example.org:8443/a.jpg", 8443),
        (["images.example.org:8443"], "https://images.example.org/a.jpg", None),
        (["*.cdn.example.org"], "https://a.cdn.example.org/a.jpg", 443),
        (["*.cdn.example.org"], "https://a.b.cdn.example.org/a.jpg", 443),
        (["*.cdn.example.org"], "https://cdn.example.org/a.jpg", None),
        (["*.cdn.example.org"], "https://evilcdn.example.org/a.jpg", None),
        (["*.cdn.example.org:8443"], "https://a.cdn.example.org:8443/a.jpg", 8443),
        (["IMAGES.example.org"], "https://images.example.org/é%20b.jpg", 443),
        (["1.1.1.1"], "https://1.1.1.1/a.jpg", 443),
        (["[2606:4700:0::1111]"], "https://[2606:4700::1111]/a.jpg", 443),
        (["*"], "https://any.example/a.jpg", 443),
        (["*"], "https://1.1.1.1/a.jpg", None),
        ([], "https://images.example.org/a.jpg", None),
    ],
)
def test_the_allow_list_means_what_it_says(hosts: list[str], uri: str, connected: int | None) -> None:
    watched = Watched(hosts, otherwise="1.1.1.1")
    with pytest.raises(ReferenceRefused if connected is None else StoreUnavailable) as caught:
        watched.fetch(uri)
    assert [port for _, port in watched.connected] == ([] if connected is None else [connected])
    if connected is None:
        assert "stores.http.hosts" in str(caught.value)


def test_http_is_off_until_the_settings_name_it() -> None:
    with pytest.raises(ReferenceRefused, match=r"stores\.http\.schemes"):
        HttpStore([ALLOWED]).fetch(f"http://{ALLOWED}/a.jpg", max_bytes=1, deadline_s=1)
