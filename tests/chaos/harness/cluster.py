"""A controller and three brokers of Apache Kafka, behind a fault proxy; each broker in namespaces of its own where the
platform has them."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException

from tests.chaos.harness.disk import SmallDisk
from tests.chaos.harness.namespaces import Network, Room, Seat, Wire
from tests.chaos.harness.plan import BROKER_SESSION_S, Platform
from tests.chaos.harness.proxy import LOOPBACK, FaultProxy
from tests.kafka_broker import BASE_PROPERTIES, Cluster, KafkaNode
from tests.processes import free_port, tail, wait_until

BROKERS = (1, 2, 3)
CONTROLLER = 100
_LAUNCHES = 3
INTERNAL_PARTITIONS = 10
"""Of the topics in which the coordinators keep their state."""

# Apache Kafka 4.4's own configuration names.
_PROPERTIES = {
    **{name: value for name, value in BASE_PROPERTIES.items() if name not in {"process.roles", "node.id"}},
    "listener.security.protocol.map": "INTERNAL:PLAINTEXT,CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "INTERNAL",
    "broker.session.timeout.ms": str(int(BROKER_SESSION_S * 1000)),
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

    Used as a `Cluster` it is reached directly, as the brokers reach each other: that is for who watches and who sends.
    `clients` is the same cluster as the replicas under test reach it, by way of `proxy`.

    Args:
        platform: with `namespaces` each broker has a network namespace, and `network` has seats for the replicas too;
            the controller, the proxy and the store stay on this machine's end of it. With `disk` each has a small disk.
            Without, all is on loopback.
    """

    def __init__(self, platform: Sequence[Platform] = ()) -> None:
        self.platform = tuple(platform)
        self.network = Network() if "namespaces" in platform else None
        self._rooms: dict[int, Room] = {}
        self._disks: dict[int, SmallDisk] = {}
        self.nodes: dict[int, KafkaNode] = {}
        try:
            self._make()
        except BaseException:
            self._leave()
            raise

    def _make(self) -> None:
        for number in BROKERS:
            self._make_node(number)
        peers = {number: (self._address(number, "peers"), free_port()) for number in BROKERS}
        upstream = {number: (self._address(number, "clients"), free_port()) for number in BROKERS}
        self._upstream = upstream
        self.proxy = FaultProxy({number: free_port() for number in BROKERS}, host=self.host("clients"))
        proxied = {number: (self.host("clients"), port) for number, port in self.proxy.ports.items()}
        self.clients = Cluster(_addresses(proxied))
        super().__init__(_addresses(peers))
        self.controller = KafkaNode(in_memory=True)
        controller = f"{self.host('peers')}:{free_port()}"
        quorum = {
            "controller.quorum.voters": f"{CONTROLLER}@{controller}",
            "controller.listener.names": "CONTROLLER",
        }
        self.controller.write_properties(
            _PROPERTIES
            | quorum
            | {
                "process.roles": "controller",
                "node.id": str(CONTROLLER),
                "listeners": f"CONTROLLER://{controller}",
            }
        )
        for number, node in self.nodes.items():
            internal = "INTERNAL://{}:{}".format(*peers[number])
            node.write_properties(
                _PROPERTIES
                | quorum
                | {
                    "process.roles": "broker",
                    "node.id": str(number),
                    "listeners": ",".join((internal, "CLIENT://{}:{}".format(*upstream[number]))),
                    "advertised.listeners": ",".join((internal, "CLIENT://{}:{}".format(*proxied[number]))),
                }
            )

    def _make_node(self, number: int) -> None:
        small_disk = "disk" in self.platform
        room: Room | None = None
        if self.network is not None:
            room = self.network.seat("peers", "clients", mounts=small_disk)
        elif small_disk:
            room = Room(network=False, mounts=True)
        if room is not None:
            self._rooms[number] = room
        node = self.nodes[number] = KafkaNode(enter=room.enter if room is not None else (), in_memory=True)
        if small_disk and room is not None:
            self._disks[number] = SmallDisk(room, node.disk)

    # --- where things are -------------------------------------------------------------------------------------------

    def host(self, wire: Wire) -> str:
        """The address at which this process is reached, by brokers and replicas."""
        return LOOPBACK if self.network is None else self.network.address(wire)

    def _address(self, number: int, wire: Wire) -> str:
        return LOOPBACK if self.network is None else self.seat(number).addresses[wire]

    def seat(self, number: int) -> Seat:
        """A broker's, where there are network namespaces."""
        room = self._rooms[number]
        assert isinstance(room, Seat)
        return room

    def disk(self, number: int) -> SmallDisk:
        """A broker's, where there are small disks."""
        return self._disks[number]

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 120) -> Self:
        """Format and start all of them, and wait until the three brokers answer. From the main thread."""
        nodes = [self.controller, *self.nodes.values()]
        with ThreadPoolExecutor(len(nodes)) as threads:
            list(threads.map(lambda node: node.format(timeout_s=timeout_s), nodes))
        for node in nodes:
            node.launch()
        ports = {number: port for number, (_, port) in self._upstream.items()}
        self.proxy.start(ports, {number: host for number, (host, _) in self._upstream.items()})
        self.wait_whole(timeout_s=timeout_s)
        return self

    def ensure_running(self, *, timeout_s: float = 120) -> None:
        """Undo whatever was done to them, and wait until all are whole again."""
        self.proxy.clear()
        if self.network is not None:
            self.network.plug_all()
        for disk in self._disks.values():
            disk.clear()
        for node in (self.controller, *self.nodes.values()):
            node.resume()
        self.wait_whole(timeout_s=timeout_s, launches=_LAUNCHES)

    def wait_whole(self, topics: Iterable[str] = (), *, timeout_s: float = 120, launches: int = 0) -> None:
        """Until three brokers answer and every partition of the topics, and of Kafka's own, has them all in sync. One
        that is not there is launched so many times: a broker whose controller goes away while it starts ends."""
        wanted = set(topics)
        left = dict.fromkeys((CONTROLLER, *self.nodes), launches)

        def whole() -> bool:
            for number, node in ((CONTROLLER, self.controller), *self.nodes.items()):
                if not node.running:
                    if not left[number]:
                        raise RuntimeError(f"node {number} of Apache Kafka ended:\n{tail(node.log_path)}")
                    left[number] -= 1
                    node.launch()
                    return False
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
        self.controller.close()
        self._leave()

    def _leave(self) -> None:
        for node in self.nodes.values():
            node.close()
        for room in self._rooms.values():
            room.close()
        if self.network is not None:
            self.network.close()

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


def _addresses(places: Mapping[int, tuple[str, int]]) -> str:
    return ",".join(f"{host}:{port}" for host, port in places.values())
