"""Decodes one image of each kind in a process of its own, and prints what it took. test_decode_memory.py starts it.

Each line: the kind, the bytes of the body, those that its header says decoding takes, those by which resident memory
rose in opening, in decoding, and those that are left of them while what was opened is still held.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consumer.adapters.image import PillowDecoder
from tests.contract.test_image_decoder import FORMATS, encode
from tests.models import PHOTOGRAPHS

SIZE = (2400, 1800)
ONE_STRIP: dict[str, Any] = {"tiffinfo": {278: SIZE[1]}}
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGBA", {"compress_level": 1}),
    ("PNG", "P", {"compress_level": 1, "transparency": 1}),
    ("PNG", "I;16", {"compress_level": 1}),
    ("PNG", "1", {}),
    ("WEBP", "RGB", {"lossless": False, "method": 0}),
    ("WEBP", "RGBA", {"method": 0, "quality": 0}),
    ("GIF", "P", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"} | ONE_STRIP),
    ("TIFF", "RGB", {"tiffinfo": {274: 6}}),
    ("TIFF", "F", {"compression": "tiff_adobe_deflate"} | ONE_STRIP),
    ("TIFF", "I", {}),
    ("AVIF", "RGBA", {"speed": 10, "quality": 40}),
    ("AVIF", "RGB", {"speed": 10, "quality": 40, "subsampling": "4:4:4"}),
    ("HEIF", "RGBA", {"quality": 20}),
]
"""Those that take most, and plain ones: format, mode, how it is written."""


def write(path: Path, kind: str, mode: str, options: dict[str, Any]) -> None:
    """A photograph in this mode."""
    image = Image.open(PHOTOGRAPHS / "coffee.jpg").resize(SIZE)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(image.convert("L"))
    else:
        image = (image.convert("L") if mode in {"I", "F"} else image).convert(mode)
    path.write_bytes(encode(image, kind, **options))


def status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def left(before: int) -> int:
    """Bytes over those before that are not free, free ones having gone back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS") - before


def in_a_child(work: Callable[[], None]) -> None:
    """So that this process stays small, and each peak is of one image alone."""
    sys.stdout.flush()
    if os.fork() == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0


def main() -> None:
    """Write, measure and decode each."""
    decoder = PillowDecoder((224, 224), formats=FORMATS)
    for kind in FORMATS:
        decoder.decode(encode(Image.new("RGB", (64, 64)), kind))
    path = Path(tempfile.mkstemp()[1])

    def decode(name: str) -> None:
        body = path.read_bytes()
        before = status("VmRSS")
        image = decoder.open(body)
        opened = status("VmHWM") - before
        image.decode()
        print(name, len(body), image.header.decode_bytes, opened, status("VmHWM") - before, left(before), sep="\t")

    for kind, mode, options in KINDS:
        in_a_child(lambda kind=kind, mode=mode, options=options: write(path, kind, mode, options))  # type: ignore[misc]
        in_a_child(lambda name=f"{kind} {mode} {options}": decode(name))  # type: ignore[misc]
    path.unlink()


if __name__ == "__main__":
    main()
