"""The images of a topic's last messages: parsed and fetched by the service's own stages and stores.

Joins no group and commits nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from consumer.errors import InvalidMessage, Retryable, SchemaNotLoaded

if TYPE_CHECKING:
    from consumer.adapters.kafka_tools.reading import Record
    from consumer.messages import Delivery, ImageJob, Parsed
    from consumer.settings import Settings

Body = tuple[str, bytes | Exception, int | None]
"""An image's name, its bytes or what went wrong, and of how many it is one, where that is known."""
_Named = tuple[str, bytes | Exception]
_Answer = TypeVar("_Answer")


def topic_bodies(settings: "Settings", topic: str, last: int) -> Iterator[Body]:
    """The images that the topic's last messages ask for; for each that cannot be had, why.

    Raises:
        TopicMissing, BrokerUnreachable, NotAuthorized, SettingsError: the topic cannot be read.
    """
    from consumer.adapters.kafka_tools.reading import Reader
    from consumer.kafka_properties import client_properties

    kafka = settings.kafka
    with Reader(client_properties(kafka, "consumer"), topic, timeout_s=kafka.request_timeout_ms / 1000) as reader:
        bounds = {number: reader.bounds(number) for number in reader.partitions}
        starts = last_offsets(bounds, last)
        reader.start(starts)
        of = sum(bounds[number][1] - offset for number, offset in starts.items())
        for name, body in _fetched(settings, topic, reader.until({number: bounds[number][1] for number in starts})):
            yield name, body, of


def last_offsets(bounds: Mapping[int, tuple[int, int]], last: int) -> dict[int, int]:
    """By partition, the offset to begin at for `last` messages in all: evenly over the partitions, and what one does
    not have falls to the others. `bounds` are the first offset and the end of each."""
    starts: dict[int, int] = {}
    left = last
    # The emptiest first, so that what it lacks is shared among those after it.
    numbers = sorted(bounds, key=lambda number: bounds[number][1] - bounds[number][0])
    for place, number in enumerate(numbers):
        first, end = bounds[number]
        taken = min(end - first, -(-left // (len(numbers) - place)))
        left -= taken
        if taken:
            starts[number] = end - taken
    return starts


def _fetched(settings: "Settings", topic: str, records: "Iterable[Record]") -> Iterator[_Named]:
    """The images that these records ask for, several fetched at a time, in the records' order."""
    reader = _MessageReader(settings)
    most = settings.pipeline.fetch_concurrency
    under_way: deque[Future[list[_Named]]] = deque()
    with ThreadPoolExecutor(most, thread_name_prefix="fetch") as pool:
        for record in records:
            if record.value is None:
                continue  # a tombstone asks for nothing
            under_way.append(pool.submit(reader.images_of, _delivery(topic, record)))
            if len(under_way) >= most:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


def _delivery(topic: str, record: "Record") -> "Delivery":
    from consumer.messages import Delivery, Lease, Partition

    lease = Lease(Partition(topic, record.partition), epoch=1, topic_id="")
    return Delivery(lease, record.offset, record.value, key=record.key, headers=record.headers)


class _MessageReader:
    """From a message to the images that it asks for. Any thread."""

    def __init__(self, settings: "Settings") -> None:
        """Raises SettingsError where a store or the schema registry lacks something."""
        from consumer import bootstrap

        self._settings = settings
        self._schemas = bootstrap.build_records(settings)
        self._parser = bootstrap.build_parser(settings, self._schemas)
        self._stores = bootstrap.build_stores(settings)

    def images_of(self, delivery: "Delivery") -> list[_Named]:
        """Name, and bytes or what went wrong, of each. Raises nothing that a message or a store is at fault for."""
        from consumer.messages import ImageJob, Records, Rejected

        unnamed = f"{delivery.partition}@{delivery.offset}"
        try:
            parsed = self._tried(lambda: self._parsed(delivery))
        except (InvalidMessage, Retryable) as error:
            return [(unnamed, error)]
        found: list[_Named] = []
        for entry in parsed.entries if isinstance(parsed, Records) else (parsed,):
            if isinstance(entry, ImageJob):
                found.append((entry.image_id, self._body(entry)))
            elif isinstance(entry, Rejected):
                found.append((unnamed, entry.error))
        return found

    def _parsed(self, delivery: "Delivery") -> "Parsed":
        try:
            return self._parser(delivery)
        except SchemaNotLoaded as needed:
            if self._schemas is None:
                raise
            self._schemas.load(needed.schema)
            return self._parser(delivery)

    def _body(self, job: "ImageJob") -> bytes | Exception:
        from consumer.stages.fetch import verify

        most = self._settings.stores.max_image_bytes
        try:
            body = (job.data or b"") if job.uri is None else self._fetch(job.uri, most)
            verify(job, body, max_bytes=most)
        except (InvalidMessage, Retryable) as error:
            return error
        return body

    def _fetch(self, uri: str, most: int) -> bytes:
        from consumer.stages.fetch import choose_store

        store = choose_store(self._stores, uri)
        deadline_s = self._settings.stores.fetch_deadline_ms / 1000
        return self._tried(lambda: store.fetch(uri, max_bytes=most, deadline_s=deadline_s).body)

    def _tried(self, call: Callable[[], _Answer]) -> _Answer:
        """`call`, and again after a wait that grows while it may succeed later: `retry.max_attempts` times in all."""
        retry = self._settings.retry
        for number in range(retry.max_attempts - 1):
            try:
                return call()
            except Retryable as error:
                backoff_ms = min(retry.max_backoff_ms, retry.initial_backoff_ms * 2**number)
                time.sleep(max(backoff_ms / 1000, min(error.retry_after_s or 0.0, retry.max_backoff_ms / 1000)))
        return call()
