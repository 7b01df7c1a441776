"""A replica held past its session and let go again: what it does then does not count, and nothing is lost."""

from pathlib import Path

import pytest

from tests.chaos.groups import membership, on_both_protocols, owned
from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka


def test_a_replica_stopped_past_its_session_commits_nothing_when_it_wakes(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol)
        slow = settings | {"OUZEL_TEST_SLOW_MODEL_S": "0.2"}  # so that it is stopped with work in hand
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=slow, entry=CRASHING) as zombie,
            Replica(kafka, topics, settings=settings) as other,
        ):
            with run.sending(small_photographs, per_second=100):
                zombie.start().wait_for(lambda: owned(zombie) == 3, 30, "the first replica to have everything")
                other.start().wait_for(lambda: owned(other) == 1, 30, "the second replica to take its share")
                zombie.wait_for(lambda: zombie.metric("ouzel_inflight_messages") > 16, 30, "work in hand")
                zombie.freeze()
                other.wait_for(lambda: owned(other) == 3, 30, "the group to give the work to the other")
                answered = run.observer.answered
                run.observer.wait_answered(answered + 200)
                zombie.thaw()
                zombie.wait_for(lambda: zombie.said("lost "), 30, "it to be told that its partitions are gone")
                other.wait_for(lambda: owned(other) < 3, 30, "it to be taken back")
            run.healed(within_s=30)
            assert zombie.exit_code is None
            assert other.exit_code is None
        run.assert_all_promises_kept(zombies=True)

    on_both_protocols(scenario)
