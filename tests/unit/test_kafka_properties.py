"""What librdkafka is opened with, and what it may not be."""

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from consumer.adapters.librdkafka import check_properties
from consumer.errors import SettingsError
from consumer.kafka_properties import (
    client_properties,
    consumer_properties,
    is_secret,
    places,
    producer_properties,
    refusals,
    transactional_properties,
)
from consumer.names import transactional_ids
from consumer.settings_tables import KafkaSettings, Property, RawProperties, TransactionSettings


@pytest.mark.parametrize("table", ["client", "consumer", "producer", "admin"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks", 1),
        ("request.required.acks", "0"),
        ("enable.idempotence", False),
        ("enable.idempotence", "false"),
        ("enable.auto.commit", False),
        ("enable.auto.offset.store", True),
        ("auto.offset.reset", "earliest"),
        ("transactional.id", "x"),
        ("isolation.level", "read_uncommitted"),
        ("partition.assignment.strategy", "range,cooperative-sticky"),
        ("partition.assignment.strategy", "roundrobin"),
        ("group.id", "x"),
        ("bootstrap.servers", "x"),
        ("metadata.broker.list", "x"),
        ("group.protocol", "consumer"),
        ("group.instance.id", "x"),
        ("message.max.bytes", 1),
        ("max.in.flight", "6"),
        ("partitioner", "consistent"),
        ("enable.gapless.guarantee", True),
        ("delivery.report.only.error", True),
        ("statistics.interval.ms", 0),
        ("rebalance_cb", "x"),
        ("error.cb", "x"),
        ("on_commit", "x"),
        ("on.commit", "x"),
        ("on_delivery", "x"),
        ("on.delivery", "x"),
        ("logger", "x"),
        ("default.topic.config", "x"),
    ],
)
def test_what_would_break_a_promise_is_refused_with_a_reason(table: str, name: str, value: Property) -> None:
    found = refusals(KafkaSettings.model_validate({table: {name: value}}))
    assert list(found) == [f"kafka.{table}.{name}"]
    assert len(found[f"kafka.{table}.{name}"]) > 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks", "all"),
        ("acks", -1),
        ("enable.idempotence", True),
        ("isolation.level", "read_committed"),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("max.in.flight", 1),
        ("partitioner", "murmur2_random"),
        ("session.timeout.ms", 6000),
        ("sasl.password", "x"),
        ("compression.type", "zstd"),
    ],
)
def test_what_breaks_nothing_passes(name: str, value: Property) -> None:
    assert refusals(KafkaSettings(client={name: value})) == {}


@pytest.mark.parametrize("name", ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"])
def test_under_kip_848_what_the_broker_decides_is_refused_with_where_to_set_it(name: str) -> None:
    kafka = KafkaSettings(group_protocol="consumer", consumer={name: "cooperative-sticky"})
    assert "the broker" in refusals(kafka)[f"kafka.consumer.{name}"]


def test_a_property_and_its_alias_are_not_both_taken() -> None:
    kafka = KafkaSettings(producer={"delivery.timeout.ms": 1000, "message.timeout.ms": 2000})
    assert "is the same property" in refusals(kafka)["kafka.producer.message.timeout.ms"]


def test_the_service_never_commits_by_itself_and_asks_for_committed_records_only() -> None:
    properties = consumer_properties(KafkaSettings(), "host-1")
    fixed: RawProperties = {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "group.protocol": "classic",
        "allow.auto.create.topics": False,
    }
    assert fixed.items() <= properties.items()
    assert "group.instance.id" not in properties


def test_fixed_properties_win_over_the_tables() -> None:
    kafka = KafkaSettings(
        client={"enable.auto.commit": True, "acks": 1}, consumer={"auto.offset.reset": "latest"}, producer={"acks": 0}
    )
    assert consumer_properties(kafka, "h")["enable.auto.commit"] is False
    assert consumer_properties(kafka, "h")["auto.offset.reset"] == "error"
    assert producer_properties(kafka)["acks"] == "all"
    assert client_properties(kafka, "producer")["acks"] == "all"


def test_the_tables_win_over_our_defaults_also_by_an_alias() -> None:
    kafka = KafkaSettings(
        client={"socket.keepalive.enable": False},
        consumer={"queued.max.messages.kbytes": 1024},
        producer={"delivery.timeout.ms": 3000, "compression.type": "zstd"},
    )
    assert consumer_properties(kafka, "h")["queued.max.messages.kbytes"] == 1024
    properties = producer_properties(kafka)
    assert properties["message.timeout.ms"] == 3000
    assert properties["compression.codec"] == "zstd"
    assert not {"delivery.timeout.ms", "compression.type"} & set(properties)
    assert properties["socket.keepalive.enable"] is False


def test_the_instance_id_is_filled_in_with_the_hosts_name() -> None:
    kafka = KafkaSettings(group_instance_id="ouzel-{hostname}")
    assert consumer_properties(kafka, "pod-3")["group.instance.id"] == "ouzel-pod-3"


def test_the_largest_message_and_its_headers_fit_everywhere() -> None:
    kafka = KafkaSettings(max_message_bytes=200_000_000)
    consumer, producer = consumer_properties(kafka, "h"), producer_properties(kafka)
    assert producer["message.max.bytes"] == 200_000_000 + 64 * 1024
    assert int(consumer["fetch.max.bytes"]) >= int(producer["message.max.bytes"])
    assert int(consumer["receive.message.max.bytes"]) > int(consumer["fetch.max.bytes"])
    assert int(producer["queue.buffering.max.kbytes"]) * 1024 > 2 * 200_000_000


@pytest.mark.parametrize("max_message_bytes", [1024, 16 * 1024 * 1024, 999_000_000])
@pytest.mark.parametrize("group_protocol", ["classic", "consumer"])
def test_librdkafka_takes_them(group_protocol: str, max_message_bytes: int) -> None:
    kafka = KafkaSettings.model_validate(
        {
            "group_protocol": group_protocol,
            "max_message_bytes": max_message_bytes,
            "bootstrap_servers": "",
            "group_instance_id": "{hostname}",
        }
    )
    quiet = {"log_level": 0}
    Consumer({**consumer_properties(kafka, "h"), **quiet}).close()
    Producer({**producer_properties(kafka), **quiet})
    Producer({**client_properties(kafka, "producer"), **quiet})
    Consumer({**client_properties(kafka, "consumer"), "group.id": "g", **quiet}).close()
    AdminClient({**client_properties(kafka, "admin"), **quiet})


def test_every_unknown_property_is_named_with_its_table_and_the_near_name() -> None:
    kafka = KafkaSettings(client={"sals.password": "hunter2", "sasl.usrname": "me"}, producer={"compression.type": "x"})
    clients = {"producer": producer_properties(kafka), "consumer": consumer_properties(kafka, "h")}
    with pytest.raises(SettingsError) as caught:
        check_properties(clients, places(kafka))
    page = str(caught.value)
    assert "kafka.client.sals.password: there is no such property; did you mean sasl.password?" in page
    assert "kafka.client.sasl.usrname: there is no such property; did you mean sasl.username?" in page
    assert "kafka.producer.compression.type" in page
    assert "hunter2" not in page


def test_properties_that_librdkafka_takes_pass_the_check() -> None:
    kafka = KafkaSettings(
        client={"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": "x"}
    )
    clients = {
        "producer": producer_properties(kafka),
        "consumer": consumer_properties(kafka, "h"),
        "admin": client_properties(kafka, "admin"),
    }
    check_properties(clients, places(kafka))


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "kafka.client.sasl.password",
        "ssl.key.pem",
        "ssl_key",
        "ssl.key.password",
        "ssl.keystore.password",
        "sasl.jaas.config",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "stores.s3.secret_access_key",
    ],
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["sasl.username", "ssl.key.location", "ssl.ca.location", "sasl.oauthbearer.token.endpoint.url", "batch.max_size"],
)
def test_what_is_no_secret_is_shown(name: str) -> None:
    assert not is_secret(name)


def test_a_transactional_producer_waits_no_longer_than_its_transaction() -> None:
    kafka = KafkaSettings(client={"socket.timeout.ms": "60000"})
    transaction = TransactionSettings(timeout_ms=5_000, id="ouzel-{hostname}")
    found = transactional_properties(kafka, transaction, "h1")
    assert (found["socket.timeout.ms"], found["message.timeout.ms"], found["transaction.timeout.ms"]) == (5_000,) * 3
    assert found["transactional.id"] == "ouzel-h1"
    other = [transactional_properties(kafka, TransactionSettings(), "h1")["transactional.id"] for _ in range(2)]
    assert len(set(other)) == 2
    assert all(str(each).startswith(transactional_ids(kafka.group_id, "")) for each in other)
