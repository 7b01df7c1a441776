"""Which operators an `.onnx` holds, read from its bytes: what loads it says of its inputs and outputs only.

Only the fields on the way to an operator's name are followed, by their numbers in `onnx.proto`
(https://github.com/onnx/onnx); weights are passed over unread.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_LENGTHS = {1: 8, 5: 4}
"""Bytes of a value, by protobuf's wire types of fixed size."""
_WAY: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {4: "name", 5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
"""Of each message, the fields that are followed and what they hold."""
_QUANTISED = re.compile(r"quantize|integer(tofloat)?$|^q(linear|attention|gemm|moe|ordered)|nbits|bnb4", re.IGNORECASE)


def is_quantised(file: Path) -> bool:
    """Whether it computes in whole numbers, or turns them to others on the way: runtimes round that each in their own
    way.

    Raises:
        OSError: unreadable.
        ValueError: cut short, or not protobuf.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as body:
        return any(_QUANTISED.search(name) for name in _operators(body, 0, len(body), "model"))


def _operators(body: mmap.mmap, at: int, end: int, holds: str) -> Iterator[str]:
    while at < end:
        tag, at = _varint(body, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(body, at, end)
            continue
        if wire == 2:
            size, at = _varint(body, at, end)
        elif wire in _LENGTHS:
            size = _LENGTHS[wire]
        else:
            raise ValueError(f"a value of wire type {wire} at byte {at}")
        if at + size > end:
            raise ValueError(f"cut short at byte {at}")
        inside = _WAY[holds].get(number) if wire == 2 else None
        if inside == "name":
            yield body[at : at + size].decode(errors="replace")
        elif inside:
            yield from _operators(body, at, at + size, inside)
        at += size


def _varint(body: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for count in range(10):
        if at + count >= end:
            break
        byte = body[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError(f"no number at byte {at}")
