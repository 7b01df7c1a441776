"""The capacity planner: arithmetic that can be done by hand."""

from typing import Any

import pytest

from benchmarks.growth.planner import (
    Asked,
    Measured,
    core_hours,
    markdown,
    measured,
    network_mb_per_s,
    page,
    partitions,
    replicas,
    tables,
    usable_load,
)

# 10 ms an image, 8 of which are the model's, at 0.8 of the roofline: 80 images/s of a core.
FOUND = Measured(
    limit_cpu_ms=10.0,
    decode_side_cpu_ms=2.0,
    infer_cpu_ms=8.0,
    ratio=0.8,
    less_others=False,
    broker_cpu_ms=0.36,
    image_bytes=99_880.0,
    event_bytes=1_000.0,
    megapixels=0.3,
    loads=[(0.3, 20.0), (0.5, 30.0), (0.7, 60.0), (0.9, 400.0)],
    about="",
)
HALF = Asked(cores=2, load=0.5, price=0.1, replication=3, readers=2)


def _spread(value: float) -> dict[str, float]:
    return {"median": value, "least": value, "most": value}


BENCH: dict[str, Any] = {
    "machine": {"cpu": "a CPU"},
    "terms": {"sum_ms": _spread(10.0), "infer_used_ms": _spread(8.0)},
    "ratio": _spread(0.8),
    "ratio_less_others": None,
    "broker_cpu_ms": _spread(0.36),
    "facts": {
        "image_bytes": 99_880.0,
        "event_bytes": 1_000,
        "megapixels": 0.3,
        "model": {"name": "birds", "runtime": "openvino", "precision": "f32"},
    },
    "latency": {"loads": [{"load": load, "p99_ms": _spread(p99)} for load, p99 in FOUND.loads]},
}


def test_a_core_and_its_decode_limit() -> None:
    assert FOUND.per_core == pytest.approx(80.0)
    assert FOUND.decode_limit_per_core == pytest.approx(500.0)


@pytest.mark.parametrize(("per_hour", "count"), [(1_000, 1), (288_000, 1), (288_001, 2), (10_000_000, 35)])
def test_replicas_are_as_many_as_the_load_needs(per_hour: int, count: int) -> None:
    # 2 cores at half of 80 images/s: 80 images/s, 288,000 an hour.
    assert replicas(FOUND, HALF, per_hour) == count


def test_the_load_is_the_highest_that_is_quick_enough() -> None:
    assert usable_load(FOUND, Asked(p99_ms=60)) == 0.7
    assert usable_load(FOUND, Asked(p99_ms=59)) == 0.5
    assert usable_load(FOUND, Asked(load=0.9)) == 0.9
    with pytest.raises(ValueError, match="within 19 ms"):
        usable_load(FOUND, Asked(p99_ms=19))


def test_partitions_leave_room_to_double() -> None:
    assert [partitions(count) for count in (1, 3, 4, 36)] == [6, 6, 8, 72]


def test_the_network_carries_copies_and_readers() -> None:
    # 10 images/s of 0.1 MB and events of 1 kB, three copies, two readers.
    into, out = network_mb_per_s(FOUND, HALF, "raw", 10)
    assert into == pytest.approx(10 * 3 * 0.101)
    assert out == pytest.approx(10 * (2 * 0.101 + 0.1 + 2 * 0.001))
    inline, _ = network_mb_per_s(FOUND, HALF, "inline", 10)
    reference, _ = network_mb_per_s(FOUND, HALF, "reference", 10)
    assert reference < 0.02 * into < into < inline


def test_core_hours_are_those_of_service_and_copies() -> None:
    service, brokers = core_hours(FOUND, HALF)
    assert service == pytest.approx(1e6 / 40 / 3600)
    assert brokers == pytest.approx(1e6 * 0.36e-3 * 3 / 3600)


def test_a_bench_is_read_as_it_is_written() -> None:
    found = measured(BENCH)
    assert (found.per_core, found.decode_side_cpu_ms, list(found.loads)) == (80.0, 2.0, list(FOUND.loads))
    assert measured({**BENCH, "broker_cpu_ms": None, "latency": None}).broker_cpu_ms == 0.0


def test_on_a_machine_that_was_not_quiet_the_ratio_without_the_others_counts() -> None:
    # Half of the cores were others': a plan with 0.4 would have twice the replicas.
    found = measured({**BENCH, "ratio": _spread(0.4), "ratio_less_others": _spread(0.8)})
    assert found.per_core == pytest.approx(80.0)
    rows = dict(tables({**BENCH, "ratio_less_others": _spread(0.9)}, HALF)["planner-inputs"][1:])
    assert rows["achieved over roofline, other processes' CPU taken off"] == "0.90"
    # By noise it may come out above the limit, which no plan is.
    assert measured({**BENCH, "ratio_less_others": _spread(1.02)}).per_core == pytest.approx(100.0)


@pytest.mark.parametrize("wrong", [{}, {"terms": {}}, {**BENCH, "ratio": 0.8}])
def test_what_is_no_bench_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ouzel bench --json"):
        measured(wrong)


def test_tables_have_a_row_for_each_load_and_no_ragged_one() -> None:
    found = tables(BENCH, HALF)
    assert [row[0] for row in found["planner-replicas"]] == ["images an hour", "1,000", "100,000", "10,000,000"]
    assert found["planner-replicas"][-1] == ["10,000,000", "2,777.8", "35", "36", "72", "72"]
    for rows in found.values():
        assert {len(row) for row in rows} == {len(rows[0])}
    assert page(BENCH, HALF).count("\n\n") == 3
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
