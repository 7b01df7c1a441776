"""`ouzel run` with tracking on: the labels, the exit and the run."""

import json
import time
from pathlib import Path

import pytest

from tests import wandb_runs
from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, read_to_end, send
from tests.processes import wait_until
from tests.replica import Replica
from tests.wandb_runs_server import RunsServer

pytestmark = pytest.mark.kafka

KEY = "0123456789abcdef0123456789abcdef01234567"
IMAGES = 40


def _settings(folder: Path, **more: str) -> dict[str, str]:
    return {
        "OUZEL_TRACKING__ENABLED": "true",
        "OUZEL_TRACKING__FOLDER": str(folder),
        "OUZEL_TRACKING__INTERVAL_MS": "1000",
        "OUZEL_WANDB__API_KEY": KEY,
        **more,
    }


def test_a_replica_labels_and_its_run_on_disk_has_its_figures_its_settings_and_a_few_images(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics()
    settings = _settings(
        tmp_path,
        OUZEL_TRACKING__MODE="offline",
        OUZEL_TRACKING__IMAGES_PER_INTERVAL="2",
        OUZEL_TRACKING__FINISH_TIMEOUT_MS="60000",
    )
    with Replica(kafka, topics, settings=settings) as replica:
        replica.start().wait_ready()
        send(kafka, topics.images, [Record(photographs[n % len(photographs)].read_bytes()) for n in range(IMAGES)])
        send(kafka, topics.images, [Record(b"no image")])
        replica.wait_for(
            lambda: replica.metric("ouzel_images_total", outcome="labelled") == IMAGES, 60, "all to be labelled"
        )
        replica.wait_for(lambda: replica.metric("ouzel_dead_letters_total") == 1, 60, "the letter")
        replica.wait_for(lambda: replica.said("began"), 60, "the run to begin")
        assert replica.samples("ouzel_tracking_dropped_total") == [0]
        assert replica.terminate() == 0
        assert KEY not in replica.log_file.read_text()
    assert len(read_to_end(kafka, topics.predictions)) == IMAGES
    [log] = wandb_runs.run_files(tmp_path)
    rows = wandb_runs.history(tmp_path)
    assert sum(value for row in rows for name, value in row.items() if name.startswith("dead_letters/")) == 1
    assert any(row.get("images_per_second", 0) > 0 and "stage/infer_p99_ms" in row for row in rows)
    assert any("confidence_mean" in row and "batch/fill" in row for row in rows)
    assert any(row.get("images/nrows") for row in rows)
    config = wandb_runs.config(log)
    assert config["model"]["runtime"] == "null"
    assert config["settings"]["kafka.group_id"] == topics.group
    assert config["settings"]["wandb.api_key"] == "********"
    assert KEY.encode() not in wandb_runs.everything(tmp_path)
    wait_until(lambda: not wandb_runs.processes_of(tmp_path), timeout_s=30, what="the end of all processes")


def test_a_server_that_hangs_holds_neither_a_label_nor_the_exit(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics()
    with RunsServer("hangs") as server:
        settings = _settings(tmp_path, OUZEL_WANDB__BASE_URL=server.url, OUZEL_TRACKING__FINISH_TIMEOUT_MS="1000")
        with Replica(kafka, topics, settings=settings) as replica:
            replica.start().wait_ready()
            replica.wait_for(server.asked.is_set, 60, "the server to be asked")
            send(kafka, topics.images, [Record(photographs[n % len(photographs)].read_bytes()) for n in range(IMAGES)])
            replica.wait_for(
                lambda: replica.metric("ouzel_images_total", outcome="labelled") == IMAGES, 60, "all to be labelled"
            )
            began_s = time.monotonic()
            assert replica.terminate() == 0
            took_s = time.monotonic() - began_s
            lines = json.dumps(replica.log_lines())
    assert took_s < 1.0 + 10.0  # the bound, and what a drain takes on a busy machine
    assert lines.count("Labels are not affected") == 1
    assert len(read_to_end(kafka, topics.predictions)) == IMAGES
    wait_until(lambda: not wandb_runs.processes_of(tmp_path), timeout_s=30, what="the end of all processes")
