"""The demo's own end of Kafka: sends photographs, and reads what comes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from consumer.errors import BrokerUnreachable
from consumer.headers import CONTENT_TYPE, IMAGE_ID

_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the output or dead-letter topic."""

    topic: str
    value: bytes = field(repr=False)
    headers: dict[str, bytes]


def _as_dict(pairs: Any) -> dict[str, bytes]:
    """confluent-kafka types a message's headers as it types those to send; what it hands over are pairs."""
    return {name: value or b"" for name, value in pairs or ()}


class DemoClient:
    """A producer, and a reader of whole topics from their beginning that joins no group."""

    def __init__(self, bootstrap_servers: str, *, read_topics: Sequence[str]) -> None:
        """Connect, and begin reading.

        Raises:
            BrokerUnreachable: no broker answers.
        """
        client = {"bootstrap.servers": bootstrap_servers, "client.id": "ouzel-demo", "log_level": 2}
        self._producer = Producer({**client, "message.max.bytes": 2_000_000})
        # fetch.wait.max.ms: the mock keeps a fetch that finds nothing waiting, whatever comes meanwhile.
        self._reader = Consumer(
            {**client, "group.id": "ouzel-demo-reader", "enable.auto.commit": False, "fetch.wait.max.ms": 20}
        )
        try:
            self._reader.assign(
                [
                    TopicPartition(name, number, OFFSET_BEGINNING)
                    for name in read_topics
                    for number in self._reader.list_topics(name, timeout=_ANSWER_S).topics[name].partitions
                ]
            )
        except KafkaException as error:
            raise BrokerUnreachable(f"no broker answers at {bootstrap_servers}: {error}") from error

    def send(
        self, topic: str, image_id: str, value: bytes, *, content_type: str, on_failure: Callable[[str], None]
    ) -> None:
        """Hand over one message, with the image's id as key and header, and its content type where one is given.

        `on_failure` runs inside a later `poll`, with the reason.
        """

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                on_failure(str(error))

        headers: dict[str, str | bytes | None] = {IMAGE_ID: image_id.encode()}
        if content_type:
            headers[CONTENT_TYPE] = content_type.encode()
        self._producer.produce(topic, value=value, key=image_id.encode(), headers=headers, on_delivery=delivered)

    def poll(self, timeout_s: float) -> Answer | None:
        """The next record, or None after `timeout_s`."""
        self._producer.poll(0)
        message = self._reader.poll(timeout_s)
        if message is None or message.error() is not None:
            return None
        return Answer(
            topic=message.topic() or "",
            value=message.value() or b"",
            headers=_as_dict(message.headers()),
        )

    def close(self) -> None:
        """Let go of both. What was not sent by now is dropped: the demo is over."""
        self._producer.purge()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
