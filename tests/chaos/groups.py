"""Groups that miss a silent member soon, and questions about what they committed and answered twice."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.messages import Partition
from tests.conftest import Topics
from tests.history import load
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import PROTOCOLS, Protocol
from tests.replica import Replica

SESSION_MS = 3_000
"""The shortest session that our own broker allows."""

Answer = tuple[int, int]
"""Partition and offset of an input."""


def on_both_protocols(scenario: Callable[[Protocol], None]) -> None:
    """Runs a scenario in two groups side by side, one of each protocol: most of it is waiting.

    Raises:
        ExceptionGroup: what went wrong, with a note that names the protocol.
    """
    errors: list[Exception] = []

    def run(protocol: Protocol) -> None:
        try:
            scenario(protocol)
        except Exception as error:
            error.add_note(f"(group protocol: {protocol})")
            errors.append(error)

    with ThreadPoolExecutor(len(PROTOCOLS), thread_name_prefix="scenario") as threads:
        list(threads.map(run, PROTOCOLS))
    if errors:
        raise ExceptionGroup("a scenario failed", errors)


def membership(cluster: Cluster, topics: Topics, protocol: Protocol, *, session_ms: int = SESSION_MS) -> dict[str, str]:
    """Settings of a replica in a group of this protocol whose members are missed after `session_ms`.

    Of a cluster that is not ours the session is what its brokers allow.
    """
    settings: dict[str, str] = {"OUZEL_KAFKA__GROUP_PROTOCOL": protocol}
    if not isinstance(cluster, KafkaBroker):
        return settings
    if protocol == "classic":
        return settings | {"OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS": str(session_ms)}
    # Under KIP-848 the session is the group's own configuration at the broker.
    wanted = ConfigEntry("consumer.session.timeout.ms", str(session_ms), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.GROUP, topics.group, incremental_configs=[wanted])
    cluster.admin().incremental_alter_configs([resource])[resource].result(10)
    return settings


def committed(cluster: Cluster, topics: Topics) -> dict[int, int]:
    """The group's committed offset of every partition; 0 where there is none."""
    asked = [Partition(topics.images, number) for number in range(topics.partitions)]
    offsets = CommittedOffsets(cluster.client_properties(isolation_level="read_committed"), topics.group)
    try:
        found = offsets.read(asked, 10)
    finally:
        offsets.close()
    return {each.number: found[each].offset if each in found else 0 for each in asked}


def label_events(history_path: Path) -> Counter[Answer]:
    """How many label events each input has in a history."""
    return Counter(
        (line["source_partition"], line["source_offset"])
        for line in load(history_path)
        if line["kind"] == "output" and line["form"] == "event"
    )


def answered_twice(history_path: Path) -> set[Answer]:
    """The inputs that have more than one label event."""
    return {answer for answer, times in label_events(history_path).items() if times > 1}


def owned(replica: Replica) -> int:
    """How many partitions a running replica reports the lag of: those that are its own."""
    return len(replica.samples("ouzel_consumer_lag"))


@contextmanager
def staying_alive(replica: Replica) -> Iterator[None]:
    """/livez is asked all the while from a thread, and never answers anything but 200."""
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.25):
            answers.append(replica.probe("livez")[0])

    thread = threading.Thread(target=ask, name="livez", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)
    assert answers, "nobody asked"
    assert set(answers) == {200}
