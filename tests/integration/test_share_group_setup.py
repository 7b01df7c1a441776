"""A share group's configuration at the broker: `ouzel topics create` sets it, `ouzel run` refuses what is not so."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

from consumer.rights import rights
from consumer.settings import KafkaSettings
from tests.conftest import MakeTopics, Topics
from tests.integration.command_line import Topics as CommandLine
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import unique
from tests.replica import Replica
from tests.runs import Run
from tests.share_groups import configured

pytestmark = pytest.mark.kafka

SHARE_GROUP_REFUSED = 19


@pytest.fixture
def command_line(kafka: Cluster) -> CommandLine:
    return CommandLine(kafka.bootstrap_servers, unique("share"), {"OUZEL_DELIVERY__GUARANTEE": "share"})


def test_topics_create_sets_the_group_and_run_only_looks(kafka: Cluster, command_line: CommandLine) -> None:
    made = command_line.ouzel("topics", "create", more={"OUZEL_TOPICS__PARTITIONS": "1"})
    assert made.code == 0, made.stderr
    (row,) = [row for row in made.rows if row["topic"] == f"share group {command_line.group}"]
    assert row["result"] == "set"
    assert "share.isolation.level=read_committed" in row["config"]
    described = command_line.ouzel("topics", "describe", more={"OUZEL_TOPICS__PARTITIONS": "1"})
    assert described.code == 0, described.stderr
    other = {"OUZEL_SHARE__LOCK_DURATION_MS": "20000", "OUZEL_MODEL__RUNTIME": "null", "OUZEL_HEALTH__ENABLED": "false"}
    run = command_line.ouzel("run", more=other)
    assert run.code == SHARE_GROUP_REFUSED
    assert "share.record.lock.duration.ms is 30000, wanted 20000" in run.stderr
    assert "ouzel topics create" in run.stderr
    assert command_line.ouzel("topics", "describe", more=other).code == 1
    assert command_line.ouzel("topics", "create", "--dry-run", more=other).code == 0
    assert command_line.ouzel("run", more=other).code == SHARE_GROUP_REFUSED
    assert command_line.ouzel("topics", "create", more=other).code == 0
    assert command_line.ouzel("topics", "describe", more={**other, "OUZEL_TOPICS__PARTITIONS": "1"}).code == 0
    findings = command_line.ouzel("doctor", more=other).rows
    assert [row["result"] for row in findings if row["check"] in {"share group", "rights"}] == ["pass"] * 6


def test_offsets_that_a_share_group_does_not_have_are_not_shown(command_line: CommandLine) -> None:
    for command in (("show",), ("reset", "--to", "earliest")):
        answer = command_line.ouzel("offsets", *command)
        assert answer.code == 1
        assert "kafka-share-groups.sh" in answer.stderr
    assert command_line.ouzel("topics", "create").code == 0
    assert command_line.ouzel("offsets", "show", "--group", "another").code == 0


def test_a_range_is_not_read_by_a_share_group(command_line: CommandLine) -> None:
    answer = command_line.ouzel("run", "--from", "earliest", "--until", "end", "--group", "range")
    assert answer.code == 2
    assert "at_least_once" in answer.stderr


def test_a_lock_beyond_the_brokers_bounds_is_a_clear_error(command_line: CommandLine) -> None:
    answer = command_line.ouzel("topics", "create", more={"OUZEL_SHARE__LOCK_DURATION_MS": "3600000"})
    assert answer.code == SHARE_GROUP_REFUSED
    assert "share.record.lock.duration.ms" in answer.stderr
    assert "[share]" in answer.stderr


def test_a_group_that_nobody_configured_ends_the_start(kafka: Cluster, topics: Topics) -> None:
    with Replica(kafka, topics, settings={"OUZEL_DELIVERY__GUARANTEE": "share"}) as replica:
        assert replica.start().wait_exit() == SHARE_GROUP_REFUSED
        assert "ouzel topics create" in replica.log_lines()[-1]["remedy"]


def test_a_consumer_group_cannot_be_read_as_a_share_group(kafka: Cluster, topics: Topics) -> None:
    with (
        Replica(kafka, topics, settings={"OUZEL_KAFKA__GROUP_PROTOCOL": "consumer"}) as first,
        Replica(kafka, topics, settings=configured(kafka, topics)) as second,
    ):
        first.start().wait_ready()
        assert second.start().wait_exit() == SHARE_GROUP_REFUSED
        assert "kafka.group_id" in second.log_lines()[-1]["remedy"]


@pytest.fixture(scope="module")
def without_share_groups() -> Iterator[KafkaBroker]:
    """A broker whose feature is off."""
    with KafkaBroker(features={"share.version": 0}, in_memory=True) as broker:
        yield broker


def test_a_broker_without_share_groups_is_a_clear_error_at_the_start(
    without_share_groups: KafkaBroker, make_topics: MakeTopics
) -> None:
    topics = make_topics(cluster=without_share_groups)
    settings = configured(without_share_groups, topics)
    with Replica(without_share_groups, topics, settings=settings) as replica:
        assert replica.start().wait_exit() == SHARE_GROUP_REFUSED
        last = replica.log_lines()[-1]
        assert "no share groups" in last["message"]
        assert "share.version=1" in last["remedy"]


# --- rights ---------------------------------------------------------------------------------------------------------

NOT_AUTHORIZED = 7
AS_OUZEL = {
    "OUZEL_KAFKA__CLIENT__SASL_USERNAME": "ouzel",
    "OUZEL_KAFKA__CLIENT__SASL_PASSWORD": "ouzel-secret",
}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
_RESOURCES = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}


@pytest.mark.parametrize("absent", ["", "Read on group", "DescribeConfigs on group", "Read on topic"])
def test_a_replica_needs_the_rights_that_it_says_it_needs(
    secure_broker: KafkaBroker, make_topics: MakeTopics, tmp_path: Path, photographs: list[Path], absent: str
) -> None:
    topics = make_topics(cluster=secure_broker, partitions=1)
    kafka = KafkaSettings(
        group_id=topics.group,
        input_topics=[topics.images],
        output_topic=topics.predictions,
        dead_letter_topic=topics.dead_letters,
    )
    for right in rights(kafka, "service", share=True):
        if not absent or not str(right).startswith(absent):
            secure_broker.allow(_OPERATIONS[right.operation], _RESOURCES[right.resource], right.name)
    settings = {**configured(secure_broker, topics), **AS_OUZEL}
    with (
        Run(secure_broker, topics, tmp_path, share=True) as run,
        Replica(secure_broker, topics, settings=settings) as replica,
    ):
        run.send(run.photographs(10, photographs))
        replica.start()
        if absent:
            assert replica.wait_exit() == NOT_AUTHORIZED
            assert absent in replica.log_lines()[-1]["remedy"]
        else:
            run.healed()
            assert replica.terminate() == 0
