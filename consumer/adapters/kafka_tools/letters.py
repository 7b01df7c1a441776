"""A dead letter, read: what went wrong with it, where it came from, and what goes back when it is replayed."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import orjson

from consumer import headers as names
from consumer.adapters.kafka_tools.reading import Record
from consumer.messages import Headers

_POSITION = re.compile(r"(\d+):(\d+)")


def parse_position(text: str) -> tuple[int, int] | None:
    """(partition, offset) of `partition:offset`; None if it is not one."""
    match = _POSITION.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of the dead-letter topic."""

    record: Record

    @property
    def position(self) -> str:
        """`partition:offset` in the dead-letter topic: its name in the commands."""
        return f"{self.record.partition}:{self.record.offset}"

    def header(self, name: str) -> str | None:
        """The last header of this name as text; None where there is none."""
        found = None
        for key, value in self.record.headers:
            if key == name:
                found = (value or b"").decode("utf-8", "replace")
        return found

    @property
    def error_class(self) -> str:
        """The class in `consumer.errors`, e.g. `NotAnImage`; `unknown` for a letter that is not ours."""
        return self.header(names.ERROR_EXCEPTION_CLASS) or "unknown"

    @property
    def origin_topic(self) -> str | None:
        """Where its image was first sent."""
        return self.header(names.ORIGIN_TOPIC) or self.header(names.ERROR_TOPIC)

    @property
    def replay_count(self) -> int:
        """How often it was sent back already."""
        text = self.header(names.REPLAY_COUNT) or ""
        return int(text) if text.isdecimal() else 0

    @property
    def value_withheld(self) -> bool:
        """Whether it was too large to carry its value: there is nothing to send back."""
        return self.record.value is None and self.header(names.ORIGINAL_SIZE_BYTES) is not None

    def image_ids(self) -> frozenset[str]:
        """What its image may be called: its `image-id` header, its key, and the id in its JSON."""
        found = {self.header(names.IMAGE_ID), _text(self.record.key), _json_image_id(self.record.value)}
        return frozenset(name for name in found if name)

    def marker_key(self, topic_id: str) -> bytes:
        """Its name in the marker topic; `topic_id` is the dead-letter topic's."""
        return f"{topic_id}:{self.position}".encode()

    def refusal(self, input_topics: Collection[str], *, max_replays: int, force: bool) -> str | None:
        """Why it is not to be sent back; None if it may."""
        if self.value_withheld:
            size = self.header(names.ORIGINAL_SIZE_BYTES)
            return f"too large to have kept its value ({size} bytes): send the image again from its source"
        if self.origin_topic is None:
            return "it does not say which topic it came from"
        # The header was written by whoever sent the message: it must not open other topics.
        if self.origin_topic not in input_topics:
            return f"its topic {self.origin_topic} is not one of kafka.input_topics"
        if self.replay_count >= max_replays and not force:
            return f"replayed {self.replay_count} times already: --force sends it back all the same"
        return None

    def original_headers(self) -> Headers:
        """The headers to send back: the sender's and its origin, without the errors, one more replay counted."""
        kept = tuple((name, value) for name, value in self.record.headers if not _taken_off(name))
        return (*kept, (names.REPLAY_COUNT, str(self.replay_count + 1).encode()))


def _taken_off(name: str) -> bool:
    return name.startswith(names.OURS) and not name.startswith("ouzel-origin-")


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "replace")


def _json_image_id(value: bytes | None) -> str | None:
    """`image_id` of an image reference, or of the CloudEvent around one; None for anything else."""
    if value is None or value.lstrip()[:1] != b"{":
        return None
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    inner = found.get("data") if isinstance(found.get("data"), dict) else found
    image_id = inner.get("image_id")
    return image_id if isinstance(image_id, str) else None
