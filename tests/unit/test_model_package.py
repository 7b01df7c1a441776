"""Artifacts and bare models as they are opened: what is refused, what the gate says, and what the digest covers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.models.manifest import write_manifest
from consumer.adapters.models.model_file import MODEL_FILE, write_model_file
from consumer.adapters.models.package import BareModel, check_artifact, is_artifact, open_artifact, open_bare
from consumer.adapters.models.write import copy_labels, copy_model, write_artifact
from consumer.bootstrap_model import open_folder
from consumer.errors import CommandRefused, ModelCorrupt, ModelError, ModelRefused
from consumer.model_spec import InputSpec, ModelSpec, OutputSpec
from consumer.settings import ModelSettings, Settings
from consumer.settings_tables import DecodeSettings
from tests.unit.test_saved_model_signature import saved_model

SPEC = ModelSpec(
    name="birds",
    version="1",
    format="onnx",
    input=InputSpec("images", "float32", "NHWC", 8, 8),
    output=OutputSpec("scores", "probabilities", 2),
)


def artifact(folder: Path, spec: ModelSpec = SPEC, *, labels: str = "id,name\n1,heron\n0,egret\n") -> Path:
    """An artifact whose model is no model: nothing here runs it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.onnx").write_bytes(b"weights")
    (folder / "labels.csv").write_text(labels)
    write_model_file(folder, spec, files="model/model.onnx", provenance={}, metrics={})
    write_manifest(folder)
    return folder


def described(**model: Any) -> Settings:
    decode = model.pop("decode", {})
    return Settings(model=ModelSettings(**model), decode=DecodeSettings(**decode))


def test_an_artifact_says_itself_what_it_is(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds")
    package = open_artifact(folder)
    assert (package.spec, package.is_artifact) == (SPEC, True)
    assert (package.files, package.labels) == (folder / "model" / "model.onnx", folder / "labels.csv")
    assert package.digest == check_artifact(folder)[0]
    assert open_artifact(folder, pin=package.digest) == package


def test_an_artifact_may_have_no_labels(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.onnx").write_bytes(b"weights")
    write_model_file(folder, SPEC, files="model/model.onnx", labels="", provenance={}, metrics={})
    write_manifest(folder)
    assert open_artifact(folder).labels is None


def test_a_digest_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="is wanted"):
        open_artifact(artifact(tmp_path / "birds"), pin="sha256:" + "0" * 64)


def test_the_version_name_and_every_word_of_the_description_is_under_the_digest(tmp_path: Path) -> None:
    specs = [
        SPEC,
        replace(SPEC, version="2"),
        replace(SPEC, input=replace(SPEC.input, crop=0.9)),
        replace(SPEC, input=replace(SPEC.input, mean=(0.5,))),
        replace(SPEC, output=replace(SPEC.output, kind="logits")),
        replace(SPEC, precision="int8"),
    ]
    folders = [artifact(tmp_path / str(number), spec) for number, spec in enumerate(specs)]
    folders.append(artifact(tmp_path / "labels", labels="id,name\n0,heron\n1,egret\n"))
    assert len({open_artifact(folder).digest for folder in folders}) == len(folders)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model" / "model.onnx").unlink(), "are no onnx model"),
        (lambda folder: (folder / "labels.csv").unlink(), "its labels, labels.csv, are missing"),
        (lambda folder: (folder / MODEL_FILE).write_text("name = 1"), "model.toml: "),
        (lambda folder: (folder / MODEL_FILE).unlink(), "no artifact: it has no model.toml"),
    ],
    ids=["model", "labels", "description", "no description"],
)
def test_a_manifest_over_something_that_is_no_artifact_does_not_make_it_one(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = artifact(tmp_path / "birds")
    damage(folder)
    write_manifest(folder)
    with pytest.raises(ModelCorrupt) as caught:
        open_artifact(folder)
    assert words in str(caught.value)


def test_files_must_be_of_the_format_that_is_said(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds")
    write_model_file(folder, replace(SPEC, format="saved_model"), files="model", provenance={}, metrics={})
    write_manifest(folder)
    with pytest.raises(ModelCorrupt, match="its files, model, are no saved_model model"):
        open_artifact(folder)


# --- the gate -------------------------------------------------------------------------------------------------------


def test_a_rejected_variant_is_whole_and_still_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds", replace(SPEC, gate="rejected"))
    assert check_artifact(folder)[1].gate.status == "rejected"
    for allowed in (False, True):
        with pytest.raises(ModelRefused, match="rejected"):
            open_artifact(folder, allow_provisional=allowed)


def test_a_provisional_variant_needs_the_setting(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds", replace(SPEC, gate="provisional"))
    with pytest.raises(ModelRefused) as caught:
        open_folder(described(), folder)
    assert "model.allow_provisional" in caught.value.remedy
    assert open_folder(described(allow_provisional=True), folder).spec.gate == "provisional"


def test_an_accepted_variant_is_opened(tmp_path: Path) -> None:
    assert open_artifact(artifact(tmp_path / "birds", replace(SPEC, gate="accepted"))).spec.gate == "accepted"


# --- settings beside an artifact ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        {"name": "other"},
        {"version": "7"},
        {"labels": "labels.csv"},
        {"signature": "serving_default"},
        {"input_range": [-1.0, 1.0]},
        {"mean": [0.5]},
        {"std": [0.5]},
        {"resize": "bicubic"},
        {"crop": 0.875},
        {"output": "logits"},
    ],
    ids=str,
)
def test_settings_that_describe_an_artifact_are_refused_by_name(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        open_folder(described(**model), artifact(tmp_path / "birds"))
    assert f"model.{next(iter(model))}: set" in str(caught.value)
    assert caught.value.remedy


def test_settings_of_decoding_change_an_artifacts_digest_and_their_defaults_do_not(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds")
    plain = open_artifact(folder).digest
    assert open_folder(described(), folder).digest == plain
    assert open_folder(described(decode={"deadline_ms": 1_000}), folder).digest == plain
    changed = [{"icc": "srgb"}, {"jpeg_scaled": True}, {"background": "#000000"}]
    digests = {open_folder(described(decode=decode), folder).digest for decode in changed}
    assert len(digests | {plain}) == 4
    assert all(len(digest) == len(plain) for digest in digests)


def test_a_pin_is_of_the_artifact_whatever_decodes(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "birds")
    pin = open_artifact(folder).digest
    assert open_folder(described(decode={"icc": "srgb"}), folder, pin=pin).digest != pin


# --- bare models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["birds.onnx", "birds.tflite", "birds.xml"])
def test_a_model_that_is_one_file_is_referred_to_model_init(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ModelError) as of_the_settings:
        open_folder(described(), tmp_path / name)
    with pytest.raises(ModelError) as of_the_adapter:
        open_bare(tmp_path / name, BareModel())
    for caught in (of_the_settings, of_the_adapter):
        assert f"ouzel model init {name} --output DIR" in caught.value.remedy


def test_a_bare_model_needs_labels_by_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.labels is empty"):
        open_folder(described(), saved_model(tmp_path / "birds"))


def test_a_bare_model_is_described_by_settings_and_covered_by_its_digest(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "birds")
    labels = tmp_path / "labels.csv"
    labels.write_text("id,name\n0,heron\n")
    first = open_folder(described(labels=str(labels), crop=0.5), folder)
    assert (first.spec.name, first.spec.input.crop, first.is_artifact) == ("birds", 0.5, False)
    assert first.spec.version == first.digest.removeprefix("sha256:")[:12]
    other = open_folder(described(labels=str(labels), crop=0.6), folder)
    decoded = open_folder(described(labels=str(labels), crop=0.5, decode={"icc": "srgb"}), folder)
    labels.write_text("id,name\n0,egret\n")
    labelled = open_folder(described(labels=str(labels), crop=0.5), folder)
    assert len({package.digest for package in (first, other, decoded, labelled)}) == 4


# --- writing one ----------------------------------------------------------------------------------------------------


def fill(folder: Path) -> ModelSpec:
    (folder / "model").mkdir()
    (folder / "model" / "model.onnx").write_bytes(b"weights")
    return SPEC


def test_a_written_artifact_is_whole(tmp_path: Path) -> None:
    digest = write_artifact(tmp_path / "new" / "birds", fill, provenance={})
    assert open_artifact(tmp_path / "new" / "birds", pin=digest).labels is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["birds"]


def test_one_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> ModelSpec:
        fill(folder)
        raise ModelError("no", remedy="none")

    def forget(folder: Path) -> ModelSpec:
        return SPEC

    with pytest.raises(ModelError):
        write_artifact(tmp_path / "birds", fail, provenance={})
    with pytest.raises(ModelCorrupt, match="are no onnx model"):
        write_artifact(tmp_path / "birds", forget, provenance={})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_by_force_an_artifact_only(tmp_path: Path) -> None:
    digest = write_artifact(tmp_path / "birds", fill, provenance={})
    with pytest.raises(CommandRefused, match="is there already"):
        write_artifact(tmp_path / "birds", fill, provenance={"again": True})
    assert check_artifact(tmp_path / "birds")[0] == digest
    assert write_artifact(tmp_path / "birds", fill, replace=True, provenance={"again": True}) != digest
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "birds")
    for name in ("notes", "link"):
        with pytest.raises(CommandRefused, match="is no artifact"):
            write_artifact(tmp_path / name, fill, replace=True, provenance={})
    assert (tmp_path / "notes" / "mine").exists()


def test_of_a_saved_models_folder_only_the_model_is_taken_links_followed(tmp_path: Path) -> None:
    source = saved_model(tmp_path / "source")
    (source / "variables").mkdir()
    (tmp_path / "weights").write_bytes(b"weights")
    (source / "variables" / "data").symlink_to(tmp_path / "weights")
    (source / "labels.csv").write_text("0,heron\n")
    made = tmp_path / "made"
    made.mkdir()
    files = copy_model(source, "saved_model", made)
    found = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
    assert found == ["saved_model.pb", "variables/data"]
    assert not (files / "variables" / "data").is_symlink()
    assert not is_artifact(made)


def test_what_belongs_to_a_file_is_taken_along(tmp_path: Path) -> None:
    for name in ("a[1].onnx", "a[1].onnx.data", "b.onnx.data", "c.xml", "c.bin", "d.xml"):
        (tmp_path / name).write_text(name)
    for number, (name, form, expected) in enumerate(
        [
            ("a[1].onnx", "onnx", ["a[1].onnx.data", "model.onnx"]),
            ("c.xml", "openvino", ["model.bin", "model.xml"]),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        copy_model(tmp_path / name, form, tmp_path / str(number))  # type: ignore[arg-type]
        assert sorted(path.name for path in (tmp_path / str(number) / "model").iterdir()) == expected
    (tmp_path / "2").mkdir()
    with pytest.raises(ModelError, match=r"d\.xml cannot be copied: .*d\.bin"):
        copy_model(tmp_path / "d.xml", "openvino", tmp_path / "2")


@pytest.mark.parametrize(
    ("given", "written", "named"),
    [
        ('id,name\n2,"tench, Tinca"\n0,heron\n', 'id,name\n0,heron\n2,"tench, Tinca"\n', 2),
        ("\ufeffheron\r\negret\r\nzß\r\n", "id,name\n0,heron\n1,egret\n2,zß\n", 3),
        ("name,colour,id\nheron,grey,1\n", "id,name\n1,heron\n", 1),
    ],
)
def test_labels_are_written_in_order_of_id(tmp_path: Path, given: str, written: str, named: int) -> None:
    (tmp_path / "given").write_text(given)
    (tmp_path / "made").mkdir()
    assert copy_labels(tmp_path / "given", 3, tmp_path / "made") == named
    assert (tmp_path / "made" / "labels.csv").read_text() == written


def test_labels_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("3,heron\n")
    with pytest.raises(ModelError, match="the model has 3 classes"):
        copy_labels(tmp_path / "given", 3, tmp_path)
