"""What may be said of a URI in events, logs and errors: presigned URLs carry secrets in the query, others in the
user-info, and `data:` URIs are the image itself. None of it leaves this process."""

import re

_FIRST_CUT_CHARS = 64 * 1024
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{0,31}"
_WITH_AUTHORITY = re.compile(rf"({_SCHEME}:)?//([^/]*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"[^@:\[\]]*(:[0-9]*)?|\[[0-9A-Fa-f:.%]*\](:[0-9]*)?")
_URI_IN_TEXT = re.compile(rf"{_SCHEME}://\S+|\bdata:[^\s,]{{0,256}},\S*")


def redact_uri(uri: str) -> str:
    """The URI without user-info, query and fragment; `data:` URIs without their data. Never raises."""
    if uri[:5].lower() == "data:":
        return "data:"
    head = re.split(r"[?#]", uri, maxsplit=1)[0]
    found = _WITH_AUTHORITY.match(head)
    if not found:
        return head
    start, authority = found[1] or "", found[2].rpartition("@")[2]
    if not _HOST_AND_PORT.fullmatch(authority):
        # What follows the colon is no port, so it may be a password with a `/` or `?` in it: say nothing of the rest.
        return f"{start}//"
    return f"{start}//{authority}{head[found.end() :]}"


def redact_text(text: str, *, max_bytes: int) -> str:
    """Free text with every URI in it redacted, cut in its middle to `max_bytes` of UTF-8."""
    if len(text) > _FIRST_CUT_CHARS:
        # A URI that the cut went through would not be recognised for what it is: drop it whole.
        half = _FIRST_CUT_CHARS // 2
        head, tail = text[:half], text[-half:]
        text = f"{_without_last_word(head)} ... {_without_first_word(tail)}"
    return cut_text(_URI_IN_TEXT.sub(lambda match: redact_uri(match[0]), text), max_bytes=max_bytes)


def cut_text(text: str, *, max_bytes: int) -> str:
    """Text of at most `max_bytes` of UTF-8 (12 at least), its middle left out, no character cut in two."""
    # Lone surrogates, which have no UTF-8, become question marks.
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    half = (max_bytes - 5) // 2
    return f"{encoded[:half].decode('utf-8', 'ignore')} ... {encoded[-half:].decode('utf-8', 'ignore')}"


def _without_last_word(text: str) -> str:
    words = text.rsplit(None, 1)
    return words[0] if len(words) > 1 else ""


def _without_first_word(text: str) -> str:
    words = text.split(None, 1)
    return words[1] if len(words) > 1 else ""
