"""A live group changes its guarantee, one replica at a time, in the order that docs/operations.md gives, and back."""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.groups import membership, on_both_protocols, owned
from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

GUARANTEE = "OUZEL_DELIVERY__GUARANTEE"
REPLICAS = 2
MORE = 20
"""Answers that show that work goes on."""


def test_a_live_group_becomes_exactly_once_and_at_least_once_again(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics(partitions=REPLICAS)
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | {"OUZEL_TRANSACTION__TIMEOUT_MS": "5000"}
        with Run(kafka, topics, folder) as run, ExitStack() as entered:

            def made(guarantee: str) -> list[Replica]:
                chosen = settings | {GUARANTEE: guarantee}
                return [entered.enter_context(Replica(kafka, topics, settings=chosen)) for _ in range(REPLICAS)]

            def roll(old: list[Replica], new: list[Replica]) -> None:
                for leaving, coming in zip(old, new, strict=True):
                    assert leaving.terminate() == 0
                    coming.start().wait_for(lambda coming=coming: owned(coming) == 1, 60, "its share")
                    run.observer.wait_answered(run.observer.answered + MORE)

            plain, exact = made("at_least_once"), made("exactly_once")
            with run.sending(photographs, per_second=60):
                for replica in plain:
                    replica.start()
                for replica in plain:
                    replica.wait_for(lambda replica=replica: owned(replica) == 1, 60, "all to have their share")
                run.observer.wait_answered(MORE)
                roll(plain, exact)
                for replica in exact:  # from here on nothing is seen twice, whatever is killed
                    replica.signal(signal.SIGKILL)
                    replica.wait_exit()
                    replica.start().wait_ready()
                    run.observer.wait_answered(run.observer.answered + MORE)
                roll(exact, plain)
            run.healed(within_s=60)
            # Replicas that go in order repeat nothing either, so that it holds for the whole run.
            assert run.assert_all_promises_kept(exactly_once=True).letters == 0

    on_both_protocols(scenario)
