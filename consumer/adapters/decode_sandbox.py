"""A decoder in a child process, for images that may have ended a replica: what they do there ends the child at most.

A child is kept from image to image. It is judged by what a fresh one does: an image before it may have left the memory
of a used one in ruins. So an image that ends a used child, or does not come back from it, is given to a fresh one, and
only what that one does is told. The child is not trusted: of its answers, names, sizes and numbers are checked.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from loguru import logger

from consumer import errors
from consumer.adapters.decode_child import FRAME, HEAD_MOST_BYTES
from consumer.errors import DecoderCrashed, InvalidMessage, SandboxFailed
from consumer.messages import Decoded, ImageFacts, ImageHeader, OpenedImage

_START_DEADLINE_S = 60.0
_REAP_S = 5.0
_WORD_MOST = 64
_WORDS_MOST = 16
_SIZE_MOST = 2**48
_PART_BYTES = 1 << 20
_TELL_MOST = 2_000

# The interpreter's own folders, and one thread for each library: the child decodes one image at a time.
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class SandboxedDecoder:
    """Fulfils `ports.SandboxedDecoder` over one child at a time, started when it is needed."""

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, object],
        *,
        input_size: tuple[int, int],
        memory_bytes: int,
        deadline_s: float,
    ) -> None:
        """
        Args:
            factory: `module:callable` of the decoder (`ports.ImageDecoder`) that the child makes.
            arguments: its keyword arguments, as JSON can carry them.
            input_size: (height, width) of the pixels that are expected.
            memory_bytes: address space that an image may take, over what the child holds when it starts.
            deadline_s: seconds that one image may take.
        """
        self._settings = {
            "factory": factory,
            "arguments": dict(arguments),
            "memory_bytes": memory_bytes,
            "cpu_s": deadline_s,
        }
        self._shape = (*input_size, 3)
        self._deadline_s = deadline_s
        self._one_at_a_time = threading.Lock()
        self._child: _Child | None = None

    def measure(self, body: bytes) -> ImageHeader:
        """See `ports.ImageDecoder.measure`. Raises also `DecoderCrashed` and `SandboxFailed`."""
        head, _ = self._ask("measure", body)
        try:
            return ImageHeader(**_told_fields(ImageHeader, head["header"]))
        except (KeyError, TypeError, ValueError):
            raise self._not_believed("a header that makes no sense") from None

    def open(self, body: bytes) -> OpenedImage:
        """See `ports.ImageDecoder.open`. The child is free between, and reads the header again."""
        return OpenedImage(self.measure(body), partial(self.decode, body))

    def decode(self, body: bytes) -> Decoded:
        """See `ports.ImageDecoder.decode`. Raises also `DecoderCrashed` and `SandboxFailed`."""
        head, pixels = self._ask("decode", body)
        if len(pixels) != np.prod(self._shape):
            raise self._not_believed("pixels of another size than the model takes")
        # The digest is our own.
        own = {"sha256": sha256(body).hexdigest(), "size_bytes": len(body)}
        try:
            facts = ImageFacts(**_told_fields(ImageFacts, head["facts"]) | own)
        except (KeyError, TypeError, ValueError):
            raise self._not_believed("facts that make no sense") from None
        return Decoded(np.frombuffer(pixels, np.uint8).reshape(self._shape), facts)

    def close(self) -> None:
        """See the port. Never waits for an image."""
        if self._one_at_a_time.acquire(blocking=False):
            try:
                if self._child is not None and not self._child.ended:
                    self._child.end()
            finally:
                self._one_at_a_time.release()
        elif (child := self._child) is not None:
            child.dismiss()

    def _not_believed(self, what: str) -> DecoderCrashed:
        """A child that tells lies may be another's by now."""
        self.close()
        return DecoderCrashed(f"the decoder's process gave {what}, decoding this image alone")

    def _ask(self, what: str, body: bytes) -> tuple[Mapping[str, Any], bytearray]:
        with self._one_at_a_time:
            while True:
                if self._child is None or self._child.ended:
                    self._child = _Child(self._settings)
                child = self._child
                fresh, child.used = not child.used, True
                try:
                    # Pixels, and not a byte more: what the child claims is not believed.
                    head, answer = child.ask({"do": what}, body, int(np.prod(self._shape)), self._deadline_s)
                    break
                except _ChildEnded as ended:
                    self._child = None
                    if fresh:
                        raise DecoderCrashed(
                            f"{ended}, decoding this image alone. Try it with a newer decoder, and leave its format "
                            "out of input.formats if you get none of it"
                        ) from None
        if "error" in head:
            raise _told(head)
        return head, answer


def _told_fields(kind: type[ImageHeader] | type[ImageFacts], told: Mapping[str, Any]) -> dict[str, Any]:
    """Raises KeyError, TypeError, ValueError where the child tells nonsense."""
    return {field.name: _checked(told[field.name]) for field in fields(kind)}


def _checked(value: object) -> object:
    """A size, a short word, or a few of them: what headers and facts are made of. Raises ValueError."""
    if value is None or (isinstance(value, int) and 0 <= value < _SIZE_MOST):
        return value
    if isinstance(value, str) and value.isprintable() and len(value) <= _WORD_MOST:
        return value
    if isinstance(value, list) and len(value) <= _WORDS_MOST:
        return tuple(map(_checked, value))
    raise ValueError("neither a size nor a word")


def _told(head: Mapping[str, Any]) -> Exception:
    """The decoder's own verdict; another error of it is a defect, as it is outside the sandbox."""
    kind = getattr(errors, str(head["error"]), None)
    message = str(head.get("message", ""))
    if isinstance(kind, type) and issubclass(kind, InvalidMessage) and kind.family == "content":
        return kind(message)
    return RuntimeError(message)


class _ChildEnded(Exception):
    """Says how."""


class _Child:
    """One process. Not thread-safe, but for `dismiss`."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        """Raises SandboxFailed."""
        self.used = False
        self.ended = False
        self._dismissed = False
        started_s = time.monotonic()
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "consumer.adapters.decode_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=_ENVIRONMENT | {"PYTHONPATH": path},  # nothing else: ours may hold secrets
                start_new_session=True,  # a Ctrl-C is not its
            )
        except OSError as error:
            raise _no_sandbox(str(error)) from error
        self._requests, self._answers, self._complaints = self._pipes()
        try:
            head, _ = self.ask(settings, b"", 0, _START_DEADLINE_S)
        except _ChildEnded as ended:
            raise _no_sandbox(f"{ended}{self._complaint()}") from None
        finally:
            os.close(self._complaints)
        limits = head.get("limits")
        logger.bind(pid=self._process.pid).info(
            "decoder sandbox started in {:.0f} ms: {}",
            (time.monotonic() - started_s) * 1000,
            ", ".join(map(str, limits)) if isinstance(limits, Sequence) else "",
        )

    def _pipes(self) -> tuple[int, int, int]:
        """Our ends, as descriptors of our own that never block."""
        found = []
        for pipe in filter(None, (self._process.stdin, self._process.stdout, self._process.stderr)):
            found.append(os.dup(pipe.fileno()))
            pipe.close()
            os.set_blocking(found[-1], False)
        return found[0], found[1], found[2]

    def ask(
        self, head: Mapping[str, object], body: bytes, most_bytes: int, deadline_s: float
    ) -> tuple[Mapping[str, Any], bytearray]:
        """One frame there and one back. Raises _ChildEnded; the process is gone then."""
        until_s = time.monotonic() + deadline_s
        encoded = orjson.dumps(head)
        try:
            self._write(FRAME.pack(len(encoded), len(body)) + encoded, until_s)
            self._write(body, until_s)
            return self._answer(most_bytes, until_s)
        except TimeoutError:
            self.end()
            raise _ChildEnded(f"the decoder did not come back within {deadline_s:g} s (decode.deadline_ms)") from None
        except (EOFError, BrokenPipeError):
            code = self.end(kill=False)
            if self._dismissed:
                raise RuntimeError("the sandbox was closed") from None
            raise _ChildEnded(f"the decoder's process {_how(code)}") from None
        except ValueError:
            self.end()
            raise _ChildEnded("the decoder's process gave an answer that makes no sense") from None

    def _answer(self, most_bytes: int, until_s: float) -> tuple[Mapping[str, Any], bytearray]:
        """Raises ValueError for what is no answer of ours."""
        head_bytes, body_bytes = FRAME.unpack(self._read(FRAME.size, until_s))
        if head_bytes > HEAD_MOST_BYTES or body_bytes > most_bytes:
            raise ValueError("larger than any answer")
        head = orjson.loads(self._read(head_bytes, until_s))
        if not isinstance(head, dict):
            raise ValueError("no object")  # noqa: TRY004
        return head, self._read(body_bytes, until_s)

    def dismiss(self) -> None:
        """Kill it while it is asked; any thread. Who asks sees it end."""
        self._dismissed = True
        self._kill()

    def end(self, *, kill: bool = True) -> int | None:
        """Its exit code, negative for a signal."""
        self.ended = True
        if kill:
            self._kill()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            self._kill()
        for pipe in (self._requests, self._answers):
            os.close(pipe)
        return self._process.poll()

    def _kill(self) -> None:
        """With what it may have started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
        except (ProcessLookupError, PermissionError):
            self._process.kill()

    def _complaint(self) -> str:
        """What it wrote before it ended."""
        try:
            said = os.read(self._complaints, _PART_BYTES).decode(errors="replace").strip()
        except OSError:
            said = ""
        return f": {said[-_TELL_MOST:]}" if said else ""

    def _write(self, data: bytes, until_s: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._requests, select.POLLOUT, until_s)
            left = left[os.write(self._requests, left[:_PART_BYTES]) :]

    def _read(self, size: int, until_s: float) -> bytearray:
        held = bytearray()
        while len(held) < size:
            self._wait(self._answers, select.POLLIN, until_s)
            part = os.read(self._answers, min(size - len(held), _PART_BYTES))
            if not part:
                raise EOFError
            held += part
        return held

    def _wait(self, pipe: int, for_what: int, until_s: float) -> None:
        left_s = until_s - time.monotonic()
        poll = select.poll()
        poll.register(pipe, for_what)
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _no_sandbox(reason: str) -> SandboxFailed:
    return SandboxFailed(
        f"no sandbox can be started to decode suspects in: {reason}",
        remedy="mend what the message says (process and memory limits, the Python environment) and start again",
    )
