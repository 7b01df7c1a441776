"""A controller and three brokers of Apache Kafka, behind a fault proxy."""

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException

from tests.chaos.harness.proxy import FaultProxy
from tests.kafka_broker import BASE_PROPERTIES, Cluster, KafkaNode
from tests.processes import free_port, tail, wait_until

BROKERS = (1, 2, 3)
CONTROLLER = 100
INTERNAL_PARTITIONS = 10
"""Of the topics in which the coordinators keep their state."""

# Apache Kafka 4.4's own configuration names.
_PROPERTIES = {
    **{name: value for name, value in BASE_PROPERTIES.items() if name not in {"process.roles", "node.id"}},
    "listener.security.protocol.map": "INTERNAL:PLAINTEXT,CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "INTERNAL",
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "offsets.topic.num.partitions": str(INTERNAL_PARTITIONS),
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "transaction.state.log.num.partitions": str(INTERNAL_PARTITIONS),
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "share.coordinator.state.topic.num.partitions": "3",
    "replica.lag.time.max.ms": "5000",
    "replica.fetch.wait.max.ms": "200",
    "controlled.shutdown.enable": "true",
    "auto.leader.rebalance.enable": "true",
    "leader.imbalance.check.interval.seconds": "5",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "2000000",
}


class Brokers(Cluster):
    """Replication 3, min ISR 2, for topics and for the coordinators' own.

    Used as a `Cluster` it is reached directly: that is for who watches. `clients` is the same cluster as the replicas
    under test reach it, by way of `proxy`.
    """

    def __init__(self) -> None:
        self._ports = {number: free_port() for number in BROKERS}
        self.proxy = FaultProxy({number: free_port() for number in BROKERS})
        self.clients = Cluster(_addresses(self.proxy.ports))
        super().__init__(_addresses(self._ports))
        self.nodes = {number: KafkaNode() for number in BROKERS}
        self.controller = KafkaNode()
        controller_port = free_port()
        quorum = {
            "controller.quorum.voters": f"{CONTROLLER}@127.0.0.1:{controller_port}",
            "controller.listener.names": "CONTROLLER",
        }
        self.controller.write_properties(
            _PROPERTIES
            | quorum
            | {
                "process.roles": "controller",
                "node.id": str(CONTROLLER),
                "listeners": f"CONTROLLER://127.0.0.1:{controller_port}",
            }
        )
        upstream = {}
        for number, node in self.nodes.items():
            internal = f"INTERNAL://127.0.0.1:{self._ports[number]}"
            upstream[number] = free_port()
            node.write_properties(
                _PROPERTIES
                | quorum
                | {
                    "process.roles": "broker",
                    "node.id": str(number),
                    "listeners": f"{internal},CLIENT://127.0.0.1:{upstream[number]}",
                    "advertised.listeners": f"{internal},CLIENT://127.0.0.1:{self.proxy.ports[number]}",
                }
            )
        self._upstream = upstream

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 120) -> Self:
        """Format and start all of them, and wait until the three brokers answer. From the main thread."""
        nodes = [self.controller, *self.nodes.values()]
        with ThreadPoolExecutor(len(nodes)) as threads:
            list(threads.map(lambda node: node.format(timeout_s=timeout_s), nodes))
        for node in nodes:
            node.launch()
        self.proxy.start(self._upstream)
        self.wait_whole(timeout_s=timeout_s)
        return self

    def ensure_running(self, *, timeout_s: float = 120) -> None:
        """Undo whatever was done to them, and wait until all are whole again."""
        self.proxy.clear()
        for node in (self.controller, *self.nodes.values()):
            node.resume()
            if not node.running:
                node.launch()
        self.wait_whole(timeout_s=timeout_s)

    def wait_whole(self, topics: Iterable[str] = (), *, timeout_s: float = 120) -> None:
        """Until three brokers answer and every partition of the topics, and of Kafka's own, has them all in sync."""
        wanted = set(topics)

        def whole() -> bool:
            for number, node in ((CONTROLLER, self.controller), *self.nodes.items()):
                if not node.running:
                    raise RuntimeError(f"node {number} of Apache Kafka ended:\n{tail(node.log_path)}")
            with contextlib.suppress(KafkaException):
                found = self.admin().list_topics(timeout=5)
                return len(found.brokers) == len(BROKERS) and all(
                    partition.leader > 0 and len(partition.isrs) == len(BROKERS)
                    for name, topic in found.topics.items()
                    if name in wanted or name.startswith("__")
                    for partition in topic.partitions.values()
                )
            return False

        wait_until(whole, timeout_s=timeout_s, what="three brokers in sync", interval_s=0.2)

    def close(self) -> None:
        """Kill all of them and remove their data."""
        self.proxy.close()
        for node in (self.controller, *self.nodes.values()):
            node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- who leads what ---------------------------------------------------------------------------------------------

    def coordinator(self, name: str, topic: str = "__consumer_offsets", *, timeout_s: float = 5) -> int | None:
        """The broker that keeps the state of a group (or, of `__transaction_state`, of a transactional.id): the leader
        of its partition there. None where that cannot be said now."""
        with contextlib.suppress(KafkaException):
            found = self.admin().list_topics(topic, timeout=timeout_s).topics[topic].partitions
            if found:
                leader = found[coordinator_partition(name, len(found))].leader
                return leader if leader in self.nodes else None
        return None


def coordinator_partition(name: str, partitions: int) -> int:
    """Kafka's `GroupMetadataManager.partitionFor`: the absolute value of Java's `String.hashCode`, modulo."""
    code = 0
    raw = name.encode("utf-16-be")
    for at in range(0, len(raw), 2):
        code = (31 * code + int.from_bytes(raw[at : at + 2], "big")) & 0xFFFFFFFF
    signed = code - (1 << 32) if code >= 1 << 31 else code
    return (0 if signed == -(1 << 31) else abs(signed)) % partitions


def _addresses(ports: Mapping[int, int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports.values())
