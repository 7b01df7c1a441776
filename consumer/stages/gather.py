"""Gather: what became of each record of a message, until the last of them is there. Any thread."""

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

from consumer.messages import Delivery

T = TypeVar("T")


class Gathering(Generic[T]):
    """The parts of one message, each with its own delivery, and one result for each."""

    def __init__(self, message: Delivery, parts: Iterable[Delivery]) -> None:
        self.message = message
        self._place = {id(part): place for place, part in enumerate(parts)}
        self._results: dict[int, T] = {}
        self._lock = threading.Lock()

    def add(self, part: Delivery, result: T) -> tuple[T, ...] | None:
        """One more result. All of them, in the order of the parts, to the caller that brings the last one."""
        with self._lock:
            self._results[self._place[id(part)]] = result
            if len(self._results) < len(self._place):
                return None
            return tuple(self._results[place] for place in range(len(self._place)))
