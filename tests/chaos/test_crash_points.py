"""kill -9 at every named point of an image's way, and a restart: nothing is lost, and only what was not committed is
done again."""

from pathlib import Path

import pytest

from tests.chaos.groups import answered_twice, committed, membership
from tests.conftest import Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

INPUTS = 1_000
MAX_IN_FLIGHT = 128
MAX_UNCOMMITTED = 250


@pytest.mark.parametrize(
    ("crash_at", "protocol"),
    [
        ("fetched:400", "classic"),
        ("decoded:400", "consumer"),
        ("predicted:20", "classic"),
        ("produced:500", "consumer"),
        ("delivered:500", "classic"),
        ("before-commit:5", "consumer"),
        ("after-commit:5", "classic"),
    ],
)
def test_a_replica_killed_in_its_work_loses_nothing_and_repeats_only_what_was_not_committed(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path, crash_at: str, protocol: Protocol
) -> None:
    settings = membership(kafka, topics, protocol) | {
        "OUZEL_COMMIT__INTERVAL_MS": "50",
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": str(MAX_IN_FLIGHT),
        "OUZEL_PIPELINE__MAX_UNCOMMITTED_MESSAGES": str(MAX_UNCOMMITTED),
        "OUZEL_STORES__FILE__ROOTS": f'["{small_photographs[0].parent}"]',
        "OUZEL_TEST_CRASH_AT": crash_at,
    }
    if protocol == "classic":  # comes back as the same member at once; else the group waits for the session's end
        settings["OUZEL_KAFKA__GROUP_INSTANCE_ID"] = "killed"
    by_reference = crash_at.startswith("fetched")
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        run.send(run.photographs(INPUTS, small_photographs, by_reference=by_reference))
        assert replica.start().wait_exit() == -9
        at_the_kill = committed(kafka, topics)
        assert sum(at_the_kill.values()) < INPUTS, "killed after its work"
        run.observer.wait_round()  # what was committed by then must have been answered by then (I2)

        replica.start(OUZEL_TEST_CRASH_AT="nowhere")
        run.healed(within_s=60)
    summary = run.assert_all_promises_kept()
    assert summary.inputs == INPUTS
    assert summary.letters == 0
    assert summary.duplicate_events <= topics.partitions * MAX_UNCOMMITTED + MAX_IN_FLIGHT
    assert all(offset >= at_the_kill[partition] for partition, offset in answered_twice(run.history_path))
