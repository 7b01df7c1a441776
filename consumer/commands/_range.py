"""A range of the input topics on the command line, and how far its relabelling is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from consumer.commands._time import parse_time_ms
from consumer.errors import CommandRefused, SettingsError

if TYPE_CHECKING:
    from consumer.settings import Settings
    from consumer.stages.relabel import Progress
    from consumer.stages.start import Range

_EVERY_S = 10.0
"""Between two lines of the log."""


def range_of(since: str, until: str, *, now_ms: int) -> "Range":
    """The range that `--from` and `--until` name. Raises `SettingsError`."""
    from consumer.stages.start import Range

    from_ms = None if since == "earliest" else parse_time_ms(since)
    until_ms = None if until == "end" else parse_time_ms(until)
    if until_ms is not None and until_ms > now_ms:
        raise SettingsError(
            f"--until {until} is yet to come, and the end is fixed now",
            remedy="`--until end` relabels what is there now; `ouzel run` alone labels what comes",
        )
    if from_ms is not None and from_ms >= (now_ms if until_ms is None else until_ms):
        raise SettingsError(
            f"nothing lies from {since} until {until}", remedy="let --from name a time that is before --until and now"
        )
    return Range(from_ms, until_ms)


def in_group(settings: "Settings", group: str) -> "Settings":
    """The settings with another group. Raises `CommandRefused` for the service's own."""
    if group == settings.kafka.group_id:
        raise CommandRefused(
            f"--group {group} is the service's own (kafka.group_id): it would begin anew, or skip what it has not done",
            remedy="choose another --group: each range has one of its own",
        )
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"group_id": group})})


@contextmanager
def telling_progress(group: str) -> Iterator[Callable[["Progress"], None]]:
    """A bar in a terminal, else a line of the log now and then. Yields what takes in how far the group is."""
    if not sys.stderr.isatty():
        yield _LogLines(group, time.monotonic)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("relabelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # It stands in for sys.stderr meanwhile, so that lines of the log go above the bar.
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("relabelling", total=None, rate="")

        def show(progress: "Progress") -> None:
            if bar.tasks[0].total is None:  # what an earlier run did is not this one's speed
                bar.reset(task, total=progress.total, completed=progress.done)
            bar.update(task, completed=progress.done, total=progress.total)
            speed = bar.tasks[0].speed
            bar.update(task, rate="" if speed is None else f"{speed:.0f}/s")

        yield show


class _LogLines:
    def __init__(self, group: str, clock_s: Callable[[], float]) -> None:
        self._group = group
        self._clock_s = clock_s
        self._last: tuple[float, int] | None = None

    def __call__(self, progress: "Progress") -> None:
        from loguru import logger

        now_s = self._clock_s()
        if self._last is not None and not progress.finished and now_s - self._last[0] < _EVERY_S:
            return
        rate = 0.0
        if self._last is not None and now_s > self._last[0]:
            rate = (progress.done - self._last[1]) / (now_s - self._last[0])
        self._last = (now_s, progress.done)
        left = f", {(progress.total - progress.done) / rate:.0f} s left" if rate > 0 and not progress.finished else ""
        facts = logger.bind(group=self._group, done=progress.done, total=progress.total, per_second=round(rate, 1))
        facts.info("relabelled {} of {} messages ({:.1f}/s{})", progress.done, progress.total, rate, left)
