"""What a share group has yet to be through with, as the broker counts it: the harness leans on that."""

import pytest
from confluent_kafka import AcknowledgeType, ShareConsumer

from tests.conftest import MakeTopics
from tests.kafka_broker import KafkaBroker
from tests.kafka_clients import Record, send
from tests.processes import wait_until
from tests.share_groups import configured
from tests.share_lag import ShareLag

pytestmark = pytest.mark.kafka

LIMIT = 3  # the least that the settings allow


def test_what_is_accepted_or_given_up_is_through_and_what_is_locked_or_released_is_not(
    broker: KafkaBroker, make_topics: MakeTopics
) -> None:
    topics = make_topics(partitions=1)
    place = (topics.images, 0)
    configured(broker, topics, limit=LIMIT)
    send(broker, topics.images, [Record(b"%d" % number) for number in range(5)])
    member = ShareConsumer(broker.client_properties(group_id=topics.group, share_acknowledgement_mode="explicit"))
    lag = ShareLag(broker, topics.group)
    member.subscribe([topics.images])
    handed_out: list[int] = []

    def some_are_handed_out() -> bool:
        handed_out[:] = [message.offset() or 0 for message in member.poll(0.2)]
        return bool(handed_out)

    def settle(**kinds: AcknowledgeType) -> None:
        for offset in handed_out:
            kind = kinds.get(f"at_{offset}", AcknowledgeType.RELEASE)
            member.acknowledge_offset(topics.images, 0, offset, kind)
        assert not any(member.commit_sync(10.0).values())

    try:
        wait_until(some_are_handed_out, timeout_s=30, what="the messages")
        assert lag() == {}, "nobody has acknowledged yet: the broker does not tell"
        settle(at_3=AcknowledgeType.ACCEPT)
        assert lag() == {place: 4}, "one in the midst is done"
        wait_until(some_are_handed_out, timeout_s=30, what="the others again")
        assert handed_out == [0, 1, 2, 4]
        settle(at_0=AcknowledgeType.ACCEPT)
        assert lag() == {place: 3}, "what is released is not done"
        while lag()[place]:  # the last time they come one by one
            wait_until(some_are_handed_out, timeout_s=30, what="what is left")
            settle()
        assert handed_out == [4], "released as often as the limit allows they are gone"
    finally:
        member.close()
        lag.close()
