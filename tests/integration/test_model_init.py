"""`ouzel model init` and `verify`: from a model as somebody exported it to labels, with nothing said in settings."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumer.adapters.models.describe import describe
from consumer.adapters.models.model_file import read_model_file
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.bootstrap_model import load_model
from consumer.errors import CannotRun, ModelCorrupt, ModelError
from consumer.settings import ModelSettings, Settings
from consumer.stages.rank import top_labels
from tests.models import PHOTOGRAPHS, bare, model_cache, tiny_file, tiny_labels, tiny_model

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
OTHER = {"dtype": "uint8", "logits": True, "size": 160, "signature": "birds", "names": ("pixels", "beaks")}
"""As no default has it: uint8 in, logits out, 160 px, other names."""


def ouzel(*arguments: str | Path, code: int = 0) -> tuple[dict[str, Any], str]:
    """What the command says on stdout and on stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
    done = subprocess.run(
        [sys.executable, "-m", "consumer", "model", *map(str, arguments)],
        cwd=ROOT,
        env={**kept, "XDG_CACHE_HOME": str(model_cache())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout or "{}"), done.stderr


def labels_of(folder: Path, runtime: Any) -> list[list[str]]:
    """The first three labels of each photograph, by the artifact alone: of settings, only its source is set."""
    # The runtime is set as well, so that none has to be tried; `auto` has tests of its own.
    model = load_model(Settings(model=ModelSettings(source=str(folder), runtime=runtime)))
    try:
        images = [model.decoder.decode(path.read_bytes()).pixels for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
        scores = model.runtime.infer(np.stack(images))
        return [[label.label for label in row] for row in top_labels(scores, model.labels, 3)]
    finally:
        model.runtime.close()


def expected(folder: Path, decode: Callable[[Path], npt.NDArray[np.uint8]], **described: Any) -> list[list[str]]:
    """The same by TensorFlow, of the bare model that settings describe."""
    runtime = TensorFlowRuntime(bare(folder, **described), threads=2, device="cpu")
    scores = runtime.infer(np.stack([decode(path) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]))
    return [[f"class-{index}" for index in np.argsort(-row)[:3]] for row in scores]


def decoded(size: int, **options: Any) -> Callable[[Path], npt.NDArray[np.uint8]]:
    from consumer.adapters.image import PillowDecoder

    decoder = PillowDecoder((size, size), **options)
    return lambda path: decoder.decode(path.read_bytes()).pixels


def test_a_saved_model_with_another_signature_runs_from_model_init_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_cache()))
    source, output = tiny_model(**OTHER), tmp_path / "birds"
    said, hint = ouzel("init", source, "--output", output, "--labels", tiny_labels(tmp_path), "--crop", "0.875")
    assert said["input"] == "pixels uint8 [N, 160, 160, 3]"
    assert said["output"] == "beaks, 10 logits"
    assert said["labels"] == "10 of 10 classes have a name"
    assert f'model.source = "{output}"' in hint
    assert (output / "labels.csv").read_text().splitlines()[:3] == ["id,name", "0,class-0", "1,class-1"]
    verified, _ = ouzel("verify", output, "--digest", said["digest"])
    assert verified.items() >= {"result": "ok", "digest": said["digest"], "gate": "original", "name": "birds"}.items()
    assert labels_of(output, "tensorflow") == expected(source, decoded(160, crop=0.875))


@pytest.mark.parametrize(
    ("target", "runtime", "options", "told"),
    [
        ("onnx", "onnxruntime", {"layout": "NCHW", "logits": True}, "images:0 float32 [N, 3, 32, 32]"),
        ("tflite", "litert", {"batch": 1}, "serving_default_images:0 float32 [N, 32, 32, 3]"),
    ],
)
def test_a_file_runs_from_model_init_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, runtime: str, options: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_cache()))
    output = tmp_path / "birds"
    source = tiny_file(target, **options)
    prepared = ("--labels", tiny_labels(tmp_path), "--input-range", "-1", "1", "--mean", "0.1,0.2,0.3", "--std", "0.5")
    said, _ = ouzel("init", source, "-o", output, *prepared, "--version", "7")
    assert (said["input"], said["range"], said["mean"], said["std"]) == (told, [-1.0, 1.0], [0.1, 0.2, 0.3], [0.5])
    said_by_file = read_model_file(output)
    assert (said_by_file.version, said_by_file.provenance["source"]) == ("7", f"birds.{target}")
    assert str(tmp_path) not in (output / "model.toml").read_text()
    described = {"input_range": (-1.0, 1.0), "mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    original = tiny_model(**{key: value for key, value in options.items() if key != "batch"})
    assert labels_of(output, runtime) == expected(original, decoded(32), **described)


def test_a_quantised_file_is_scaled_by_its_own_numbers_and_has_one_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_cache()))
    output = tmp_path / "birds"
    said, _ = ouzel("init", tiny_file("tflite", quantised="int8"), "--output", output)
    assert said["range"] == pytest.approx([0.0, 1.0], abs=1e-3)
    assert said["output"].endswith("10 probabilities")
    assert said["labels"] == "0 of 10 classes have a name"
    written = read_model_file(output)
    assert (written.labels, written.precision, written.runtime) == ("", "int8", "litert")
    assert (said["precision"], said["runtime"]) == ("int8", "litert")
    model = load_model(Settings(model=ModelSettings(source=str(output))))
    try:
        assert (model.runtime.info.runtime, model.runtime.info.precision) == ("litert", "int8")
    finally:
        model.runtime.close()
    with pytest.raises(CannotRun, match="made for litert"):
        load_model(Settings(model=ModelSettings(source=str(output), runtime="openvino")))


def test_quantised_files_are_known_by_their_operators(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = tiny_file("onnx")
    quantize_dynamic(plain, tmp_path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    assert describe(plain).precision == "f32"
    assert describe(tmp_path / "dynamic.onnx").precision == "int8"
    assert describe(tiny_file("tflite")).precision == "f32"
    assert describe(tiny_file("tflite", dtype="uint8")).precision == "f32"
    assert describe(tiny_file("tflite", quantised="uint8")).precision == "int8"


def test_an_openvino_model_is_described_from_its_two_files(tmp_path: Path) -> None:
    from consumer.adapters.runtimes.openvino_start import import_openvino

    ov = import_openvino()
    ov.save_model(ov.Core().read_model(tiny_file("onnx", logits=True)), tmp_path / "x.xml", compress_to_fp16=False)
    said, _ = ouzel("init", tmp_path / "x.xml", "--output", tmp_path / "birds")
    assert (said["format"], said["output"].split(", ")[1]) == ("openvino", "10 logits")
    assert sorted(path.name for path in (tmp_path / "birds" / "model").iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{onnx}", "--output", "{there}"], 1, "is there already"),
        (["{onnx}", "--output", "{new}", "--labels", "{labels}"], 3, "id 9 is outside 0 to 4"),
        (["{onnx}", "--output", "{new}", "--mean", "1,2"], 2, "is not one number, or three with commas"),
        (["{onnx}", "--output", "{new}", "--std", "0"], 3, "holds a 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_described_is_refused_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "there").mkdir()
    names = {
        "there": tmp_path / "there",
        "new": tmp_path / "new",
        "labels": tiny_labels(tmp_path),
        "onnx": tiny_file("onnx", classes=5),
    }
    before = sorted(tmp_path.rglob("*"))
    _, said = ouzel("init", *(argument.format(**names) for argument in arguments), code=code)
    assert words in " ".join(said.replace("│", " ").split())
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_model_by_its_name_or_has_no_signatures_is_refused(tmp_path: Path) -> None:
    for source, signature, words in (
        (tmp_path / "absent.onnx", "", "no such file or folder"),
        (tiny_labels(tmp_path), "", "not a model by its name"),
        (tiny_file("onnx"), "serving_default", "only a SavedModel has signatures"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            describe(source, signature=signature)
        assert caught.value.remedy


def test_a_damaged_artifact_is_refused_by_verify_and_by_loading(tmp_path: Path) -> None:
    output = tmp_path / "birds"
    digest = ouzel("init", tiny_file("onnx"), "--output", output)[0]["digest"]
    other = ouzel("init", tiny_file("onnx", seed=8), "--output", output, "--force")[0]["digest"]
    assert other != digest
    assert "is wanted" in ouzel("verify", output, "--digest", digest, code=3)[1]
    shutil.copyfile(tiny_file("onnx"), output / "model" / "model.onnx")
    assert "model/model.onnx has other bytes than the manifest says" in ouzel("verify", output, code=3)[1]
    with pytest.raises(ModelCorrupt):
        load_model(Settings(model=ModelSettings(source=str(output))))
