"""A share group's configuration at the broker: `ouzel topics create` sets it, `ouzel run` refuses what is not so."""

from collections.abc import Iterator

import pytest

from tests.conftest import MakeTopics, Topics
from tests.integration.command_line import Topics as CommandLine
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import unique
from tests.replica import Replica
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
    with KafkaBroker(features={"share.version": 0}) as broker:
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
