"""Exactly once, seen by a read_committed reader, whatever is killed when."""

from pathlib import Path

import pytest

from tests.chaos.groups import committed, membership, on_both_protocols, owned
from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import CRASHING, Replica
from tests.runs import Input, Run

pytestmark = pytest.mark.kafka

EXACTLY_ONCE = {
    "OUZEL_DELIVERY__GUARANTEE": "exactly_once",
    "OUZEL_TRANSACTION__MAX_MS": "100",
    "OUZEL_TRANSACTION__TIMEOUT_MS": "4000",
}
INPUTS = 600


@pytest.mark.parametrize(
    ("crash_at", "protocol"),
    [
        ("decoded:300", "classic"),
        ("produced:300", "consumer"),
        ("delivered:300", "classic"),
        ("before-commit:2", "consumer"),
        ("offsets-sent:2", "classic"),
        ("ended:2", "consumer"),
    ],
)
def test_a_replica_killed_in_its_work_doubles_nothing(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path, crash_at: str, protocol: Protocol
) -> None:
    settings = membership(kafka, topics, protocol) | EXACTLY_ONCE | {"OUZEL_TEST_CRASH_AT": crash_at}
    if protocol == "classic":  # comes back as the same member at once; else the group waits for the session's end
        settings["OUZEL_KAFKA__GROUP_INSTANCE_ID"] = "killed"
        settings["OUZEL_TRANSACTION__ID"] = f"{topics.group}-killed"
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        run.send([*run.photographs(INPUTS, small_photographs), Input(b"no image", key=b"bad")])
        assert replica.start().wait_exit() == -9
        assert sum(committed(kafka, topics).values()) < INPUTS, "killed after its work"
        run.observer.wait_round()
        replica.start(OUZEL_TEST_CRASH_AT="nowhere")
        run.healed(within_s=60)
    summary = run.assert_all_promises_kept(exactly_once=True)
    assert (summary.inputs, summary.events, summary.letters) == (INPUTS + 1, INPUTS, 1)


def test_replicas_that_come_and_go_double_nothing(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | EXACTLY_ONCE
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=settings) as stays,
            Replica(kafka, topics, settings=settings) as goes,
        ):
            with run.sending(small_photographs, per_second=60):
                stays.start().wait_for(lambda: owned(stays) == 3, 30, "the first replica to have everything")
                for way in ("terminate", "kill9"):
                    goes.start().wait_for(lambda: owned(goes) >= 1, 30, "the second to take its share")
                    getattr(goes, way)()
                    stays.wait_for(lambda: owned(stays) == 3, 30, "everything to be the first one's again")
            run.healed(within_s=30)
        run.assert_all_promises_kept(exactly_once=True)

    on_both_protocols(scenario)


def test_a_replica_that_stood_still_past_session_and_transaction_doubles_nothing(
    kafka: Cluster, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = membership(kafka, topics, protocol) | EXACTLY_ONCE
        slow = settings | {"OUZEL_TEST_SLOW_MODEL_S": "0.2"}
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=slow, entry=CRASHING) as zombie,
            Replica(kafka, topics, settings=settings) as other,
        ):
            with run.sending(small_photographs, per_second=60):
                zombie.start().wait_for(lambda: owned(zombie) == 3, 30, "the first replica to have everything")
                other.start().wait_for(lambda: owned(other) == 1, 30, "the second replica to take its share")
                zombie.wait_for(lambda: zombie.metric("ouzel_inflight_messages") > 16, 30, "work in hand")
                zombie.freeze()
                other.wait_for(lambda: owned(other) == 3, 30, "the group to give the work to the other")
                run.observer.wait_answered(run.observer.answered + 200)
                zombie.thaw()
                other.wait_for(lambda: owned(other) < 3, 30, "the first to be taken back")
            run.healed(within_s=30)
            assert zombie.exit_code is None
        run.assert_all_promises_kept(exactly_once=True)

    on_both_protocols(scenario)


def test_two_replicas_with_one_transactional_id_are_told_so(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = membership(kafka, topics, "consumer") | EXACTLY_ONCE | {"OUZEL_TRANSACTION__ID": topics.group}
    with (
        Run(kafka, topics, tmp_path) as run,
        Replica(kafka, topics, settings=settings) as one,
        Replica(kafka, topics, settings=settings) as other,
    ):
        with run.sending(small_photographs, per_second=30):
            one.start()
            other.start()
            one.wait_for(lambda: (one.exit_code, other.exit_code).count(None) == 1, 60, "one of them to give up")
        gave_up, stays = (one, other) if one.exit_code is not None else (other, one)
        assert gave_up.exit_code == 18
        assert gave_up.said("another replica uses the transactional.id")
        run.healed(within_s=60)
        assert stays.exit_code is None
    run.assert_all_promises_kept(exactly_once=True)
