"""Static membership: one id for two replicas, and a restart that the others do not feel."""

from pathlib import Path

import pytest

from tests.chaos.groups import membership, on_both_protocols, owned
from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.processes import wait_until
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

FENCED = 9


def test_of_two_replicas_with_one_instance_id_one_ends_and_the_other_goes_on(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | {"OUZEL_KAFKA__GROUP_INSTANCE_ID": "the-same"}
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=settings) as one,
            Replica(kafka, topics, settings=settings) as other,
        ):
            with run.sending(small_photographs, per_second=60):
                one.start().wait_for(lambda: owned(one) == 3, 30, "the first replica to have everything")
                run.observer.wait_answered(50)
                other.start()
                wait_until(
                    lambda: one.exit_code is not None or other.exit_code is not None,
                    timeout_s=30,
                    what="one to give way",
                )
                answered = run.observer.answered
                run.observer.wait_answered(answered + 100)
            run.healed(within_s=30)
            # The classic protocol lets the newcomer have the id, KIP-848 the member that has it.
            loser, winner = (one, other) if protocol == "classic" else (other, one)
            assert loser.exit_code == FENCED
            assert winner.exit_code is None
            last = loser.log_lines()[-1]
            assert last["error_class"] == "InstanceFenced"
            assert "kafka.group_instance_id" in last["remedy"]
        run.assert_all_promises_kept()

    on_both_protocols(scenario)


def test_a_static_member_that_restarts_in_time_costs_the_others_no_rebalance(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol, session_ms=20_000)
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=settings | {"OUZEL_KAFKA__GROUP_INSTANCE_ID": "stays"}) as stays,
            Replica(kafka, topics, settings=settings | {"OUZEL_KAFKA__GROUP_INSTANCE_ID": "restarts"}) as restarts,
        ):
            with run.sending(small_photographs, per_second=60):
                stays.start().wait_for(lambda: owned(stays) == 3, 30, "the first replica to have everything")
                restarts.start().wait_for(lambda: owned(restarts) == 1, 30, "the second replica to take its share")
                stays.wait_for(lambda: owned(stays) == 2, 30, "the first replica to give a share away")
                before = stays.metric("ouzel_rebalances_total")
                assert restarts.terminate() == 0
                restarts.start().wait_for(lambda: owned(restarts) == 1, 30, "its share again")
                answered = run.observer.answered
                run.observer.wait_answered(answered + 100)
                assert stays.metric("ouzel_rebalances_total") == before
            run.healed(within_s=30)
        summary = run.assert_all_promises_kept()
        assert summary.duplicate_events == 0

    on_both_protocols(scenario)
