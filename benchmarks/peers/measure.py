"""One measurement of one of them: images/s, CPU of its processes, answers."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import OffsetSpec

from benchmarks import harness
from benchmarks.harness import MAX_MESSAGE_BYTES, PARTITIONS, ROOT, replica
from benchmarks.peers import environments
from benchmarks.peers.peers import PEERS, Peer
from benchmarks.peers.processes import Tree, busy_s
from benchmarks.peers.work import Pair, PeerError, Work, inline_message
from consumer.cpu import quota_cores
from tests.kafka_broker import KafkaBroker

WARM = 200
"""Images that each labels before it is measured."""
MLSERVER_HEADERS = {"mlserver-model": "labeler"}
_POLL_S = 0.05
_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Measured:
    """What one measurement found."""

    images: int
    wall_s: float
    cpu_s: float
    """Of the server's processes."""
    driver_cpu_s: float
    """Of whoever loaded it: the HTTP client; the broker for Kafka, whose topic was filled before."""
    resident_mib: float
    """At the end."""
    others_share: float
    """Share of the machine's cores that neither server nor driver used, but somebody else did."""
    errors: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    late_ms: float = 0.0

    @property
    def images_per_s(self) -> float:
        """Of those that were answered well."""
        return (self.images - sum(self.errors.values())) / self.wall_s

    @property
    def images_per_s_of_what_was_left(self) -> float:
        """As if the cores that others used had been there too, in proportion: on a machine that is not quiet."""
        return self.images_per_s / max(0.1, 1 - self.others_share)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of the server's processes an image."""
        return 1000 * self.cpu_s / self.images

    def as_json(self) -> dict[str, Any]:
        """Without the single latencies."""
        return {
            "images": self.images,
            "images_per_s": round(self.images_per_s, 1),
            "images_per_s_of_what_was_left": round(self.images_per_s_of_what_was_left, 1),
            "cpu_ms_an_image": round(self.cpu_ms, 3),
            "driver_cpu_ms_an_image": round(1000 * self.driver_cpu_s / self.images, 3),
            "resident_mib": round(self.resident_mib),
            "others_share": round(self.others_share, 3),
            "errors": self.errors,
        }


class Watch:
    """Takes the times around a measurement."""

    def __init__(self, tree: Tree, driver_cpu_s: Callable[[], float]) -> None:
        self._tree, self._driver = tree, driver_cpu_s
        self._busy, self._cpu, self._driver_cpu = busy_s(), tree.cpu_s(), driver_cpu_s()
        self._started_s = time.monotonic()

    def stop(self, images: int, *, wall_s: float | None = None) -> Measured:
        """What happened since it was made; `wall_s` where somebody else knows better."""
        own_s = time.monotonic() - self._started_s
        cpu, driver, busy = self._tree.cpu_s() - self._cpu, self._driver() - self._driver_cpu, busy_s() - self._busy
        return Measured(
            images=images,
            wall_s=own_s if wall_s is None else wall_s,
            cpu_s=cpu,
            driver_cpu_s=driver,
            resident_mib=self._tree.resident_mib(),
            others_share=max(0.0, (busy - cpu - driver) / (own_s * (os.cpu_count() or quota_cores()))),
        )


# --- HTTP -----------------------------------------------------------------------------------------------------------


def drive(command: Sequence[str], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run a driver as a process of its own; its answer. Raises PeerError."""
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        bodies = []
        for number, body in enumerate(plan["bodies"]):
            path = Path(folder) / str(number)
            path.write_bytes(body)
            bodies.append(str(path))
        written = Path(folder) / "plan.json"
        written.write_text(json.dumps({"timeout_s": _TIMEOUT_S, **plan, "bodies": bodies}))
        answer = subprocess.run([*command, str(written)], capture_output=True, text=True, cwd=ROOT, check=False)
    if answer.returncode:
        raise PeerError(f"the driver ended with {answer.returncode}:\n{answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def drive_http(peer: Peer, url: str, bodies: Sequence[bytes], **how: Any) -> dict[str, Any]:
    """Load an HTTP server with these JPEGs; `how` is the rest of `load.py`'s plan."""
    load = [str(environments.python_of("driver")), str(Path(__file__).resolve().parent / "load.py")]
    messages = [peer.body(body) for body in bodies]
    return drive(load, {"url": url, "content_type": peer.content_type, "bodies": messages, **how})


def drive_kafka(node: KafkaBroker, topics: Mapping[str, str], messages: Sequence[bytes], **how: Any) -> dict[str, Any]:
    """Load a topic in the open loop; `how` is the rest of `kafka_load.py`'s plan."""
    plan = {
        "servers": node.bootstrap_servers,
        "input": topics["input"],
        "output": topics["output"],
        "partitions": PARTITIONS,
        "bodies": messages,
        "headers": {},
        **how,
    }
    return drive([sys.executable, "-m", "benchmarks.peers.kafka_load"], plan)


def http_throughput(peer: Peer, work: Work, pair: Pair, chosen: Mapping[str, Any], images: int) -> Measured:
    """Closed loop, with three full batches of every process waiting."""
    with peer.running(work, pair, chosen) as server:
        concurrency = 3 * int(chosen["batch"]) * max(1, int(chosen["workers"]))
        drive_http(peer, server.url, work.small, count=WARM, concurrency=concurrency)
        watch = Watch(server.tree, lambda: 0.0)
        found = drive_http(peer, server.url, work.small, count=images, concurrency=concurrency)
        measured = watch.stop(images, wall_s=found["wall_s"])
        measured.driver_cpu_s, measured.errors = found["cpu_s"], found["errors"]
        measured.latencies_ms = found["latencies_ms"]
        return measured


# --- Kafka ----------------------------------------------------------------------------------------------------------


def new_topics(node: KafkaBroker) -> dict[str, str]:
    """Input, output and letters, made."""
    mark = uuid.uuid4().hex[:8]
    names = {part: f"{part}-{mark}" for part in ("input", "output", "letters")}
    for name in names.values():
        node.create_topic(name, partitions=PARTITIONS, config={"max.message.bytes": str(MAX_MESSAGE_BYTES)})
    return names


def drop_topics(node: KafkaBroker, topics: Mapping[str, str]) -> None:
    """What was measured takes no disk from what comes."""
    for name in topics.values():
        node.delete_topic(name)


def produced(node: KafkaBroker, topic: str) -> int:
    """Records that were ever written to a topic, by its end offsets."""
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): latest for number in range(PARTITIONS)}
    return sum(future.result(10).offset for future in node.admin().list_offsets(asked).values())


def wait_produced(node: KafkaBroker, topic: str, count: int, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Until so many were written. Raises PeerError."""
    deadline_s = time.monotonic() + timeout_s
    while (there := produced(node, topic)) < count:
        if time.monotonic() > deadline_s:
            raise PeerError(f"{there} of {count} answers came on {topic} in {timeout_s:g} s")
        time.sleep(_POLL_S)


def fill(
    node: KafkaBroker, topic: str, messages: Sequence[bytes], count: int, *, mark: str, headers: Mapping[str, str]
) -> None:
    """Put `count` messages on a topic, in turn on each partition, with `mark` before the number as the key."""
    try:
        harness.fill(node, topic, messages, count, mark=mark, headers=headers, in_turn=True)
    except RuntimeError as error:
        raise PeerError(str(error)) from error


def read_all(node: KafkaBroker, topic: str) -> dict[str, list[bytes]]:
    """The values of a topic, by key."""
    wanted = produced(node, topic)
    consumer = Consumer(
        {"bootstrap.servers": node.bootstrap_servers, "group.id": "reader", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found: dict[str, list[bytes]] = {}
    deadline_s = time.monotonic() + 60
    while wanted and time.monotonic() < deadline_s:
        for message in consumer.consume(500, timeout=0.2):
            if message.error() is None:
                key, value = message.key(), message.value()
                name = key.decode() if isinstance(key, bytes) else str(key)
                found.setdefault(name, []).append(value if isinstance(value, bytes) else b"")
                wanted -= 1
    consumer.close()
    return found


@dataclass(frozen=True, slots=True)
class Streaming:
    """A consumer that is ready, whoever's it is."""

    tree: Tree
    topics: Mapping[str, str]
    messages: Sequence[bytes]
    headers: Mapping[str, str]


def ouzel_messages(work: Work, form: str) -> list[bytes]:
    """`inline`: JSON with base64; `raw`: the JPEG itself as the value."""
    return [inline_message(body, f"image-{n}") if form == "inline" else body for n, body in enumerate(work.small)]


@contextmanager
def ouzel(
    node: KafkaBroker, work: Work, pair: Pair, *, form: str = "inline", more: Mapping[str, str] | None = None
) -> Iterator[Streaming]:
    """Ouzel as `python -m consumer run` with its default settings."""
    topics = new_topics(node)
    # Classic, whose session outlives the moment that it is stopped for.
    environment = {"OUZEL_KAFKA__GROUP_PROTOCOL": "classic", **work.ouzel_environment(pair), **(more or {})}
    with replica(node, topics, environment) as running:
        running.wait_ready()
        yield Streaming(Tree(running.process.pid), topics, ouzel_messages(work, form), {})
    drop_topics(node, topics)


@contextmanager
def mlserver_kafka(node: KafkaBroker, work: Work, pair: Pair, chosen: Mapping[str, Any]) -> Iterator[Streaming]:
    """MLServer in its Kafka mode, once it reads: it belongs to no group, and begins at the end of each partition."""
    peer = PEERS["mlserver-kafka"]
    topics = new_topics(node)
    kafka = {"servers": node.bootstrap_servers, "input": topics["input"], "output": topics["output"]}
    messages = [peer.body(body) for body in work.small]
    with peer.running(work, pair, chosen, kafka) as running:
        for attempt in range(60):  # until it has found its place in every partition
            fill(node, topics["input"], messages, PARTITIONS, mark=f"probe-{attempt}", headers=MLSERVER_HEADERS)
            time.sleep(0.5)
            if produced(node, topics["output"]) >= PARTITIONS and _all_answered(node, topics["output"], attempt):
                break
        else:
            raise PeerError("MLServer answered no message on Kafka")
        yield Streaming(running.tree, topics, messages, MLSERVER_HEADERS)
    drop_topics(node, topics)


def _all_answered(node: KafkaBroker, topic: str, attempt: int) -> bool:
    time.sleep(0.5)
    answered = read_all(node, topic)
    return all(f"probe-{attempt}-{number}" in answered for number in range(PARTITIONS))


def kafka_throughput(node: KafkaBroker, streaming: Streaming, images: int) -> Measured:
    """From the moment that it may read `images` messages, all of them there, until the last answer.

    It is stopped (SIGSTOP) while they are written: so no producer takes its cores, and who begins at the end of a topic
    reads them too.
    """
    topics = streaming.topics
    before = produced(node, topics["output"])
    fill(node, topics["input"], streaming.messages, WARM, mark="warm", headers=streaming.headers)
    wait_produced(node, topics["output"], before + WARM)
    streaming.tree.signal(signal.SIGSTOP)
    try:
        fill(node, topics["input"], streaming.messages, images, mark="image", headers=streaming.headers)
        own = time.process_time
        watch = Watch(streaming.tree, lambda: node.cpu_seconds() + own())
    finally:
        streaming.tree.signal(signal.SIGCONT)
    wait_produced(node, topics["output"], before + WARM + images)
    return watch.stop(images)


# --- the same labels ------------------------------------------------------------------------------------------------


First = tuple[int, float]
"""The class that an answer names first, and its score."""


def first_label(answer: bytes | str) -> First:
    """Of any of the answers, whatever its shape is. Raises PeerError."""
    text = answer.decode() if isinstance(answer, bytes) else answer
    found = re.search(r'"index\\*": ?(\d+).*?"score\\*": ?([\d.e-]+)', text)
    if found is None:
        raise PeerError(f"an answer without labels: {text[:300]}")
    return int(found[1]), float(found[2])


def kafka_firsts(node: KafkaBroker, streaming: Streaming) -> list[First]:
    """The first label of each image."""
    count = len(streaming.messages)
    before = produced(node, streaming.topics["output"])
    fill(node, streaming.topics["input"], streaming.messages, count, mark="check", headers=streaming.headers)
    wait_produced(node, streaming.topics["output"], before + count, timeout_s=60)
    answers = read_all(node, streaming.topics["output"])
    return [first_label(answers[f"check-{number}"][0]) for number in range(count)]


def http_firsts(peer: Peer, work: Work, pair: Pair) -> list[First]:
    """The first label of each image."""
    with peer.running(work, pair, peer.best(pair)) as server:
        found = drive_http(peer, server.url, work.small, count=len(work.small), concurrency=1)
    if found["errors"]:
        raise PeerError(f"{peer.title} answered {found['errors']}")
    return [first_label(answer) for answer in found["first"]]
