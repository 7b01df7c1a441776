"""Random faults on three brokers, and the seeded bugs that the same harness must see (I8). `make chaos` goes on to a
count, `make chaos-bugs` through all bugs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos.harness.cases import CASES, Case
from tests.chaos.harness.cluster import Brokers
from tests.chaos.harness.episode import run_episode
from tests.chaos.harness.plan import Guarantee, draw_plan

pytestmark = pytest.mark.kafka

SEEDS: Mapping[Guarantee, int] = {"at_least_once": 20, "exactly_once": 20, "share": 20}
FAULTS = 14


@pytest.mark.parametrize("guarantee", SEEDS)
def test_random_faults_break_no_promise(
    brokers: Brokers, small_photographs: list[Path], tmp_path: Path, guarantee: Guarantee
) -> None:
    plan = draw_plan(guarantee, SEEDS[guarantee], FAULTS, replicas=(2, 3), partitions=(3, 6))
    result = run_episode(plan, brokers, tmp_path / "run", small_photographs)
    assert result.kept, "\n".join(result.stories)
    assert len(result.faults) == FAULTS
    assert result.lost == result.phantoms == 0
    assert result.inputs > 0


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_a_seeded_bug_is_seen(brokers: Brokers, small_photographs: list[Path], tmp_path: Path, case: Case) -> None:
    result = run_episode(case.plan(planted=True), brokers, tmp_path / "run", small_photographs)
    assert case.catches(result), f"{result.promises} broken, not {set(case.breaks)}"
    assert "python -m tests.chaos replay" in result.stories[0]
