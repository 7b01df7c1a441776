"""What a running replica reads again of its settings, and which model they then ask for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from consumer import bootstrap_model
from consumer.adapters.runtimes import choose, kinds
from consumer.adapters.runtimes.choose import Choice
from consumer.adapters.runtimes.kinds import Kind
from consumer.bootstrap_serving import LIVE_KEYS, SourceWatch, needed_bytes
from consumer.model_spec import InputSpec, ModelPackage, ModelSpec, OutputSpec
from consumer.ports import ModelVersion
from consumer.settings import KafkaSettings, ModelSettings, Settings, SwapSettings, default_of
from tests.fakes import FakeRuntime


class Rig:
    """`now` is what the settings are at the next look; `obtained` those that a model was asked for with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **model: Any) -> None:
        self.now = Settings(model=ModelSettings(source="/models/a", **model))
        self.watch = SourceWatch(self.now, lambda: self.now)
        self.version: ModelVersion | None = None
        self.obtained: list[Settings] = []
        monkeypatch.setattr(bootstrap_model, "resolve_source", lambda _settings: self.version)

        def obtain(settings: Settings, **_: Any) -> ModelPackage:
            self.obtained.append(settings)
            return _package(Path(__file__))

        monkeypatch.setattr(bootstrap_model, "obtain_package", obtain)

    def set(self, **tables: Any) -> None:
        self.now = Settings(**tables)


def _package(files: Path) -> ModelPackage:
    image = InputSpec("images", "float32", "NHWC", 10, 20)
    spec = ModelSpec("birds", "3", "saved_model", image, OutputSpec("scores"))
    return ModelPackage(spec, files.parent, files, None, "sha256:ab")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(sink)


def test_the_same_settings_ask_for_the_model_that_labels(rig: Rig) -> None:
    assert rig.watch.look().key == rig.watch.first_key
    assert rig.watch.look().name == "/models/a"


@pytest.mark.parametrize("model", [{"source": "/models/b"}, {"source": "/models/a", "crop": 0.5}])
def test_other_settings_of_the_model_ask_for_another(rig: Rig, model: dict[str, Any]) -> None:
    rig.set(model=ModelSettings(**model))
    wanted = rig.watch.look()
    assert wanted.key != rig.watch.first_key
    found = wanted.obtain()
    assert (found.digest, found.name) == ("sha256:ab", "birds 3")
    assert rig.obtained[0].model == rig.now.model


@pytest.mark.parametrize(("running", "taken"), [("litert", "litert"), ("onnxruntime", "tensorflow")])
def test_with_auto_a_new_model_is_loaded_where_the_running_one_is_and_tried_only_if_that_cannot_be(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, running: str, taken: str
) -> None:
    opened: list[str] = []
    tried: list[str] = []

    def try_all(package: ModelPackage, **_: Any) -> Choice:
        tried.append(package.spec.name)
        return Choice("tensorflow", "the fastest")

    def open_kind(kind: Kind, *_: Any, **__: Any) -> FakeRuntime:
        opened.append(kind.name)
        return FakeRuntime("2")

    monkeypatch.setattr(kinds, "is_installed", lambda kind: kind.name in {"litert", "tensorflow"})
    monkeypatch.setattr(choose, "choose_runtime", try_all)
    monkeypatch.setattr(kinds, "open_kind", open_kind)
    serving = rig.watch.look().obtain().load(running)
    assert serving.info.version == "2"
    assert opened == [taken]
    assert tried == ([] if running == taken else ["birds"])


def test_a_runtime_that_is_set_is_the_one_whatever_runs_now() -> None:
    package, settings = _package(Path(__file__)), Settings(model=ModelSettings(runtime="tensorflow"))
    assert bootstrap_model.choose_runtime(settings, package, preferred="litert").runtime == "tensorflow"


def test_another_version_of_the_registry_is_another_model(rig: Rig) -> None:
    rig.version = ModelVersion("3", digest="sha256:33")
    third = rig.watch.look()
    assert (third.digest, third.name) == ("sha256:33", "/models/a (3)")
    rig.version = ModelVersion("4")
    assert len({rig.watch.first_key, third.key, rig.watch.look().key}) == 3


def test_a_version_whose_files_changed_since_is_another_model(rig: Rig) -> None:
    rig.version = ModelVersion("3", state="half of it")
    half = rig.watch.look().key
    rig.version = ModelVersion("3", state="whole")
    assert rig.watch.look().key != half


def test_the_rules_of_swapping_are_read_again(rig: Rig) -> None:
    swap = SwapSettings(min_agreement=0.5, shadow_images=7, cpu_share=0.75, watch_interval_ms=1_500)
    rig.set(model=rig.now.model, swap=swap)
    wanted = rig.watch.look()
    assert wanted.key == rig.watch.first_key
    rules = wanted.rules
    assert (rules.min_agreement, rules.shadow_images, rules.cpu_share, rules.watch_interval_s) == (0.5, 7, 0.75, 1.5)


def test_other_settings_hold_until_a_restart_which_is_said_once_without_their_values(rig: Rig, said: list[str]) -> None:
    changed = ModelSettings(source="/models/b", threads=7, runtime="openvino")
    rig.set(model=changed, kafka=KafkaSettings(client={"sasl.password": "hunter2-hunter2"}))
    wanted = rig.watch.look()
    rig.watch.look()
    (line,) = said
    assert "kafka.client, model.runtime, model.threads" in line
    assert "hunter2" not in line
    wanted.obtain()
    assert rig.obtained[0].kafka == KafkaSettings()
    assert (rig.obtained[0].model.threads, rig.obtained[0].model.runtime) == (0, "auto")
    rig.set(model=ModelSettings(source="/models/a"))
    rig.watch.look()
    rig.set(model=changed)
    rig.watch.look()
    assert len(said) == 2


def test_without_a_model_there_is_nothing_to_look_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, runtime="null")
    rig.set(model=ModelSettings(source="/models/b", runtime="null"))
    assert rig.watch.look().key == rig.watch.first_key


def test_every_key_that_is_read_again_is_a_setting() -> None:
    assert all(default_of(key) is not None for key in LIVE_KEYS)
    assert {f"model.{key}" for key in bootstrap_model.DESCRIBING} <= LIVE_KEYS


def test_the_memory_that_is_asked_for_grows_with_the_weights_and_the_batch(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    for name, size in (("saved_model.pb", 1_000), ("variables/data", 10_000)):
        (folder / name).write_bytes(bytes(size))
    small = needed_bytes(_package(folder), 1)
    assert needed_bytes(_package(folder), 16) == small + 15 * (needed_bytes(_package(folder), 2) - small)
    (folder / "variables" / "more").write_bytes(bytes(10_000))
    assert needed_bytes(_package(folder), 1) >= small + 3 * 10_000
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(bytes(1_000))
    (tmp_path / "other.onnx").write_bytes(bytes(10**7))
    alone = needed_bytes(_package(onnx), 1)
    (tmp_path / "model.onnx.data").write_bytes(bytes(10_000))
    assert alone < small
    assert needed_bytes(_package(onnx), 1) - alone >= 3 * 10_000
