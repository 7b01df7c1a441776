"""`ouzel_roofline_ratio` of a real replica: a share while there is a backlog, and nothing when it is done."""

import math
from pathlib import Path

import pytest

from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, delete_before, end_offsets, send
from tests.replica import CRASHING, Replica

pytestmark = pytest.mark.kafka

IMAGES = 6_000
"""Ten minutes of work: a machine that is busy has time enough for a window in which nothing waits."""


def test_it_is_a_share_with_a_backlog_and_nothing_without(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path]
) -> None:
    """A model that sleeps most of the time leaves the cores idle: the replica is far from what they could do."""
    topics = make_topics()
    send(kafka, topics.images, [Record(photographs[n % len(photographs)].read_bytes()) for n in range(IMAGES)])
    settings = {
        "OUZEL_TEST_SLOW_MODEL_S": "0.2",
        "OUZEL_BATCH__MAX_SIZE": "2",  # 10 images/s at most
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "16",
    }
    with Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        replica.start().wait_ready()
        assert math.isnan(replica.metric("ouzel_roofline_ratio"))
        replica.wait_for(lambda: not math.isnan(replica.metric("ouzel_roofline_ratio")), 300, "the ratio")
        ratio = replica.metric("ouzel_roofline_ratio")
        assert replica.metric("ouzel_images_total", outcome="labelled") < IMAGES
        assert 0 < ratio < 0.5
        delete_before(kafka, topics.images, end_offsets(kafka, topics.images))
        replica.wait_for(lambda: math.isnan(replica.metric("ouzel_roofline_ratio")), 120, "the end of the backlog")
        assert replica.terminate() == 0
