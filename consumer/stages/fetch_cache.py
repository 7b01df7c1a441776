"""A bounded memory of what was fetched, so that a burst of messages about one image costs its store one request.

An entry answers another message if that names the same place (store and host or bucket) and SHA-256, or the same URI
and ETag; where a message names neither digest nor ETag, the same URI. Entries are forgotten after `max_age_s`: that
long an image that was replaced under its own URI may be labelled as it was. A store's refusals and failures are not
kept.

A SHA-256 lets no sender see what he may not: the bytes came through the settings' allow-lists from the same place, and
he has to know their digest.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from cachetools import TTLCache

from consumer.messages import ImageJob, StoredImage

Key = tuple[str, str]
Answer = Literal["hit", "miss"]


def key_of(job: ImageJob, place: str) -> Key:
    """What two messages must have in common to be answered by one fetch.

    Args:
        job: has a `uri`.
        place: the `ImageStore.health_key` of that URI.
    """
    if job.sha256 is not None:
        return place, f"sha256:{job.sha256}"
    return job.uri or "", f"etag:{job.etag or ''}"


class FetchCache:
    """Any thread.

    Args:
        max_bytes: most bytes of the bodies it keeps; the least recently added go first.
        max_age_s: how long an entry counts.
        monotonic_s: the clock.
        told: called with `hit` or `miss` for every fetch.
    """

    def __init__(
        self, *, max_bytes: int, max_age_s: float, monotonic_s: Callable[[], float], told: Callable[[Answer], None]
    ) -> None:
        self._max_bytes = max_bytes
        self._entries: TTLCache[Key, StoredImage] = TTLCache(
            max_bytes, max_age_s, timer=monotonic_s, getsizeof=lambda stored: len(stored.body)
        )
        self._under_way: dict[Key, Future[StoredImage | None]] = {}
        self._lock = threading.Lock()
        self._told = told

    def fetch(self, key: Key, fetch: Callable[[], StoredImage], *, wait_s: float) -> tuple[StoredImage, Answer]:
        """What is kept under `key`, else what `fetch` brings. Of several callers one fetches, and the others wait.

        A caller whose predecessor failed, or did not come back within `wait_s`, fetches for itself.

        Raises:
            Whatever `fetch` raises.
        """
        with self._lock:
            kept = self._entries.get(key)
            leader = self._under_way.get(key)
            if kept is None and leader is None:
                own: Future[StoredImage | None] = Future()
                self._under_way[key] = own
        if kept is None and leader is not None:
            kept = _result(leader, wait_s)
        if kept is not None:
            self._told("hit")
            return kept, "hit"
        self._told("miss")
        return (fetch() if leader is not None else self._lead(key, own, fetch)), "miss"

    def _lead(self, key: Key, own: "Future[StoredImage | None]", fetch: Callable[[], StoredImage]) -> StoredImage:
        stored: StoredImage | None = None
        try:
            stored = fetch()
            return stored
        finally:
            with self._lock:
                if stored is not None and len(stored.body) <= self._max_bytes:
                    self._entries[key] = stored
                del self._under_way[key]
            own.set_result(stored)


def _result(leader: "Future[StoredImage | None]", wait_s: float) -> StoredImage | None:
    try:
        return leader.result(timeout=wait_s)
    except TimeoutError:
        return None
