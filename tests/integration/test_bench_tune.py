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
from consumer.demo.service import free_port
from consumer.errors import BrokerUnreachable
from consumer.tuning import Gain
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
    command = ["-m", "consumer", "--settings", str(bare), "bench", "--tune", "--quick", "--megapixels", "0.05"]
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

    confirmed = tune._on_the_service(
        best,
        present,
        rate=500.0,
        plan=plan,
        settings_file=bare,
        workload=make_workload(None, tmp_path / "images", megapixels=0.05, sizes=[]),
        folder=tmp_path,
        told=Told(),
    )
    gain = confirmed.gain
    assert confirmed.why_not == ""
    assert gain is not None
    assert len(gain.ratios) == 3
    assert min(gain.ratios) > 0
    logs = sorted(path.name for path in tmp_path.glob("service-*.log"))
    assert len(logs) == 6
    there = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics
    assert not [name for name in there if name.startswith("ouzel-tune-")]


def test_without_a_broker_at_hand_nothing_is_fetched_or_started_for_it(bare: Path, tmp_path: Path) -> None:
    present = Setup("null", (16, 2, 0, 2))

    confirmed = tune._on_the_service(
        present,
        present,
        rate=500.0,
        plan=replace(QUICK, jars=tmp_path / "absent"),
        settings_file=bare,
        workload=make_workload(None, tmp_path / "images", megapixels=0.05, sizes=[]),
        folder=tmp_path,
        told=Told(),
    )
    assert (confirmed.gain, confirmed.failed) == (None, False)
    assert "--bootstrap-servers" in confirmed.why_not


def test_a_broker_that_is_given_and_does_not_answer_is_said_before_the_search(bare: Path, tmp_path: Path) -> None:
    bare.write_text('[model]\nruntime = "null"\n[kafka]\nrequest_timeout_ms = 1_000\n')
    said: list[str] = []
    plan = replace(QUICK, bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnreachable):
        tune.tune(plan, bare, Told(said.append))
    assert said == ["asking the broker"]


def test_a_run_of_the_service_that_fails_loses_nothing_of_the_search(
    kafka: Cluster, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tune._Search, "against_present", lambda _self, _best: Gain((1.5, 1.4, 1.6)))
    bare.write_text('[model]\nruntime = "null"\n[kafka]\nmax_message_bytes = 20_000\n')
    # What it finds does not matter.
    plan = replace(QUICK, stage_seconds=0.02, messages=300, rounds=1, bootstrap_servers=kafka.bootstrap_servers)
    outcome = tune.tune(plan, bare, Told())
    assert outcome.service_gain is None
    assert "kafka.max_message_bytes" in outcome.not_confirmed
    assert outcome.looks
    assert not (tmp_path / "cache" / "ouzel" / "tuned-settings.json").exists()
