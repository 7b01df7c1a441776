"""What the probes answer."""

from typing import Any

import pytest

from consumer.health import Health
from consumer.messages import Partition
from consumer.stages.dead_letter_limit import Trip
from tests.fakes import FakeClock


class _Parts:
    """Stands for pipeline, flow, publisher and source: only what health looks at."""

    def __init__(self, clock: FakeClock) -> None:
        self.turned_s = clock.now_s
        self.holding = False
        self.trip: Trip | None = None
        self.joined = True
        self.stages: dict[str, float] = {}
        self.down: dict[str, float] = {}
        self.waiting_since_s: float | None = None
        self.stalled: frozenset[Partition] = frozenset()
        self.unresolved = False

    def oldest(self) -> dict[str, float]:
        return self.stages

    def down_stores(self) -> dict[str, float]:
        return self.down

    def output_waiting_since_s(self) -> float | None:
        return self.waiting_since_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def parts(clock: FakeClock) -> _Parts:
    return _Parts(clock)


@pytest.fixture
def health(clock: FakeClock, parts: _Parts) -> Health:
    health = Health(clock, loop_deadline_s=60, stage_deadline_s=300)
    anything: Any = parts
    health.attach(anything, anything, anything, anything)
    return health


def test_while_the_model_loads_it_is_alive_and_not_ready(clock: FakeClock) -> None:
    health = Health(clock, loop_deadline_s=60, stage_deadline_s=300)
    clock.advance(10_000)
    assert health.live() == (True, {"status": "loading the model"})
    assert health.ready() == (False, {"status": "loading the model"})


def test_a_loop_that_does_not_turn_is_not_alive(health: Health, clock: FakeClock) -> None:
    clock.advance(60)
    assert health.live()[0]
    clock.advance(1)
    alive, facts = health.live()
    assert not alive
    assert "61 s" in facts["reasons"][0]


def test_an_image_that_sits_in_one_stage_past_its_deadline_is_not_alive(
    health: Health, clock: FakeClock, parts: _Parts
) -> None:
    parts.stages = {"decode": clock.now_s, "infer": clock.now_s + 200}
    clock.advance(301)
    parts.turned_s = clock.now_s
    alive, facts = health.live()
    assert not alive
    assert len(facts["reasons"]) == 1
    assert "decode" in facts["reasons"][0]


def test_a_partition_that_no_remedy_helped_is_not_alive(health: Health, parts: _Parts) -> None:
    parts.stalled = frozenset({Partition("images", 3)})
    alive, facts = health.live()
    assert not alive
    assert facts["reasons"] == ["images[3] stands still though the broker has more (health.stall_ms)"]


def test_waiting_for_a_store_or_the_output_is_alive_and_ready_and_said(
    health: Health, clock: FakeClock, parts: _Parts
) -> None:
    parts.down, parts.waiting_since_s = {"https://photos": clock.now_s}, clock.now_s
    clock.advance(10_000)
    parts.turned_s = clock.now_s
    assert health.live()[0]
    ready, facts = health.ready()
    assert ready
    assert (facts["stores_down"], facts["output_waiting_s"]) == (["https://photos"], 10_000)


def test_ready_means_joined_and_not_holding(health: Health, parts: _Parts) -> None:
    assert health.ready()[0]
    parts.joined = False
    assert health.ready()[1]["status"] == "joining the group"
    parts.joined = True
    parts.trip = Trip("system", "50 letters in a row")
    ready, facts = health.ready()
    assert (ready, facts["reason"]) == (False, "50 letters in a row")
    parts.trip, parts.holding = None, True
    assert not health.ready()[0]
    assert health.live()[0]
