"""A stand-in for `ouzel run`: the same environment, topics and health address, and labels made up from the bytes.

A file name says what happens: `refused` gets a dead letter, `silent` gets nothing, `crash` ends the process.
"""

import hashlib
import http.server
import json
import signal
import sys
import threading

from confluent_kafka import Consumer, Producer

from consumer import headers
from consumer.settings import load


class _Health(http.server.BaseHTTPRequestHandler):
    ready = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200 if self.ready.is_set() else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _event(image_id: str, body: bytes) -> bytes:
    scores = [("tabby, tabby cat", 281, 0.9), ("Egyptian cat", 285, 0.06)]
    event = {
        "event_id": hashlib.sha256(body).hexdigest(),
        "image_id": image_id,
        "uri": None,
        "labels": [{"index": index, "label": name, "score": score} for name, index, score in scores],
        "model": {
            "name": "fake",
            "version": "1",
            "digest": "sha256:" + "0" * 64,
            "runtime": "null",
            "precision": "f32",
        },
        "timings_ms": {"fetch": 0.1, "decode": 3.0, "queue": 2.0, "infer": 9.0},
        "metadata": {},
    }
    return json.dumps(event).encode()


def main() -> None:
    """Answer what comes until SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    settings = load()
    kafka = settings.kafka
    client = {"bootstrap.servers": kafka.bootstrap_servers}
    producer = Producer({**client, "message.max.bytes": kafka.max_message_bytes})
    group = {"group.id": kafka.group_id, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20}
    # A classic group's first join takes the mock broker 3 s.
    consumer = Consumer({**client, **group, "group.protocol": "consumer"})
    consumer.subscribe(kafka.input_topics, on_assign=lambda *_: _Health.ready.set())
    health = http.server.ThreadingHTTPServer((settings.health.host, settings.health.port), _Health)
    threading.Thread(target=health.serve_forever, daemon=True).start()
    sys.stderr.write(json.dumps({"message": "the model is warm"}) + "\n")
    while not stopped.is_set():
        message = consumer.poll(0.1)
        if message is None or message.error():
            continue
        image_id = (message.key() or b"").decode()
        if "crash" in image_id:
            sys.exit("the seeded crash")
        if "silent" in image_id:
            continue
        if "refused" in image_id:
            why: dict[str, str | bytes | None] = {
                headers.IMAGE_ID: image_id,
                headers.ERROR_EXCEPTION_CLASS: "NotAnImage",
                headers.ERROR_EXCEPTION_MESSAGE: "cut short",
            }
            producer.produce(kafka.dead_letter_topic, message.value(), key=message.key(), headers=why)
        else:
            producer.produce(kafka.output_topic, _event(image_id, message.value() or b""), key=message.key())
        producer.poll(0)
    producer.flush(5)
    consumer.close()


if __name__ == "__main__":
    main()
