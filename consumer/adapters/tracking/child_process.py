"""The parent's side of a child that speaks to W&B: started, written to, listened to and ended, never waited for."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from consumer.adapters.child_start import wandb_environment

PROGRAM = (sys.executable, "-P", "-m", "consumer.adapters.tracking.wandb_child")

_STEP_S = 0.2
_PART_BYTES = 1 << 16
_SAID_MOST_BYTES = 2_000


def child_environment(folder: Path, api_key: str | None) -> dict[str, str]:
    """What the child is given. `api_key` empty: the one of our environment, if there is one; None: no key at all."""
    return {
        **wandb_environment(keys=api_key is not None),
        **({"WANDB_API_KEY": api_key} if api_key else {}),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_ARTIFACT_DIR": str(folder / "artifacts"),
    }


class NotTaken(Exception):
    """The child is gone, or takes nothing."""


class ChildProcess:
    """One child, which leads a session of its own. One thread, but for `kill` and `running`."""

    def __init__(
        self, program: Sequence[str], environment: Mapping[str, str], told: Callable[[dict[str, Any]], None]
    ) -> None:
        """Starts it, without waiting for it. `told` gets its answers, from a thread of their own. Raises OSError."""
        self._process = subprocess.Popen(  # noqa: S603 - a program of ours
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(environment),
            start_new_session=True,  # a Ctrl-C is not its
        )
        self._requests, self._answers, self._words = self._pipes()
        os.set_blocking(self._requests, False)
        self._told = told
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="tracking-listener", daemon=True)
        self._listener.start()

    def _pipes(self) -> tuple[int, int, int]:
        """Our ends, as descriptors of our own."""
        found = []
        for pipe in filter(None, (self._process.stdin, self._process.stdout, self._process.stderr)):
            found.append(os.dup(pipe.fileno()))
            pipe.close()
        return found[0], found[1], found[2]

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def write(self, request: Mapping[str, Any], body: bytes = b"", *, until_s: Callable[[], float]) -> None:
        """Hand over one request before the monotonic second that `until_s` gives, which may change meanwhile.

        Raises:
            NotTaken: it ended, or did not take it in time.
        """
        head = json.dumps(dict(request) | ({"bytes": len(body)} if body else {}), ensure_ascii=False)
        # Lone surrogates, which have no UTF-8, become question marks.
        left = memoryview(head.encode("utf-8", "replace") + b"\n" + body)
        poll = select.poll()
        poll.register(self._requests, select.POLLOUT)
        while left:
            if not self.running:
                raise NotTaken("it ended")
            now_s = time.monotonic()
            if now_s >= until_s():
                raise NotTaken("it takes nothing any more")
            try:
                if poll.poll(min(_STEP_S, max(0.0, until_s() - now_s)) * 1000):
                    left = left[os.write(self._requests, left[:_PART_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise NotTaken("it ended") from None

    def end_input(self) -> None:
        """It is to finish, and end."""
        os.close(self._requests)

    def wait(self, until_s: float) -> int | None:
        """Its exit code, negative for a signal; None where it has not ended by then."""
        try:
            return self._process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """With what it started. Any thread."""
        family = _descendants(self._process.pid) if self.running else []
        # It leads a session of its own; W&B's own process another one.
        for leader in (self._process.pid, *family):
            try:
                os.killpg(leader, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def last_words(self) -> str:
        """The end of what it wrote to stderr, on one line."""
        self._listener.join(_STEP_S)
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def _listen(self) -> None:
        """Answers, and what is said on stderr: it must not fill a pipe that nobody reads, nor come into our log."""
        held = b""
        poll = select.poll()
        for pipe in (self._answers, self._words):
            poll.register(pipe, select.POLLIN)
        open_pipes = 2
        while open_pipes:
            for pipe, _ in poll.poll():
                part = os.read(pipe, _PART_BYTES)
                if not part:
                    poll.unregister(pipe)
                    os.close(pipe)
                    open_pipes -= 1
                elif pipe == self._words:
                    self._said = (self._said + part)[-_SAID_MOST_BYTES:]
                else:
                    *lines, held = (held + part).split(b"\n")
                    for line in lines:
                        self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            said = orjson.loads(line)
        except ValueError:
            return
        if isinstance(said, dict):
            self._told(said)


def _descendants(pid: int) -> list[int]:
    """Children and theirs, as Linux tells; elsewhere none, and W&B's own process sees for itself that it is alone."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "did not end"
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
