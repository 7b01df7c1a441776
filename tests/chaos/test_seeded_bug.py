"""The fault tests can fail (I8): a replica whose commits say too much is caught when it is killed."""

from pathlib import Path

import pytest

from tests.chaos.groups import membership
from tests.conftest import Topics
from tests.history import load, verify
from tests.kafka_broker import Cluster
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka


def test_a_replica_that_commits_what_it_took_is_caught_when_it_is_killed(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = membership(kafka, topics, "classic") | {
        "OUZEL_TEST_BUG": "commit-taken",
        "OUZEL_TEST_SLOW_MODEL_S": "0.5",
    }
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings, entry=CRASHING) as replica:
        run.send(run.photographs(200, small_photographs))
        replica.start()
        run.observer.wait_no_lag()  # everything was taken, so everything is committed
        replica.kill9()
        replica.start(OUZEL_TEST_BUG="", OUZEL_TEST_SLOW_MODEL_S="0").wait_ready()
        run.healed(within_s=30)
        run.observer.stop()
    broken = {violation.promise for violation in verify(load(run.history_path))}
    assert broken == {"I1", "I2"}
