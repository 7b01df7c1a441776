"""Feeds damaged messages to the parser and the decoder, one seed after the other; `tests.fuzz.campaign` starts it.

What it is at stands in a file that both have mapped, so that the campaign knows the culprit of a crash. Findings and,
at the end, what became of the messages are lines of JSON on stdout.
"""

import faulthandler
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from consumer.adapters.image import PillowDecoder
from consumer.errors import InvalidMessage
from consumer.messages import Delivery, ImageJob, Lease, Partition, Skipped
from consumer.stages.parse import Parser
from tests.fuzz import corpus
from tests.fuzz.mutate import mutated

STATE = struct.Struct("<QQ")
"""The seed that is under way, and how many are done."""
STALL_CPU_S = 2.0
MEMORY_BYTES = 64 * 1024 * 1024
"""What a message may take beyond what `measure` declares."""
MAX_PIXELS = 2_000_000
_SIZE = (32, 48)
_LEASE = Lease(Partition("images", 0), epoch=1, topic_id="t")


class Target:
    """The parser and the decoder as a replica has them, the decoder with each setting that reaches other code."""

    def __init__(self) -> None:
        self.samples = [*corpus.images(), *corpus.messages()]
        self.bodies: Sequence[bytes] = [body for _name, body in self.samples]
        self._parse = Parser()
        self._decoders = [
            PillowDecoder(_SIZE, max_pixels=MAX_PIXELS, formats=corpus.FORMATS),
            PillowDecoder(_SIZE, max_pixels=MAX_PIXELS, formats=corpus.FORMATS, icc="srgb", jpeg_scaled=True, crop=0.8),
        ]
        self.declared_bytes = 0

    def feed(self, seed: int, value: bytes) -> str:
        """What became of it: `labelled` for pixels, what else it asks for, or the class that refused it."""
        self.declared_bytes = 0
        decoder = self._decoders[seed % len(self._decoders)]
        header = ((), (("content-type", b"image/jpeg"),), (("content-type", b"text/uri-list"),))[seed % 16 % 3]
        try:
            job = self._parse(Delivery(_LEASE, seed, value, headers=header if seed % 16 < 3 else ()))
            if not isinstance(job, ImageJob):
                return "skipped" if isinstance(job, Skipped) else "several"
            if job.data is None:
                return "referenced"
            image = decoder.open(job.data)
            self.declared_bytes = image.header.decode_bytes
            decoded = image.decode()
        except InvalidMessage as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                raise AssertionError(f"an error that is no line: {error!r}") from error
            return type(error).__name__
        if decoded.pixels.shape != (*_SIZE, 3) or decoded.pixels.dtype != np.uint8:
            raise AssertionError(f"pixels of {decoded.pixels.shape} {decoded.pixels.dtype}")
        return "labelled"


def main(state_path: str, first: int, last: int) -> None:
    """Seeds from `first` to before `last`."""
    faulthandler.enable()
    fault, _, at = os.environ.get("OUZEL_TEST_FUZZ_FAULT", ":-1").partition(":")
    fault_seed = int(at)
    target = Target()
    outcomes: Counter[str] = Counter()
    with Path(state_path).open("r+b") as file, mmap.mmap(file.fileno(), STATE.size) as state:
        for done, seed in enumerate(range(first, last)):
            index, value = mutated(seed, target.bodies)
            state[:] = STATE.pack(seed, done)
            peak_bytes, cpu_s = _peak_bytes(), time.process_time()
            try:
                if seed == fault_seed:
                    _FAULTS[fault]()
                outcomes[target.feed(seed, value)] += 1
            except Exception:
                _say(kind="exception", seed=seed, sample=target.samples[index][0], text=traceback.format_exc())
                outcomes["exception"] += 1
            if (took_s := time.process_time() - cpu_s) > STALL_CPU_S:
                _say(kind="stall", seed=seed, sample=target.samples[index][0], text=f"{took_s:.1f} s of CPU")
            # A new peak that the message alone does not explain.
            if (grown := _peak_bytes() - peak_bytes) > target.declared_bytes + MEMORY_BYTES:
                _say(kind="memory", seed=seed, sample=target.samples[index][0], text=f"{grown >> 20} MiB more")
            if done % 100 == 99:
                _say(kind="done", outcomes=dict(outcomes))
                outcomes.clear()
        state[:] = STATE.pack(last, last - first)
    _say(kind="done", outcomes=dict(outcomes))


def _stall() -> None:
    while True:
        pass


def _raise() -> None:
    raise KeyError("seeded")


_FAULTS: dict[str, Callable[[], object]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stall": _stall,
    "raise": _raise,
    "memory": lambda: np.ones(MEMORY_BYTES // 4).sum(),
}
"""What the campaign is there to see, for its own tests: `OUZEL_TEST_FUZZ_FAULT=crash:511` does it at that seed."""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
