"""Damage, by a seed: the same seed gives the same bytes on every machine."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence

MAX_BYTES = 200_000
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def mutated(seed: int, corpus: Sequence[bytes]) -> tuple[int, bytes]:
    """(index of the sample it began as, the bytes) of this seed."""
    dice = random.Random(seed)
    index = dice.randrange(len(corpus))
    body = bytearray(corpus[index])
    for _ in range(min(1 + int(dice.expovariate(0.5)), 12)):
        dice.choices(_MUTATIONS, _WEIGHTS)[0](body, dice, corpus)
    del body[MAX_BYTES:]
    if body.startswith(_PNG) and dice.random() < 0.7:
        _mend_checksums(body)  # else nearly all damage is found before anything is decoded
    return index, bytes(body)


def _mend_checksums(body: bytearray) -> None:
    at = len(_PNG)
    while at + 12 <= len(body):
        end = at + 8 + int(struct.unpack_from(">I", body, at)[0])
        if end + 4 > len(body):
            return
        struct.pack_into(">I", body, end, zlib.crc32(body[at + 4 : end]))
        at = end + 4


def _place(body: bytearray, dice: random.Random, room: int = 1) -> int:
    """Somewhere with `room` bytes behind it; headers, where the surprises are, as often as all the rest."""
    last = max(0, len(body) - room)
    return dice.randint(0, min(160, last) if dice.random() < 0.5 else last)


def _flip(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    if body:
        body[_place(body, dice)] ^= 1 << dice.randrange(8)


def _byte(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    if body:
        body[_place(body, dice)] = dice.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, dice.randrange(256)))


def _number(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    """A length, an offset, a size: two or four bytes, in either order, at the edges or near what it was."""
    code = dice.choice((">H", "<H", ">I", "<I"))
    size = struct.calcsize(code)
    if len(body) < size:
        return
    at = _place(body, dice, size)
    was = int(struct.unpack_from(code, body, at)[0])
    number = dice.choice((*_NUMBERS, was + dice.randint(-9, 9), was * 2, was // 2, len(body), len(body) - at))
    struct.pack_into(code, body, at, number % (1 << 8 * size))


def _cut(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    del body[_place(body, dice) :]


def _remove(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    at = _place(body, dice)
    del body[at : at + min(1 + int(dice.expovariate(0.02)), len(body))]


def _repeat(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    at = _place(body, dice)
    piece = body[at : at + 1 + int(dice.expovariate(0.02))]
    body[at:at] = piece * min(dice.choice((1, 1, 2, 8, 200)), MAX_BYTES // (len(piece) + 1))


def _move(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    """A piece to somewhere else: chunks and boxes out of their order."""
    at = _place(body, dice)
    piece = body[at : at + 1 + int(dice.expovariate(0.02))]
    del body[at : at + len(piece)]
    where = _place(body, dice)
    body[where:where] = piece


def _fill(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    at = _place(body, dice)
    size = min(1 + int(dice.expovariate(0.05)), len(body) - at)
    body[at : at + size] = bytes([dice.choice((0, 0xFF, dice.randrange(256)))]) * size


def _noise(body: bytearray, dice: random.Random, _corpus: Sequence[bytes]) -> None:
    at = _place(body, dice)
    size = min(1 + int(dice.expovariate(0.05)), len(body) - at)
    body[at : at + size] = dice.randbytes(size)


def _splice(body: bytearray, dice: random.Random, corpus: Sequence[bytes]) -> None:
    """The rest of another sample, of whatever format, or a piece of it."""
    other = dice.choice(corpus)
    at, start = _place(body, dice), dice.randrange(len(other) + 1)
    if dice.random() < 0.5:
        body[at:] = other[start:]
    else:
        body[at:at] = other[start : start + 1 + int(dice.expovariate(0.01))]


_WEIGHTED: dict[Mutation, float] = {
    _flip: 5,
    _byte: 5,
    _number: 8,
    _cut: 1,
    _remove: 2,
    _repeat: 2,
    _move: 1,
    _fill: 2,
    _noise: 2,
    _splice: 1,
}
_MUTATIONS, _WEIGHTS = list(_WEIGHTED), list(_WEIGHTED.values())
