"""The guard against a stream that has become slow: what it computes, and that each bound can break."""

import pytest

from benchmarks.guard import BOUNDS, broken, ratios
from consumer.bench.results import Round, StageTerms
from consumer.bench.roofline import Terms, Window

TERMS = Terms(fetch_ms=0.1, decode_ms=2.0, infer_ms=3.0, overhead_ms=0.4, batch=8)
GOOD = {"cpu_over_terms": 1.1, "roofline_ratio": 0.9, "batch_fill": 0.9}


def _round(service_cpu_s: float, ratio: float, less_others: float | None, mean_batch: float) -> Round:
    window = Window(images=1000, wall_s=4.0, cores=2, service_cpu_s=service_cpu_s, bench_cpu_s=0.1, broker_cpu_s=0.5)
    return Round(
        stages=StageTerms({}, {}, {}),
        bare_images=1000,
        bare_cpu_ms=0.4,
        terms=TERMS,
        window=window,
        roofline=300.0,
        ratio=ratio,
        ratio_less_others=less_others,
        parts=(),
        peak_rss_bytes=1,
        mean_batch=mean_batch,
        first_event_s=1.0,
    )


def test_the_ratios_are_medians_of_the_rounds() -> None:
    rounds = [_round(5.5, 0.5, 0.9, 16.0), _round(11.0, 0.4, None, 8.0), _round(6.6, 0.1, 0.8, 12.0)]
    assert ratios(rounds, 16) == pytest.approx({"cpu_over_terms": 1.2, "roofline_ratio": 0.8, "batch_fill": 0.75})


def test_good_ratios_break_no_bound() -> None:
    assert broken(GOOD) == []


@pytest.mark.parametrize("slow", [{"cpu_over_terms": 1.51}, {"roofline_ratio": 0.49}, {"batch_fill": 0.39}])
def test_each_bound_can_break(slow: dict[str, float]) -> None:
    assert [bound.name for bound in broken(GOOD | slow)] == list(slow)
    assert {bound.name for bound in BOUNDS} == set(GOOD)
