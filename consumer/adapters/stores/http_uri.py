"""The one parser of `http(s)://` URIs: what it finds is what is connected to, and it takes no URI that another parser
could read differently. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from consumer.errors import ReferenceRefused
from consumer.host_names import HostPattern, parse_host, parse_port, split_port
from consumer.redact import redact_uri

DEFAULT_PORTS = {"http": 80, "https": 443}

# Scheme, authority, path and query, fragment. The path is never empty: `http://a?@b/` and `http://a#@b/` are the host a
# to some parsers and b to others.
_FORM = re.compile(r"(https?)://([^/?#]+)(/[^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_NOT_IN_A_URI = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_KEPT = "%/?:@!$&'()*+,;=-._~"  # what servers get as it is; the rest of what is no letter or digit is percent-encoded


@dataclass(frozen=True, slots=True)
class Place:
    """What a URI names, each part in its one spelling."""

    scheme: str
    host: str
    """As `host_names.parse_host` gives it."""
    port: int
    target: str
    """Path and query, as the request line has them; may carry secrets."""

    @property
    def origin(self) -> str:
        """Scheme, host, and the port where it is not the scheme's own: what may be said of it anywhere."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host, and the port where it is not the scheme's own: the `Host` header."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


def parse_uri(uri: str) -> Place:
    """The place that a URI names.

    Raises:
        ReferenceRefused: it is no http(s) URI, or one that parsers do not read alike.
    """
    if _NOT_IN_A_URI.search(uri):
        raise ReferenceRefused("the URI has a backslash, a blank or a control character in it: percent-encode it")
    found = _FORM.fullmatch(uri)
    if not found:
        raise ReferenceRefused("not of the form https://host/path: send it whole, with the slash after the host")
    scheme, authority = found[1].lower(), found[2]
    if "@" in authority:
        raise ReferenceRefused(f"{scheme}://: the URI carries a user name or password: send it without")
    host, port = split_port(authority)
    try:
        place_port = DEFAULT_PORTS[scheme] if port is None else parse_port(port)
        place_host = parse_host(host)
    except ValueError as error:
        raise ReferenceRefused(f"{scheme}://: {error}") from None
    try:
        target = quote(found[3], safe=_KEPT)
    except UnicodeEncodeError:
        raise ReferenceRefused("the URI has characters that UTF-8 cannot write: percent-encode the path") from None
    return Place(scheme, place_host, place_port, target)


class AllowList:
    """Which places the settings allow."""

    def __init__(self, hosts: Iterable[str], schemes: Sequence[str]) -> None:
        # The nearest first: a host that is named is judged by its own entry, not by a wild card's.
        patterns = [HostPattern.of(host) for host in hosts]
        self._patterns = sorted(patterns, key=lambda pattern: (pattern.wild, -len(pattern.host)))
        self._schemes = frozenset(schemes)

    def check(self, place: Place, uri: str) -> HostPattern:
        """The entry that allows this place.

        Raises:
            ReferenceRefused: none does; the message names the setting.
        """
        if place.scheme not in self._schemes:
            raise ReferenceRefused(
                f"{redact_uri(uri)}: {place.scheme}: URIs are off: send {' or '.join(sorted(self._schemes))}, or add "
                "the scheme to the setting stores.http.schemes"
            )
        for pattern in self._patterns:
            if pattern.matches(place.host, place.port, default_port=DEFAULT_PORTS[place.scheme]):
                return pattern
        raise ReferenceRefused(
            f"{redact_uri(uri)}: {place.authority} is not an allowed host: move the image, or add the host to the "
            "setting stores.http.hosts"
        )
