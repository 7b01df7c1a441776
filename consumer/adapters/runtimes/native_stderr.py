"""What native libraries write to stderr by themselves, past Python and past our log."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_lines(*beginnings: bytes) -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and writes all but lines that begin so when done."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nobody reads it
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            held.seek(0)
            kept = b"".join(line for line in held if not line.startswith(beginnings))
            if kept:
                os.write(stderr, kept)
            os.close(stderr)
