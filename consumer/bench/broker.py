"""The broker of a run (given, a real Apache Kafka started for it, or as a last resort the embedded one), its topics."""

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from consumer import share_group
from consumer.adapters.bench_clients import Record, Topics, fill
from consumer.adapters.kafka_admin import KafkaAdmin, TopicPlan
from consumer.bench.kafka_jars import KAFKA_VERSION, RESOURCES, fetch_jars, find_java
from consumer.demo.processes import Child
from consumer.demo.service import free_port
from consumer.errors import BrokerUnreachable
from consumer.kafka_properties import HEADROOM_BYTES, client_properties
from consumer.settings import KafkaSettings, Settings

Kind = Literal["given", "kafka", "embedded"]
EMBEDDED_BYTES = 8_000_000
"""What the embedded broker is given at most: it keeps about 5 MiB a partition, and drops what is over that."""
_START_S = 90.0
_TOLD_EVERY = 100
_DELETE_S = 30.0
_FAILED_CREATE_S = 5.0
"""The broker may not be there at all: no long wait on top."""
_STORAGE_ID = "4L6g3nShT-eMCtK--X86sw"  # any base64 UUID will do
# kafka-server-start.sh's and kafka-run-class.sh's own, of Kafka 4: the broker is to be as fast as an operator's.
_JVM = (
    *("-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true"),
)


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that answers."""

    kind: Kind
    bootstrap_servers: str
    pid: int | None
    """None where it is not known: its CPU is then not subtracted."""
    says: str
    """What it is, for people."""

    @property
    def overrides(self) -> dict[str, str]:
        """Settings, by dotted key, that lead a client to it. One of ours asks for no password."""
        found = {"kafka.bootstrap_servers": self.bootstrap_servers}
        if self.kind != "given":
            # The role's own table wins over [kafka.client].
            found |= {
                f"kafka.{table}.security.protocol": "PLAINTEXT" for table in ("client", "consumer", "producer", "admin")
            }
        if self.kind == "embedded":
            # The mock keeps a fetch that finds nothing waiting, whatever comes meanwhile.
            found["kafka.consumer.fetch.wait.max.ms"] = "20"
        return found


@contextmanager
def given_broker(bootstrap_servers: str, pid: int | None) -> Iterator[Broker]:
    """One that runs already."""
    known = "" if pid is not None else "; its CPU is not known (--broker-pid), so that it counts as ours to use"
    yield Broker("given", bootstrap_servers, pid, f"given: {bootstrap_servers}{known}")


@contextmanager
def embedded_broker(folder: Path, topics: Sequence[str]) -> Iterator[Broker]:
    """librdkafka's mock cluster in a child process, with these topics."""
    child = Child(
        "embedded broker", ["-m", "consumer.demo.broker", *topics], log=folder / "broker.log", read_stdout=True
    )
    with child:
        servers = str(orjson.loads(child.first_line())["bootstrap_servers"])
        says = "embedded: librdkafka's mock cluster, which is NOT a real broker; figures hold for nothing else"
        yield Broker("embedded", servers, child.process.pid, says)


@contextmanager
def kafka_broker(folder: Path, jars: Path, say: Callable[[str], None]) -> Iterator[Broker]:
    """One node of Apache Kafka with its data in `folder`; `jars` is where the jars are, or will be fetched to.

    Raises:
        KafkaUnavailable: no Java, or no jars and no way to fetch them.
        BrokerUnreachable: it does not start; with the end of its log.
    """
    java = find_java()
    classes = fetch_jars(jars, say=say)
    say(f"starting Apache Kafka {KAFKA_VERSION}")
    port, controller = free_port(), free_port()
    configuration = folder / "server.properties"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in _properties(folder, port, controller)))
    command = [f"-Dlog4j2.configurationFile={RESOURCES / 'log4j2.xml'}", "-cp", f"{classes}/*"]
    _format(java, command, configuration)
    log = folder / "kafka.log"
    with Child(
        "Apache Kafka", [*_JVM, *command, "kafka.Kafka", str(configuration)], log=log, stop_within_s=15, program=java
    ) as child:
        servers = f"127.0.0.1:{port}"
        _wait_until_it_answers(child, servers)
        says = f"Apache Kafka {KAFKA_VERSION}, one node started for this run"
        yield Broker("kafka", servers, child.process.pid, says)


def _properties(folder: Path, port: int, controller: int) -> Sequence[tuple[str, str]]:
    """Single node; what is not here is Kafka's default."""
    return (
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "CLIENT"),
        ("listener.security.protocol.map", "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("controller.quorum.bootstrap.servers", f"127.0.0.1:{controller}"),
        ("listeners", f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        ("advertised.listeners", f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
        ("log.dirs", str(folder / "kafka-data")),
        ("auto.create.topics.enable", "false"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "10"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "3"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
    )


def _format(java: str, command: Sequence[str], configuration: Path) -> None:
    done = subprocess.run(  # noqa: S603  (no shell, and every argument is ours)
        [
            java,
            *command,
            *("kafka.tools.StorageTool", "format", "-t", _STORAGE_ID, "-c", str(configuration), "--standalone"),
        ],
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )
    if done.returncode != 0:
        raise BrokerUnreachable(
            f"Apache Kafka cannot use its folder:\n{(done.stdout + done.stderr)[-2000:]}",
            remedy="use Java 17 or later, or name a broker that runs: --bootstrap-servers",
        )


def _wait_until_it_answers(child: Child, servers: str) -> None:
    deadline_s = time.monotonic() + _START_S
    admin = KafkaAdmin({"bootstrap.servers": servers, "reconnect.backoff.max.ms": 500}, timeout_s=2)
    while True:
        try:
            admin.cluster()
        except BrokerUnreachable as error:
            if child.exit_code is not None or time.monotonic() > deadline_s:
                failure = child.failure("Apache Kafka did not start")
                remedy = "use Java 17 or later, or name a broker that runs: --bootstrap-servers"
                raise BrokerUnreachable(str(failure), remedy=remedy) from error
            time.sleep(0.1)
        else:
            return


def create_topics(kafka: KafkaSettings, topics: Mapping[str, int]) -> None:
    """Make the topics, each with so many partitions, for messages as large as the settings allow."""
    largest = str(kafka.max_message_bytes + HEADROOM_BYTES)
    plans = [TopicPlan(name, partitions, -1, {"max.message.bytes": largest}) for name, partitions in topics.items()]
    KafkaAdmin(client_properties(kafka, "admin"), timeout_s=kafka.request_timeout_ms / 1000).create(plans)


def configure_groups(settings: Settings, groups: Sequence[str]) -> None:
    """Where the settings ask for share groups: each as they want it. Raises ShareGroupRefused."""
    if settings.delivery.guarantee == "share":
        kafka = settings.kafka
        admin = KafkaAdmin(client_properties(kafka, "admin"), timeout_s=kafka.request_timeout_ms / 1000)
        wanted = {**share_group.wanted(settings), "share.auto.offset.reset": "earliest"}  # as the run's kafka.start
        for group in groups:
            admin.set_group_config(group, wanted)


@contextmanager
def run_topics(
    kafka: KafkaSettings, broker: Broker, topics: Mapping[str, int], groups: Sequence[str]
) -> Iterator[Topics]:
    """The topics of a run, each with so many partitions; on a broker that is given they and the groups are gone after
    it, also where only some could be made. An embedded broker has its topics already."""
    made = Topics(client_properties(kafka, "admin"))
    within_s = _FAILED_CREATE_S
    try:
        if broker.kind != "embedded":
            create_topics(kafka, topics)
        within_s = _DELETE_S
        yield made
    finally:
        if broker.kind == "given":
            made.delete(list(topics), groups, within_s=within_s)


def fill_topic(
    kafka: KafkaSettings, topic: str, records: Iterable[Record], *, tell: Callable[[int], None] = lambda _done: None
) -> None:
    """Put the records on the topic; `tell` is told how many are confirmed, now and then and at the end.

    Raises OutputRefused where the broker does not take one.
    """
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        if done % _TOLD_EVERY == 0:
            tell(done)

    fill(client_properties(kafka, "producer"), topic, records, tell=more)
    tell(done)
