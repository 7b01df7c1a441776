"""The `http(s)://` store against a real server that answers well, badly, slowly, endlessly, or not at all."""

import gzip
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from consumer.adapters.stores.http_connection import system_connect
from consumer.adapters.stores.http_store import HttpStore
from consumer.errors import ImageNotFound, ImageTooLarge, OuzelError, ReferenceRefused, StoreBusy, StoreUnavailable
from consumer.messages import StoredImage
from tests.http_server import Exchange, Handler, HttpServer, answer, head, raw, redirect, reset, stall
from tests.uri_tricks import SPELLINGS

SHORT_S = 0.3
"""A deadline for what would never end."""
SECRET = "Bearer 9f8e7d6c"

MakeStore = Callable[..., HttpStore]


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as running:
        running.routes["/good.jpg"] = answer(b"image", ETag='"v1"')
        yield running


@pytest.fixture
def make_store(server: HttpServer) -> MakeStore:
    """A store whose names all lead to 127.0.0.1, with the server's host allowed."""

    def make(*hosts: str, **options: Any) -> HttpStore:
        return HttpStore(
            [f"images.test:{server.port}", *hosts],
            **{
                "schemes": ["https", "http"],
                "allow_networks": ["127.0.0.0/8"],
                "resolve": lambda _host, _port: ["127.0.0.1"],
                "connect": _connect_here,
                **options,
            },
        )

    return make


def _connect_here(address: str, port: int, timeout_s: float) -> socket.socket:
    assert address.startswith("127."), "a test reaches out of this machine"
    return system_connect(address, port, timeout_s)


def _fetch(store: HttpStore, uri: str, *, max_bytes: int = 1024, deadline_s: float = 30) -> StoredImage:
    return store.fetch(uri, max_bytes=max_bytes, deadline_s=deadline_s)


def _uri(server: HttpServer, path: str, host: str = "images.test") -> str:
    return f"http://{host}:{server.port}{path}"


# --- what is asked --------------------------------------------------------------------------------------------------


def test_an_image_comes_with_its_version_over_a_connection_that_is_kept(
    server: HttpServer, make_store: MakeStore
) -> None:
    store = make_store()
    for _ in range(10):
        stored = _fetch(store, _uri(server, "/good.jpg"))
        assert (stored.body, stored.version.etag) == (b"image", "v1")
        with pytest.raises(ImageNotFound, match="404"):
            _fetch(store, _uri(server, "/absent"))
    assert server.connections == 1


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a%20b/%C3%A9.jpg?x=%2F&y=a+b", "/a%20b/%C3%A9.jpg?x=%2F&y=a+b"),
        ("/é.jpg", "/%C3%A9.jpg"),
        ("//evil.example/a.jpg", "//evil.example/a.jpg"),
        ("/a/../b/./c.jpg", "/a/../b/./c.jpg"),
        ("/a.jpg#fragment", "/a.jpg"),
        ("/a.jpg?x=a@b:c/d?e", "/a.jpg?x=a@b:c/d?e"),
        ("/[a]|{b}.jpg", "/%5Ba%5D%7C%7Bb%7D.jpg"),
    ],
)
def test_the_server_is_asked_for_what_the_uri_says(
    server: HttpServer, make_store: MakeStore, path: str, target: str
) -> None:
    with pytest.raises(ImageNotFound):
        _fetch(make_store(), _uri(server, path))
    (request,) = server.requests
    assert (request.method, request.target) == ("GET", target)
    assert request.headers == {
        "host": f"images.test:{server.port}",
        "user-agent": "ouzel",
        "accept": "*/*",
        "accept-encoding": "identity",
    }


def test_the_environments_proxies_are_not_used(
    server: HttpServer, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.origin)
        assert _fetch(make_store(), _uri(server, "/good.jpg")).body == b"image"
        assert proxy.connections == 0


# --- servers that answer badly --------------------------------------------------------------------------------------


def _endless_headers(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    exchange.drip(b"X-A: b\r\n")


def _endless_header(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nX-A: ")
    while True:
        exchange.send(b"x" * 65_536)


def _flood_of_headers(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.send(b"X-A: b\r\n" * 1_000)


def _endless_continues(exchange: Exchange) -> None:
    exchange.drip(b"HTTP/1.1 100 Continue\r\n\r\n")


def _dripping_body(exchange: Exchange) -> None:
    exchange.send(head(Content_Length="1000"))
    exchange.drip(b"x")


def _endless_trailers(exchange: Exchange) -> None:
    exchange.send(head(Transfer_Encoding="chunked") + b"5\r\nimage\r\n0\r\n")
    exchange.drip(b"X-A: b\r\n")


def _stall_after(data: bytes) -> Handler:
    def handle(exchange: Exchange) -> None:
        exchange.send(data)
        stall(exchange)

    return handle


UNAVAILABLE: dict[str, Handler] = {
    "stalls before headers": stall,
    "stalls in the status": _stall_after(b"HTTP/1."),
    "stalls before the body": _stall_after(head(Content_Length="5")),
    "stalls in the body": _stall_after(head(Content_Length="5") + b"im"),
    "drips headers": _endless_headers,
    "drips a body": _dripping_body,
    "drips interim answers": _endless_continues,
    "drips trailers": _endless_trailers,
    "sends one header without end": _endless_header,
    "sends headers without end": _flood_of_headers,
    "closes without a word": raw(b""),
    "closes in the headers": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "closes in the body": raw(head(Content_Length="1000") + b"image"),
    "resets in the body": reset,
    "speaks no HTTP": raw(b"220 mail.example ESMTP\r\n"),
    "speaks HTTP of another kind": raw(b"ICY 200 OK\r\n\r\nimage"),
    "has no number for a status": raw(b"HTTP/1.1 OK\r\n\r\n"),
    "has two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5, 7\r\n\r\nimageee"),
    "chunked, broken off": raw(head(Transfer_Encoding="chunked") + b"5\r\nim"),
    "chunked, without a last chunk": raw(head(Transfer_Encoding="chunked") + b"5\r\nimage\r\n"),
    "chunked, with no number": raw(head(Transfer_Encoding="chunked") + b"xyz\r\nimage\r\n"),
    "chunked, with a number without end": raw(head(Transfer_Encoding="chunked") + b"0" * 200_000),
    "fails": answer(b"no", 500),
    "is away": answer(b"no", 503),
    "throttles": answer(b"no", 429, Retry_After="7"),
}


def test_a_kept_connection_that_the_server_closed_is_replaced(server: HttpServer, make_store: MakeStore) -> None:
    """Some are closed in the moment in which they are used again: the server has then seen nothing of the request."""
    server.routes["/last.jpg"] = raw(head(Content_Length="5") + b"image", keep_alive=False)
    store = make_store()
    for _ in range(50):
        assert _fetch(store, _uri(server, "/last.jpg")).body == b"image"
    assert server.connections == 50


@pytest.mark.parametrize("handler", UNAVAILABLE.values(), ids=UNAVAILABLE.keys())
def test_a_server_that_fails_is_unavailable_within_the_deadline_and_the_next_image_is_served(
    server: HttpServer, make_store: MakeStore, handler: Handler
) -> None:
    server.routes["/bad.jpg"] = handler
    store = make_store()
    with pytest.raises(StoreUnavailable) as caught:
        _fetch(store, _uri(server, "/bad.jpg?X-Amz-Signature=pw"), deadline_s=SHORT_S)
    assert type(caught.value) is StoreUnavailable
    assert "/bad.jpg" in str(caught.value)
    assert "pw" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert _fetch(store, _uri(server, "/good.jpg")).body == b"image"


def _endless_body(exchange: Exchange) -> None:
    exchange.send(head())
    while True:
        exchange.send(b"x" * 1024)


def _endless_chunks(exchange: Exchange) -> None:
    exchange.send(head(Transfer_Encoding="chunked"))
    while True:
        exchange.send(b"400\r\n" + b"x" * 1024 + b"\r\n")


TOO_LARGE: dict[str, Handler] = {
    "says so": raw(head(Content_Length="1025")),
    "says so by far": raw(head(Content_Length="9" * 30)),
    "sends without end": _endless_body,
    "sends chunks without end": _endless_chunks,
    "sends one large chunk": raw(head(Transfer_Encoding="chunked") + b"ffffffff\r\n" + b"x" * 4096),
}


@pytest.mark.parametrize("handler", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_an_image_beyond_the_cap_is_too_large_however_it_is_sent(
    server: HttpServer, make_store: MakeStore, handler: Handler
) -> None:
    server.routes["/bad.jpg"] = handler
    store = make_store()
    with pytest.raises(ImageTooLarge, match=r"stores\.max_image_bytes"):
        _fetch(store, _uri(server, "/bad.jpg"))
    assert _fetch(store, _uri(server, "/good.jpg")).body == b"image"


def test_a_server_that_says_too_little_gives_what_it_said_and_spoils_no_other_image(
    server: HttpServer, make_store: MakeStore
) -> None:
    more = head(Content_Length="4") + b"evil"
    store = make_store()
    for times in (1, 10_000):
        server.routes["/bad.jpg"] = raw(head(Content_Length="5") + b"image" + more * times, keep_alive=True)
        assert _fetch(store, _uri(server, "/bad.jpg")).body == b"image"
        assert _fetch(store, _uri(server, "/good.jpg")).body == b"image"


def test_a_body_without_a_length_ends_with_its_connection(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/old.jpg"] = raw(b"HTTP/1.0 200 OK\r\n\r\nimage")
    chunks = b"2;a=b\r\nim\r\n3\r\nage\r\n0\r\nT: t\r\n\r\n"
    server.routes["/chunks.jpg"] = raw(head(Transfer_Encoding="chunked") + chunks)
    store = make_store()
    for path in ("/old.jpg", "/chunks.jpg"):
        assert _fetch(store, _uri(server, path)).body == b"image"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
def test_compressed_bytes_are_not_even_read(server: HttpServer, make_store: MakeStore, encoding: str) -> None:
    bomb = gzip.compress(bytes(4 * 1024 * 1024))
    server.routes["/bomb.jpg"] = answer(bomb, Content_Encoding=encoding)
    with pytest.raises(ImageNotFound, match="compress"):
        _fetch(make_store(), _uri(server, "/bomb.jpg"), max_bytes=64 * 1024)


def test_when_the_store_wants_to_be_asked_again_goes_with_the_error(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/busy.jpg"] = answer(b"", 429, Retry_After="7")
    with pytest.raises(StoreUnavailable) as caught:
        _fetch(make_store(), _uri(server, "/busy.jpg"))
    assert caught.value.retry_after_s == 7.0


# --- redirects ------------------------------------------------------------------------------------------------------


def test_redirects_are_refused_until_the_settings_allow_them(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/old.jpg"] = redirect("/good.jpg")
    with pytest.raises(ReferenceRefused, match=r"stores\.http\.max_redirects"):
        _fetch(make_store(), _uri(server, "/old.jpg"))
    assert server.targets() == ["/old.jpg"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_leads_to_the_image(server: HttpServer, make_store: MakeStore, status: int) -> None:
    for location in ("/good.jpg", "good.jpg", f"//images.test:{server.port}/good.jpg", _uri(server, "/good.jpg#x")):
        server.routes["/old.jpg"] = redirect(location, status)
        assert _fetch(make_store(max_redirects=1), _uri(server, "/old.jpg")).body == b"image"


def test_redirects_in_a_circle_end(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/a"] = redirect("/b")
    server.routes["/b"] = redirect("/a")
    with pytest.raises(ReferenceRefused, match=r"more than 5 redirects"):
        _fetch(make_store(max_redirects=5), _uri(server, "/a"))
    assert len(server.requests) == 6


def test_all_redirects_have_one_deadline(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/a"] = redirect("/b")
    server.routes["/b"] = stall
    with pytest.raises(StoreUnavailable, match="deadline"):
        _fetch(make_store(max_redirects=5), _uri(server, "/a"), deadline_s=SHORT_S)


REDIRECTABLE = {name: uri for name, uri in SPELLINGS.items() if not set("\r\n") & set(uri) and uri.isprintable()}


@pytest.mark.parametrize("uri", REDIRECTABLE.values(), ids=REDIRECTABLE.keys())
def test_a_redirect_to_a_trick_is_refused_before_it_is_connected_to(
    server: HttpServer, make_store: MakeStore, uri: str
) -> None:
    connected: list[int] = []

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        connected.append(port)
        return _connect_here(address, port, timeout_s)

    server.routes["/a"] = raw(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + uri.encode() + b"\r\n\r\n")
    store = make_store(max_redirects=5, connect=connect)
    # A location without a scheme and a host of its own is one of the same server: that is no trick.
    with pytest.raises((ReferenceRefused, ImageNotFound)):
        _fetch(store, _uri(server, "/a"))
    assert set(connected) == {server.port}


@pytest.mark.parametrize(
    ("location", "addresses"),
    [
        ("http://private.test/a.jpg", ["10.0.0.1"]),
        ("http://mixed.test/a.jpg", ["1.1.1.1", "169.254.169.254"]),
        ("http://elsewhere.example/a.jpg", ["1.1.1.1"]),
        ("http://images.test/a.jpg", ["1.1.1.1"]),
        ("file:///etc/passwd", []),
        ("data:,image", []),
    ],
)
def test_a_redirect_is_checked_like_a_uri_of_its_own(
    server: HttpServer, make_store: MakeStore, location: str, addresses: list[str]
) -> None:
    connected: list[str] = []

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        connected.append(address)
        return _connect_here(address, port, timeout_s)

    def resolve(_host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if port == server.port else addresses

    server.routes["/a"] = redirect(location)
    store = make_store("private.test", "mixed.test", max_redirects=5, connect=connect, resolve=resolve)
    with pytest.raises(ReferenceRefused):
        _fetch(store, _uri(server, "/a"))
    assert connected == ["127.0.0.1"]


# --- secrets --------------------------------------------------------------------------------------------------------


def test_headers_go_to_their_host_alone_and_into_no_error(server: HttpServer, make_store: MakeStore) -> None:
    with HttpServer() as other:
        other.routes["/good.jpg"] = answer(b"other")
        server.routes["/moved.jpg"] = redirect(_uri(other, "/good.jpg"))
        server.routes["/closed.jpg"] = answer(b"no", 403)
        store = make_store(
            f"images.test:{other.port}",
            f"other.test:{server.port}",
            schemes=["http"],
            headers={f"images.test:{server.port}": {"authorization": SECRET, "User-Agent": "ours"}},
            max_redirects=1,
        )
        assert _fetch(store, _uri(server, "/moved.jpg")).body == b"other"
        assert _fetch(store, _uri(server, "/good.jpg", "other.test")).body == b"image"
        assert [request.headers.get("authorization") for request in server.requests] == [SECRET, None]
        assert [request.headers.get("authorization") for request in other.requests] == [None]
        assert server.requests[0].headers["user-agent"] == "ours"
        with pytest.raises(ImageNotFound) as caught:
            _fetch(store, _uri(server, "/closed.jpg"))
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(store)


def test_headers_are_not_sent_in_the_clear_where_https_is_allowed(server: HttpServer, make_store: MakeStore) -> None:
    store = make_store(headers={f"images.test:{server.port}": {"Authorization": SECRET}})
    with pytest.raises(ReferenceRefused, match="https"):
        _fetch(store, _uri(server, "/good.jpg"))
    assert server.connections == 0


@pytest.mark.parametrize(
    "headers",
    [
        *({"*.test": {"Authorization": SECRET}}, {"images.test": {"Authorization": SECRET + "\r\nX: y"}}),
        *(
            {"images.test": {"Host": SECRET}},
            {"images.test": {"Accept-Encoding": "gzip"}},
            {"images.test": {"A:": "b"}},
        ),
        *({"images.test": {"Authorization": ""}}, {"images.test": {"Authorization": "é"}}, {"127.1": {"A": "b"}}),
    ],
)
def test_headers_that_would_do_harm_are_refused_without_their_value(headers: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        HttpStore(["images.test"], headers=headers)
    assert SECRET not in str(caught.value)


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_host_that_stalls_keeps_few_threads_and_others_are_served(server: HttpServer, make_store: MakeStore) -> None:
    server.routes["/slow.jpg"] = stall
    with HttpServer() as other, ThreadPoolExecutor(8) as pool:
        other.routes["/good.jpg"] = answer(b"other")
        store = make_store(f"images.test:{other.port}", max_connections_per_host=2)
        stalled = [pool.submit(_fetch, store, _uri(server, "/slow.jpg")) for _ in range(2)]
        for _ in stalled:
            assert server.stalled.acquire(timeout=30)
        # Two may wait for one of the two connections, and within their deadlines; the third waits outside.
        waiting = [pool.submit(_fetch, store, _uri(server, "/good.jpg"), deadline_s=SHORT_S) for _ in range(2)]
        for future in waiting:
            with pytest.raises(StoreBusy, match=r"stores\.http\.max_connections_per_host"):
                future.result(30)
        waiting = [pool.submit(_fetch, store, _uri(server, "/good.jpg")) for _ in range(3)]
        (refused,) = _done(waiting, 1)
        with pytest.raises(StoreBusy):
            refused.result()
        assert _fetch(store, _uri(other, "/good.jpg")).body == b"other"
        assert server.connections == 2
        server.released.set()
        for future in stalled:
            with pytest.raises(StoreUnavailable):
                future.result(30)
        assert [future.result(30).body for future in waiting if future is not refused] == [b"image"] * 2


def _done(futures: list[Any], count: int) -> list[Any]:
    from concurrent.futures import FIRST_COMPLETED, wait

    finished, _ = wait(futures, 30, FIRST_COMPLETED)
    assert len(finished) == count
    return list(finished)


def test_a_lookup_that_hangs_is_unavailable_within_the_deadline(server: HttpServer, make_store: MakeStore) -> None:
    hanging = threading.Event()

    def resolve(_host: str, _port: int) -> list[str]:
        hanging.wait()
        return ["127.0.0.1"]

    store = make_store(resolve=resolve)
    try:
        with pytest.raises(StoreUnavailable, match="deadline"):
            _fetch(store, _uri(server, "/good.jpg"), deadline_s=SHORT_S)
    finally:
        hanging.set()
    assert _fetch(store, _uri(server, "/good.jpg")).body == b"image"


def test_the_next_address_is_tried_where_one_does_not_answer(server: HttpServer, make_store: MakeStore) -> None:
    store = make_store(resolve=lambda _host, _port: ["127.0.0.9", "127.0.0.1"])  # nobody listens at the first
    assert _fetch(store, _uri(server, "/good.jpg")).body == b"image"


@pytest.mark.parametrize(
    ("host", "number", "kind"),
    [
        ("images.test", socket.EAI_NONAME, StoreUnavailable),
        ("images.test", socket.EAI_AGAIN, StoreUnavailable),
        ("a.wild.test", socket.EAI_NONAME, ImageNotFound),
        ("a.wild.test", socket.EAI_AGAIN, StoreUnavailable),
    ],
)
def test_a_name_that_does_not_exist_is_an_absent_image_only_below_a_wild_card(
    server: HttpServer, make_store: MakeStore, host: str, number: int, kind: type[OuzelError]
) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(number, "no")

    with pytest.raises(kind):
        _fetch(make_store(f"*.wild.test:{server.port}", resolve=resolve), _uri(server, "/good.jpg", host))


def test_what_fails_together_has_one_key_however_many_names_there_are(make_store: MakeStore) -> None:
    store = make_store("*.wild.test", "one.wild.test")
    keys = {store.health_key(f"https://{name}.wild.test/a.jpg?pw") for name in ("a", "b", "c.d")}
    assert keys == {"https://*.wild.test"}
    assert store.health_key("https://one.wild.test/a.jpg") == "https://one.wild.test"
    assert store.health_key("http://one.wild.test/a.jpg") == "http://one.wild.test"


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


class TlsServer(HttpServer):
    """HTTPS, with a certificate for these names."""

    def __init__(self, authority: trustme.CA, *names: str) -> None:
        self.asked_for: list[str | None] = []
        """Server name indications, in order."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        context.sni_callback = lambda _connection, name, _context: self.asked_for.append(name)
        super().__init__(tls=context)
        self.routes["/good.jpg"] = answer(b"image")


def test_https_is_verified_and_keeps_the_uris_name(authority: trustme.CA, ca_file: str, make_store: MakeStore) -> None:
    with TlsServer(authority, "images.test") as server:
        store = make_store(f"images.test:{server.port}", ca_file=ca_file)
        for _ in range(3):
            assert _fetch(store, f"https://images.test:{server.port}/good.jpg").body == b"image"
        assert (server.asked_for, server.connections) == (["images.test"], 1)
        assert server.requests[0].headers["host"] == f"images.test:{server.port}"


@pytest.mark.parametrize("fault", ["unknown authority", "wrong name", "no TLS"])
def test_a_server_that_cannot_prove_who_it_is_is_asked_nothing(
    authority: trustme.CA, ca_file: str, make_store: MakeStore, server: HttpServer, fault: str
) -> None:
    with TlsServer(authority, "elsewhere.test" if fault == "wrong name" else "images.test") as tls:
        port = server.port if fault == "no TLS" else tls.port
        store = make_store(
            f"images.test:{port}",
            ca_file="" if fault == "unknown authority" else ca_file,
            headers={f"images.test:{port}": {"Authorization": SECRET}},
        )
        with pytest.raises(StoreUnavailable) as caught:
            # A server without TLS waits for the end of a line that never comes.
            _fetch(store, f"https://images.test:{port}/good.jpg", deadline_s=SHORT_S if fault == "no TLS" else 30)
        assert (fault == "no TLS") or "stores.http.ca_file" in str(caught.value)
        assert tls.requests == []
        assert server.requests == []


def test_dripping_over_tls_has_the_same_deadline(authority: trustme.CA, ca_file: str, make_store: MakeStore) -> None:
    with TlsServer(authority, "images.test") as server:
        server.routes["/drip.jpg"] = _dripping_body
        store = make_store(f"images.test:{server.port}", ca_file=ca_file)
        with pytest.raises(StoreUnavailable, match="deadline"):
            _fetch(store, f"https://images.test:{server.port}/drip.jpg", deadline_s=SHORT_S)


def test_a_handshake_that_stalls_has_the_same_deadline(make_store: MakeStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable, match="deadline"):
            _fetch(make_store(f"images.test:{port}"), f"https://images.test:{port}/a.jpg", deadline_s=SHORT_S)


def test_no_redirect_leads_from_https_to_http(
    authority: trustme.CA, ca_file: str, make_store: MakeStore, server: HttpServer
) -> None:
    with TlsServer(authority, "images.test") as tls:
        tls.routes["/a.jpg"] = redirect(_uri(server, "/good.jpg"))
        store = make_store(f"images.test:{tls.port}", ca_file=ca_file, max_redirects=5)
        with pytest.raises(ReferenceRefused, match="https to http"):
            _fetch(store, f"https://images.test:{tls.port}/a.jpg")
        assert server.connections == 0


# --- proxies --------------------------------------------------------------------------------------------------------


def test_a_proxy_of_the_settings_is_asked_for_http_with_the_whole_uri(make_store: MakeStore) -> None:
    with HttpServer() as proxy:
        proxy.routes["http://far.test/good.jpg"] = answer(b"by proxy")
        store = make_store("far.test", proxy=f"http://user:pa%40ss@127.0.0.1:{proxy.port}", resolve=lambda h, _p: [h])
        assert _fetch(store, "http://far.test/good.jpg").body == b"by proxy"
        (request,) = proxy.requests
        assert request.headers["host"] == "far.test"
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwYUBzcw=="


def test_https_goes_through_a_tunnel_and_is_verified_at_its_end(
    authority: trustme.CA, ca_file: str, make_store: MakeStore
) -> None:
    with TlsServer(authority, "far.test") as server, HttpServer() as proxy:

        def tunnel(exchange: Exchange) -> None:
            exchange.keep_alive = False
            with socket.create_connection(("127.0.0.1", server.port)) as onward:
                exchange.send(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=_copy, args=(onward, exchange.wire))
                back.start()
                _copy(exchange.wire, onward)
                back.join(30)

        proxy.routes[f"far.test:{server.port}"] = tunnel
        store = make_store(
            f"far.test:{server.port}", ca_file=ca_file, proxy=proxy.origin, resolve=lambda host, _port: [host]
        )
        for _ in range(2):
            assert _fetch(store, f"https://far.test:{server.port}/good.jpg").body == b"image"
        assert [request.method for request in proxy.requests] == ["CONNECT"]
        assert server.asked_for == ["far.test"]


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_an_address_in_the_uri_is_judged_before_a_proxy_is_asked(make_store: MakeStore) -> None:
    with HttpServer() as proxy:
        store = make_store("169.254.169.254", proxy=proxy.origin)
        with pytest.raises(ReferenceRefused):
            _fetch(store, "http://169.254.169.254/latest/meta-data/")
        assert proxy.connections == 0
