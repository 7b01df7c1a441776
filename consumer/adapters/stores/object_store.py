"""Objects in buckets, by obstore (the Rust crate object_store). What differs between the clouds is in `clouds.py`.

Chosen by measurement over boto3: docs/stores.md has the table, `benchmarks/s3_clients.py` the command.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from consumer.adapters.stores.buckets import BucketRules, ObjectAddress
from consumer.adapters.stores.object_errors import error_for
from consumer.errors import ImageTooLarge, InvalidMessage, StoreBusy, StoreUnavailable
from consumer.messages import StoredImage, StoredVersion
from consumer.redact import redact_uri

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

_KEPT_CLIENTS = 64
"""Buckets whose connections are kept: an allow-list with a wild card lets senders name any number."""


class _Room:
    """Who may fetch from a bucket now, and who may wait to."""

    def __init__(self, slots: int) -> None:
        self._places = threading.BoundedSemaphore(2 * slots)
        self._slots = threading.BoundedSemaphore(slots)

    @contextmanager
    def slot(self, what: str, deadline_s: float) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise StoreBusy(f"{what}: as many wait for its bucket as may (max_concurrency of the store)")
        try:
            if not self._slots.acquire(timeout=max(0.0, deadline_s)):
                raise StoreBusy(f"{what}: no slot of its bucket came free in time (max_concurrency of the store)")
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._places.release()


class ObjectStore:
    """Fulfils `ports.ImageStore` for the buckets of one cloud.

    The client's own retries are off, for the retry stage does that. Its calls run on an event loop, where a fetch can
    be broken off at its deadline wherever it is: resolving a name, getting credentials, connecting, or reading.

    Args:
        rules: which URIs are allowed.
        open_bucket: the client of a bucket; connects to nothing yet.
        forget_credentials: called after the store refused who we are, so that the next client asks for them anew.
        max_concurrency: fetches at the same time from what fails together (`health_key`); as many more wait, within
            their deadlines, and no others: else one slow bucket would take every thread there is.
        monotonic_s: the clock for deadlines, in seconds.
    """

    def __init__(
        self,
        rules: BucketRules,
        open_bucket: "Callable[[str], Client]",
        *,
        forget_credentials: Callable[[], None] = lambda: None,
        max_concurrency: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schemes = frozenset({rules.scheme})
        self._rules = rules
        self._client = lru_cache(_KEPT_CLIENTS)(open_bucket)
        self._forget_credentials = forget_credentials
        self._max_concurrency = max_concurrency
        self._rooms: dict[str, _Room] = {}  # as many as the allow-list has entries, at most
        self._monotonic_s = monotonic_s
        self._loop = _event_loop()

    def health_key(self, uri: str) -> str:
        """The scheme, and the bucket or the entry with a wild card that allows it."""
        return f"{self._rules.scheme}://{self._rules.place_of(uri) or ''}"

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`. The size is judged by the answer's headers, before the body is read."""
        give_up_s = self._monotonic_s() + deadline_s
        address = self._rules.address(uri)
        with self._room(uri).slot(redact_uri(uri), deadline_s):
            return self._fetch(uri, address, max_bytes, give_up_s)

    def _room(self, uri: str) -> _Room:
        key = self.health_key(uri)
        return self._rooms.get(key) or self._rooms.setdefault(key, _Room(self._max_concurrency))

    def _fetch(self, uri: str, address: ObjectAddress, max_bytes: int, give_up_s: float) -> StoredImage:
        late = StoreUnavailable(f"{redact_uri(uri)}: not fetched within the deadline (stores.fetch_deadline_ms)")
        left_s = give_up_s - self._monotonic_s()
        if left_s <= 0:
            raise late
        try:
            client = self._opened(address.bucket, uri)
            future = asyncio.run_coroutine_threadsafe(_get(client, uri, address, max_bytes), self._loop)
            try:
                return future.result(timeout=left_s)
            except concurrent.futures.TimeoutError:
                future.cancel()  # closes the connection
                raise late from None
        except (InvalidMessage, StoreUnavailable):
            raise
        except Exception as error:
            found = error_for(error, redact_uri(uri), bucket_is_named=self._rules.names_bucket(address.bucket))
            if found.credentials_refused:
                self._client.cache_clear()
                self._forget_credentials()
            # The client's text repeats the store's answer, which can carry key ids and what was signed: not chained.
            raise found.error from None

    def _opened(self, bucket: str, uri: str) -> "Client":
        try:
            return self._client(bucket)
        except Exception as error:
            # One was opened at start: what it stands on, a profile or a file, has changed since.
            raise StoreUnavailable(f"{redact_uri(uri)}: no client for it: {type(error).__name__}") from None


async def _get(client: "Client", uri: str, address: ObjectAddress, max_bytes: int) -> StoredImage:
    import obstore

    options: obstore.GetOptions = {"version": address.version} if address.version else {}
    found = await obstore.get_async(client, address.key, options=options)
    facts = found.meta
    if facts["size"] > max_bytes:
        raise ImageTooLarge(
            f"{redact_uri(uri)}: the object has {facts['size']} bytes, and {max_bytes} are the most "
            "(stores.max_image_bytes)"
        )
    # HTTP ends a body at its Content-Length, which is this size; an answer without one is refused by the client.
    body = await found.bytes_async()
    etag = facts["e_tag"]
    version = StoredVersion(etag.removeprefix("W/").strip('"') if etag else None, facts["version"])
    return StoredImage(body.to_bytes(), version)


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all stores, on a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="object-stores", daemon=True).start()
    return loop
