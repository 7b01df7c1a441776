"""Hosts as a URI or a setting may write them: one spelling for each, so that no two parsers can read it in two ways."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# A name whose last label is a number is read as an IPv4 address by browsers and by inet_aton, in decimal, octal and
# hexadecimal and with parts left out (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_IN_BRACKETS = re.compile(r"\[([0-9a-f:.]+)\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_MAX_NAME_CHARS = 253  # RFC 1035, 2.3.4: 255 bytes with the length bytes


def parse_host(text: str) -> str:
    """A host in its one spelling: a name in lower case, `192.0.2.1`, or `[2001:db8::1]`.

    Raises:
        ValueError: it is none, or is spelled in a way that parsers read differently; the message says how to send it.
    """
    if not text.isascii():
        raise ValueError("a host of other letters than ASCII: send it in its ASCII form (xn--...)")
    host = text.lower()
    if host.startswith("["):
        return f"[{_ipv6(host)}]"
    if not _NAME.fullmatch(host) or len(host) > _MAX_NAME_CHARS:
        raise ValueError("no host name: letters, digits, hyphens and single dots between them, without a last dot")
    if _ENDS_IN_A_NUMBER.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("an address in another form than four decimal numbers: send those") from None
    return host


def parse_port(text: str) -> int:
    """A port, 1 to 65535, in decimal without leading zeros. Raises ValueError."""
    if not _PORT.fullmatch(text) or int(text) > 65_535:
        raise ValueError("no port: send 1 to 65535, or none")
    return int(text)


def split_port(text: str) -> tuple[str, str | None]:
    """`host:port` as host and port, the port None where there is no colon; nothing is checked."""
    host, colon, port = text.rpartition(":")
    # The colons of an IPv6 address are in brackets.
    return (host, port) if colon and "]" not in port else (text, None)


def is_address(host: str) -> bool:
    """Whether a host that `parse_host` gave is an IP address."""
    return host.startswith("[") or _ENDS_IN_A_NUMBER.fullmatch(host) is not None


@dataclass(frozen=True, slots=True)
class HostPattern:
    """An entry of an allow-list: `images.example.org`, `*.cdn.example.org` (any name below it, at any depth, and not
    itself), `*` (any name), or an IP address; each with `:port`, else the scheme's own port is meant."""

    text: str
    host: str
    """Without the `*.`; empty for `*`."""
    wild: bool
    port: int | None

    @classmethod
    def of(cls, text: str) -> Self:
        """The pattern that a setting writes. Raises ValueError, which says what to write instead."""
        written, port = split_port(text)
        number = None if port is None else parse_port(port)
        if written == "*":
            return cls(text, "", wild=True, port=number)
        if written.startswith("*."):
            host = parse_host(written[2:])
            if is_address(host):
                raise ValueError("an address has no names below it: write it without `*.`")
            return cls(text.lower(), host, wild=True, port=number)
        return cls(text.lower(), parse_host(written), wild=False, port=number)

    def matches(self, host: str, port: int, *, default_port: int) -> bool:
        """Whether a host, as `parse_host` gave it, and a port are meant. Wild cards never mean addresses."""
        if port != (self.port or default_port):
            return False
        if not self.wild:
            return host == self.host
        return not is_address(host) and (not self.host or host.endswith("." + self.host))


def _ipv6(host: str) -> str:
    found = _IN_BRACKETS.fullmatch(host)
    try:
        return str(ipaddress.IPv6Address(found[1] if found else ""))
    except ValueError:
        raise ValueError("no IPv6 address in brackets (zones such as %eth0 are refused)") from None
