"""The topics that the settings ask for, and what counts as different."""

from dataclasses import replace

import pytest

from consumer.adapters.kafka_admin import TopicFacts, TopicPlan
from consumer.commands.topics import differences, topic_plans
from consumer.rights import Role, rights
from consumer.settings import KafkaSettings, Settings, SwapSettings, TopicSettings

SETTINGS = Settings(
    kafka=KafkaSettings(input_topics=["a", "b"], max_message_bytes=5_000_000),
    topics=TopicSettings(partitions=4, input_retention_ms=1, output_retention_ms=2, dead_letter_retention_ms=-1),
)


def _plans(replicas: int | None) -> dict[str, TopicPlan]:
    return {plan.name: plan for plan in topic_plans(SETTINGS, replicas)}


def test_sizes_retention_and_partitions_come_from_the_settings() -> None:
    plans = _plans(1)
    assert list(plans) == ["a", "b", "predictions", "images.dlq", "images.dlq.replayed"]
    assert plans["a"] == TopicPlan(
        "a", 4, 1, {"cleanup.policy": "delete", "retention.ms": "1", "max.message.bytes": "5000000"}
    )
    assert plans["predictions"].config["retention.ms"] == "2"
    assert plans["predictions"].config["max.message.bytes"] == "5000000"
    assert plans["images.dlq"].config["retention.ms"] == "-1"
    assert plans["images.dlq"].config["max.message.bytes"] == str(5_000_000 + 65_536)
    assert plans["images.dlq.replayed"].config == {"cleanup.policy": "compact"}


def test_what_a_new_model_says_has_a_topic_like_the_output_where_it_is_wanted() -> None:
    settings = SETTINGS.model_copy(update={"swap": SwapSettings(shadow_topic="predictions.shadow")})
    plans = {plan.name: plan for plan in topic_plans(settings, 1)}
    assert plans["predictions.shadow"] == replace(plans["predictions"], name="predictions.shadow")


def test_rights_on_the_topic_of_what_a_new_model_says() -> None:
    def operations(role: Role) -> set[str]:
        found = rights(SETTINGS.kafka, role, shadow_topic="shadow")
        assert set(found) > set(rights(SETTINGS.kafka, role)) or role in {"sender", "operator"}
        return {right.operation for right in found if right.name == "shadow"}

    assert operations("service") == {"Write"}
    assert operations("reader") == {"Read"}
    assert operations("admin") == {"Create", "Describe", "DescribeConfigs"}
    assert operations("sender") == operations("operator") == set()


@pytest.mark.parametrize(("replicas", "safe"), [(None, False), (1, False), (2, False), (3, True), (5, True)])
def test_from_three_replicas_up_two_must_have_every_record(replicas: int | None, safe: bool) -> None:
    for plan in _plans(replicas).values():
        assert (plan.config.get("min.insync.replicas") == "2") == safe
        assert plan.replication_factor == (-1 if replicas is None else replicas)


def _as_planned(plan: TopicPlan) -> TopicFacts:
    return TopicFacts(plan.name, "id", plan.partitions, plan.replication_factor, dict(plan.config))


def test_a_topic_as_planned_has_no_differences() -> None:
    for plan in _plans(3).values():
        assert differences(plan, _as_planned(plan)) == {}


def test_each_difference_says_what_is_what_was_wanted_and_what_to_do() -> None:
    plan = _plans(3)["a"]
    facts = replace(_as_planned(plan), partitions=2, replication_factor=1, config={"retention.ms": "9"})
    found = differences(plan, facts)
    assert set(found) == {
        "partitions",
        "replicas",
        "retention.ms",
        "cleanup.policy",
        "max.message.bytes",
        "min.insync.replicas",
    }
    assert found["partitions"][:2] == ("2", "4")
    assert found["retention.ms"][:2] == ("9", "1")
    assert "--add-config retention.ms=1" in found["retention.ms"][2]


def test_what_we_may_not_see_and_what_is_left_to_the_broker_is_no_difference() -> None:
    plan = _plans(None)["a"]
    assert differences(plan, replace(_as_planned(plan), replication_factor=2, config={})) == {}
