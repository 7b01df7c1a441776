"""Deliveries for tests, with sensible defaults."""

from consumer.messages import Delivery, Headers, Lease, Partition, TimestampType


def delivery(
    value: bytes | None,
    *,
    key: bytes | None = None,
    headers: Headers = (),
    topic: str = "images",
    partition: int = 3,
    offset: int = 41,
    topic_id: str = "topic-id",
    timestamp_ms: int | None = 1_769_851_800_125,
    timestamp_type: TimestampType = "create",
) -> Delivery:
    """One message as a source hands it over."""
    lease = Lease(Partition(topic, partition), epoch=1, topic_id=topic_id)
    return Delivery(lease, offset, value, key, headers, timestamp_ms, timestamp_type)
