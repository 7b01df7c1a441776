"""`file://` below allowed directories. Nothing outside of them is ever opened, whatever links lie in them."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from consumer.errors import ImageNotFound, ImageTooLarge, ReferenceRefused, StoreUnavailable
from consumer.messages import StoredImage
from consumer.redact import redact_uri

_CHUNK_BYTES = 1024 * 1024
# O_PATH needs no right to list the directory, only to pass through it; it is Linux's own.
_PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileStore:
    """Fulfils `ports.ImageStore` for regular files below `roots`.

    The path is walked from its root one name at a time, and no link is followed on the way: a link in a root, even to
    a file in that root, is refused. The roots themselves may be links, being the operator's own.

    Args:
        roots: absolute directories; with none, every URI is refused.
        monotonic_s: the clock for deadlines, in seconds.
    """

    schemes = frozenset({"file"})

    def __init__(self, roots: Iterable[str | Path], *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        # Not resolved: URIs name a root as the settings do.
        absolute = {os.path.abspath(os.fsencode(root)) for root in roots}  # noqa: PTH100
        # The innermost first, where one root lies in another. Also under the name that a root's link leads to.
        self._roots = sorted(absolute | {os.path.realpath(root) for root in absolute}, key=len, reverse=True)
        self._monotonic_s = monotonic_s

    def health_key(self, uri: str) -> str:
        """`file://` and the root: a root is often a mount of its own, and fails alone."""
        try:
            root, _ = self._place(uri)
        except ReferenceRefused:
            return "file://"
        return "file://" + os.fsdecode(root)

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`.

        The deadline is looked at before each step and each mebibyte. A read that hangs in the kernel (a hard NFS
        mount whose server is away) cannot be broken off: mount such roots with `soft`.
        """
        root, names = self._place(uri)
        give_up_s = self._monotonic_s() + deadline_s
        try:
            with _opened(uri, root, names) as file:
                return StoredImage(self._read(uri, file, max_bytes=max_bytes, give_up_s=give_up_s))
        except OSError as error:
            _translate(error, uri)

    def _place(self, uri: str) -> tuple[bytes, list[bytes]]:
        """The root, and the names on the way from it to the file."""
        path = _path_of(uri)
        names = [name for name in path.split(b"/") if name not in {b"", b"."}]
        if b".." in names:
            raise ReferenceRefused(f"{redact_uri(uri)}: `..` is not allowed in the path: send the path without it")
        for root in self._roots:
            inside = [name for name in root.split(b"/") if name]
            if names[: len(inside)] == inside and len(names) > len(inside):
                return root, names[len(inside) :]
        raise ReferenceRefused(
            f"{redact_uri(uri)}: not below an allowed directory: move the image, or add its directory to the setting "
            "stores.file.roots"
        )

    def _read(self, uri: str, file: int, *, max_bytes: int, give_up_s: float) -> bytes:
        _refuse_too_large(uri, file, max_bytes)
        chunks: list[bytes] = []
        left = max_bytes
        while left > 0:
            if self._monotonic_s() >= give_up_s:
                raise StoreUnavailable(f"{redact_uri(uri)}: not read within the deadline")
            chunk = os.read(file, min(_CHUNK_BYTES, left))
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            left -= len(chunk)
        _refuse_too_large(uri, file, max_bytes)  # it may have grown meanwhile
        return b"".join(chunks)


def _path_of(uri: str) -> bytes:
    """RFC 8089: `file:/path`, `file:///path` or `file://localhost/path`, percent-decoded."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme.lower() != "file":
        raise ReferenceRefused(f"{redact_uri(uri)}: not a file: URI")
    if "?" in rest or "#" in rest:
        raise ReferenceRefused(f"{redact_uri(uri)}: a file: URI has no query or fragment: write ? as %3F and # as %23")
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise ReferenceRefused(f"{redact_uri(uri)}: files of another host are not read: send file:///path")
        rest = slash + tail
    if not rest.startswith("/"):
        raise ReferenceRefused(f"{redact_uri(uri)}: not an absolute path: send file:///path")
    if "\\" in rest:
        raise ReferenceRefused(f"{redact_uri(uri)}: a backslash is no separator: send it as %5C, or a slash")
    try:
        path = unquote_to_bytes(rest)
    except UnicodeEncodeError:
        raise ReferenceRefused("the URI has characters that UTF-8 cannot write: percent-encode the path") from None
    if b"\0" in path:
        raise ReferenceRefused(f"{redact_uri(uri)}: no path has a zero byte in it: send it without %00")
    return path


@contextmanager
def _opened(uri: str, root: bytes, names: list[bytes]) -> Iterator[int]:
    """The file's descriptor, reached from `root` name by name."""
    try:
        place = os.open(root, _PASS_THROUGH)
    except OSError as error:
        # The root is the operator's: where it is away, so is all below it.
        raise StoreUnavailable(
            f"{os.fsdecode(root)}: this root of stores.file.roots cannot be opened ({error.strerror}): is it mounted?"
        ) from error
    file = -1
    try:
        for name in names[:-1]:
            inner = _open_at(place, name, _PASS_THROUGH | os.O_NOFOLLOW, uri)
            os.close(place)
            place = inner
        # Looked at before it is opened, for opening a device can already do something ...
        _refuse_unless_regular(os.stat(names[-1], dir_fd=place, follow_symlinks=False), uri)
        file = _open_at(place, names[-1], _READ, uri)
        # ... and once more, for it may have been exchanged in between.
        _refuse_unless_regular(os.fstat(file), uri)
        yield file
    finally:
        os.close(place)
        if file >= 0:
            os.close(file)


def _open_at(place: int, name: bytes, flags: int, uri: str) -> int:
    try:
        return os.open(name, flags, dir_fd=place)
    except OSError as error:
        # A link is ELOOP, or ENOTDIR where a directory was asked for; so is a file in a directory's place.
        if error.errno in {errno.ELOOP, errno.ENOTDIR} and _is_link(place, name):
            raise ReferenceRefused(f"{redact_uri(uri)}: a link lies on the path: send the path it leads to") from None
        raise


def _is_link(place: int, name: bytes) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _refuse_unless_regular(facts: os.stat_result, uri: str) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise ReferenceRefused(f"{redact_uri(uri)}: a link: send the path it leads to")
    if not stat.S_ISREG(facts.st_mode):
        raise ReferenceRefused(f"{redact_uri(uri)}: a directory, pipe or device: send the path of a regular file")


def _refuse_too_large(uri: str, file: int, max_bytes: int) -> None:
    size = os.fstat(file).st_size
    if size > max_bytes:
        raise ImageTooLarge(
            f"{redact_uri(uri)}: the file has {size} bytes, and {max_bytes} are the most (stores.max_image_bytes)"
        )


def _translate(error: OSError, uri: str) -> NoReturn:
    """Every other error of the system, as what it means for the message."""
    where = redact_uri(uri)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        raise ImageNotFound(f"{where}: no such file") from error
    if error.errno in {errno.EACCES, errno.EPERM}:
        # Not the sender's fault, and waiting mends it no more than an absent file: counted like one.
        raise ImageNotFound(f"{where}: this process may not read the file: grant its user read access") from error
    if error.errno == errno.ENAMETOOLONG:
        raise ReferenceRefused(f"{where}: a name in the path is longer than the file system allows") from error
    raise StoreUnavailable(f"{where}: {error.strerror or 'the file system failed'}") from error
