"""`model.runtime = "auto"`: trials in processes of their own, and what is made of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from consumer import bootstrap_model
from consumer.adapters.runtimes import choose
from consumer.adapters.runtimes.choose import Choice, Tried, choose_runtime, decide
from consumer.adapters.runtimes.kinds import KINDS, candidates, kind_of, open_kind
from consumer.adapters.runtimes.trial import Trial, TrialFailed
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelFormat, ModelPackage, ModelSpec, OutputSpec, Precision
from consumer.settings import Settings
from consumer.tuning_settings import with_values


def package_of(
    folder: Path,
    *,
    files: ModelFormat = "saved_model",
    runtime: str = "",
    digest: str = "sha256:1",
    precision: Precision = "f32",
) -> ModelPackage:
    image = InputSpec("images", "float32", "NHWC", 32, 32, mean=(0.5,))
    spec = ModelSpec("birds", "1", files, image, OutputSpec("scores"), precision=precision, runtime=runtime)
    return ModelPackage(spec, folder, folder, None, digest)


# --- the child ------------------------------------------------------------------------------------------------------


def trial(folder: Path, function: str, *, deadline_s: float = 60.0) -> Trial:
    return Trial(
        "openvino",
        package_of(folder),
        threads=1,
        device="cpu",
        batch_size=2,
        cache=folder,
        deadline_s=deadline_s,
        child=f"tests.trial_children:{function}",
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("function", "words"),
    [("crashes", "ended by SIGSEGV: the last words"), ("leaves", "exit code 7"), ("refuses", "not in bf16 here")],
)
def test_what_went_wrong_in_a_trial_is_said(tmp_path: Path, function: str, words: str) -> None:
    with trial(tmp_path, function) as child, pytest.raises(TrialFailed, match=words):
        child.load()


def test_a_refusal_keeps_its_class_and_remedy(tmp_path: Path) -> None:
    with trial(tmp_path, "refuses") as child, pytest.raises(TrialFailed) as caught:
        child.load()
    assert (caught.value.error, caught.value.remedy) == ("CannotRun", "use another")


def test_a_trial_that_hangs_ends_at_its_deadline_with_all_that_it_started(tmp_path: Path) -> None:
    with trial(tmp_path, "hangs", deadline_s=0.5) as child:
        pid = child.pid
        with pytest.raises(TrialFailed, match="no answer within"):
            child.load()
    assert not is_alive(pid)


def test_a_trial_gives_scores_and_figures_until_it_fails(tmp_path: Path) -> None:
    with trial(tmp_path, "works") as child:
        assert child.load().tolist() == [[0.25, 0.75]] * 2
        assert [child.measure(0.1), child.measure(0.1)] == [12.5, 12.5]
        with pytest.raises(TrialFailed, match="exit code 0"):
            child.measure(0.1)


def test_leaving_ends_the_child_whatever_it_does(tmp_path: Path) -> None:
    with trial(tmp_path, "hangs") as child:
        pid = child.pid
    assert not is_alive(pid)


# --- what is made of trials -----------------------------------------------------------------------------------------


def tried(name: str, images_per_s: float, score: float = 0.5) -> Tried:
    return Tried(kind_of(name), np.array([[score, 1 - score]], np.float32), [images_per_s])


def failed(name: str, message: str, error: str = "", remedy: str = "") -> Tried:
    return Tried(kind_of(name), failed=TrialFailed(message, error=error, remedy=remedy))


def test_the_fastest_that_agrees_is_taken_and_the_figures_are_said() -> None:
    choice = decide([tried("openvino", 150), tried("onnxruntime", 200), tried("tensorflow", 90)], 16, "saved_model")
    assert choice.runtime == "onnxruntime"
    assert choice.why == "ONNX Runtime: 200 images/s at batch 16; OpenVINO: 150; TensorFlow: 90"


def test_of_two_that_are_equally_fast_the_order_decides() -> None:
    assert decide([tried("openvino", 96), tried("tensorflow", 100)], 16, "saved_model").runtime == "openvino"
    assert decide([tried("openvino", 94), tried("tensorflow", 100)], 16, "saved_model").runtime == "tensorflow"


def test_one_that_disagrees_with_tensorflow_is_passed_over_however_fast() -> None:
    choice = decide(
        [tried("openvino", 900, 0.5), tried("litert", 300, 0.502), tried("tensorflow", 100, 0.502)], 16, "saved_model"
    )
    assert choice.runtime == "litert"
    assert "not OpenVINO: its scores differ from those of TensorFlow by 0.002" in choice.why


def test_other_classes_are_a_disagreement() -> None:
    other = Tried(kind_of("openvino"), np.zeros((1, 5), np.float32), [900])
    assert decide([other, tried("tensorflow", 100)], 16, "saved_model").runtime == "tensorflow"


def test_without_tensorflow_the_many_are_right() -> None:
    choice = decide([tried("openvino", 900, 0.6), tried("onnxruntime", 300), tried("litert", 200)], 16, "saved_model")
    assert choice.runtime == "onnxruntime"


@pytest.mark.parametrize(("files", "native"), [("tflite", "litert"), ("onnx", "onnxruntime")])
def test_of_two_that_differ_the_one_whose_own_format_it_is_is_right(files: ModelFormat, native: str) -> None:
    choice = decide([tried("openvino", 900, 0.6), tried(native, 100)], 16, files)
    assert choice.runtime == native
    assert "not OpenVINO: its scores differ" in choice.why


def test_one_that_crashed_is_named() -> None:
    choice = decide([failed("openvino", "ended by SIGSEGV"), tried("tensorflow", 100)], 16, "saved_model")
    assert choice.runtime == "tensorflow"
    assert "not OpenVINO: ended by SIGSEGV" in choice.why


def test_a_model_that_tensorflow_calls_broken_is_broken() -> None:
    broken = failed("tensorflow", "the SavedModel cannot be loaded", "ModelError", "copy it anew")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        decide([tried("openvino", 100), broken], 16, "saved_model")
    assert caught.value.remedy == "copy it anew"


def test_where_none_runs_all_the_reasons_are_told() -> None:
    with pytest.raises(CannotRun, match="OpenVINO: no rule; TensorFlow: ended by SIGKILL") as caught:
        decide(
            [failed("openvino", "no rule", "CannotRun", "use it elsewhere"), failed("tensorflow", "ended by SIGKILL")],
            1,
            "saved_model",
        )
    assert caught.value.remedy == "use it elsewhere"
    missing = [failed(name, "sees 0 GPUs", "DeviceMissing", "set model.device") for name in ("openvino", "tensorflow")]
    with pytest.raises(DeviceMissing):
        decide(missing, 1, "saved_model")


# --- remembered -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of the models that were tried: with OpenVINO and TensorFlow, of which OpenVINO is the faster."""
    made: list[str] = []

    def try_all(fit: Any, package: ModelPackage, **_given: Any) -> list[Tried]:
        made.append(package.digest)
        return [tried("openvino", 200), tried("tensorflow", 100)]

    monkeypatch.setattr(choose, "_try_all", try_all)
    return made


def chosen(cache: Path, **changes: Any) -> Choice:
    given: dict[str, Any] = {"threads": 2, "device": "cpu", "batch_size": 16} | changes
    return choose_runtime(given.pop("package", package_of(cache)), cache=cache, **given)


def said(make: Callable[[], Any]) -> str:
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{level} {message}")
    try:
        make()
    finally:
        logger.remove(sink)
    return "".join(lines)


def test_a_choice_is_remembered(tmp_path: Path, trials: list[str]) -> None:
    first, second = chosen(tmp_path), chosen(tmp_path)
    assert trials == ["sha256:1"]
    assert second == Choice("openvino", f"{first.why} (remembered)")


def test_it_is_made_anew_for_all_that_may_change_it(tmp_path: Path, trials: list[str]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"threads": 4},
        {"device": "auto"},
        {"batch_size": 8},
        {"package": package_of(tmp_path, digest="sha256:2")},
    ]
    for change in [*changes, *changes]:
        chosen(tmp_path, **change)
    assert len(trials) == len(changes)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choices": 3}', '{"choices": {"x": 1}}'])
def test_a_damaged_memory_is_said_and_written_anew(tmp_path: Path, trials: list[str], text: str) -> None:
    (tmp_path / "runtime-choices.json").write_text(text)
    lines = said(lambda: chosen(tmp_path))
    assert ("cannot be read" in lines) == ("x" not in text)
    chosen(tmp_path)
    assert len(trials) == 1


def test_a_runtime_that_is_remembered_and_gone_is_not_taken(tmp_path: Path, trials: list[str]) -> None:
    chosen(tmp_path)
    path = tmp_path / "runtime-choices.json"
    path.write_text(path.read_text().replace('"openvino"', '"abacus"'))
    assert chosen(tmp_path).runtime == "openvino"
    assert len(trials) == 2


def test_where_it_cannot_be_remembered_it_is_said_and_taken(tmp_path: Path, trials: list[str]) -> None:
    (tmp_path / "file").touch()
    lines = said(lambda: chosen(tmp_path / "file" / "cache"))
    assert "cannot be remembered" in lines


def test_a_choice_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, trials: list[str]) -> None:
    (tmp_path / "runtime-choices.json").mkdir()
    assert "cannot be remembered" in said(lambda: chosen(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["runtime-choices.json"]


def test_only_so_many_are_remembered(tmp_path: Path, trials: list[str]) -> None:
    for number in range(70):
        chosen(tmp_path, threads=number)
    assert len(json.loads((tmp_path / "runtime-choices.json").read_text())["choices"]) == 64
    chosen(tmp_path, threads=69)
    assert len(trials) == 70


# --- who is asked at all --------------------------------------------------------------------------------------------


def test_a_single_candidate_is_taken_without_a_trial(tmp_path: Path, trials: list[str]) -> None:
    alone = chosen(tmp_path, package=package_of(tmp_path, files="openvino"))
    assert alone == Choice("openvino", "OpenVINO: the only one installed for openvino, neither compared nor timed")
    made_for = chosen(tmp_path, package=package_of(tmp_path, runtime="tensorflow"))
    assert made_for == Choice("tensorflow", "TensorFlow: the one it was made for, neither compared nor timed")
    assert trials == []


def test_a_runtime_that_is_not_installed_is_no_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("consumer.adapters.runtimes.kinds.is_installed", lambda kind: kind.name == "tensorflow")
    assert [kind.name for kind in candidates(package_of(tmp_path))] == ["tensorflow"]
    with pytest.raises(CannotRun, match="is openvino; these would: openvino") as caught:
        candidates(package_of(tmp_path, files="openvino"))
    assert caught.value.remedy == "pip install '.[openvino]'"
    with pytest.raises(CannotRun, match="OpenVINO is not installed"):
        open_kind(KINDS[0], package_of(tmp_path), threads=1, device="cpu", cache=tmp_path)


def test_another_runtime_than_the_one_that_a_variant_was_made_for_is_refused(tmp_path: Path) -> None:
    model = Settings().model.model_copy(update={"runtime": "tensorflow"})
    settings = Settings().model_copy(update={"model": model})
    with pytest.raises(CannotRun, match="made for openvino") as caught:
        bootstrap_model.choose_runtime(settings, package_of(tmp_path, runtime="openvino"))
    assert "auto" in caught.value.remedy


def test_a_quantised_model_that_names_no_runtime_runs_on_its_formats_own_alone(tmp_path: Path) -> None:
    package = package_of(tmp_path, files="tflite", precision="int8")
    assert [kind.name for kind in candidates(package)] == ["litert"]
    settings = Settings().model_copy(
        update={"model": Settings().model.model_copy(update={"runtime": "openvino"})},
    )
    with pytest.raises(CannotRun, match="made for litert"):
        bootstrap_model.choose_runtime(settings, package)


def test_streams_that_tuning_found_keep_no_runtime_from_a_new_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the user set do."""
    asked: list[int] = []

    def fastest(*_: object, streams: int, **__: object) -> Choice:
        asked.append(streams)
        return Choice("tensorflow", "")

    monkeypatch.setattr(choose, "choose_runtime", fastest)
    for settings in (
        with_values(Settings(), {"model.streams": 2}),
        Settings.model_validate({"model": {"streams": 2, "autotune": True}}),
    ):
        bootstrap_model.choose_runtime(settings, package_of(tmp_path))
    assert asked == [0, 2]


def test_every_runtime_of_the_settings_is_a_kind_and_the_other_way_round() -> None:
    from typing import get_args

    from consumer.settings_tables import ModelSettings

    choices = set(get_args(ModelSettings.model_fields["runtime"].annotation))
    assert choices - {"auto", "null"} == {kind.name for kind in KINDS}
