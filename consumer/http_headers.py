"""Request headers that a setting may add. Pure; errors never repeat a value."""

import re

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
# How a request is framed, who is asked and what comes back are decided by the store.
_OWN = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("range", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)


def check_header(name: str, value: str) -> None:
    """Raises ValueError where it is no header (RFC 9110, 5.1 and 5.5), or one that the store sets itself."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("a name that is none: letters, digits and hyphens")
    if name.lower() in _OWN:
        raise ValueError(f"{name} is the store's own to set")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value of {name} is empty, has a blank at an end, or other characters than ASCII")
