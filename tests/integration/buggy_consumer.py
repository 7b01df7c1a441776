"""A consumer with a bug, to show that the verifier sees it on a real broker. Run by test_checker_catches_bugs.

    python -m tests.integration.buggy_consumer '{"bug": "...", "client": {...}, "group": ..., "images": ..., ...}'

Bugs: `commit-before-publish`; `commit-highest` (of images that finish out of order, the highest finished offset is
committed); `none` does it right.
"""

import json
import random
import sys
import time
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition


def event(message: Message) -> bytes:
    source = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
    identity = f"{source}"
    model = {"digest": "sha256:none"}
    image_id = json.loads(message.value() or b"{}")["image_id"]
    return json.dumps(
        {"event_id": identity, "image_id": image_id, "source": source, "model": model, "labels": []}
    ).encode()


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    bug = options["bug"]
    consumer = Consumer(
        options["client"]
        | {"group.id": options["group"], "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        | {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
    )
    producer = Producer(options["client"])
    consumer.subscribe([options["images"]])
    dice = random.Random(1)
    waiting: list[Message] = []
    finished: dict[int, set[int]] = {}
    begins: dict[int, int] = {}

    def commit(partition: int, offset: int) -> None:
        consumer.commit(offsets=[TopicPartition(options["images"], partition, offset)], asynchronous=False)

    while True:
        message = consumer.poll(0.05)
        if message is not None and message.error() is None:
            partition, offset = message.partition() or 0, message.offset() or 0
            waiting.append(message)
            begins.setdefault(partition, offset)
            if bug == "commit-before-publish":
                commit(partition, offset + 1)
        if len(waiting) < 8 and message is not None:
            continue
        dice.shuffle(waiting)  # images finish out of order
        for image in waiting[:4]:
            partition, offset = image.partition() or 0, image.offset() or 0
            time.sleep(0.005)
            producer.produce(options["predictions"], event(image), key=image.key())
            producer.flush(10)
            finished.setdefault(partition, set()).add(offset)
            if bug == "commit-highest":
                commit(partition, max(finished[partition]) + 1)
            elif bug == "none":
                while begins[partition] in finished[partition]:
                    begins[partition] += 1
                commit(partition, begins[partition])
        del waiting[:4]


if __name__ == "__main__":
    main()
