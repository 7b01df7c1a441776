"""`http(s)://` from allowed hosts. A stranger's URI leads to those hosts' public addresses and nowhere else.

In reading order: `http_uri` parses, `addresses` judges, `http_connection` connects, `http_hosts` bounds, `http_answers`
translates.
"""

import ipaddress
import logging
import ssl
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin

import urllib3
from urllib3 import HTTPHeaderDict
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util import Url, make_headers, parse_url

from consumer.adapters.stores.http_answers import REDIRECTS, SERVED, failure, version_of
from consumer.adapters.stores.http_connection import (
    DEADLINE,
    Connect,
    Dialer,
    HttpPool,
    HttpsPool,
    Resolve,
    system_connect,
    system_resolve,
    tls_context,
)
from consumer.adapters.stores.http_hosts import Hosts
from consumer.adapters.stores.http_uri import DEFAULT_PORTS, AllowList, Place, parse_uri
from consumer.errors import ImageNotFound, ImageTooLarge, ReferenceRefused, StoreUnavailable
from consumer.host_names import HostPattern
from consumer.http_headers import check_header
from consumer.messages import StoredImage
from consumer.redact import redact_uri

_PIECE_BYTES = 256 * 1024
# The body of an answer without an image is read so far, so that its connection can be kept.
_DRAINED_BYTES = 16 * 1024

# It warns of headers that it cannot parse, with the URI: the sender's affair, and a flood if they wish.
logging.getLogger("urllib3").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str | None


class HttpStore:
    """Fulfils `ports.ImageStore` for `http(s)://`.

    Args:
        hosts: what `host_names.HostPattern` reads; with none, every URI is refused.
        schemes: `https`, `http` or both.
        allow_networks: networks (CIDR) that names may lead to though they are not public.
        headers: by host (`host` or `host:port`), headers that this host alone is sent.
        ca_file: PEM file of the authorities to trust in place of the system's; empty for those.
        proxy: `http://[user:password@]host:port`; empty: connect directly, whatever the environment says.
        max_redirects: how many redirects are followed, each checked like a URI of its own.
        max_connections_per_host: also how many callers may wait for one of them.
        requests_per_second_per_host: requests begun; 0 for no bound.
        connect_timeout_s: for each address of a host.
        resolve, connect: how names are looked up and sockets opened.
        monotonic_s, wall_s: seconds that never go back, and since the epoch.

    Raises:
        ValueError: one of them will not do.
        OSError: `ca_file` cannot be read, or holds no certificate.
    """

    schemes = frozenset({"http", "https"})

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        schemes: Sequence[str] = ("https",),
        allow_networks: Iterable[str] = (),
        headers: Mapping[str, Mapping[str, str]] | None = None,
        ca_file: str = "",
        proxy: str = "",
        max_redirects: int = 0,
        max_connections_per_host: int = 8,
        requests_per_second_per_host: float = 0.0,
        connect_timeout_s: float = 3.0,
        resolve: Resolve = system_resolve,
        connect: Connect = system_connect,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._allowed = AllowList(hosts, schemes)
        self._credentials = _credentials(headers or {})
        self._http_only = "https" not in schemes
        self._proxy = _proxy_url(proxy)
        self._max_redirects = max_redirects
        self._max_connections = max_connections_per_host
        self._hosts = Hosts(max_connections=max_connections_per_host, per_second=requests_per_second_per_host)
        self._tls = tls_context(ca_file)
        self._wall_s = wall_s
        self._dialer = Dialer(
            named=[ipaddress.ip_network(network) for network in allow_networks],
            connect_timeout_s=connect_timeout_s,
            proxy=self._proxy and (self._proxy.host or "", self._proxy.port or 80),
            resolve=resolve,
            connect=connect,
        )

    def health_key(self, uri: str) -> str:
        """Scheme and host as the allow-list has them: the names below one wild card fail together.

        So a stranger who may think up names, or answer under one of them, makes no more keys than there are entries,
        and none that would be waited for without limit while others are served.
        """
        try:
            place = parse_uri(uri)
            return f"{place.scheme}://{self._allowed.check(place, uri).text}"
        except ReferenceRefused:
            return "https://"

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`; a redirect to what the settings do not allow is refused when it comes.

        The deadline is one for all: looking the name up, connecting, TLS, headers, body, and every redirect.
        """
        place = parse_uri(uri)
        entry = self._check(place, uri)
        said = redact_uri(uri)
        with DEADLINE.of(deadline_s):
            for _ in range(self._max_redirects + 1):
                try:
                    answer = self._ask(place, entry, said, max_bytes)
                except (OSError, urllib3.exceptions.HTTPError) as error:
                    _translate(error, said)
                if isinstance(answer, StoredImage):
                    return answer
                place, entry = self._redirected(place, answer, said)
        raise ReferenceRefused(
            f"{said}: more than {self._max_redirects} redirects (stores.http.max_redirects): send the URI that they "
            "lead to"
        )

    # --- what may be asked ------------------------------------------------------------------------------------------

    def _check(self, place: Place, uri: str) -> HostPattern:
        """The entry that allows it. Raises ReferenceRefused."""
        entry = self._allowed.check(place, uri)
        self._dialer.check(place)
        if self._headers_of(place) and place.scheme == "http" and not self._http_only:
            raise ReferenceRefused(f"{redact_uri(uri)}: credentials are set for this host: send https")
        return entry

    def _redirected(self, place: Place, answer: _Redirect, said: str) -> tuple[Place, HostPattern]:
        """Where a redirect leads, checked anew. Raises ReferenceRefused, ImageNotFound."""
        if self._max_redirects == 0:
            raise ReferenceRefused(
                f"{said}: the server redirects: send the URI that it leads to, or raise stores.http.max_redirects"
            )
        if answer.location is None:
            raise ImageNotFound(f"{said}: the server redirects to nowhere")
        refused = f"{said}: the server redirects, and that is refused"
        try:
            after = parse_uri(urljoin(place.origin + place.target, answer.location))
            entry = self._check(after, after.origin)
        except ReferenceRefused as error:
            raise ReferenceRefused(f"{refused}: {error}") from None
        except ValueError:
            raise ReferenceRefused(f"{refused}: it leads to no URI") from None
        if place.scheme == "https" and after.scheme == "http":
            raise ReferenceRefused(f"{refused}: it leads from https to http")
        return after, entry

    def _headers_of(self, place: Place) -> Mapping[str, str]:
        for pattern, headers in self._credentials:
            if pattern.matches(place.host, place.port, default_port=DEFAULT_PORTS[place.scheme]):
                return headers
        return {}

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, place: Place, entry: HostPattern, said: str, max_bytes: int) -> StoredImage | _Redirect:
        # Bytes as they are: what a few compressed ones swell to is not ours to find out.
        headers = HTTPHeaderDict({"User-Agent": "ouzel", "Accept": "*/*", "Accept-Encoding": "identity"})
        headers["Host"] = place.authority
        for name, value in self._headers_of(place).items():
            headers[name] = value
        target = place.target
        if self._proxy is not None and place.scheme == "http":
            target = place.origin + target
        with self._hosts.turn(place.origin, DEADLINE.left_s(), lambda: self._pool(place, entry)) as pool:
            response = _request(pool, target, headers)
            try:
                answer = self._read(response, said, max_bytes)
                _drain(response)
            except (ImageNotFound, StoreUnavailable):
                _drain(response)
                raise
            except BaseException:
                response.close()  # what was not read is not left for the next one
                raise
            finally:
                response.release_conn()
            return answer

    def _read(self, response: urllib3.BaseHTTPResponse, said: str, max_bytes: int) -> StoredImage | _Redirect:
        status = response.status
        if status in REDIRECTS:
            return _Redirect(response.headers.get("Location"))
        if status not in SERVED:
            raise failure(status, said, response.headers.get("Retry-After"), wall_s=self._wall_s)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() not in {"", "identity"}:
            raise ImageNotFound(f"{said}: the server compresses the image though it was asked not to: turn that off")
        return StoredImage(_body(response, said, max_bytes), version_of(response.headers.get("ETag")))

    def _pool(self, place: Place, entry: HostPattern) -> HTTPConnectionPool:
        options: dict[str, Any] = {
            "maxsize": self._max_connections,
            "dial": lambda: self._dialer.open(place, by_wild_card=entry.wild),
        }
        if self._proxy is not None:
            options["_proxy"] = self._proxy
            if self._proxy.auth:
                options["_proxy_headers"] = make_headers(proxy_basic_auth=unquote(self._proxy.auth))
        if place.scheme == "https":
            return HttpsPool(place.host, place.port, ssl_context=self._tls, **options)
        return HttpPool(place.host, place.port, **options)


def _request(pool: HTTPConnectionPool, target: str, headers: HTTPHeaderDict) -> urllib3.BaseHTTPResponse:
    """The head of the answer. A kept connection may be closed in the moment in which it is used: then the next one."""
    while True:
        dialled, left_s = DEADLINE.dialled, DEADLINE.left_s()
        try:
            return pool.urlopen(
                "GET",
                target,
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=left_s, read=left_s),
            )
        except urllib3.exceptions.ProtocolError:
            if DEADLINE.dialled != dialled:
                raise


def _body(response: urllib3.BaseHTTPResponse, said: str, max_bytes: int) -> bytes:
    """All of it, at most `max_bytes`. What `Content-Length` says is believed where it says too much, and no further."""
    promised = response.headers.get("Content-Length", "")
    if promised.isdecimal() and int(promised) > max_bytes:
        raise _too_large(said, max_bytes)
    pieces: list[bytes] = []
    left = max_bytes + 1
    while left > 0 and (piece := response.read(min(_PIECE_BYTES, left), decode_content=False)):
        pieces.append(piece)
        left -= len(piece)
    if left <= 0:
        raise _too_large(said, max_bytes)
    if not pieces and not promised:
        # What is cut off in its headers looks like an answer without a length.
        raise StoreUnavailable(f"{said}: the server broke off before the image")
    return b"".join(pieces)


def _too_large(said: str, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"{said}: the image has more than {max_bytes} bytes (stores.max_image_bytes)")


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    """Reads what is left of an answer, if it is little, so that its connection can be kept; else closes it."""
    try:
        rest = response.read(_DRAINED_BYTES, decode_content=False)
    except (OSError, urllib3.exceptions.HTTPError):
        response.close()
        return
    if len(rest) == _DRAINED_BYTES:
        response.close()


def _translate(error: Exception, said: str) -> NoReturn:
    """Anything of the network, as an error of ours. Without its own text, which may have the query in it."""
    # Where the library fails while it makes the response, the frames alone hold the connection: closed at once.
    traceback.clear_frames(error.__traceback__)
    verification = _verification_of(error)
    if verification is not None:
        reason = verification.verify_message or "not valid"
        raise StoreUnavailable(
            f"{said}: the server's certificate is refused: {reason} (stores.http.ca_file names the authorities)"
        ) from None
    if DEADLINE.passed or isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)):
        raise StoreUnavailable(f"{said}: not fetched within the deadline (stores.fetch_deadline_ms)") from None
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        raise StoreUnavailable(f"{said}: the server broke off before the end of the image") from None
    raise StoreUnavailable(f"{said}: the connection failed ({_kind(error)})") from None


def _verification_of(error: BaseException) -> ssl.SSLCertVerificationError | None:
    for each in (error, *error.args):
        if isinstance(each, ssl.SSLCertVerificationError):
            return each
    return None


def _kind(error: BaseException) -> str:
    """What happened, as the system's name for it or the library's; innermost."""
    inner = next((each for each in reversed(error.args) if isinstance(each, BaseException)), None)
    if inner is not None:
        return _kind(inner)
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


# --- settings -------------------------------------------------------------------------------------------------------


def _credentials(headers: Mapping[str, Mapping[str, str]]) -> list[tuple[HostPattern, Mapping[str, str]]]:
    found: list[tuple[HostPattern, Mapping[str, str]]] = []
    for text, values in headers.items():
        pattern = HostPattern.of(text)
        if pattern.wild:
            raise ValueError(f"{text}: headers are for one host, not for all below a wild card")
        for name, value in values.items():
            check_header(name, value)
        found.append((pattern, dict(values)))
    return found


def _proxy_url(text: str) -> Url | None:
    if not text:
        return None
    url = parse_url(text)
    if url.scheme != "http" or not url.host or not url.port or url.path not in {None, "/"}:
        raise ValueError("the proxy is not of the form http://host:port")
    return url
