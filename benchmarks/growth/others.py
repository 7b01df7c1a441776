"""What others on this machine used while a curve was measured that is no backlog (of these the window tells)."""

import os
import time

import psutil

from benchmarks.growth.curve import short
from consumer.bench.usage import Sample, machine_s, others_s
from consumer.cpu import quota_cores


class Others:
    """Counts from its making on: everything but this process, its children that have ended, and processes by id."""

    def __init__(self, *pids: int) -> None:
        """`pids` are to live until it is asked."""
        self._processes = [psutil.Process(pid) for pid in pids]
        self._first = self._sample()

    def _sample(self) -> Sample:
        busy_s, idle_s = machine_s() if psutil.cpu_count() == quota_cores() else (None, None)
        named_s = sum(sum(process.cpu_times()[:2]) for process in self._processes)
        own_s = sum(os.times()[:4])  # user and system, of this process and of children that were waited for
        return Sample(time.monotonic(), named_s, own_s, None, busy_s, idle_s)

    def figures(self) -> dict[str, float]:
        """`others_cores` and `window_s`; nothing where the machine does not tell."""
        last = self._sample()
        wall_s = last.at_s - self._first.at_s
        used_s = others_s(self._first, last, quota_cores())
        return {} if used_s is None else {"others_cores": short(used_s / wall_s), "window_s": short(wall_s)}
