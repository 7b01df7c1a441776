"""SIGTERM under load: an orderly end, after which nothing is done again. A second one ends at once, and loses nothing
either."""

import signal
from pathlib import Path

import pytest

from tests.chaos.groups import committed, label_events, membership, on_both_protocols
from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

DRAIN_S = 10


def test_a_sigterm_under_load_leaves_nothing_to_be_done_again(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | {
            "OUZEL_DRAIN__TIMEOUT_MS": str(DRAIN_S * 1000),
            "OUZEL_TEST_SLOW_MODEL_S": "0.05",  # so that there is work in flight
        }
        with Run(kafka, topics, folder) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
            run.send(run.photographs(600, small_photographs))
            replica.start()
            run.observer.wait_answered(100)
            assert replica.terminate(timeout_s=DRAIN_S) == 0
            offsets = committed(kafka, topics)
            assert sum(offsets.values()) < 600, "it was stopped after its work"
            run.observer.wait_round()
            assert run.observer.answered == sum(offsets.values()), "finished and not committed"

            replica.start()
            run.healed(within_s=30)
        summary = run.assert_all_promises_kept()
        assert summary.duplicate_events == 0
        assert len(label_events(run.history_path)) == 600

    on_both_protocols(scenario)


def test_a_second_sigterm_ends_a_slow_drain_at_once_and_loses_nothing(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = membership(kafka, topics, "classic") | {
        "OUZEL_DRAIN__TIMEOUT_MS": "60000",
        "OUZEL_TEST_SLOW_MODEL_S": "60",
    }
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        run.send(run.photographs(40, small_photographs))
        replica.start().wait_for(lambda: replica.metric("ouzel_inflight_messages") == 40, 30, "everything in flight")
        replica.signal(signal.SIGTERM)
        replica.wait_for(lambda: replica.said("stopping"), 10, "the drain")
        replica.signal(signal.SIGTERM)
        assert replica.wait_exit(timeout_s=10) == 128 + signal.SIGTERM
        assert committed(kafka, topics) == dict.fromkeys(range(topics.partitions), 0)

        replica.start(OUZEL_TEST_SLOW_MODEL_S="0")
        run.healed(within_s=30)
    run.assert_all_promises_kept()
