"""Share groups in tests: replicas that read one, and its configuration at the broker."""

from collections.abc import Mapping

from consumer import share_group
from consumer.adapters.kafka_admin import KafkaAdmin
from consumer.settings import Settings
from consumer.settings_tables import DeliverySettings, KafkaSettings, ShareSettings
from tests.kafka_broker import Cluster
from tests.replica import TopicNames

LOCK_MS = 3_000
"""As short as slow machines allow; our own broker takes from 1,000."""


def configured(
    cluster: Cluster, topics: TopicNames, *, lock_ms: int = LOCK_MS, limit: int = 5, **more: str
) -> Mapping[str, str]:
    """Settings of a replica that reads the group, once it is configured for them at the broker; `more` are further
    variables, without `OUZEL_`."""
    settings = Settings(
        kafka=KafkaSettings(group_id=topics.group),
        delivery=DeliverySettings(guarantee="share"),
        share=ShareSettings(lock_duration_ms=lock_ms, delivery_count_limit=limit),
    )
    admin = KafkaAdmin(cluster.client_properties(), timeout_s=10)
    admin.set_group_config(topics.group, share_group.wanted(settings))
    return {
        "OUZEL_DELIVERY__GUARANTEE": "share",
        "OUZEL_SHARE__LOCK_DURATION_MS": str(lock_ms),
        "OUZEL_SHARE__DELIVERY_COUNT_LIMIT": str(limit),
        **{f"OUZEL_{name}": value for name, value in more.items()},
    }
