"""librdkafka's errors in our words, where a broker says them in a moment of its own choosing."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from consumer.adapters.kafka.group_view import KafkaGroupView
from consumer.adapters.kafka.source import KafkaSource
from consumer.adapters.kafka.translate import consumer_error, delivery_error
from consumer.adapters.kafka_tools.clients import translated
from consumer.adapters.librdkafka import in_our_words
from consumer.clock import SystemClock
from consumer.errors import BrokerUnreachable, Denied, Fatal, InstanceFenced, NotAuthorized, OutputRefused
from consumer.rights import named_in_full
from consumer.settings import Settings

# As librdkafka 2.16 said it.
REFUSED_HEARTBEAT = (
    "Fatal error: Broker: Group authorization failed: ConsumerGroupHeartbeat fatal error: "
    "Broker: Group authorization failed"
)


def test_a_heartbeat_that_is_refused_is_a_missing_right_to_the_group() -> None:
    found = consumer_error(KafkaError(KafkaError._FATAL, REFUSED_HEARTBEAT), None)
    assert isinstance(found, NotAuthorized)
    assert found.denied == "group"


def test_any_other_fatal_error_is_no_missing_right() -> None:
    found = consumer_error(KafkaError(KafkaError._FATAL, "Fatal error: Broker: Unknown member"), None)
    assert type(found) is Fatal


def test_a_broker_that_left_the_cluster_while_it_was_asked_is_one_that_cannot_be_reached() -> None:
    gone = KafkaError(KafkaError._DESTROY_BROKER, "Failed while waiting for response from broker")
    assert isinstance(in_our_words(gone, doing="asking", servers="b:9092"), BrokerUnreachable)
    assert isinstance(translated(gone, "asking"), BrokerUnreachable)


@pytest.mark.parametrize(
    ("denied", "topic", "named"),
    [
        ("group", "", "Read on group g"),
        ("topic", "out", "Write on topic out"),
        ("transactional-id", "", "Write on transactional-id ouzel-g-"),
    ],
)
def test_a_missing_right_is_named_with_the_command_that_grants_it(denied: Denied, topic: str, named: str) -> None:
    settings = Settings.model_validate(
        {"kafka": {"group_id": "g", "output_topic": "out"}, "delivery": {"guarantee": "exactly_once"}}
    )
    error = named_in_full(NotAuthorized("refused", denied=denied, topic=topic), settings)
    assert f"{named} is missing" in error.remedy
    assert "kafka-acls.sh" in error.remedy


def test_a_topic_that_may_be_one_of_several_is_not_named_as_missing() -> None:
    error = NotAuthorized("refused", remedy="look", denied="topic", topic="out or letters")
    assert named_in_full(error, Settings()) is error


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError.INVALID_TIMESTAMP, "set this machine's clock"),
        (KafkaError.INVALID_RECORD, "cleanup.policy=delete"),
        (KafkaError.POLICY_VIOLATION, "cleanup.policy=delete"),
    ],
)
def test_a_record_that_is_refused_for_good_says_what_to_change(code: int, remedy: str) -> None:
    error = delivery_error(KafkaError(code), "predictions")
    assert isinstance(error, OutputRefused)
    assert error.exit_code == 8
    assert remedy in error.remedy


def test_a_static_member_that_is_refused_is_told_of_the_right_and_not_of_another_member() -> None:
    source = KafkaSource({"group.id": "g", "group.instance.id": "one"}, ["t"], clock=SystemClock())
    try:
        refused = source._fatal(KafkaError(KafkaError._FATAL, REFUSED_HEARTBEAT), None)
        assert isinstance(refused, NotAuthorized)
        fenced = source._fatal(KafkaError(KafkaError._FATAL, "Fatal error: Broker: Static consumer fenced"), None)
        assert isinstance(fenced, InstanceFenced)
    finally:
        source.close()


def test_a_cluster_that_gave_topic_ids_is_not_believed_when_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster loses its controller in moments of its own choosing: here one is played."""
    view = KafkaGroupView({"bootstrap.servers": "b:9092"}, group_id="g", timeout_ms=100)
    topic = SimpleNamespace(partitions={0: None}, error=None)
    metadata = SimpleNamespace(controller_id=1, brokers={1: None}, topics={"t": topic}, cluster_id="c")
    described: Any = SimpleNamespace(topic_id="abc", partitions=[0])
    monkeypatch.setattr(view, "_metadata", lambda: metadata)
    monkeypatch.setattr(view, "_ask", lambda *_args, **_kwargs: described)
    monkeypatch.setattr(view._admin, "describe_topics", lambda *_args, **_kwargs: {"t": None}, raising=False)
    assert view.topics(["t"])["t"].topic_id == "abc"

    def away(*_args: Any, **_kwargs: Any) -> Any:
        raise BrokerUnreachable("no answer")

    monkeypatch.setattr(view, "_ask", away)
    with pytest.raises(BrokerUnreachable, match="no answer"):
        view.topics(["t"])
    metadata.controller_id = -1
    with pytest.raises(BrokerUnreachable, match="no controller"):
        view.topics(["t"])
    metadata.controller_id = 1
    monkeypatch.setattr(view, "_ask", lambda *_args, **_kwargs: described)
    assert view.topics(["t"])["t"].topic_id == "abc"
    view.close()
