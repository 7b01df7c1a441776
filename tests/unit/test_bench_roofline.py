"""The roofline's arithmetic, and that the account of a run adds up."""

import pytest

from consumer.bench.roofline import Part, Spread, Terms, Window, account, cheapest_batch, mean_parts, roofline

TERMS = Terms(fetch_ms=0.1, decode_ms=2.0, infer_ms=3.0, overhead_ms=0.4, batch=8)


def window(**changes: float | None) -> Window:
    figures: dict[str, float | None] = {
        "images": 1000,
        "wall_s": 4.0,
        "cores": 2,
        "service_cpu_s": 6.4,
        "bench_cpu_s": 0.1,
        "broker_cpu_s": 0.5,
        "others_cpu_s": 0.2,
        "padding_share": 0.1,
    }
    return Window(**(figures | changes))  # type: ignore[arg-type]


def test_the_roofline_is_the_free_cores_over_the_terms() -> None:
    # 2 cores less (0.5 + 0.1) CPU-s in 4 s are 1.85; an image costs 5.5 ms.
    assert window().free_cores == pytest.approx(1.85)
    assert roofline(TERMS, window().free_cores) == pytest.approx(1000 * 1.85 / 5.5)


def test_a_broker_whose_cpu_is_not_known_is_not_subtracted() -> None:
    assert window(broker_cpu_s=None).free_cores == pytest.approx(1.975)


def test_terms_of_nothing_have_no_roofline() -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        roofline(Terms(0, 0, 0, 0, 1), 2.0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"broker_cpu_s": None}, {"others_cpu_s": None}, {"service_cpu_s": 3.0}, {"padding_share": 0.0}],
)
def test_the_parts_sum_to_all_cores_over_the_images(changes: dict[str, float | None]) -> None:
    parts = account(TERMS, window(**changes))
    assert sum(part.cpu_ms for part in parts) == pytest.approx(2 * 4.0 * 1000 / 1000)


def test_what_the_service_used_beyond_its_terms_and_padding_is_said() -> None:
    by_name = {part.name: part.cpu_ms for part in account(TERMS, window())}
    assert by_name["padding"] == pytest.approx(0.3)
    assert by_name["service beyond these"] == pytest.approx(6.4 - 5.5 - 0.3)
    assert by_name["broker"] == pytest.approx(0.5)
    assert by_name["idle"] == pytest.approx(8.0 - 6.4 - 0.5 - 0.1 - 0.2)


def test_a_term_that_costs_less_in_the_service_is_not_hidden() -> None:
    by_name = {part.name: part.cpu_ms for part in account(TERMS, window(service_cpu_s=5.0, padding_share=0.0))}
    assert by_name["service beyond these"] == pytest.approx(-0.5)


def test_the_cheapest_batch_is_the_smallest_of_equals() -> None:
    assert cheapest_batch({16: 2.0, 8: 2.0, 1: 3.0}) == 8


def test_the_parts_of_several_rounds_still_sum_to_the_whole() -> None:
    rounds = [account(TERMS, window()), account(TERMS, window(wall_s=6.0))]
    assert sum(part.cpu_ms for part in mean_parts(rounds)) == pytest.approx((8.0 + 12.0) / 2)
    assert [part.name for part in mean_parts(rounds)] == [part.name for part in rounds[0]]
    assert mean_parts([[Part("a", "term", 1.0)], [Part("a", "term", 3.0)]]) == [Part("a", "term", 2.0)]


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="no figure"):
        Spread.of([])
