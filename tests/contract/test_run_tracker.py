"""What every `ports.RunTracker` does: the fake, and W&B's real client, offline."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.tracking.wandb_tracker import RunFacts, WandbTracker
from consumer.messages import ModelInfo
from consumer.ports import RunTracker
from tests import wandb_runs
from tests.fakes import FakeRunTracker

CLOSE_S = 60.0
"""Patience with a busy machine; nothing here takes long."""
INFO = ModelInfo("birds", "1", "sha256:ab", "null", "f32")


@dataclass
class Harness:
    """A tracker, and what became of what it was told."""

    tracker: RunTracker
    rows: Callable[[], list[dict[str, Any]]]
    models: Callable[[], list[str]]
    images: Callable[[], int]


@pytest.fixture(params=["fake", "wandb"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "fake":
        fake = FakeRunTracker()
        yield Harness(
            fake, lambda: fake.rows, lambda: [info.digest for info, _ in fake.models], lambda: len(fake.images)
        )
        return
    facts = RunFacts("birds", "", "group", "replica", "offline", tmp_path, interval_s=1.0, finish_s=CLOSE_S)
    tracker = WandbTracker(facts, dropped=lambda _count: None)
    yield Harness(
        tracker,
        lambda: [row for row in wandb_runs.history(tmp_path) if "model_changes" not in row],
        lambda: [wandb_runs.config(path)["model"]["digest"] for path in wandb_runs.run_files(tmp_path)],
        lambda: sum(row.get("images/nrows", 0) for row in wandb_runs.history(tmp_path)),
    )
    tracker.close(0)


def test_what_it_is_told_is_there_when_it_is_closed(harness: Harness, photographs: list[Path]) -> None:
    tracker = harness.tracker
    tracker.model(INFO, "default")
    tracker.figures({"images_per_second": 3.0})
    tracker.image(photographs[0].read_bytes(), {"image_id": "a \ud800", "label": "robin"})
    tracker.figures({"images_per_second": 4.0, "labels/robin": 0.5})
    tracker.close(CLOSE_S)
    assert [row["images_per_second"] for row in harness.rows()] == [3.0, 4.0]
    assert harness.rows()[1]["labels/robin"] == 0.5
    assert harness.models() == ["sha256:ab"]
    assert harness.images() == 1


def test_it_may_be_closed_twice_and_told_things_afterwards(harness: Harness) -> None:
    harness.tracker.close(0)
    harness.tracker.close(0)
    harness.tracker.figures({"images_per_second": 1.0})
    harness.tracker.image(b"no image", {"image_id": "a"})
    harness.tracker.model(INFO, "default")
    assert harness.rows() == []
