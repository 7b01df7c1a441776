"""`ouzel model optimize` and `ouzel model compare`, as a user calls them: from a model and photographs to an artifact
that is served, or refused."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import orjson
import pytest

from consumer.adapters.models.manifest import verify
from tests.integration.command_line import OUZEL, REPOSITORY, Answer
from tests.models import tiny_labels, tiny_model
from tests.photographs import SEPARATOR, write_crops
from tests.unit.test_demo_page import Page

pytestmark = pytest.mark.tensorflow

WATCHED = (sys.executable, str(Path(__file__).with_name("watched_ouzel.py")))


class Bench:
    """A bare model, its labels, and eight crops of each of four photographs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_model(classes=8)
        self.labels = tiny_labels(folder, classes=8)
        self.images = write_crops(folder / "images", each=8)
        self.home = folder / "home"
        self.home.mkdir()

    def ouzel(self, *arguments: str, program: tuple[str, ...] = OUZEL, **settings: str) -> Answer:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUZEL_", "NNCF_", "CI"))}
        # OpenVINO for the original as well: its processes start in a second.
        ours = {"OUZEL_MODEL__RUNTIME": "openvino", "OUZEL_MODEL__LABELS": str(self.labels)}
        home = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.folder / "cache")}
        named = {f"OUZEL_MODEL__{name.upper()}": value for name, value in settings.items()}
        done = subprocess.run(
            [*program, *arguments],
            capture_output=True,
            env={**kept, **home, **ours, **named, "PYTHONPATH": str(REPOSITORY)},
            cwd=self.folder,
            timeout=200,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def optimize(self, kind: str, output: str, *more: str, program: tuple[str, ...] = OUZEL) -> Answer:
        images = ("--images", str(self.images), "--cluster-by", SEPARATOR, "--rounds", "1")
        return self.ouzel(
            "model", "optimize", str(self.model), "--to", kind, "--output", output, *images, *more, program=program
        )

    def said(self, artifact: str) -> dict[str, Any]:
        return tomllib.loads((self.folder / artifact / "model.toml").read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def int8(bench: Bench) -> Answer:
    """An int8 variant in `int8`, gated on too few photographs; what it connected to is in `network`."""
    return bench.optimize(
        "openvino-int8",
        "int8",
        "--allow-small",
        "--calibration",
        "8",
        program=(*WATCHED, str(bench.folder / "network")),
    )


def test_a_variant_gated_on_crops_of_few_photographs_is_provisional_and_says_so(bench: Bench, int8: Answer) -> None:
    assert int8.code == 0, int8.stderr
    variant, artifact = int8.rows
    assert (variant["kind"], variant["verdict"]) == ("variant", "provisional")
    assert variant["method"] == "Clopper-Pearson by photograph"
    assert (variant["holdout_images"], variant["holdout_photographs"], variant["photographs_needed"]) == (24, 3, 299)
    assert variant["lower_bound"] < variant["top1_agreement"] == 1.0
    assert set(variant["variant"]["images_per_s"]) == {"1", "8", "32"}
    assert variant["variant"]["size_bytes"] > 0 < variant["original"]["cold_start_s"]
    assert artifact["digest"] == verify(bench.folder / "int8")


def test_the_artifact_names_its_parent_and_how_it_was_made(bench: Bench, int8: Answer) -> None:
    said = bench.said("int8")
    assert said["parent"] == int8.rows[-1]["parent"]
    assert said["version"].endswith("+openvino-int8")
    assert (said["format"], said["precision"], said["runtime"]) == ("openvino", "int8", "openvino")
    assert said["gate"]["status"] == "provisional"
    assert said["gate"]["min_agreement"] == 0.99
    made = said["provenance"]
    assert made["calibration_images"] == 8
    assert len(made["calibration_sha256"]) == 64
    assert {"nncf", "openvino"} <= made["tools"].keys()
    assert made["images_from"] == "files"
    assert str(bench.folder) not in (bench.folder / "int8" / "model.toml").read_text()
    assert sorted(path.name for path in bench.folder.iterdir() if path.name.startswith(".")) == []  # no scratch is left


def test_nothing_was_told_to_anybody(bench: Bench, int8: Answer) -> None:
    assert int8.code == 0, int8.stderr
    notes = bench.folder / "network"
    assert not notes.exists(), notes.read_text()
    assert not (bench.home / "intel").exists()  # where OpenVINO keeps the id that it would tell of


def test_a_provisional_variant_is_served_only_where_that_is_allowed(bench: Bench, int8: Answer) -> None:
    refused = bench.ouzel("classify", str(bench.images), source="int8", labels="", runtime="auto")
    assert refused.code == 3
    assert "provisional" in refused.stderr
    served = bench.ouzel(
        "classify", str(bench.images), source="int8", labels="", runtime="auto", allow_provisional="true"
    )
    assert served.code == 0, served.stderr
    model = served.rows[0]["model"]
    assert (model["digest"], model["precision"], model["runtime"]) == (int8.rows[-1]["digest"], "int8", "openvino")


def test_too_few_images_are_an_error_and_nothing_is_written(bench: Bench) -> None:
    answer = bench.optimize("openvino-int8", "none", "--calibration", "8")
    assert answer.code == 2
    assert "296 are missing" in answer.stderr
    assert not (bench.folder / "none").exists()


def test_a_variant_that_surely_agrees_is_accepted_and_served(bench: Bench) -> None:
    # Four photographs that agree are enough to be sure of 47 %.
    answer = bench.optimize("onnx", "onnx", "--min-agreement", "0.47")
    assert answer.code == 0, answer.stderr
    assert answer.rows[0]["verdict"] == "accepted"
    assert answer.rows[0]["largest_shift"] < 1e-3
    assert bench.said("onnx")["gate"]["status"] == "accepted"
    served = bench.ouzel("classify", str(bench.images), source="onnx", labels="", runtime="auto")
    assert served.code == 0, served.stderr
    assert served.rows[0]["model"]["runtime"] == "onnxruntime"


@pytest.fixture(scope="module")
def rejected(bench: Bench) -> Answer:
    """A variant in `thin` with hardly a weight left."""
    return bench.optimize("pruned", "thin", "--levels", "97", "--min-agreement", "0.47")


def test_a_rejected_variant_is_written_and_refused(bench: Bench, rejected: Answer) -> None:
    assert rejected.code == 1, rejected.stderr
    assert rejected.rows[0]["verdict"] == bench.said("thin")["gate"]["status"] == "rejected"
    assert rejected.rows[0]["disagreements"] > 0
    answer = bench.ouzel("classify", str(bench.images), source="thin", labels="", allow_provisional="true")
    assert answer.code == 3
    assert "rejected" in answer.stderr


def test_a_rejected_variant_can_be_looked_at(bench: Bench, rejected: Answer) -> None:
    answer = bench.ouzel(
        *("model", "compare", str(bench.model), "thin", "--images", str(bench.images)),
        *("--cluster-by", SEPARATOR, "--html", "compare.html"),
    )
    assert answer.code == 0, answer.stderr
    summary, *rest = answer.rows
    assert summary["kind"] == "summary"
    assert (summary["images"], summary["photographs"], summary["second"]["gate"]) == (32, 4, "rejected")
    assert summary["disagreements"] == rejected.rows[0]["disagreements"]
    confused = [row for row in rest if row["kind"] == "confused"]
    differing = [row for row in rest if row["kind"] == "disagreement"]
    assert sum(row["images"] for row in confused) == len(differing) == summary["disagreements"]
    assert differing[0]["first"][0]["label"].startswith("class-")
    page = Page((bench.folder / "compare.html").read_text())
    assert f"{32 - len(differing)} of 32 images get the same first label" in page.texts
    assert len(page.all("article")) == 32
    assert all((attrs["src"] or "").startswith("data:image/webp;base64,") for attrs in page.all("img"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to", "tensorrt"), "TensorrtExecutionProvider on a GPU"),
        (("--to", "pruned", "--levels", "all"), "--levels all"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_read(
    bench: Bench, arguments: tuple[str, ...], reason: str
) -> None:
    answer = bench.ouzel(
        *("model", "optimize", str(bench.model), *arguments, "--output", "none", "--images", "no such folder")
    )
    assert answer.code in {2, 3}
    assert reason in answer.stderr
    assert "fix:" in answer.stderr


def test_what_is_there_is_not_overwritten(bench: Bench) -> None:
    (bench.folder / "kept").mkdir()
    answer = bench.optimize("onnx", "kept")
    assert answer.code == 1
    assert "there already" in answer.stderr


def test_json_lines_are_all_that_goes_to_stdout(int8: Answer) -> None:
    assert all(isinstance(orjson.loads(line), dict) for line in int8.stdout.splitlines())
