"""Replicas join and leave while images come in: nothing is lost, offsets never go back, keys keep their order."""

import signal
import time
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import pytest

from tests.chaos.groups import answered_twice, membership, on_both_protocols, owned
from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

STORM_STEPS = 5
STORM_PERIOD_S = 2.0


def test_two_and_three_replicas_join_and_leave_under_load(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol)
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=settings) as first,
            Replica(kafka, topics, settings=settings) as second,
            Replica(kafka, topics, settings=settings) as third,
        ):
            with run.sending(small_photographs, per_second=60):
                first.start().wait_for(lambda: owned(first) == 3, 30, "the first replica to have everything")
                second.start().wait_for(lambda: owned(second) == 1, 30, "the second replica to take its share")
                third.start().wait_for(lambda: owned(third) == 1, 30, "the third replica to take its share")
                run.observer.wait_answered(run.observer.answered + 100)
                assert first.terminate() == 0
                second.wait_for(lambda: owned(second) + owned(third) == 3, 30, "the two that stay to share the work")
                run.observer.wait_round()
                assert answered_twice(run.history_path) == set(), "a member that goes in order leaves nothing half done"
                second.kill9()
                third.wait_for(lambda: owned(third) == 3, 30, "the last replica to have everything")
                first.start().wait_for(lambda: owned(first) == 1, 30, "the first replica to come back")
            run.healed(within_s=30)
            assert first.exit_code is None
            assert third.exit_code is None
        summary = run.assert_all_promises_kept()
        assert summary.letters == 0

    on_both_protocols(scenario)


def test_a_storm_of_rebalances_loses_nothing(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol)
        with Run(kafka, topics, folder) as run, ExitStack() as replicas:

            def joined() -> Replica:
                return replicas.enter_context(Replica(kafka, topics, settings=settings)).start()

            steady = joined().wait_ready()
            visitors: list[Replica] = []
            leave = cycle((signal.SIGTERM, signal.SIGKILL))
            with run.sending(small_photographs, per_second=60):
                for step in range(STORM_STEPS):
                    if step % 3 < 2:
                        visitors.append(joined())
                    else:
                        visitors.pop(0).signal(next(leave))
                    time.sleep(STORM_PERIOD_S)  # the storm itself: it does not wait until the group has settled
            run.healed(within_s=60)
            assert steady.exit_code is None
        run.assert_all_promises_kept()

    on_both_protocols(scenario)
