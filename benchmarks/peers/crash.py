"""What is lost when a consumer is killed, and what becomes of messages that cannot be labelled."""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer

from benchmarks.harness import PARTITIONS, replica
from benchmarks.peers.measure import (
    MLSERVER_HEADERS,
    drop_topics,
    fill,
    new_topics,
    ouzel_messages,
    produced,
    read_all,
    wait_produced,
)
from benchmarks.peers.peers import PEERS
from benchmarks.peers.processes import Tree
from benchmarks.peers.work import Pair, PeerError, Work, inline_message
from tests.kafka_broker import KafkaBroker

_QUIET_S = 5.0
"""So long without a new answer, and no more are coming."""


@contextmanager
def _consumer(node: KafkaBroker, work: Work, pair: Pair, name: str, topics: Mapping[str, str]) -> Iterator[Tree]:
    if name == "ouzel":
        # A static member, so that a killed one is not waited for.
        static = {"OUZEL_KAFKA__GROUP_INSTANCE_ID": "one", "OUZEL_KAFKA__GROUP_PROTOCOL": "classic"}
        with replica(node, topics, {**work.ouzel_environment(pair), **static}) as running:
            running.wait_ready()
            yield Tree(running.process.pid)
        return
    peer = PEERS[name]
    kafka = {"servers": node.bootstrap_servers, "input": topics["input"], "output": topics["output"]}
    with peer.running(work, pair, peer.best(pair), kafka) as running:
        yield running.tree


def crashed(node: KafkaBroker, work: Work, pair: Pair, name: str, images: int) -> dict[str, Any]:
    """Kill it with a third answered, start it anew, and count."""
    topics = new_topics(node)
    peer = PEERS["mlserver-kafka"]
    messages = ouzel_messages(work, "inline") if name == "ouzel" else [peer.body(body) for body in work.small]
    headers = {} if name == "ouzel" else MLSERVER_HEADERS
    with contextlib.suppress(PeerError), _consumer(node, work, pair, name, topics) as tree:
        _until_it_reads(node, topics, messages, headers)
        before = produced(node, topics["output"])
        tree.signal(signal.SIGSTOP)
        fill(node, topics["input"], messages, images, mark="image", headers=headers)
        tree.signal(signal.SIGCONT)
        wait_produced(node, topics["output"], before + images // 3)
        tree.signal(signal.SIGKILL)
    at_the_kill = _images(node, topics["output"])
    with _consumer(node, work, pair, name, topics) as tree:
        _until_quiet(node, topics["output"])
        after = _images(node, topics["output"])
        bad = _bad(node, work, topics, name)
    drop_topics(node, topics)
    wanted = {f"image-{number}" for number in range(images)}
    return {
        "answered_at_the_kill": len(at_the_kill),
        "lost": len(wanted - after.keys()),
        "repeated": sum(count - 1 for count in after.values()),
        "bad": bad,
    }


def _images(node: KafkaBroker, topic: str) -> dict[str, int]:
    return {key: len(values) for key, values in read_all(node, topic).items() if key.startswith("image-")}


def _until_it_reads(
    node: KafkaBroker, topics: Mapping[str, str], messages: Sequence[bytes], headers: Mapping[str, str]
) -> None:
    """Messages until one of each partition in a turn is answered: one of the two begins at the end of the topic."""
    for attempt in range(60):
        fill(node, topics["input"], messages, PARTITIONS, mark=f"probe-{attempt}", headers=headers)
        time.sleep(1)
        if all(f"probe-{attempt}-{number}" in read_all(node, topics["output"]) for number in range(PARTITIONS)):
            return
    raise PeerError("it answers nothing")


def _until_quiet(node: KafkaBroker, topic: str) -> None:
    seen, since_s = produced(node, topic), time.monotonic()
    while time.monotonic() - since_s < _QUIET_S:
        time.sleep(0.2)
        now = produced(node, topic)
        if now != seen:
            seen, since_s = now, time.monotonic()


def _bad(node: KafkaBroker, work: Work, topics: Mapping[str, str], name: str) -> dict[str, int]:
    """Four messages that cannot be labelled, then a good one: is it still answered?"""
    no_image = b"these bytes are no image"
    shaped = inline_message(no_image, "bad") if name == "ouzel" else PEERS["mlserver-kafka"].body(no_image)
    values: list[bytes | None] = [b"{ no json", b'{"another": "shape"}', shaped, None]
    letters, answers = produced(node, topics["letters"]), produced(node, topics["output"])
    producer = Producer(node.client_properties())
    headers: dict[str, str | bytes | None] = dict(MLSERVER_HEADERS if name != "ouzel" else {})
    for number, value in enumerate(values):
        producer.produce(topics["input"], value=value, key=f"bad-{number}".encode(), headers=headers)
    producer.flush(30)
    _until_quiet(node, topics["output"])
    del work
    return {
        "sent": len(values),
        "letters": produced(node, topics["letters"]) - letters,
        "answers": produced(node, topics["output"]) - answers,
    }
