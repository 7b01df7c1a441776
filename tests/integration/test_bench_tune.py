"""`ouzel bench --tune` as a process, and its last step: two settings of the service in turns, on a broker that runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from consumer.bench import tune
from consumer.bench.results import QUICK
from consumer.bench.session import Told
from consumer.bench.tune import Setup
from consumer.bench.workload import make_workload
from tests.kafka_broker import Cluster

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('[model]\nruntime = "null"\n')
    return path


def test_it_searches_and_says_what_it_found(bare: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
    command = ["-m", "consumer", "--settings", str(bare), "bench", "--tune", "--quick"]
    done = subprocess.run(
        [sys.executable, *command, "--broker", "embedded"],
        cwd=ROOT,
        env={**kept, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["looks"] == sum(each["looks"] for each in found["tried"]) > 10
    assert found["present"]["batch.max_size"] == 16
    assert {each["model.runtime"] for each in found["tried"]} == {"null"}
    assert found["is_gain"] == bool(found["settings"])
    (remembered,) = json.loads((tmp_path / "ouzel" / "tuned-settings.json").read_text())["choices"].values()
    used = found["best"] if found["is_gain"] else found["present"]
    assert remembered["values"]["batch.max_size"] == used["batch.max_size"]


def test_the_service_does_the_backlog_with_both_in_turns(kafka: Cluster, bare: Path, tmp_path: Path) -> None:
    present, best = Setup("null", (16, 2, 0, 2)), Setup("null", (4, 2, 0, 1))
    plan = replace(QUICK, messages=300, rounds=1, bootstrap_servers=kafka.bootstrap_servers)

    gain, why_not = tune._on_the_service(
        best,
        present,
        rate=500.0,
        plan=plan,
        settings_file=bare,
        workload=make_workload(None, tmp_path / "images", megapixels=0.05, sizes=[]),
        folder=tmp_path,
        told=Told(),
    )
    assert why_not == ""
    assert gain is not None
    assert len(gain.ratios) == 3
    assert min(gain.ratios) > 0
    logs = sorted(path.name for path in tmp_path.glob("service-*.log"))
    assert len(logs) == 6
    there = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics
    assert not [name for name in there if name.startswith("ouzel-tune-")]


def test_without_a_broker_at_hand_nothing_is_fetched_or_started_for_it(bare: Path, tmp_path: Path) -> None:
    present = Setup("null", (16, 2, 0, 2))

    gain, why_not = tune._on_the_service(
        present,
        present,
        rate=500.0,
        plan=replace(QUICK, jars=tmp_path / "absent"),
        settings_file=bare,
        workload=make_workload(None, tmp_path / "images", megapixels=0.05, sizes=[]),
        folder=tmp_path,
        told=Told(),
    )
    assert gain is None
    assert "--bootstrap-servers" in why_not
