"""A model slower than max.poll.interval.ms, an owner thread that stands still, and a model call that never returns."""

from pathlib import Path

import pytest

from tests.chaos.groups import committed, membership, on_both_protocols
from tests.conftest import MakeTopics, Topics
from tests.history import load, verify
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

MAX_POLL_INTERVAL_MS = 3_000
RUNTIME_STUCK = 4


def test_a_model_slower_than_the_poll_interval_stays_in_the_group(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | {
            "OUZEL_KAFKA__CONSUMER__MAX_POLL_INTERVAL_MS": str(MAX_POLL_INTERVAL_MS),
            "OUZEL_BATCH__MAX_SIZE": "64",
            "OUZEL_TEST_SLOW_MODEL_S": str(MAX_POLL_INTERVAL_MS / 1000 + 1),
        }
        with Run(kafka, topics, folder) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
            run.send(run.photographs(30, small_photographs))
            replica.start()
            run.healed(within_s=60)
            batches = replica.metric("ouzel_stage_duration_seconds_count", stage="infer")
            infer_s = replica.metric("ouzel_stage_duration_seconds_sum", stage="infer")
            assert infer_s / batches > MAX_POLL_INTERVAL_MS / 1000
            assert replica.metric("ouzel_rebalances_total") == 1  # its first assignment
        summary = run.assert_all_promises_kept()
        assert summary.duplicate_events == 0

    on_both_protocols(scenario)


def test_an_owner_that_stands_still_past_the_poll_interval_loses_its_partitions_and_comes_back(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | {
            "OUZEL_KAFKA__CONSUMER__MAX_POLL_INTERVAL_MS": str(MAX_POLL_INTERVAL_MS),
            "OUZEL_TEST_FREEZE_OWNER": f"30:{MAX_POLL_INTERVAL_MS / 1000 + 2}",
        }
        with Run(kafka, topics, folder) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
            run.send(run.photographs(200, small_photographs))
            replica.start()
            run.healed(within_s=60)
            assert replica.said("lost ")
            assert replica.exit_code is None
        run.assert_all_promises_kept()

    on_both_protocols(scenario)


def test_a_model_call_that_never_returns_ends_the_replica_with_nothing_committed_past_it(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = membership(kafka, topics, "classic") | {
        "OUZEL_MODEL__INFER_DEADLINE_MS": "1000",
        "OUZEL_TEST_HANG_MODEL": "5",
    }
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        run.send(run.photographs(200, small_photographs))
        assert replica.start().wait_exit(30) == RUNTIME_STUCK
        last = replica.log_lines()[-1]
        assert last["error_class"] == "RuntimeStuck"
        assert "model.infer_deadline_ms" in last["remedy"]
        offsets = committed(kafka, topics)
        assert sum(offsets.values()) <= 4 * 16, "more than the four batches that came back"
        run.observer.wait_round()
        assert verify(load(run.history_path), final=False) == []

        replica.start(OUZEL_TEST_HANG_MODEL="0")
        run.healed(within_s=30)
    run.assert_all_promises_kept()
