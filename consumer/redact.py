"""What may be said in events, logs and errors. Presigned URLs carry secrets in the query, others in the user-info, and
`data:` URIs are the image itself; texts of others' making carry `name=value` pairs and log-ins; some quote settings.
None of it leaves this process."""

import re
from collections.abc import Iterable

MASK = "********"
"""Stands for what is not told."""

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
    text = _URI_IN_TEXT.sub(lambda match: redact_uri(match[0]), text)
    return cut_text(mask_secrets(text), max_bytes=max_bytes)


# --- what is a secret wherever it stands ----------------------------------------------------------------------------

_SHORTEST_CHARS = 6  # a shorter password would hide half of every text
_SHORTEST_LINE_CHARS = 24
_known: tuple[str, ...] = ()

_WORDS = r"(?:passw(?:or)?d|passphrase|secret|signature|credential|token|api[_-]?key|access[_-]?key|\bsig|\bjwt)"
# Every quantifier is bounded, or its match is used up: hostile text takes linear time.
_PAIR = re.compile(rf"({_WORDS}[\w.-]{{0,64}}=)[^\s&'\"<>,;]+", re.IGNORECASE)
_QUOTED = re.compile(
    rf"""({_WORDS}[\w.-]{{0,64}}\\?["']\s{{0,8}}:\s{{0,8}}\\?)("(?:[^"\\]|\\[^"])*|'(?:[^'\\]|\\[^'])*)""",
    re.IGNORECASE,
)
_LOG_IN = re.compile(
    r"((?:\bauthorization|\bcookie)\\?[\"']?\s{0,8}[:=]\s{0,8}(?:b(?=['\"]))?\\?[\"']?)[^\r\n\"']+", re.IGNORECASE
)
_BEARER = re.compile(r"(\bbearer\s{1,8})[\w.~+/=-]{8,}", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.DOTALL
)


def hide(secrets: Iterable[str]) -> None:
    """From now on `mask_secrets` knows these values, and those of earlier calls. Shorter ones than 6 characters are
    left out: they would hide half of every text."""
    global _known  # noqa: PLW0603 - what is secret is so for the whole process
    found = set(_known)
    for secret in secrets:
        found.add(secret.strip())
        # A key in PEM may be quoted with other line ends, or a line at a time.
        found.update(
            line.strip() for line in secret.splitlines() if len(line) >= _SHORTEST_LINE_CHARS and "--" not in line
        )
    _known = tuple(sorted((each for each in found if len(each) >= _SHORTEST_CHARS), key=len, reverse=True))


def mask_secrets(text: str) -> str:
    """The text without the values that `hide` was told, without values that are called a password, signature or token,
    and without private keys. URIs are the business of the other functions here."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, MASK)
    text = _PRIVATE_KEY.sub(rf"\1{MASK}", text) if "PRIVATE KEY" in text else text
    text = _LOG_IN.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    text = _QUOTED.sub(lambda match: f"{match[1]}{match[2][0]}{MASK}", text)
    return _PAIR.sub(rf"\1{MASK}", text)


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
