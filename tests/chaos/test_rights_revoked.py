"""Rights that are taken away: the replica ends with exit code 7, and what it has not answered waits for its return."""

from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

from consumer.names import transactional_ids
from tests.chaos.groups import answered_twice, committed, label_events, membership
from tests.conftest import MakeTopics, Topics
from tests.history import load, verify
from tests.kafka_broker import KafkaBroker
from tests.kafka_clients import Protocol
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

NOT_AUTHORIZED = 7
AS_OUZEL = {
    "OUZEL_KAFKA__CLIENT__SASL_USERNAME": "ouzel",
    "OUZEL_KAFKA__CLIENT__SASL_PASSWORD": "ouzel-secret",
}

EXACTLY_ONCE = {
    "OUZEL_DELIVERY__GUARANTEE": "exactly_once",
    "OUZEL_TRANSACTION__MAX_MS": "100",
    "OUZEL_TRANSACTION__TIMEOUT_MS": "4000",
}

Right = tuple[AclOperation, ResourceType, str]


def rights(topics: Topics) -> dict[str, Right]:
    """All that a replica needs, whatever its guarantee."""
    return {
        "read images": (AclOperation.READ, ResourceType.TOPIC, topics.images),
        "write predictions": (AclOperation.WRITE, ResourceType.TOPIC, topics.predictions),
        "write dead letters": (AclOperation.WRITE, ResourceType.TOPIC, topics.dead_letters),
        "read group": (AclOperation.READ, ResourceType.GROUP, topics.group),
        "write transactions": (
            AclOperation.WRITE,
            ResourceType.TRANSACTIONAL_ID,
            f"{transactional_ids(topics.group, '')}*",
        ),
    }


@pytest.fixture
def secure_topics(secure_broker: KafkaBroker, make_topics: MakeTopics) -> Topics:
    """Topics on the secure broker that its user `ouzel` may use as a replica must."""
    topics = make_topics(cluster=secure_broker)
    for right in rights(topics).values():
        secure_broker.allow(*right)
    return topics


@pytest.mark.parametrize(
    ("lost", "protocol", "guarantee"),
    [
        ("write predictions", "classic", "at_least_once"),
        ("read group", "classic", "at_least_once"),
        ("read group", "consumer", "at_least_once"),
        ("write predictions", "consumer", "exactly_once"),
        ("write transactions", "consumer", "exactly_once"),
        ("read group", "consumer", "exactly_once"),
    ],
)
def test_a_right_revoked_under_load_ends_the_replica_and_its_return_labels_the_rest(
    secure_broker: KafkaBroker,
    secure_topics: Topics,
    small_photographs: list[Path],
    tmp_path: Path,
    lost: str,
    protocol: Protocol,
    guarantee: str,
) -> None:
    topics = secure_topics
    exactly_once = guarantee == "exactly_once"
    settings = membership(secure_broker, topics, protocol) | AS_OUZEL | (EXACTLY_ONCE if exactly_once else {})
    right = rights(topics)[lost]
    with (
        Run(secure_broker, topics, tmp_path) as run,
        Replica(secure_broker, topics, settings=settings) as replica,
    ):
        with run.sending(small_photographs, per_second=40):  # without the group's right all come again in a sandbox
            replica.start()
            run.observer.wait_answered(100)
            secure_broker.revoke(*right)
            assert replica.wait_exit(30) == NOT_AUTHORIZED
        last = replica.log_lines()[-1]
        assert last["error_class"] == "NotAuthorized"
        assert last["remedy"]

        offsets = committed(secure_broker, topics)
        run.observer.wait_round()
        assert verify(load(run.history_path), final=False, exactly_once=exactly_once) == []
        secure_broker.allow(*right)
        replica.start()
        run.healed(within_s=60)
    run.assert_all_promises_kept(exactly_once=exactly_once)
    assert all(offset >= offsets[partition] for partition, offset in answered_twice(run.history_path))
    assert len(label_events(run.history_path)) == run.sent


def test_a_wrong_password_ends_the_replica_at_its_start(secure_broker: KafkaBroker, secure_topics: Topics) -> None:
    settings = AS_OUZEL | {"OUZEL_KAFKA__CLIENT__SASL_PASSWORD": "not-the-secret"}
    settings["OUZEL_KAFKA__REQUEST_TIMEOUT_MS"] = "1500"
    with Replica(secure_broker, secure_topics, settings=settings) as replica:
        assert replica.start().wait_exit(30) == NOT_AUTHORIZED
        last = replica.log_lines()[-1]
        assert last["error_class"] == "NotAuthorized"
        assert last["remedy"]
        assert "not-the-secret" not in replica.log_file.read_text()
