"""A replica that the group has no partition for is ready all the same: it takes over when another goes."""

from contextlib import ExitStack

import pytest

from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import PROTOCOLS, Protocol
from tests.replica import Replica

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replicas_without_a_partition_are_ready(kafka: Cluster, make_topics: MakeTopics, protocol: Protocol) -> None:
    topics = make_topics(partitions=1)
    with ExitStack() as stack:
        settings = {"OUZEL_KAFKA__GROUP_PROTOCOL": protocol}
        replicas = [stack.enter_context(Replica(kafka, topics, settings=settings)) for _ in range(3)]
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.wait_ready()
        assert sum(len(replica.samples("ouzel_consumer_lag")) for replica in replicas) <= 1
