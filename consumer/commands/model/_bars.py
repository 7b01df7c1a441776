"""Progress bars on stderr, in a terminal only."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class Bars:
    """One bar after the other; what is over goes away."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress

    @contextmanager
    def bar(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar for one long part; yields what is told how many more are done."""
        task = self._progress.add_task(what, total=total)
        try:
            yield lambda more: self._progress.advance(task, more)
        finally:
            self._progress.remove_task(task)

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """A bar whose length shows on the way; yields what is told how many are done, and of how many."""
        task = self._progress.add_task(what, total=None)
        try:
            yield lambda done, of: self._progress.update(task, completed=done, total=of)
        finally:
            self._progress.remove_task(task)


def _own_stderr() -> TextIO:
    try:
        return os.fdopen(os.dup(2), "w")
    except OSError:  # closed: nobody reads it
        return Path(os.devnull).open("w")


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars until the block is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # A descriptor of their own: what holds back the chatter of native libraries on 2 must not hold back the bars.
    with _own_stderr() as file:
        console = Console(file=file)
        with Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            yield Bars(progress)
