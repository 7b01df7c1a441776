"""`ouzel topics` and `ouzel doctor` against a real broker."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, NewTopic, ResourceType

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parent.parent.parent


class _Cluster(Protocol):
    bootstrap_servers: str

    def admin(self) -> AdminClient: ...

    def client_properties(self, **more: Any) -> dict[str, Any]: ...


class _SecureBroker(_Cluster, Protocol):
    def user_properties(self, user: str) -> dict[str, str]: ...

    def allow(self, operation: AclOperation, resource: ResourceType, name: str) -> None: ...


class _Ouzel:
    """The command line, on topics and a group that only one test uses."""

    def __init__(self, cluster: _Cluster, folder: Path) -> None:
        name = f"topics-test-{uuid.uuid4().hex[:8]}"
        self.images, self.predictions, self.letters, self.group = name, f"{name}.out", f"{name}.dlq", f"{name}.group"
        self.markers = f"{self.letters}.replayed"
        self._folder = folder
        # Whatever the cluster asks of its clients: a log-in, for one.
        ours = ("bootstrap.servers", "log_level")
        client = {name: value for name, value in cluster.client_properties().items() if name not in ours}
        self.environment = {
            "OUZEL_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
            "OUZEL_KAFKA__CLIENT": json.dumps(client),
            "OUZEL_KAFKA__INPUT_TOPICS": self.images,
            "OUZEL_KAFKA__OUTPUT_TOPIC": self.predictions,
            "OUZEL_KAFKA__DEAD_LETTER_TOPIC": self.letters,
            "OUZEL_KAFKA__GROUP_ID": self.group,
            "OUZEL_TOPICS__PARTITIONS": "3",
            "OUZEL_MODEL__RUNTIME": "null",
        }

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "consumer", *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def ouzel(kafka: _Cluster, tmp_path: Path) -> _Ouzel:
    return _Ouzel(kafka, tmp_path)


def _rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _results(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {row["topic"]: row["result"] for row in _rows(done)}


def _config(cluster: _Cluster, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    entries = cluster.admin().describe_configs([resource])[resource].result(20)
    return {name: entry.value for name, entry in entries.items()}


def test_the_topics_are_created_as_the_settings_say(kafka: _Cluster, ouzel: _Ouzel) -> None:
    done = ouzel("topics", "create", OUZEL_KAFKA__MAX_MESSAGE_BYTES="5000000", OUZEL_TOPICS__INPUT_RETENTION_MS="60000")
    assert done.returncode == 0, done.stderr
    assert set(_results(done).values()) == {"created"}

    there = kafka.admin().list_topics(timeout=20).topics
    partitions = {name: len(there[name].partitions) for name in (ouzel.images, ouzel.predictions, ouzel.letters)}
    assert set(partitions.values()) == {3}
    images, letters = _config(kafka, ouzel.images), _config(kafka, ouzel.letters)
    assert (images["cleanup.policy"], images["retention.ms"], images["max.message.bytes"]) == (
        "delete",
        "60000",
        "5000000",
    )
    assert letters["max.message.bytes"] == str(5_000_000 + 65_536)
    assert _config(kafka, ouzel.markers)["cleanup.policy"] == "compact"


def test_a_dry_run_creates_nothing(kafka: _Cluster, ouzel: _Ouzel) -> None:
    done = ouzel("topics", "create", "--dry-run")
    assert set(_results(done).values()) == {"would be created"}
    assert ouzel.images not in kafka.admin().list_topics(timeout=20).topics


def test_a_topic_that_is_there_is_left_as_it_is_and_its_differences_are_told(kafka: _Cluster, ouzel: _Ouzel) -> None:
    kafka.admin().create_topics([NewTopic(ouzel.images, num_partitions=1)], operation_timeout=20)[ouzel.images].result(
        20
    )
    created = ouzel("topics", "create")
    assert created.returncode == 0
    results = _results(created)
    assert "ouzel topics describe" in results.pop(ouzel.images)
    assert set(results.values()) == {"created"}

    described = ouzel("topics", "describe")
    assert described.returncode == 1
    different = {(row["topic"], row["property"]) for row in _rows(described) if not row["ok"]}
    assert (ouzel.images, "partitions") in different
    assert (ouzel.images, "max.message.bytes") in different
    assert {topic for topic, _ in different} == {ouzel.images}
    assert f"--entity-name {ouzel.images}" in described.stderr


def test_describe_is_content_with_what_create_made_and_names_what_is_missing(ouzel: _Ouzel) -> None:
    missing = ouzel("topics", "describe")
    assert missing.returncode == 1
    assert {row["is"] for row in _rows(missing)} == {"missing"}
    ouzel("topics", "create")
    described = ouzel("topics", "describe")
    assert described.returncode == 0
    assert all(row["ok"] for row in _rows(described))


def test_the_largest_message_and_its_letter_fit_the_topics(kafka: _Cluster, ouzel: _Ouzel) -> None:
    size = 2_000_000
    assert ouzel("topics", "create", OUZEL_KAFKA__MAX_MESSAGE_BYTES=str(size)).returncode == 0
    producer = Producer(kafka.client_properties(message_max_bytes=10_000_000))
    failed: list[Any] = []

    def keep(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error)

    image = bytes(size - 1_000)  # a record batch's own framing counts too
    producer.produce(ouzel.images, image, on_delivery=keep)
    long_header = ("__connect.errors.exception.message", bytes(32_000))
    producer.produce(ouzel.letters, image, headers=[long_header], on_delivery=keep)
    assert producer.flush(30) == 0
    assert failed == []


def _by_check(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(done):
        found.setdefault(row["check"], []).append(row)
    return found


def test_the_doctor_finds_what_is_missing_and_then_that_all_is_there(ouzel: _Ouzel) -> None:
    sick = ouzel("doctor")
    assert sick.returncode == 1
    topics = _by_check(sick)["topics"]
    assert {row["result"] for row in topics} == {"fail", "warn"}
    assert {row["fix"] for row in topics} == {"ouzel topics create"}
    ouzel("topics", "create")
    well = _by_check(ouzel("doctor"))
    for check in ("settings", "properties", "broker", "topics"):
        assert {row["result"] for row in well[check]} == {"pass"}, well[check]


def test_the_doctor_tells_which_right_is_missing(secure_broker: _SecureBroker, tmp_path: Path) -> None:
    admin = _Ouzel(secure_broker, tmp_path)
    assert admin("topics", "create").returncode == 0
    service = json.dumps(secure_broker.user_properties("ouzel"))

    def doctor(**more: str) -> Callable[[str], dict[str, Any]]:
        rights = _by_check(admin("doctor", OUZEL_KAFKA__CLIENT=service, **more))["rights"]
        return lambda what: next(row for row in rights if row["said"].startswith(what))

    # Describe alone shows a topic; Read and Write are missing.
    for topic in (admin.images, admin.predictions, admin.letters, admin.markers):
        secure_broker.allow(AclOperation.DESCRIBE, ResourceType.TOPIC, topic)
    secure_broker.allow(AclOperation.DESCRIBE, ResourceType.GROUP, admin.group)
    refused = doctor()
    assert refused(f"topic {admin.images}:")["result"] == "fail"
    # That an administrator may says nothing of the service.
    with_admin = doctor(OUZEL_KAFKA__ADMIN=admin.environment["OUZEL_KAFKA__CLIENT"])
    assert with_admin(f"topic {admin.images}:")["result"] == "fail"
    assert f"--operation Write --topic {admin.predictions}" in refused(f"topic {admin.predictions}:")["fix"]

    secure_broker.allow(AclOperation.READ, ResourceType.TOPIC, admin.images)
    secure_broker.allow(AclOperation.WRITE, ResourceType.TOPIC, admin.predictions)
    secure_broker.allow(AclOperation.WRITE, ResourceType.TOPIC, admin.letters)
    allowed = doctor()
    for topic in (admin.images, admin.predictions, admin.letters):
        assert allowed(f"topic {topic}:")["result"] == "pass"


def test_who_may_not_create_or_not_even_log_in_is_told_so_with_exit_code_7(
    secure_broker: _SecureBroker, tmp_path: Path
) -> None:
    ouzel = _Ouzel(secure_broker, tmp_path)
    service = secure_broker.user_properties("ouzel")
    refused = ouzel("topics", "create", OUZEL_KAFKA__CLIENT=json.dumps(service))
    assert (refused.returncode, refused.stdout) == (7, "")
    assert "does not allow us" in refused.stderr
    stranger = ouzel("topics", "create", OUZEL_KAFKA__CLIENT=json.dumps({**service, "sasl.password": "hunter2"}))
    assert stranger.returncode == 7
    assert "refuses who we are" in stranger.stderr
    assert "hunter2" not in stranger.stderr
