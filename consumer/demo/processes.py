"""A child process that writes its log to a file, ends when we do, and is never left behind."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from consumer.errors import Fatal


class Child:
    """`PROGRAM ARGUMENTS` (Python where none is named), its stderr in a file. A context manager: leaving it stops the
    process and waits."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        working_folder: Path | None = None,
        stop_within_s: float = 5.0,
        read_stdout: bool = False,
        program: str = sys.executable,
    ) -> None:
        """Start it. `stop_within_s` is how long it may take to end before it is killed."""
        self.name = name
        self.log = log
        self._stop_within_s = stop_within_s
        self._log_position = 0
        self._unfinished_line = b""
        with log.open("wb") as sink:
            # A process group of its own: Ctrl-C in the terminal reaches the demo alone, which then stops its children
            # in the right order.
            self.process = subprocess.Popen(  # noqa: S603  (a program of ours, and no shell)
                [sys.executable, "-m", "consumer.demo.tether", str(os.getpid()), program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if read_stdout else sink,
                stderr=sink,
                env=environment,
                cwd=working_folder,
                process_group=0,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self.process.poll()

    def first_line(self) -> bytes:
        """The first line of its stdout.

        Raises:
            Fatal: it ended without one.
        """
        line: bytes = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            self.process.wait(self._stop_within_s)
            raise self.failure(f"the {self.name} did not start")
        return line

    def new_log_lines(self) -> list[str]:
        """Whole lines that came to its log since the last call."""
        with self.log.open("rb") as log:
            log.seek(self._log_position)
            text = self._unfinished_line + log.read()
            self._log_position = log.tell()
        *lines, self._unfinished_line = text.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def failure(self, what: str) -> Fatal:
        """An error that shows the end of the log."""
        ended = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        tail = self.log_tail() or "(nothing)"
        return Fatal(f"{what}{ended}. The last lines of its log:\n{tail}")

    def stop(self) -> None:
        """SIGTERM, then wait; SIGKILL when that takes too long or we are interrupted again. Idempotent."""
        try:
            if self.process.stdin:
                self.process.stdin.close()
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(self._stop_within_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.process.kill()  # nothing, where it has ended
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()
