"""Threads that do what they are handed, in that order.

In place of `ThreadPoolExecutor`, whose futures nobody here would ask: with one a hand-off costs 7 us of CPU, so 0.4
(two threads, work that does nothing, median of five runs in turn), and the stream hands every message over.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from loguru import logger

_Work = tuple[Callable[..., object], tuple[Any, ...]]


class Workers:
    """So many threads. What escapes from work is logged, and its thread goes on: guard what somebody waits for."""

    def __init__(self, count: int, name: str) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        """Do this when a thread is free. Any thread; never blocks. After `close` nothing more is begun."""
        self._work.put((work, args))

    def close(self) -> None:
        """Begin nothing more. Waits for nothing. Idempotent."""
        self._closed = True
        for _ in self._threads:
            self._work.put(None)

    def join(self, timeout_s: float) -> None:
        """After `close`: wait so long for what is under way, all threads together."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        take = self._work.get
        while (item := take()) is not None and not self._closed:
            work, args = item
            try:
                work(*args)
            except Exception as error:
                logger.opt(exception=error).error(
                    "a defect: what was handed to {} failed", threading.current_thread().name
                )
            del item, work, args  # an idle thread holds no image
