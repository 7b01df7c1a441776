"""What the demo learns of each image, and how it reads the topics for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from consumer import headers


@dataclass(frozen=True, slots=True)
class Result:
    """One image's answer: a label event, or a dead letter's reason."""

    image_id: str
    latency_ms: float
    """From handing the image to Kafka to reading its answer, in milliseconds."""
    event: Mapping[str, Any] | None = None
    reason: str = ""
    """Why there is no event: the error's class and message."""

    @property
    def labels(self) -> Sequence[Mapping[str, Any]]:
        """The event's labels, best first; none for a dead letter."""
        return self.event["labels"] if self.event else ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is said of the run as a whole."""

    ready_s: float
    """From starting the service to its being ready, in seconds: mostly the model."""
    labelling_s: float
    """From the first image sent to the last answer read, in seconds."""


def from_event(value: bytes, *, sent_s: Mapping[str, float], now_s: float) -> Result | None:
    """The result a label event brings; None where it answers nothing that was sent."""
    event = orjson.loads(value)
    image_id = event.get("image_id")
    if image_id not in sent_s:
        return None
    return Result(image_id, (now_s - sent_s[image_id]) * 1000, event=event)


def from_letter(letter_headers: Mapping[str, bytes], *, sent_s: Mapping[str, float], now_s: float) -> Result | None:
    """The result a dead letter brings, read from its headers; None where it answers nothing that was sent."""

    def text(name: str) -> str:
        return letter_headers.get(name, b"").decode(errors="replace")

    image_id = text(headers.IMAGE_ID)
    if image_id not in sent_s:
        return None
    reason = f"{text(headers.ERROR_EXCEPTION_CLASS) or 'dead letter'}: {text(headers.ERROR_EXCEPTION_MESSAGE)}"
    return Result(image_id, (now_s - sent_s[image_id]) * 1000, reason=reason)
