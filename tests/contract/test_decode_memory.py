"""What `measure` says that decoding takes is what it takes: the flow reserves that much before it decodes."""

import subprocess
import sys

from tests.contract.decode_memory import KINDS, SIZE

_NOISE_BYTES = 3 * 1024 * 1024


def test_decoding_takes_no_more_than_is_declared_opening_no_pixels_and_none_are_left() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.contract.decode_memory"], check=True, capture_output=True, text=True
    )
    rows = [line.split("\t") for line in answer.stdout.splitlines()]
    assert len(rows) == len(KINDS)
    for kind, *numbers in rows:
        body, declared, opened, taken, left = map(int, numbers)
        assert taken <= declared + _NOISE_BYTES, kind
        # A bound that is far too high would let images wait for nothing.
        assert declared <= 3 * taken, kind
        # Copies of the encoded bytes at most, and what a library sets up once.
        assert opened < 2 * body + SIZE[0] * SIZE[1] / 2, kind
        # The full image is let go of, whoever still holds what was opened.
        assert left < 2 * body + _NOISE_BYTES, kind
