"""`ouzel bench` against a real broker: what it says adds up, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from consumer.adapters.bench_clients import Record, open_loop
from consumer.bench import broker as bench_broker
from consumer.bench import session
from consumer.bench.broker import create_topics
from consumer.bench.kafka_jars import KafkaUnavailable, fetch_jars, find_java
from consumer.bench.results import Plan
from consumer.errors import CommandRefused
from consumer.settings import KafkaSettings
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import unique
from tests.unit.test_demo_page import Page

ROOT = Path(__file__).resolve().parents[2]
JARS = ROOT / ".kafka"
pytestmark = pytest.mark.kafka


def environment(tmp_path: Path) -> dict[str, str]:
    """The null runtime, batches of four sizes, and a cache that is nobody's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
    settings = tmp_path / "settings.toml"
    settings.write_text('[model]\nruntime = "null"\n[batch]\nmax_size = 4\n[topics]\npartitions = 3\n')
    return {**kept, "OUZEL_SETTINGS": str(settings), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consumer", "bench", "--quick", *arguments],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def check_round(each: Mapping[str, Any]) -> None:
    """Terms are positive, and the parts are all there is."""
    window, terms = each["window"], each["terms"]
    assert all(terms[name] > 0 for name in ("fetch_ms", "decode_ms", "infer_ms", "overhead_ms"))
    whole_ms = 1000 * window["cores"] * window["wall_s"] / window["images"]
    assert sum(part["cpu_ms"] for part in each["parts"]) == pytest.approx(whole_ms)
    assert 0 < window["service_cpu_s"] <= 1.1 * window["cores"] * window["wall_s"]
    assert each["achieved"] == pytest.approx(window["images"] / window["wall_s"])
    assert each["ratio"] == pytest.approx(each["achieved"] / each["roofline"])
    # No bound above: so short a window, with CPU counted in steps of 10 ms, may come out well over 1.
    assert each["ratio"] > 0


def test_a_run_with_a_broker_of_its_own_adds_up(tmp_path: Path) -> None:
    try:
        find_java()
        fetch_jars(JARS)
    except KafkaUnavailable as error:
        pytest.skip(f"no Kafka: {error}")
    page = tmp_path / "bench.html"
    arguments = ("--messages", "300", "--seconds", "1", "--as", "inline", "--megapixels", "0.1")
    done = bench(tmp_path, *arguments, "--kafka-jars", str(JARS), "--html", str(page))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)

    assert summary["facts"]["messages"] == 300
    assert summary["facts"]["form"] == "inline"
    assert summary["facts"]["model"]["runtime"] == "null"
    assert summary["facts"]["broker_cpu_known"]
    assert summary["facts"]["batch_sizes"] == [1, 2, 3, 4]
    assert len(summary["each_round"]) == 2
    for each in summary["each_round"]:
        check_round(each)
        assert 100 <= each["window"]["images"] <= 300
        assert each["window"]["broker_cpu_s"] > 0
    # Base64 and JSON cost more than looking at the first bytes, and more pixels more than few.
    fetch, decode = summary["terms"]["fetch_ms"], summary["terms"]["decode_ms"]
    assert fetch["inline"]["median"] > fetch["raw"]["median"] > 0
    assert decode["12"]["median"] > decode["2"]["median"] > decode["0.1"]["median"] > 0
    assert 1 <= summary["mean_batch"]["median"] <= 4
    assert summary["peak_rss_mib"]["median"] > 20

    loads = summary["latency"]["loads"]
    assert [each["load"] for each in loads] == [0.3, 0.5, 0.7, 0.9]
    for each in [*loads, summary["latency"]["round_trip"]]:
        assert each["unanswered"] == 0
        assert each["images"] == max(1, round(each["rate"] * 1.0))
        assert 0 < each["p50_ms"]["median"] <= each["p95_ms"]["median"] <= each["p99_ms"]["median"]
    assert summary["budget"]["ratio"] > 0
    assert "where the cpu went" in " ".join(Page(page.read_text()).texts).lower()


def _left_at(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Topics and groups of a run."""
    admin: AdminClient = cluster.admin()
    groups = admin.list_consumer_groups(request_timeout=20).result().valid
    return (
        [name for name in admin.list_topics(timeout=20).topics if name.startswith("ouzel-bench-")],
        [each.group_id for each in groups if each.group_id.startswith("ouzel-bench-")],
    )


def test_a_broker_that_is_given_is_left_as_it_was(kafka: Cluster, tmp_path: Path) -> None:
    pid = ("--broker-pid", str(kafka.pid)) if isinstance(kafka, KafkaBroker) else ()
    done = bench(
        tmp_path,
        *("--bootstrap-servers", kafka.bootstrap_servers, *pid, "--no-latency"),
        *("--messages", "200", "--rounds", "1", "--as", "reference", "--megapixels", "0.1"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["latency"] is None
    assert summary["facts"]["broker_cpu_known"] == bool(pid)
    check_round(summary["each_round"][0])
    assert _left_at(kafka) == ([], [])


def test_an_interrupt_ends_every_child_and_leaves_nothing_on_the_broker(kafka: Cluster, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "consumer", "bench", "--bootstrap-servers", kafka.bootstrap_servers),
            *("--messages", "5000", "--megapixels", "0.1"),
        ],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "the service" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, rest
    assert "everything is stopped" in rest
    assert "Traceback" not in rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert _left_at(kafka)[0] == []


class PausingAtThe100th(Sequence[Record]):
    """300 records. The load that comes to the 100th finds the broker paused, for so many seconds."""

    def __init__(self, broker: KafkaBroker, *, paused_s: float) -> None:
        self._broker = broker
        self._paused_s = paused_s
        self._has_paused = False

    def __len__(self) -> int:
        return 300

    def __getitem__(self, number: Any) -> Any:
        if number >= 300:
            raise IndexError(number)
        if number == 100 and not self._has_paused:
            self._has_paused = True
            self._broker.pause()
            threading.Timer(self._paused_s, self._broker.resume).start()
        return Record(f"image-{number}", b"x")


def test_images_that_are_due_while_nothing_answers_are_in_the_latencies(broker: KafkaBroker) -> None:
    """A generator that waited for answers would send one image into the pause; this one goes on as it was to."""
    topic = broker.create_topic(unique("echo"))
    found = open_loop(
        broker.client_properties(linger_ms=0),
        broker.client_properties(group_id="reader"),
        input_topic=topic,
        read_topic=topic,
        records=PausingAtThe100th(broker, paused_s=1.0),
        due_s=[number / 100 for number in range(300)],
        silent_s=20,
        warm=[Record("warm", b"x")],
    )
    assert found.unanswered == 0
    assert len(found.latencies_ms) == len(found.late_ms) == 300
    # 100 were due in the pause; of those 70 had to wait for at least 300 ms of it.
    assert sum(each >= 300 for each in found.latencies_ms) >= 60
    assert max(found.latencies_ms) >= 900


def test_topics_of_which_only_some_can_be_made_are_gone_again(
    kafka: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_first(settings: KafkaSettings, topics: Mapping[str, int]) -> None:
        create_topics(settings, dict(list(topics.items())[:1]))
        assert _left_at(kafka)[0] == list(topics)[:1]
        raise CommandRefused("no more topics", remedy="")

    monkeypatch.setattr(bench_broker, "create_topics", only_the_first)
    settings = environment(tmp_path)["OUZEL_SETTINGS"]
    plan = Plan(megapixels=0.1, sizes=(), bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(CommandRefused, match="no more topics"):
        session.bench(plan, Path(settings), session.Told())
    assert _left_at(kafka) == ([], [])


def test_a_process_id_that_is_nobodys_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = bench(tmp_path, "--bootstrap-servers", "127.0.0.1:1", "--broker-pid", "999999999")
    assert done.returncode == 1
    assert "--broker-pid 999999999" in done.stderr
    assert "Traceback" not in done.stderr
