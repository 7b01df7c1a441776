"""The schedule of faults follows from its seed, ends what it begins, and never does two things to one."""

import hashlib
import json
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.harness import platform
from tests.chaos.harness.bugs import BUGS
from tests.chaos.harness.cases import CASES
from tests.chaos.harness.cluster import coordinator_partition
from tests.chaos.harness.episode import run_episode
from tests.chaos.harness.faults import ACTIONS
from tests.chaos.harness.plan import (
    GUARANTEES,
    KINDS,
    PLATFORM,
    Fault,
    Guarantee,
    Plan,
    Platform,
    draw_plan,
    load_plan,
    schedule,
)


def test_equal_seeds_give_equal_schedules_and_others_give_others() -> None:
    assert schedule(7, 30, "at_least_once", 3, 6) == schedule(7, 30, "at_least_once", 3, 6)
    assert schedule(7, 30, "at_least_once", 3, 6) != schedule(8, 30, "at_least_once", 3, 6)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("seed", range(20))
def test_every_fault_ends_and_nothing_has_two_at_a_time(guarantee: Guarantee, seed: int) -> None:
    replicas = 1 + seed % 6
    faults = schedule(seed, 40, guarantee, replicas, 4)
    assert len(faults) == 40
    for fault in faults:
        assert fault.for_s >= 0
        assert guarantee in KINDS[fault.kind].guarantees
        assert fault.params.get("replica", 0) < replicas
    for one, other in combinations(faults, 2):
        if set(one.claims) & set(other.claims):
            assert one.end_s < other.at_s or other.end_s < one.at_s, (one, other)


def test_several_faults_are_on_at_once() -> None:
    faults = schedule(1, 40, "at_least_once", 3, 6)
    overlapping = [(a, b) for a, b in combinations(faults, 2) if a.at_s < b.at_s < a.end_s]
    assert len(overlapping) > 20


def test_faults_apart_are_one_at_a_time_with_a_rest_after_each() -> None:
    faults = schedule(1, 40, "at_least_once", 3, 6, apart_s=10.0)
    for one, other in pairwise(faults):
        assert other.at_s >= one.end_s + 9.9


def test_long_schedules_have_every_kind_of_their_guarantee() -> None:
    for guarantee in GUARANTEES:
        drawn = {fault.kind for fault in schedule(1, 1000, guarantee, 3, 6, platform=PLATFORM)}
        assert drawn == {name for name, kind in KINDS.items() if guarantee in kind.guarantees and kind.weight}


def test_what_needs_the_platform_is_drawn_only_where_the_plan_has_it() -> None:
    for given in ((), *((each,) for each in PLATFORM), PLATFORM):
        plan = draw_plan("exactly_once", 3, 500, replicas=(3, 6), platform=given)
        assert plan.platform == given
        assert {need for fault in plan.faults if (need := KINDS[fault.kind].needs)} == set(given)


def test_the_schedules_of_a_seed_stay_what_they_were() -> None:
    """Figures and broken promises are told by their seed. A new kind of fault changes them: then note its digest."""
    faults = [fault for guarantee in GUARANTEES for seed in range(5) for fault in schedule(seed, 100, guarantee, 3, 6)]
    digest = hashlib.sha256("\n".join(map(str, faults)).encode()).hexdigest()
    assert digest == "c7183926c5a93d52a4a66a9d36c437ea5e02495259f88f3bcef7dd408a88470d"


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = draw_plan("exactly_once", 5, 25, platform=PLATFORM)
    plan.dump(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_plan_of_before_there_were_platforms_has_none(tmp_path: Path) -> None:
    plan = draw_plan("exactly_once", 5, 25)
    plan.dump(tmp_path / "plan.json")
    found = json.loads((tmp_path / "plan.json").read_text())
    del found["platform"]
    (tmp_path / "plan.json").write_text(json.dumps(found))
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_plan_is_refused_where_the_platform_lacks_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "why_not", lambda what: "mount: permission denied" if what == "disk" else "")
    assert platform.chosen("auto") == ("namespaces", "clock")
    assert platform.chosen("none") == ()
    assert platform.chosen("clock,namespaces") == ("namespaces", "clock")
    with pytest.raises(SystemExit, match=r"plan\.json needs what this machine .* disk \(mount: permission denied\)"):
        platform.require(("clock", "disk"), "plan.json")
    with pytest.raises(SystemExit, match="permission denied"):
        platform.chosen("disk")
    with pytest.raises(SystemExit, match="--platform: moon: take auto, none, or of namespaces, disk, clock"):
        platform.chosen("moon")
    assert "disk: left out: mount: permission denied" in platform.told()


def test_a_plan_does_not_run_on_brokers_that_lack_what_it_asks_for(tmp_path: Path) -> None:
    fault = Fault(1.0, "disk full", {"broker": 1}, 1.0)
    brokers: Any = SimpleNamespace(platform=("namespaces",))
    platforms: tuple[tuple[Platform, ...], ...] = ((), ("disk",))
    for given, said in zip(platforms, ("does not say so", "made without disk"), strict=True):
        plan = Plan("share", 1, 1, 1, (fault,), platform=given)
        with pytest.raises(ValueError, match=said):
            run_episode(plan, brokers, tmp_path / "run", [])


def test_sizes_are_drawn_within_their_bounds() -> None:
    plans = [draw_plan("at_least_once", seed, 1, replicas=(2, 4), partitions=(3, 5)) for seed in range(60)]
    assert {plan.replicas for plan in plans} == {2, 3, 4}
    assert {plan.partitions for plan in plans} == {3, 4, 5}


def test_every_kind_of_fault_can_be_done_and_every_bug_has_its_case() -> None:
    assert set(ACTIONS) == set(KINDS)
    assert {case.name for case in CASES} == set(BUGS)
    assert {fault.kind for case in CASES for fault in case.faults} <= set(KINDS)
    assert len(BUGS) >= 10
    assert {case.guarantee for case in CASES if case.quick} == set(GUARANTEES)


def test_a_coordinator_is_found_as_kafka_finds_it() -> None:
    # "polygenelubricants".hashCode() is Integer.MIN_VALUE, whose absolute value Kafka takes for 0; "abc" is 96354.
    assert coordinator_partition("polygenelubricants", 10) == 0
    assert coordinator_partition("abc", 10) == 4
    assert coordinator_partition("ouzel-images-group", 50) == abs(_java_hash("ouzel-images-group")) % 50


def _java_hash(text: str) -> int:
    code = 0
    for letter in text:
        code = (31 * code + ord(letter)) % 2**32
    return code - 2**32 if code >= 2**31 else code
