"""`ouzel_roofline_ratio`: what it says with a backlog, and when it says nothing. The clocks are led by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from consumer.bootstrap_roofline import known_overhead_ms, remember_overhead
from consumer.commands.bench import _remember
from consumer.messages import ModelInfo
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.roofline_meter import WINDOW_S, RooflineMeter, calibrate
from tests.fakes import FakeClock
from tests.unit.bench_results import result

DIGEST = "sha256:ab"


class Replica:
    """A loop that turns ten times a second on four cores; an image costs 1 ms to fetch, 2 to decode, 4 on the model and
    1 of Kafka's own: 500 images/s at most."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.told: list[float] = []
        self.meter = RooflineMeter(cores=4.0, overhead_ms=1.0, thread_cpu_s=lambda: self.cpu_s, tell=self.told.append)
        self.meter.serves(DIGEST)
        self.meter.calibrated(DIGEST, {8: 4.0, 16: 5.0})

    def stage(self, name: str, cpu_ms: float) -> None:
        began_s = self.meter.begin(name, self.now_s)
        self.cpu_s += cpu_ms / 1000
        if began_s is not None:
            self.meter.end(name, began_s)

    def work(
        self, seconds: float, *, rate: float, backlog: bool = True, waited: float = 0.0, fetch: str = "fetch"
    ) -> float:
        """So many images/s for so long; the ratio at its end."""
        for _ in range(round(10 * seconds)):
            for _ in range(round(rate / 10)):
                self.stage(fetch, 1.0)
                self.stage("decode", 2.0)
                self.meter.labelled()
            self.now_s += 0.1
            self.meter.turned(self.now_s, backlog=backlog, waited_s=0.1 * waited)
        return self.meter.ratio


def test_with_a_backlog_it_is_what_was_done_over_what_the_cores_could_do() -> None:
    replica = Replica()
    assert replica.work(WINDOW_S + 2, rate=400) == pytest.approx(0.8, rel=0.01)
    assert replica.told[-1] == replica.meter.ratio


def test_parsing_is_part_of_fetching() -> None:
    assert Replica().work(WINDOW_S + 2, rate=400, fetch="parse") == pytest.approx(0.8, rel=0.01)


def test_it_follows_the_last_window_and_not_the_whole_life() -> None:
    replica = Replica()
    replica.work(60, rate=400)
    assert replica.work(WINDOW_S + 2, rate=100) == pytest.approx(0.2, rel=0.02)


def test_before_a_whole_window_nothing_is_said() -> None:
    assert math.isnan(Replica().work(WINDOW_S - 1, rate=400))


def test_low_traffic_is_no_shortfall() -> None:
    replica = Replica()
    assert math.isnan(replica.work(30, rate=50, backlog=False))
    assert replica.told == []


def test_a_backlog_that_empties_once_takes_the_word_back_for_a_window() -> None:
    replica = Replica()
    replica.work(WINDOW_S + 2, rate=400)
    assert math.isnan(replica.work(0.1, rate=400, backlog=False))
    assert math.isnan(replica.told[-1])
    assert math.isnan(replica.work(WINDOW_S - 1, rate=400))
    assert replica.work(3, rate=400) == pytest.approx(0.8, rel=0.02)


def test_a_loop_that_waits_for_messages_has_no_backlog_whatever_the_lag_says() -> None:
    """As with many small messages under way from the broker at every moment."""
    replica = Replica()
    assert math.isnan(replica.work(30, rate=350, waited=0.3))
    assert replica.work(30, rate=400, waited=0.01) == pytest.approx(0.8, rel=0.01)


def _down(meter: RooflineMeter) -> None:
    meter.store("s3://photos", down=True)


def _swapping(meter: RooflineMeter) -> None:
    meter.swapping(under_way=True)


def _another_model(meter: RooflineMeter) -> None:
    meter.serves("sha256:cd")


@pytest.mark.parametrize("happens", [_down, _swapping, _another_model])
def test_nothing_is_said_while_something_else_keeps_the_rate_down(happens: Callable[[RooflineMeter], None]) -> None:
    replica = Replica()
    replica.work(WINDOW_S + 2, rate=400)
    happens(replica.meter)
    assert math.isnan(replica.work(30, rate=100))


def test_it_speaks_again_when_the_store_is_back_and_the_swap_has_ended() -> None:
    replica = Replica()
    replica.meter.store("s3://photos", down=True)
    replica.meter.swapping(under_way=True)
    replica.work(30, rate=100)
    replica.meter.store("s3://photos", down=False)
    replica.meter.swapping(under_way=False)
    assert replica.work(WINDOW_S + 2, rate=400) == pytest.approx(0.8, rel=0.01)


def test_without_a_calibration_nothing_is_said() -> None:
    replica = Replica()
    replica.meter = RooflineMeter(cores=4.0, overhead_ms=1.0)
    replica.meter.serves(DIGEST)
    assert math.isnan(replica.work(30, rate=400))


def test_of_a_busy_stage_few_images_are_measured() -> None:
    """The clock of a thread's CPU is a system call."""
    replica = Replica()
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return 0.0

    replica.meter = RooflineMeter(cores=4.0, overhead_ms=1.0, thread_cpu_s=clock)
    replica.work(1, rate=1000)
    assert asked <= 2 * 2 * 21


def test_a_batch_costs_what_the_process_spent_on_it() -> None:
    cpu_s = 0.0

    def run(size: int) -> None:
        nonlocal cpu_s
        cpu_s += 0.010 + 0.002 * size

    found = calibrate(run, [1, 4, 8], process_cpu_s=lambda: cpu_s, now_s=lambda: 0.0)
    assert found == pytest.approx({1: 12.0, 4: 4.5, 8: 3.25})


def test_a_slow_model_is_calibrated_at_its_largest_batch_alone() -> None:
    now_s = 0.0
    ran: list[int] = []

    def run(size: int) -> None:
        nonlocal now_s
        now_s += 3.0
        ran.append(size)

    assert list(calibrate(run, [1, 4, 8], process_cpu_s=lambda: now_s, now_s=lambda: now_s)) == [8]
    assert ran == [8]


def test_the_observer_tells_it_what_happens_and_the_metric_has_it() -> None:
    replica, clock, metrics = Replica(), FakeClock(), Metrics()
    replica.meter = RooflineMeter(
        cores=4.0, overhead_ms=1.0, thread_cpu_s=lambda: replica.cpu_s, tell=metrics.roofline_ratio
    )
    observer = Observer(metrics, clock, meter=replica.meter)
    observer.serves(ModelInfo("bird", "1", DIGEST, "openvino", "f32"))
    replica.meter.calibrated(DIGEST, {8: 4.0})
    with observer.stage("decode"):
        replica.cpu_s += 0.003
    replica.meter.turned(0.0, backlog=True, waited_s=0.0)
    for turn in range(1, 12):
        clock.advance(1.0)
        with observer.stage("decode"):
            replica.cpu_s += 0.003
        for _ in range(400):
            replica.meter.labelled()
        observer.turned(float(turn), backlog=True, waited_s=0.0)
    assert metrics.registry.get_sample_value("ouzel_roofline_ratio") == pytest.approx(0.8)
    observer.swap_state("loading")
    observer.turned(12.0, backlog=True, waited_s=0.0)
    assert math.isnan(metrics.registry.get_sample_value("ouzel_roofline_ratio") or 0.0)


# --- what Kafka costs -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ouzel" / "bench-overhead.json"


def test_what_the_bench_measured_is_what_replicas_here_reckon_with(cache: Path) -> None:
    assert known_overhead_ms() is None
    remember_overhead(0.25)
    assert known_overhead_ms() == 0.25


@pytest.mark.parametrize("value", ["0.25", None, -1.0, 0.0, 1e9, math.nan])
def test_what_is_no_figure_there_is_not_used(cache: Path, value: object) -> None:
    remember_overhead(0.25)
    body = json.loads(cache.read_text())
    (key,) = body["choices"]
    body["choices"][key] = {"overhead_ms": value}
    cache.write_text(json.dumps(body))
    assert known_overhead_ms() is None


def test_the_bench_remembers_it_unless_its_broker_was_no_kafka(cache: Path) -> None:
    found = result()
    _remember(replace(found, facts=replace(found.facts, broker_kind="embedded")))
    assert known_overhead_ms() is None
    _remember(found)
    assert known_overhead_ms() == median(each.bare_cpu_ms for each in found.rounds)


@pytest.mark.parametrize("asked", [{"megapixels": 12.0}, {"form": "inline"}, {"images": Path("photographs")}])
def test_what_kafka_costs_with_other_messages_is_not_remembered(cache: Path, asked: dict[str, Any]) -> None:
    found = result()
    _remember(replace(found, plan=replace(found.plan, **asked)))
    assert known_overhead_ms() is None
