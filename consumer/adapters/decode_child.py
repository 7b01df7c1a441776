"""The child's side of `decode_sandbox`: `python -m consumer.adapters.decode_child`. Decodes what may end its process.

Everything that it needs is imported and built before the first stranger's byte; then it gives up what it can, and can
neither open a file or a socket nor take more memory than an image may need.

Frames, both ways: `FRAME`, a head in JSON, a body of bytes.
"""

import ctypes
import errno
import importlib
import math
import os
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import orjson
from PIL import Image

from consumer.adapters.child_start import die_with_parent, take_pipes
from consumer.errors import InvalidMessage, TooManyPixels

FRAME = struct.Struct("!IQ")
"""Bytes of the head, which is JSON, and of the body, which follows it."""

HEAD_MOST_BYTES = 64 * 1024
"""The largest head."""

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CLONE_NEWUSER = 0x1000_0000  # linux/sched.h
_CLONE_NEWNET = 0x4000_0000
_MESSAGE_MOST = 1_000
# What Pillow imports in the midst of an image. Image.py and ImageFile.py, 13.0.
_IMPORTED_LATE = ("ExifTags", "ImageCms", "ImageColor", "ImageFile", "ImageFilter", "ImageOps", "ImagePalette")


def main() -> NoReturn:
    """Until the parent closes its end."""
    die_with_parent()
    requests, answers = take_pipes()
    settings, _ = _receive(requests)
    decoder = _build(settings["factory"], settings["arguments"])
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # the parent listened while a start could fail; a decoder has nothing to tell it
    limits = _give_up_rights(settings["memory_bytes"])
    _send(answers, {"limits": limits})
    while True:
        request, body = _receive(requests)
        _allow_cpu(settings["cpu_s"])
        _send(answers, *_answer(decoder, request["do"], body))


def _build(factory: str, arguments: Mapping[str, Any]) -> Any:
    """`module:callable`, called with these arguments."""
    module, _, name = factory.partition(":")
    make: Callable[..., Any] = getattr(importlib.import_module(module), name)
    decoder = make(**arguments)
    Image.preinit()
    for late in (*_IMPORTED_LATE, "TiffImagePlugin"):
        importlib.import_module(f"PIL.{late}")
    if (avif := sys.modules.get("PIL.AvifImagePlugin")) is not None:
        vars(avif)["DEFAULT_MAX_THREADS"] = 1  # else one for each core, each with memory of its own
    return decoder


def _answer(decoder: Any, what: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        if what == "measure":
            return {"header": asdict(decoder.measure(body))}, b""
        decoded = decoder.decode(body)
        return {"facts": asdict(decoded.facts)}, decoded.pixels.tobytes()
    except MemoryError:
        return _error(TooManyPixels.__name__, "the image needs more memory than input.max_pixels stands for"), b""
    except Exception as error:
        if _was_refused(error):
            return _error("", f"the sandbox refused what the decoder asked for: {type(error).__name__}: {error}"), b""
        if isinstance(error, InvalidMessage):
            return _error(type(error).__name__, str(error)), b""
        return _error("", f"{type(error).__name__}: {error}"), b""


def _error(name: str, message: str) -> dict[str, Any]:
    return {"error": name, "message": message[:_MESSAGE_MOST].encode("utf-8", "replace").decode()}


def _was_refused(error: BaseException) -> bool:
    """Whether a limit of ours is behind it: then it says nothing about the image."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError) or (isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# --- what is given up -----------------------------------------------------------------------------------------------


def _give_up_rights(memory_bytes: int) -> list[str]:
    """For good; returns what holds from now on, in words for the log."""
    limits = []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            limits.append("no new privileges")
        # Without privileges a user namespace comes first; some container runtimes allow neither.
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
            # Counted in that namespace alone; outside, all of the user's threads would count. Decoders may have some.
            _limit(resource.RLIMIT_NPROC, _threads_most())
            limits += ["a network of its own that leads nowhere", f"{_threads_most()} threads"]
        elif libc.unshare(_CLONE_NEWNET) == 0:
            limits.append("a network of its own that leads nowhere")
        else:
            limits.append("no network of its own, which the system refuses")
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, used_bytes + memory_bytes)
        limits.append(f"{memory_bytes / 2**20:.0f} MiB")
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _first_free_descriptor())
    return [*limits, "no file or socket can be opened"]


def _threads_most() -> int:
    return 16 + 4 * (os.cpu_count() or 1)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def _first_free_descriptor() -> int:
    """All below it are in use, so that with this many allowed not one more can be opened."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    return free


def _allow_cpu(seconds: float) -> None:
    """For the next image: SIGXCPU past it. The parent's deadline comes first, unless the parent itself stands still."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))


# --- frames ---------------------------------------------------------------------------------------------------------


def _receive(requests: int) -> tuple[dict[str, Any], bytes]:
    head_bytes, body_bytes = FRAME.unpack(_read(requests, FRAME.size))
    head = orjson.loads(_read(requests, head_bytes))
    return head, _read(requests, body_bytes)


def _read(requests: int, size: int) -> bytes:
    held = bytearray()
    while len(held) < size:
        part = os.read(requests, min(size - len(held), 1 << 20))
        if not part:
            os._exit(0)  # the parent is done with us, or gone
        held += part
    return bytes(held)


def _send(answers: int, head: Mapping[str, Any], body: bytes = b"") -> None:
    encoded = orjson.dumps(head)
    left = memoryview(FRAME.pack(len(encoded), len(body)) + encoded + body)
    while left:
        left = left[os.write(answers, left) :]


if __name__ == "__main__":
    main()
