"""A real broker and a real replica to measure: `python -m consumer run` in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.kafka_broker import KafkaBroker
from tests.processes import free_port

ROOT = Path(__file__).resolve().parent.parent
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PARTITIONS = 4
_ANY_PARTITION = -1
"""librdkafka's RD_KAFKA_PARTITION_UA: it chooses."""


@dataclass(frozen=True, slots=True)
class BirdModel:
    """The bird model that lies beside the project, where it does."""

    folder: Path

    @classmethod
    def find(cls) -> "BirdModel | None":
        """None where it is absent."""
        folder = Path(os.environ.get("OUZEL_TEST_BIRD", ROOT.parent / "shared" / "bird"))
        return cls(folder) if (folder / "model").is_dir() else None

    @property
    def photographs(self) -> list[Path]:
        """Five JPEGs."""
        return sorted((self.folder / "images").glob("*.jpg"))

    @property
    def environment(self) -> dict[str, str]:
        """The settings that run it."""
        return {
            "OUZEL_MODEL__SOURCE": str(self.folder / "model"),
            "OUZEL_MODEL__LABELS": str(self.folder / "labelmap.csv"),
            "OUZEL_MODEL__NAME": "birds",
        }


class Replica:
    """A running replica."""

    def __init__(self, process: subprocess.Popen[bytes], health: str) -> None:
        self.process = process
        self.health = health
        """Where /metrics is: host and port."""
        self._psutil = psutil.Process(process.pid)

    def wait_ready(self, timeout_s: float = 120, step_s: float = 0.05) -> None:
        """Until /readyz says so; asked every `step_s`."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the replica ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://{self.health}/readyz", timeout=1):
                    return
            except OSError:
                time.sleep(step_s)
        raise RuntimeError("the replica is not ready")

    def resident_bytes(self) -> int:
        """Memory that it holds now."""
        return int(self._psutil.memory_info().rss)

    def cpu_seconds(self) -> float:
        """CPU that it has used."""
        times = self._psutil.cpu_times()
        return float(times.user + times.system)


@contextmanager
def broker(topics: Sequence[str]) -> Iterator[KafkaBroker]:
    """A single real node with these topics."""
    with KafkaBroker() as node:
        for topic in topics:
            node.create_topic(topic, partitions=PARTITIONS, config={"max.message.bytes": str(MAX_MESSAGE_BYTES)})
        yield node


@contextmanager
def replica(
    node: KafkaBroker, topics: Mapping[str, str], environment: Mapping[str, str], *, entry: str = "consumer"
) -> Iterator[Replica]:
    """A replica of the service; `topics` by `input`, `output`, `letters`."""
    health = f"127.0.0.1:{free_port()}"
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")},
        "OUZEL_KAFKA__BOOTSTRAP_SERVERS": node.bootstrap_servers,
        "OUZEL_KAFKA__GROUP_ID": f"bench-{topics['input']}",
        "OUZEL_KAFKA__GROUP_PROTOCOL": "consumer",
        "OUZEL_KAFKA__INPUT_TOPICS": json.dumps([topics["input"]]),
        "OUZEL_KAFKA__OUTPUT_TOPIC": topics["output"],
        "OUZEL_KAFKA__DEAD_LETTER_TOPIC": topics["letters"],
        "OUZEL_HEALTH__PORT": health.rsplit(":", 1)[1],
        "OUZEL_LOG__LEVEL": "WARNING",
        **environment,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", entry, "run"], cwd=ROOT, env=settings, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Replica(process, health)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def fill(
    node: KafkaBroker,
    topic: str,
    values: Sequence[bytes],
    count: int,
    *,
    mark: str = "image",
    headers: Mapping[str, str] | None = None,
    in_turn: bool = False,
) -> None:
    """Put `count` messages on a topic, the values in turn, with `mark` and the number as the key; `in_turn`: on each
    partition in turn, whatever the key. Raises RuntimeError where they are not all there."""
    sent: dict[str, str | bytes | None] = dict(headers or {})
    producer = Producer({"bootstrap.servers": node.bootstrap_servers, "linger.ms": 5, "message.max.bytes": 2**24})
    for number in range(count):
        while True:
            try:
                producer.produce(
                    topic,
                    value=values[number % len(values)],
                    key=f"{mark}-{number}".encode(),
                    headers=sent,
                    partition=number % PARTITIONS if in_turn else _ANY_PARTITION,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError(f"{topic} was not filled")


class Follower:
    """Counts the records of a topic, from its beginning, without a group."""

    def __init__(self, node: KafkaBroker, topic: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": node.bootstrap_servers, "group.id": "follower", "enable.auto.commit": False}
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self.seen = 0

    def until(self, count: int, timeout_s: float = 600) -> float:
        """Monotonic second at which the `count`-th record came."""
        deadline_s = time.monotonic() + timeout_s
        while self.seen < count:
            first = self._consumer.poll(0.05)
            # `consume` comes back when it has so many or its time is over: with a time it would wait for more.
            for message in [first, *self._consumer.consume(500, timeout=0)] if first is not None else []:
                self.seen += message.error() is None
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.seen} of {count} records came")
        return time.monotonic()

    def close(self) -> None:
        """Let go."""
        self._consumer.close()
