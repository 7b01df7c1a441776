"""SavedModels converted for other runtimes: once, in a child, kept with their hash, refused where they cannot be."""

import io
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumer.adapters.model_digest import file_sha256
from consumer.adapters.models import convert
from consumer.adapters.models.convert import Converted, Target, converted
from consumer.adapters.runtimes.litert_runtime import LiteRtRuntime
from consumer.adapters.runtimes.onnx_runtime import OnnxRuntime
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import CacheFull, CannotRun, ModelError
from consumer.model_spec import ModelPackage
from consumer.ports import ModelRuntime
from tests.models import bare, model_cache, save_model, tiny_model

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
# Everything that preparation may do, in one model.
EVERYTHING: dict[str, Any] = {"input_range": (-1.0, 1.0), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


def shifted() -> ModelPackage:
    return bare(tiny_model(layout="NCHW", logits=True), **EVERYTHING)


def runtime_of(target: Target, package: ModelPackage, cache: Path) -> ModelRuntime:
    if target == "onnx":
        return OnnxRuntime(package, threads=2, device="cpu", cache=cache)
    return LiteRtRuntime(package, threads=2, device="cpu", cache=cache)


both = pytest.mark.parametrize("target", ["onnx", "tflite"])


@both
def test_scale_layout_and_softmax_are_converted_too(target: Target) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = TensorFlowRuntime(shifted(), threads=2, device="cpu").infer(pixels)
    assert np.ptp(expected, axis=0).max() > 0.01
    assert runtime_of(target, shifted(), model_cache()).infer(pixels) == pytest.approx(expected, abs=1e-5)


@both
def test_it_is_made_once_and_a_damaged_one_anew(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(shifted(), target, cache=model_cache(), threads=2)
    whole, said = first.file.read_bytes(), (first.file.parent / "made.json").read_bytes()
    asked: list[Path] = []

    def make_again(_package: ModelPackage, _target: str, output: Path, _threads: int) -> None:
        asked.append(output)
        output.write_bytes(whole)
        (output.parent / "made.json").write_bytes(said)

    monkeypatch.setattr(convert, "_in_a_child", make_again)
    assert converted(shifted(), target, cache=model_cache(), threads=2) == first
    assert asked == []
    first.file.chmod(0o644)
    for damage in (lambda: first.file.write_bytes(whole[:-1]), first.file.unlink):
        damage()
        assert converted(shifted(), target, cache=model_cache(), threads=2) == first
        assert first.file.read_bytes() == whole
        first.file.chmod(0o644)
    (first.file.parent / "made.json").chmod(0o644)
    (first.file.parent / "made.json").write_text('{"sha256": 3}')
    converted(shifted(), target, cache=model_cache(), threads=2)
    assert len(asked) == 3
    assert not list((model_cache() / "converted").glob(".making-*"))


def test_models_that_differ_in_preparation_alone_are_converted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(package: ModelPackage, target: str, output: Path, threads: int) -> None:
        output.write_bytes(package.digest.encode())
        made = {"sha256": file_sha256(output), "classes": 10, "gives": "logits"}
        (output.parent / "made.json").write_text(json.dumps(made))

    monkeypatch.setattr(convert, "_in_a_child", make)
    files = {
        converted(bare(tiny_model(), **described), "onnx", cache=tmp_path, threads=2).file
        for described in ({}, {"mean": (0.5,)}, {"input_range": (-1.0, 1.0)})
    }
    assert len(files) == 3


def test_a_service_on_a_converted_model_imports_no_tensorflow() -> None:
    converted(shifted(), "onnx", cache=model_cache(), threads=2)
    converted(shifted(), "tflite", cache=model_cache(), threads=2)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from loguru import logger
logger.remove()
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.litert_runtime import LiteRtRuntime
from consumer.adapters.runtimes.onnx_runtime import OnnxRuntime
sys.modules["tensorflow"] = None
package = open_bare(Path(sys.argv[1]), BareModel(**{EVERYTHING!r}))
for make in (OnnxRuntime, LiteRtRuntime):
    runtime = make(package, threads=1, device="cpu", cache=Path(sys.argv[2]))
    print(runtime.infer(np.zeros((2, 32, 32, 3), np.uint8)).shape)
"""
    folders = (str(tiny_model(layout="NCHW", logits=True)), str(model_cache()))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 10)\n(2, 10)\n", "")


@pytest.mark.parametrize(
    ("target", "absent", "install"),
    [
        ("onnx", "tf2onnx", "pip install '.[tensorflow,optimize]'"),
        ("tflite", "tensorflow", "pip install '.[tensorflow]'"),
    ],
)
def test_what_converts_and_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, absent: str, install: str
) -> None:
    monkeypatch.setattr(convert, "missing", lambda *modules: [name for name in modules if name == absent])
    with pytest.raises(CannotRun) as caught:
        converted(shifted(), target, cache=tmp_path, threads=1)
    assert str(caught.value).startswith(f"{absent}: not installed")
    assert install in caught.value.remedy


def with_a_table(folder: Path) -> Path:
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1], [0.25, 0.75]), -1.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])  # type: ignore[untyped-decorator]
    def classify(images: Any) -> Any:
        return {"scores": tf.tile(table.lookup(tf.constant([0, 1]))[None], [tf.shape(images)[0], 1])}

    save_model(folder, {"serving_default": classify}, [table])
    return folder


def test_a_model_that_cannot_be_converted_says_why_and_what_runs_it(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="cannot be converted to onnx: it holds tables") as caught:
        converted(bare(with_a_table(tmp_path / "model")), "onnx", cache=tmp_path, threads=2)
    assert caught.value.remedy == 'set model.runtime = "tensorflow"'
    assert list((tmp_path / "converted").iterdir()) == []


def test_the_child_tells_a_broken_model_from_one_that_cannot_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "model")
    (folder / "variables" / "variables.index").unlink()
    asked = {"files": str(folder), "spec": asdict(bare(folder).spec), "target": "tflite", "output": "", "threads": 2}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asked)))
    with pytest.raises(SystemExit) as ended:
        convert.main()
    assert ended.value.code == ModelError.exit_code
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "the SavedModel cannot be loaded" in said["message"]
    assert (said["cannot_run"], said["remedy"]) == (False, "export or copy it anew")


def test_a_child_that_dies_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "__name__", "consumer.no_such_module")
    with pytest.raises(CannotRun, match=r"No module named consumer\.no_such_module") as caught:
        converted(shifted(), "onnx", cache=tmp_path, threads=2)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "converted").touch()
    with pytest.raises(ModelError) as caught:
        converted(shifted(), "onnx", cache=tmp_path, threads=2)
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_of_two_at_once_the_first_to_finish_is_taken_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(package: ModelPackage, target: Target, output: Path, threads: int) -> None:
        """While the first is at work, a second one begins and is done."""
        second = bool(results)
        results.append(None)
        if not second:
            results[0] = converted(package, target, cache=tmp_path, threads=threads)
        output.write_bytes(b"second" if second else b"first")
        said = {"sha256": file_sha256(output), "classes": 10, "gives": "logits"}
        (output.parent / "made.json").write_text(json.dumps(said))

    results: list[Converted | None] = []
    monkeypatch.setattr(convert, "_in_a_child", make)
    first = converted(shifted(), "onnx", cache=tmp_path, threads=2)
    assert first == results[0]
    assert first.file.read_bytes() == b"second"


def test_a_disk_that_takes_no_more_is_told_as_that(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # EFBIG beyond, in the child as well
    try:
        with pytest.raises(CacheFull, match="cannot be written") as told:
            converted(shifted(), "onnx", cache=tmp_path, threads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "XDG_CACHE_HOME" in told.value.remedy
    assert not list((tmp_path / "converted").iterdir())
