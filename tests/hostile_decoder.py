"""The real decoder, with holes in it that images can be made for: a mark anywhere in an image's bytes brings one out.

In a JPEG a mark stands behind the end of the image, where a decoder does not look. Only tests use it.
"""

import ctypes
import mmap
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from consumer.adapters.image import PillowDecoder
from consumer.errors import NotAnImage
from consumer.messages import Decoded, ImageHeader, OpenedImage

_GIB = 1 << 30
FACTORY = "tests.hostile_decoder:HostileDecoder"


def with_mark(image: bytes, what: str) -> bytes:
    """The image, for which the decoder does `what` (a key of `_HOLES`, or see `HostileDecoder`)."""
    return image + _mark(what)


def _mark(what: str) -> bytes:
    return f"<hole:{what}>".encode()


def _segfault() -> None:
    ctypes.string_at(0)


def _spin() -> None:
    while True:
        pass


def _sleep() -> None:
    while True:
        time.sleep(60)


def _hold_the_lock() -> None:
    """Backtracks for years in C, and no other Python thread runs meanwhile."""
    re.match("(a+)+$", "a" * 64 + "b")


def _allocate() -> None:
    mmap.mmap(-1, _GIB)  # OSError where the address space is bounded


def _numpy_allocate() -> None:
    np.empty(_GIB, np.uint8)


def _write_a_file() -> None:
    Path("written-by-a-decoder").write_text("owned")


def _read_a_file() -> None:
    Path("/etc/passwd").read_bytes()


def _open_a_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def _tell_environment() -> None:
    raise NotAnImage(" ".join(f"{name}={value}" for name, value in sorted(os.environ.items()))[:900])


def _print() -> None:
    for number in (1, 2):
        os.write(number, b"a library has something to say\n" * 1_000)


def _leave() -> None:
    sys.exit(0)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _defect() -> None:
    raise ZeroDivisionError("a defect")


def _write_to_the_replica() -> None:
    """Over the descriptor of the answers, as code that has taken the child over could."""
    os.write(4, b"\x00\x00\xff\xff" * 1_000)


_HOLES: dict[str, Callable[[], None]] = {
    "segfault": _segfault,
    "spin": _spin,
    "sleep": _sleep,
    "hold-the-lock": _hold_the_lock,
    "map-memory": _allocate,
    "allocate": _numpy_allocate,
    "write-a-file": _write_a_file,
    "read-a-file": _read_a_file,
    "open-a-socket": _open_a_socket,
    "tell-environment": _tell_environment,
    "print": _print,
    "leave": _leave,
    "killed": _killed,
    "defect": _defect,
    "garbage": _write_to_the_replica,
}


class HostileDecoder:
    """`ports.ImageDecoder`. Further marks: `ruin` makes the next decode of this process end it, `lie-size` and
    `lie-format` are lies about the image, `lie-facts` about what was done, `lie-pixels` gives too few,
    `measure-segfault` ends it at the header."""

    def __init__(self, input_size: tuple[int, int], **options: Any) -> None:
        self._inner = PillowDecoder(input_size, **options)
        self._ruined = False

    def measure(self, body: bytes) -> ImageHeader:
        """See the port."""
        if _mark("measure-segfault") in body:
            _segfault()
        header = self._inner.measure(body)
        if _mark("lie-size") in body:
            return replace(header, width=-1, height=10**15)
        if _mark("lie-format") in body:
            return replace(header, format="JPEG\r\nx: y")
        return header

    def open(self, body: bytes) -> OpenedImage:
        """See the port."""
        return OpenedImage(self.measure(body), partial(self.decode, body))

    def decode(self, body: bytes) -> Decoded:
        """See the port."""
        if self._ruined:
            _segfault()
        self._ruined = _mark("ruin") in body
        for what, hole in _HOLES.items():
            if _mark(what) in body:
                hole()
        decoded = self._inner.decode(body)
        if _mark("lie-facts") in body:
            return replace(decoded, facts=replace(decoded.facts, applied=("x" * 1_000,)))
        return replace(decoded, pixels=decoded.pixels[:1]) if _mark("lie-pixels") in body else decoded
