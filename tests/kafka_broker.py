"""A real Apache Kafka from jars, for tests and benchmarks. Maven fetches it once into `.kafka/` (`bench.kafka_jars`).

`Cluster` is any Kafka that is reached by its address; `KafkaNode` is a Java process of our own that can be stopped,
killed and paused; `KafkaBroker` is both, a cluster of one node.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from consumer.bench.kafka_jars import KAFKA_VERSION, RESOURCES, KafkaUnavailable, fetch_jars, find_java
from tests.kafka_doors import PROTOCOLS, SCRAM_PASSWORD, Door, Doors
from tests.processes import free_port, start_process, tail, wait_until

__all__ = ["KAFKA_VERSION", "Cluster", "KafkaBroker", "KafkaNode", "KafkaUnavailable", "find_java"]

_JARS = Path(__file__).resolve().parent.parent / ".kafka"
_MEMORY_BYTES = 4 << 30  # so much must be free; a container often has 64 MiB
_STORAGE_ID = "4L6g3nShT-eMCtK--X86sw"  # any base64 UUID will do

# Single node, as small and as quick as it gets. Fixed facts: Apache Kafka 4.4's own configuration names.
BASE_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "auto.create.topics.enable": "false",
    # After kill() the node waits this long for its own old session; a pause beyond it fences the node for a moment.
    "broker.session.timeout.ms": "6000",
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "10",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "10",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "3",
    "group.share.min.record.lock.duration.ms": "1000",
    "group.share.min.session.timeout.ms": "3000",
    "group.share.session.timeout.ms": "6000",
    "group.share.min.heartbeat.interval.ms": "500",
    "group.share.heartbeat.interval.ms": "500",
    "group.min.session.timeout.ms": "3000",
    "group.consumer.min.session.timeout.ms": "3000",  # a group may ask for less than the broker's own 6 s
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.retention.check.interval.ms": "1000",
    "log.initial.task.delay.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
}
_PASSWORDS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required"
    ' username="admin" password="admin-secret" user_admin="admin-secret" user_ouzel="ouzel-secret";'
)
_SECURE_PROPERTIES = {
    # The node signs in to its own controller too: else it would be ANONYMOUS there, who must be nobody.
    "listener.security.protocol.map": ",".join(
        ("CLIENT:SASL_PLAINTEXT", "CONTROLLER:SASL_PLAINTEXT", *(f"{d.upper()}:{p}" for d, p in PROTOCOLS.items()))
    ),
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "sasl.mechanism.controller.protocol": "PLAIN",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.client.plain.sasl.jaas.config": _PASSWORDS,
    "listener.name.controller.plain.sasl.jaas.config": _PASSWORDS,
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:admin",
    "allow.everyone.if.no.acl.found": "false",
}
_HEAP_OPTIONS = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


class Cluster:
    """A Kafka that is reached by its address.

    `properties` are librdkafka's for a client that may do anything there.
    """

    def __init__(self, bootstrap_servers: str, properties: Mapping[str, Any] | None = None) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._properties = dict(properties or {})
        self._admin: AdminClient | None = None

    def client_properties(self, **more: Any) -> dict[str, Any]:
        """librdkafka properties for a client of this cluster; `_` in the names of `more` stands for the dot."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "log_level": 2,  # connection refused, while a broker is stopped on purpose, is no news
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            **self._properties,
            **{name if name.endswith("_cb") else name.replace("_", "."): value for name, value in more.items()},
        }

    def admin(self) -> AdminClient:
        """An administrator's client, made once."""
        if self._admin is None:
            self._admin = AdminClient(self.client_properties())
        return self._admin

    def create_topic(
        self, name: str, *, partitions: int = 1, config: Mapping[str, str] | None = None, timeout_s: float = 20
    ) -> str:
        """Create a topic, wait until every partition has a leader, and return its name."""
        self.create_topics({name: config}, partitions=partitions, timeout_s=timeout_s)
        return name

    def create_topics(
        self, configs: Mapping[str, Mapping[str, str] | None], *, partitions: int = 1, timeout_s: float = 20
    ) -> None:
        """Create topics, a name with its config each, in one request, and wait until every partition has a leader."""
        wanted = [NewTopic(name, num_partitions=partitions, config=dict(each or {})) for name, each in configs.items()]
        for made in self.admin().create_topics(wanted, operation_timeout=timeout_s).values():
            made.result(timeout_s)
        self._wait_for_leaders(list(configs), partitions, timeout_s)

    def delete_topic(self, name: str, *, timeout_s: float = 20) -> None:
        """Delete a topic and wait until the broker no longer lists it."""
        self.admin().delete_topics([name], operation_timeout=timeout_s)[name].result(timeout_s)
        wait_until(
            lambda: name not in self.admin().list_topics(timeout=timeout_s).topics,
            timeout_s=timeout_s,
            what=f"topic {name} to go away",
        )

    def add_partitions(self, name: str, total: int, *, timeout_s: float = 20) -> None:
        """Raise a topic's number of partitions to `total` and wait until each has a leader."""
        request = NewPartitions(name, total)
        self.admin().create_partitions([request], operation_timeout=timeout_s)[name].result(timeout_s)
        self._wait_for_leaders([name], total, timeout_s)

    def _wait_for_leaders(self, names: list[str], partitions: int, timeout_s: float) -> None:
        def led() -> bool:
            try:
                asked = self.admin().describe_topics(TopicCollection(names), request_timeout=timeout_s)
                found = [each.result(timeout_s) for each in asked.values()]
            except KafkaException:  # the broker that was asked has not heard of one
                return False
            return all(
                len(topic.partitions) == partitions and all(partition.leader for partition in topic.partitions)
                for topic in found
            )

        wait_until(led, timeout_s=timeout_s, what=f"{partitions} leaders of each of {', '.join(names)}")


class KafkaNode:
    """A Java process of Apache Kafka, with its properties and its data in a temporary folder.

    `write_properties` once, then `format`, then `launch` as often as it has ended. `enter` comes before its commands,
    and says in which namespaces they run. Its classes come from the `_class_archive`, but of the node that makes that.
    `in_memory`: its folder is in `_memory`, where that is.
    """

    def __init__(self, *, enter: Sequence[str] = (), archived: bool = True, in_memory: bool = False) -> None:
        self._enter = tuple(enter)
        self._java = find_java()
        jars = fetch_jars(_JARS, say=lambda text: print(text, file=sys.stderr))
        self._class_path = ":".join(sorted(map(str, jars.glob("*.jar"))))
        archive = _class_archive(self._java, self._class_path) if archived else None
        self._java_options = (*_HEAP_OPTIONS, *([f"-XX:SharedArchiveFile={archive}"] if archive else []))
        self._directory = Path(tempfile.mkdtemp(prefix="ouzel-kafka-", dir=_memory() if in_memory else None))
        self.log_path = self._directory / "broker.log"
        self.disk = self._directory / "disk"
        """The folder in which its data lies."""
        self.disk.mkdir()
        self._formatted = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _properties_path(self) -> Path:
        return self._directory / "server.properties"

    def write_properties(self, lines: Mapping[str, str]) -> None:
        """Its server.properties; where its data lies is added."""
        lines = {**lines, "log.dirs": str(self.disk / "data")}
        self._properties_path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def _java_command(self, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={RESOURCES / 'log4j2.xml'}"
        return [*self._enter, self._java, *self._java_options, logging, "-cp", self._class_path, *arguments]

    def format(self, *options: str, timeout_s: float = 60) -> None:
        """Prepare the data folder, if there is none yet."""
        if self._formatted:
            return
        tool = ("kafka.tools.StorageTool", "format", "-t", _STORAGE_ID, "-c", str(self._properties_path), *options)
        with self.log_path.open("ab") as log:
            subprocess.run(self._java_command(*tool), stdout=log, stderr=log, timeout=timeout_s, check=True)
        self._formatted = True

    def launch(self, *java_options: str) -> None:
        """Start the process on its data and its ports; it does not answer yet."""
        assert not self.running
        command = self._java_command(*java_options, "kafka.Kafka", str(self._properties_path))
        with self.log_path.open("ab") as log:
            self._process = start_process(command, output=log)

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The Java process."""
        assert self._process is not None
        return self._process.pid

    def terminate(self) -> None:
        """SIGTERM: a clean shutdown begins."""
        if self._process is not None:
            self.resume()
            self._process.terminate()

    def stop(self, *, timeout_s: float = 30) -> None:
        """SIGTERM, and wait: a clean shutdown."""
        if self._process is not None:
            self.terminate()
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait: as if the power went."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self.running
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, whether it was paused or not."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


class KafkaBroker(KafkaNode, Cluster):
    """One node of Apache Kafka of our own: a Java process with its data in a temporary folder and its own ports.

    Args:
        secure: clients need a password, and an authorizer refuses whatever no ACL allows. Users: `admin` (may do
            anything) and `ouzel` (may do nothing until `allow`); see `user_properties`. Beside it are other ways in:
            see `door` and `tests.kafka_doors`.
        properties: more lines of server.properties.
        advertised_port: the port that clients are told, where a proxy stands between.
        features: levels other than the newest, such as `{"share.version": 0}`.
        archived, in_memory: see `KafkaNode`.
    """

    def __init__(
        self,
        *,
        secure: bool = False,
        properties: Mapping[str, str] | None = None,
        advertised_port: int | None = None,
        features: Mapping[str, int] | None = None,
        archived: bool = True,
        in_memory: bool = False,
    ) -> None:
        self._features = [word for each in (features or {}).items() for word in ("--feature", "{}={}".format(*each))]
        KafkaNode.__init__(self, archived=archived, in_memory=in_memory)
        self.secure = secure
        self.port = free_port()
        self.doors = Doors.made(self._directory / "certificates") if secure else None
        self._write_properties(properties or {}, advertised_port or self.port)
        address = f"127.0.0.1:{advertised_port or self.port}"
        Cluster.__init__(self, address, self.user_properties("admin") if secure else None)

    @staticmethod
    def user_properties(user: str) -> dict[str, str]:
        """librdkafka properties that sign a client in to a secure broker as `admin` or `ouzel`."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": f"{user}-secret",
        }

    def door(self, door: Door) -> Cluster:
        """This broker as a client with the least rights reaches it by one of its `doors`."""
        assert self.doors is not None
        return Cluster(f"127.0.0.1:{self.doors.ports[door]}", self.doors.client_properties(door))

    def allow(self, operation: AclOperation, resource: ResourceType, name: str) -> None:
        """Let the user `ouzel` do `operation` to the topic or group `name`, or to all that begin so if it ends in
        `*`."""
        acl = self._acl(operation, resource, name)
        self.admin().create_acls([acl])[acl].result(20)

    def revoke(self, operation: AclOperation, resource: ResourceType, name: str) -> None:
        """Take an `allow` back; the same arguments."""
        acl = self._acl(operation, resource, name)
        found = AclBindingFilter(
            acl.restype,
            acl.name,
            acl.resource_pattern_type,
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
        )
        assert self.admin().delete_acls([found])[found].result(20), f"there was no {acl}"

    @staticmethod
    def _acl(operation: AclOperation, resource: ResourceType, name: str) -> AclBinding:
        pattern = ResourcePatternType.PREFIXED if name.endswith("*") else ResourcePatternType.LITERAL
        return AclBinding(
            resource, name.removesuffix("*"), pattern, "User:ouzel", "*", operation, AclPermissionType.ALLOW
        )

    def _write_properties(self, more: Mapping[str, str], advertised_port: int) -> None:
        controller_port = free_port()
        controller = f"CONTROLLER://127.0.0.1:{controller_port}"
        doors = self.doors.listeners if self.doors else []
        lines = {
            **BASE_PROPERTIES,
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            **(_SECURE_PROPERTIES | self.doors.properties() if self.doors else {}),
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
            "listeners": ",".join([f"CLIENT://127.0.0.1:{self.port}", controller, *doors]),
            "advertised.listeners": ",".join([f"CLIENT://127.0.0.1:{advertised_port}", controller, *doors]),
            **more,
        }
        self.write_properties(lines)

    def start(self, *, timeout_s: float = 60) -> Self:
        """Start it on its data and its port, and wait until it answers an administrator."""
        assert not self.running
        try:
            self._start(timeout_s)
        except Exception as error:
            self.kill()
            log = tail(self.log_path)
            last = log.splitlines()[-1] if log else "its log is empty"
            # The log's end also in the first line: a summary of many failures shows no more than that.
            raise RuntimeError(f"Apache Kafka did not start ({last}): {error}\n--- {self.log_path}\n{log}") from error
        return self

    def _start(self, timeout_s: float) -> None:
        users = ("--add-scram", f"SCRAM-SHA-512=[name=ouzel,password={SCRAM_PASSWORD}]") if self.secure else ()
        self.format("--standalone", *users, *self._features, timeout_s=timeout_s)
        self.launch()
        wait_until(self._answers, timeout_s=timeout_s, what="Apache Kafka to answer")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"Apache Kafka ended with {self._process.returncode} at its start")
        try:
            return bool(self.admin().list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def restart(self) -> None:
        """A clean stop and a start on the same data and port."""
        self.stop()
        self.start()

    def ensure_running(self) -> None:
        """Undo whatever a test did to it."""
        self._admin = None  # a client that has seen a fault may wait out its own back-off
        if self.running:
            self.resume()
            wait_until(self._answers, timeout_s=30, what="Apache Kafka to answer again")
        else:
            self.start()

    def cpu_seconds(self) -> float:
        """Processor time of the Java process so far, user and system."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _memory() -> Path | None:
    """A folder in memory, with plenty of room: a tests' broker writes a few MB, and syncs often as topics are made."""
    folder = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free >= _MEMORY_BYTES:
            return folder
    return None


@functools.cache
def _class_archive(java: str, class_path: str) -> Path | None:
    """Kafka's classes as this Java has them once they are loaded, made by the first node here: with it a start takes
    half the CPU. A Java that cannot use it starts without. None where it could not be made."""
    version = subprocess.run([java, "--version"], capture_output=True, check=False).stdout
    archive = _JARS / f"{KAFKA_VERSION}-{zlib.crc32(version + class_path.encode()):08x}.jsa"
    # One at a time: test processes start side by side.
    with (_JARS / "archive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            making = archive.with_suffix(".making")
            broker = KafkaBroker(archived=False)
            try:
                broker.format("--standalone")
                broker.launch(f"-XX:ArchiveClassesAtExit={making}")
                wait_until(broker._answers, timeout_s=60, what="Apache Kafka to answer")
                broker.stop(timeout_s=120)
                making.rename(archive)  # complete or not there at all
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"brokers start without an archive of their classes: {error}", file=sys.stderr)
                return None
            finally:
                broker.close()
    return archive
