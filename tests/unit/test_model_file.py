"""model.toml: what is read of it is what was written, and all else is refused by its key."""

from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.adapters.models.model_file import MODEL_FILE, read_model_file, write_model_file
from consumer.errors import ModelCorrupt
from consumer.model_spec import InputSpec, ModelSpec, OutputSpec

DIGEST = "sha256:" + "ab" * 32
SPEC = ModelSpec(
    name="birds",
    version="3",
    format="onnx",
    input=InputSpec(
        "images", "float32", "NCHW", 160, 200, (-1.0, 1.0), (0.5, 0.25, 0.125), (0.5,), resize="bicubic", crop=0.875
    ),
    output=OutputSpec("scores", "logits", 12),
    precision="int8",
    runtime="onnxruntime",
    options={"level": "3"},
    gate="provisional",
    parent=DIGEST,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model_file(tmp_path, SPEC, files="model/model.onnx", provenance={"made_by": "a test"}, metrics={"top1": 0.75})
    return tmp_path


def test_what_was_written_is_read(folder: Path) -> None:
    found = read_model_file(folder)
    assert found.spec() == SPEC
    assert (found.files, found.labels) == ("model/model.onnx", "labels.csv")
    assert (found.provenance, found.metrics) == ({"made_by": "a test"}, {"top1": 0.75})


def test_what_the_gate_found_is_kept_beside_its_status(tmp_path: Path) -> None:
    write_model_file(tmp_path, SPEC, provenance={}, metrics={}, gate={"agreement": 0.9965, "images": 400})
    assert (read_model_file(tmp_path).gate.model_extra or {}) == {"agreement": 0.9965, "images": 400}
    assert read_model_file(tmp_path).spec().gate == "provisional"


def test_a_model_that_does_not_say_what_it_gives_is_not_written(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="kind"):
        write_model_file(tmp_path, replace(SPEC, output=OutputSpec("scores")), provenance={}, metrics={})
    assert not (tmp_path / MODEL_FILE).exists()


MINIMAL = """
name = "birds"
version = "1"
format = "saved_model"
[input]
name = "images"
dtype = "uint8"
layout = "NHWC"
height = 8
width = 8
[output]
name = "scores"
kind = "logits"
classes = 3
"""


def test_the_rest_has_defaults(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_text(MINIMAL)
    found = read_model_file(tmp_path)
    assert (found.files, found.labels, found.precision, found.gate.status) == ("model", "labels.csv", "f32", "original")
    assert (found.input.range, found.input.crop, found.input.resize) == ((0.0, 1.0), 1.0, "bilinear")


def _set(key: str, value: str, table: str = "") -> Callable[[str], str]:
    """The text with a key of it set to other TOML."""

    def change(text: str) -> str:
        lines = text.splitlines()
        start = lines.index(f"[{table}]") + 1 if table else 0
        for at, line in enumerate(lines[start:], start):
            if line.startswith("["):
                break
            if line.startswith(f"{key} ="):
                lines[at] = f"{key} = {value}"
                return "\n".join(lines)
        lines.insert(start, f"{key} = {value}")
        return "\n".join(lines)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("nmae", '"x"'), "nmae: Extra inputs"),
        (_set("crpo", "0.5", "input"), "input.crpo: Extra inputs"),
        (lambda text: text + "[more]\nkey = 1\n", "more: Extra inputs"),
        (_set("name", '""'), "name: "),
        (_set("name", '"a\\u001bb"'), "name: Value error, has control characters"),
        (_set("version", "3"), "version: Input should be a valid string"),
        (_set("format", '"keras"'), "format: "),
        (_set("precision", '"f64"'), "precision: "),
        (_set("runtime", '"onnx"'), "runtime"),
        (_set("parent", '"sha256:ab"'), "parent: "),
        (_set("options", "{a = 1}"), "options.a: Input should be a valid string"),
        (_set("height", "true", "input"), "input.height: Input should be a valid integer"),
        (_set("height", '"8"', "input"), "input.height: Input should be a valid integer"),
        (_set("height", "0", "input"), "input.height: "),
        (_set("width", "65_536", "input"), "input.width: "),
        (_set("width", "8.0", "input"), "input.width: "),
        (_set("dtype", '"float64"', "input"), "input.dtype: "),
        (_set("layout", '"HWC"', "input"), "input.layout: "),
        (_set("crop", "0.0", "input"), "input.crop: "),
        (_set("crop", '"0.5"', "input"), "input.crop: Input should be a valid number"),
        (_set("range", "[0.0, nan]", "input"), "input.range.1: "),
        (_set("range", "[0.0, inf]", "input"), "input.range.1: "),
        (_set("range", "[0.0]", "input"), "input.range.1: "),
        (_set("range", "[0.5, 0.5]", "input"), "input.range is one value"),
        (_set("mean", "[0.5, 0.5]", "input"), "input.mean is none, one value or three"),
        (_set("std", "[1.0, 0.0, 1.0]", "input"), "input.std is none, one value or three; std never zero"),
        (_set("mean", '["0.5"]', "input"), "input.mean.0: "),
        (_set("resize", '"area"', "input"), "input.resize: "),
        (_set("kind", '"auto"', "output"), "output.kind: "),
        (_set("classes", "0", "output"), "output.classes: "),
        (_set("classes", '"3"', "output"), "output.classes: "),
        (lambda text: text + '[gate]\nstatus = "perfect"\n', "gate.status: "),
        (_set("files", '""'), "files: "),
        (_set("files", '"../other"'), "files leads out of the artifact"),
        (_set("files", '"model/../../other"'), "files leads out of the artifact"),
        (_set("files", '"/models/other"'), "files leads out of the artifact"),
        (_set("files", '"."'), "files leads out of the artifact"),
        (_set("labels", '"/etc/passwd"'), "labels leads out of the artifact"),
        (_set("format_version", "2"), "format_version 2, and this Ouzel reads 1"),
        (lambda text: text + "[input]\n", "cannot be read"),
        (lambda text: "", "name: Field required"),
        (lambda text: "\x00", "cannot be read"),
        (lambda text: text + "#" * (1024 * 1024), "too long"),
    ],
)
def test_what_is_wrong_is_said_by_its_key(tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    (tmp_path / MODEL_FILE).write_text(change(MINIMAL))
    with pytest.raises(ModelCorrupt) as caught:
        read_model_file(tmp_path)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_text(_set("crop", "7.0", "input")(_set("precision", '"f64"')(MINIMAL)))
    with pytest.raises(ModelCorrupt, match=r"precision: .*; input\.crop: "):
        read_model_file(tmp_path)


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="cannot be read"):
        read_model_file(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b'name = "\xff"')
    with pytest.raises(ModelCorrupt, match="cannot be read"):
        read_model_file(tmp_path)


def test_whole_numbers_do_for_fractions(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_text(_set("range", "[0, 255]", "input")(_set("crop", "1", "input")(MINIMAL)))
    assert read_model_file(tmp_path).input.range == (0.0, 255.0)
