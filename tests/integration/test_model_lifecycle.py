"""The life of a model, by the commands that a person types: described, registered, promoted, live under load, made
smaller, and taken back; and a version that is damaged where it is kept."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumer.bootstrap_model import load_model
from consumer.settings import ModelSettings, Settings
from tests.answers import Answers
from tests.conftest import Topics
from tests.integration.command_line import OUZEL, REPOSITORY
from tests.kafka_broker import Cluster
from tests.models import tiny_labels, tiny_model
from tests.photographs import SEPARATOR, write_crops
from tests.replica import Replica
from tests.runs import Run

pytestmark = [pytest.mark.kafka, pytest.mark.tensorflow]


@dataclass(frozen=True)
class Known:
    """A version, and what it says of images: worked out from its artifact alone, without a service."""

    digest: str
    precision: str
    first_labels: Mapping[str, tuple[str, float]]
    """By the SHA-256 of an image's bytes."""

    @classmethod
    def of(cls, artifact: Path, photographs: Sequence[Path]) -> "Known":
        described = ModelSettings(source=str(artifact), runtime="openvino", allow_provisional=True)
        model = load_model(Settings(model=described))
        found = {}
        for body in (path.read_bytes() for path in photographs):
            (scores,) = model.runtime.infer(model.decoder.decode(body).pixels[None])
            best = int(scores.argmax())
            found[hashlib.sha256(body).hexdigest()] = (model.labels.name(best), float(scores[best]))
        return cls(model.runtime.info.digest, model.runtime.info.precision, found)

    def made(self, event: Mapping[str, Any]) -> bool:
        """Whether the event's first label is what this version says of its image."""
        label, score = self.first_labels[event["image"]["sha256"]]
        best = event["labels"][0]
        return bool(best["label"] == label and abs(best["score"] - score) < 1e-3)


class Desk:
    """Where a person types, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = folder / "models" / "birds"
        self.labels = tiny_labels(folder)
        self.images = write_crops(folder / "crops", each=8)

    def ouzel(self, *arguments: str | Path, code: int = 0) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
        ours = {
            "OUZEL_MODEL__RUNTIME": "openvino",
            "OUZEL_MODEL__ALLOW_PROVISIONAL": "true",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        done = subprocess.run(
            [*OUZEL, "model", *map(str, arguments)],
            cwd=self.folder,
            env={**kept, **ours, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def init(self, name: str, **options: str) -> Path:
        """An artifact of the tiny model."""
        described: list[str | Path] = ["--labels", self.labels, "--name", "birds", "--version", name]
        for key, value in options.items():
            described += [f"--{key}", value]
        self.ouzel("init", tiny_model(), "--output", name, *described)
        return self.folder / name

    def register(self, artifact: Path) -> str:
        """The registry's name of the new version."""
        self.ouzel("register", artifact, f"file://{self.registry}")
        return max((path.name for path in self.registry.iterdir() if path.is_dir()), key=int)

    def promote(self, version: str) -> None:
        self.ouzel("promote", f"file://{self.registry}:{version}", "production")


def test_a_version_goes_live_is_made_smaller_and_taken_back_and_no_image_is_lost(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    first, second = desk.init("1"), desk.init("2", crop="0.9")
    desk.promote(desk.register(first))
    _assert_a_script_is_told_json(desk)
    small = tmp_path / "small"
    # As it was gated on crops of four photographs, it is provisional.
    bench: tuple[str | Path, ...] = (
        "--images",
        desk.images,
        "--cluster-by",
        SEPARATOR,
        "--calibration",
        "8",
        "--rounds",
        "1",
    )
    desk.ouzel("optimize", second, "--to", "openvino-int8", "--output", small, *bench, "--allow-small")
    known = {path.name: Known.of(path, photographs) for path in (first, second, small)}
    assert len({each.digest for each in known.values()}) == 3
    assert known["small"].precision == "int8"

    settings = {
        "OUZEL_MODEL__SOURCE": f"file://{desk.registry}:production",
        "OUZEL_MODEL__RUNTIME": "openvino",
        "OUZEL_MODEL__ALLOW_PROVISIONAL": "true",
        "OUZEL_SWAP__WATCH_INTERVAL_MS": "200",
        "OUZEL_SWAP__SHADOW_IMAGES": "24",
        "OUZEL_SWAP__MIN_AGREEMENT": "0.5",
        "OUZEL_SWAP__CPU_SHARE": "1.0",
    }
    with (
        Run(kafka, topics, tmp_path) as run,
        Answers(kafka, topics) as answers,
        Replica(kafka, topics, settings=settings) as replica,
    ):
        replica.start().wait_ready()

        def until_labelled_by(name: str) -> None:
            digest = known[name].digest
            by_it: Callable[[], bool] = lambda: any(a.event["model"]["digest"] == digest for a in answers.events[-8:])  # noqa: E731
            answers.wait(by_it, f"events by {name}", timeout_s=90)

        with run.sending(photographs, per_second=40):
            until_labelled_by("1")
            desk.promote(desk.register(second))
            until_labelled_by("2")
            desk.promote(desk.register(small))
            until_labelled_by("small")
            desk.ouzel("rollback", f"file://{desk.registry}:production")
            until_labelled_by("2")
            _promote_a_damaged_one(desk)
            replica.wait_for(lambda: replica.metric("ouzel_model_swaps_total", result="failed") >= 1, 60, "a refusal")
            so_far = len(answers.events)
            answers.wait(lambda: len(answers.events) > so_far + 20, "events after it")
        run.healed(within_s=60)
        assert replica.terminate() == 0
        summary = run.assert_all_promises_kept(exactly_once=True)
        answers.read_to_end()
    assert summary.letters == 0
    by_digest = {each.digest: each for each in known.values()}
    events = [answer.event for answer in answers.events]
    assert {event["model"]["digest"] for event in events} == by_digest.keys()
    assert [event for event in events if not by_digest[event["model"]["digest"]].made(event)] == []
    assert {event["model"]["precision"] for event in events} == {"f32", "int8"}


def _assert_a_script_is_told_json(desk: Desk) -> None:
    (row,) = [json.loads(line) for line in desk.ouzel("list", f"file://{desk.registry}").splitlines()]
    assert row["version"] == "1"
    assert "production" in row["aliases"]


def _promote_a_damaged_one(desk: Desk) -> None:
    """A version whose weights lose their last bytes after it was registered."""
    version = desk.register(desk.init("3", crop="0.8"))
    (weights,) = (desk.registry / version).rglob("variables.data*")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "has other bytes than the manifest says" in desk.ouzel("verify", desk.registry / version, code=3)
    desk.promote(version)
