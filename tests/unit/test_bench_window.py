"""Which part of a run counts as steady, and what others used meanwhile."""

import pytest

from consumer.bench.children import environment
from consumer.bench.service_run import Names, read_metrics, window_of
from consumer.bench.usage import Sample, others_s
from consumer.settings import load


def sample(at_s: float, *, busy_s: float | None = None, idle_s: float | None = None) -> Sample:
    return Sample(at_s, service_s=1.5 * at_s, bench_s=0.01 * at_s, broker_s=0.2 * at_s, busy_s=busy_s, idle_s=idle_s)


def looks(*done: int) -> list[tuple[int, Sample]]:
    return [(count, sample(float(second))) for second, count in enumerate(done)]


def test_the_window_opens_at_a_tenth_and_ends_while_messages_still_wait() -> None:
    window = window_of(looks(0, 50, 150, 400, 700, 950, 1000), count=1000, in_flight=100)
    # From 150 (the first above 100) to 700 (the last at which more than 100 were left).
    assert window.images == 550
    assert window.wall_s == pytest.approx(2.0)
    assert window.service_cpu_s == pytest.approx(3.0)
    assert window.broker_cpu_s == pytest.approx(0.4)
    assert window.rate == pytest.approx(275.0)


def test_a_backlog_that_is_in_flight_as_a_whole_counts_to_its_last_look() -> None:
    window = window_of(looks(0, 30, 120, 199, 200), count=200, in_flight=256)
    assert window.images == 199 - 30
    assert window.wall_s == pytest.approx(2.0)


def test_a_run_that_is_over_at_the_first_look_still_has_a_window() -> None:
    window = window_of(looks(0, 200), count=200, in_flight=256)
    assert window.images == 200
    assert window.wall_s == pytest.approx(1.0)


def test_a_broker_that_is_not_known_has_no_cpu() -> None:
    one = Sample(0.0, 0.0, 0.0, None, None, None)
    other = Sample(1.0, 1.0, 0.0, None, None, None)
    assert window_of([(0, one), (10, other)], count=10, in_flight=1).broker_cpu_s is None


def test_others_used_what_the_machine_did_beyond_ours() -> None:
    # 2 cores for 10 s: 18 busy, of which ours are 15 + 0.1 + 2.
    found = others_s(sample(0.0, busy_s=100.0, idle_s=50.0), sample(10.0, busy_s=118.0, idle_s=52.0), cores=2)
    assert found == pytest.approx(0.9)


def test_a_machine_whose_count_does_not_add_up_says_nothing_of_others() -> None:
    assert others_s(sample(0.0, busy_s=0.0, idle_s=0.0), sample(10.0, busy_s=0.0, idle_s=0.0), cores=2) is None
    assert others_s(sample(0.0), sample(10.0), cores=2) is None


def test_metrics_are_read_by_name_with_labels() -> None:
    text = '# HELP ouzel_batch_images x\nouzel_batch_images_sum 12.0\nouzel_images_total{outcome="labelled"} 1e+03\n'
    assert read_metrics(text) == {"ouzel_batch_images_sum": 12.0, 'ouzel_images_total{outcome="labelled"}': 1000.0}


def test_a_service_that_is_measured_does_not_tune_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terms beside it are those of the settings as they are."""
    monkeypatch.setenv("OUZEL_MODEL__AUTOTUNE", "true")
    assert load(None).model.autotune
    for name, value in environment(Names("images", "labels", "letters", "group").overrides()).items():
        if name.startswith("OUZEL_"):
            monkeypatch.setenv(name, value)
    assert not load(None).model.autotune
