"""The verifier on a real broker (I8): it faults consumers that have a bug, and not the one that has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeTopics
from tests.history import Promise, load, verify
from tests.kafka_broker import Cluster
from tests.processes import start_process
from tests.runs import Run

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
