"""A group's committed offsets, asked by a consumer that never joins.

Not by the AdminClient: its `list_consumer_group_offsets` ends the process with a segmentation fault where the
coordinator answers NOT_COORDINATOR, as a fresh cluster does (https://github.com/confluentinc/librdkafka/issues/5040).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from consumer.messages import CommitPoint, Partition


class CommittedOffsets:
    """Reads the commits of one group. Blocks."""

    def __init__(self, properties: Mapping[str, Any], group_id: str, **callbacks: Any) -> None:
        """`properties` are librdkafka's; connects at the first call."""
        self._consumer = Consumer({**properties, "group.id": group_id, "enable.auto.commit": False}, **callbacks)

    def read(self, partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, CommitPoint]:
        """The partitions that have a commit, with its metadata.

        Raises:
            KafkaException: no answer, or a refusal.
        """
        if not partitions:
            return {}
        try:
            found = self._consumer.committed([TopicPartition(*each) for each in partitions], timeout=timeout_s)
        except KafkaException as error:
            # Who may not read the group is told so as a consumer is, and this question runs out of time.
            told = self._consumer.poll(0)
            reason = told.error() if told is not None else None
            raise (error if reason is None else KafkaException(reason)) from error
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return {
            Partition(each.topic, each.partition): CommitPoint(each.offset, each.metadata or "")
            for each in found
            if each.offset >= 0
        }

    def close(self) -> None:
        """Idempotent."""
        self._consumer.close()
