"""The verifier on a real broker (I8): it faults consumers that have a bug, and not the one that has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeTopics, Topics
from tests.history import Promise, load, verify
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, send
from tests.processes import start_process
from tests.replica import Replica
from tests.runs import Run, inline_image

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("bug", "promises"),
    [
        ("none", set()),
        ("commit-before-publish", {"I1", "I2"}),
        ("commit-highest", {"I2"}),  # and I1 if the kill finds it with a gap
    ],
)
def test_a_buggy_consumer_killed_in_its_work_is_caught(
    kafka: Cluster,
    make_topics: MakeTopics,
    photographs: list[Path],
    tmp_path: Path,
    bug: str,
    promises: set[Promise],
) -> None:
    topics = make_topics(partitions=2)
    options = {
        "bug": bug,
        "client": kafka.client_properties(),
        "group": topics.group,
        "images": topics.images,
        "predictions": topics.predictions,
    }
    command = [sys.executable, "-m", "tests.integration.buggy_consumer", json.dumps(options)]

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "buggy.log").open("ab") as output:
            return start_process(command, output=output, cwd=ROOT)

    with Run(kafka, topics, tmp_path) as run:
        run.send(run.photographs(200, photographs, keys=0))
        process = start()
        try:
            run.observer.wait_answered(80, timeout_s=30)
            process.kill()
            process.wait(10)
            process = start()
            run.recorder.healed(within_s=60)
            run.observer.wait_no_lag(timeout_s=60)
        finally:
            process.kill()
            process.wait(10)
    found: set[Promise] = {violation.promise for violation in verify(load(run.history_path))}
    assert promises <= found <= promises | ({"I1"} if bug == "commit-highest" else set())


def test_an_input_that_the_broker_took_twice_is_owed_twice(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics) as replica:
        again = next(run.photographs(1, photographs))
        run.send([again, *run.photographs(9, photographs)])
        send(kafka, topics.images, [Record(again.value, key=again.key)])  # as a retry that the broker takes for new
        replica.start().wait_ready()
        run.healed()
        assert run.assert_all_promises_kept().inputs == 11


def test_an_answer_to_what_the_run_never_sent_is_a_phantom(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics) as replica:
        send(kafka, topics.images, [Record(inline_image("nobody's", photographs[0].read_bytes()))])
        replica.start().wait_ready()
        run.healed()
        with pytest.raises(AssertionError, match=r"phantom.*nobody's"):
            run.assert_all_promises_kept()
