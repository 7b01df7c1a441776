"""A share group's configuration, and settings that make no sense with one."""

from typing import Any

import pytest

from consumer import share_group
from consumer.errors import ShareGroupRefused
from consumer.kafka_properties import refusals, share_properties
from consumer.rights import rights
from consumer.settings import KafkaSettings, PipelineSettings, Settings, ShareSettings
from consumer.settings_checks import conflicts
from consumer.settings_tables import DeliverySettings

SHARE = DeliverySettings(guarantee="share")


def _settings(**kafka: Any) -> Settings:
    return Settings(delivery=SHARE, kafka=KafkaSettings(**kafka))


AS_WANTED = share_group.wanted(_settings())


def test_the_group_reads_what_is_committed_from_where_the_settings_say() -> None:
    assert AS_WANTED == {
        "share.isolation.level": "read_committed",
        "share.auto.offset.reset": "earliest",
        "share.record.lock.duration.ms": "30000",
        "share.delivery.count.limit": "5",
    }
    assert share_group.wanted(_settings(start="latest"))["share.auto.offset.reset"] == "latest"


def test_a_group_as_the_settings_want_it_is_taken() -> None:
    share_group.check(_settings(), {**AS_WANTED, "share.session.timeout.ms": "45000"})


@pytest.mark.parametrize("name", AS_WANTED)
def test_any_difference_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ShareGroupRefused, match=f"{name} is other, wanted {AS_WANTED[name]}") as refused:
        share_group.check(_settings(), {**AS_WANTED, name: "other"})
    assert "ouzel topics create" in refused.value.remedy


def test_a_broker_that_knows_no_such_configuration_has_no_share_groups() -> None:
    with pytest.raises(ShareGroupRefused, match="no share groups") as refused:
        share_group.check(_settings(), {"consumer.session.timeout.ms": "45000"})
    assert "Apache Kafka 4.2" in refused.value.remedy


def test_where_a_group_has_no_delivery_limit_the_brokers_counts() -> None:
    own = {name: value for name, value in AS_WANTED.items() if name != share_group.COUNT_LIMIT}
    assert share_group.found(own, lambda: {"group.share.delivery.count.limit": "5"}) == AS_WANTED
    with pytest.raises(ShareGroupRefused, match="limit is not there, wanted 5"):
        share_group.check(_settings(), share_group.found(own, dict))

    def asked() -> dict[str, str]:
        raise AssertionError("not needed")

    assert share_group.found(AS_WANTED, asked) == AS_WANTED


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("kafka.group_instance_id", {"kafka": KafkaSettings(group_instance_id="{hostname}")}),
        ("kafka.start", {"kafka": KafkaSettings(start="2026-01-31T09:30:00Z")}),
        ("kafka.on_offset_lost", {"kafka": KafkaSettings(on_offset_lost="stop")}),
        (
            "share.consumers",
            {
                "share": ShareSettings(consumers=4),
                "pipeline": PipelineSettings(max_in_flight_messages=3),
                "batch": {"max_size": 1},
            },
        ),
    ],
)
def test_what_a_share_group_cannot_do_is_refused(key: str, changed: dict[str, Any]) -> None:
    assert [conflict.keys[0] for conflict in conflicts(Settings(delivery=SHARE, **changed))] == [key]
    assert not list(conflicts(Settings(**changed)))


def test_properties_that_mean_nothing_to_a_share_consumer_are_refused_with_it_only() -> None:
    kafka = KafkaSettings(
        client={"socket.max.fails": 3},
        consumer={
            "queued.max.messages.kbytes": 4096,
            "session.timeout.ms": 6000,
            "isolation.level": "read_committed",
            "max.poll.records": 8,
        },
        producer={"socket.max.fails": 3},
    )
    assert refusals(kafka) == {}
    assert set(refusals(kafka, share=True)) == {
        "kafka.client.socket.max.fails",
        "kafka.consumer.queued.max.messages.kbytes",
        "kafka.consumer.session.timeout.ms",
        "kafka.consumer.isolation.level",
    }
    assert "kafka.consumer.share.acknowledgement.mode" in refusals(
        KafkaSettings(consumer={"share.acknowledgement.mode": "implicit"})
    )


def test_librdkafka_takes_the_properties_of_a_share_consumer() -> None:
    from consumer.adapters.librdkafka import check_properties

    ours = share_properties(KafkaSettings(consumer={"max.poll.records": 8}), "host", max_poll_records=32)
    assert ours["max.poll.records"] == 8
    assert ours["share.acknowledgement.mode"] == "explicit"
    check_properties({"share": ours}, {})


def test_the_rights_on_a_share_group_are_asked_for() -> None:
    kafka = KafkaSettings(group_id="g")
    more = {
        role: {str(right) for right in set(rights(kafka, role, share=True)) - set(rights(kafka, role))}
        for role in ("service", "admin", "reader")
    }
    assert more == {
        "service": {"DescribeConfigs on group g"},
        "admin": {"DescribeConfigs on group g", "AlterConfigs on group g"},
        "reader": set(),
    }
