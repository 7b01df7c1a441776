"""Signatures read from `saved_model.pb`, crafted by hand: without TensorFlow, and whatever the bytes are."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.models.saved_model import _saved_model_class, image_layout, read_signature
from consumer.errors import ModelError

FLOAT, UINT8, STRING = 1, 4, 7
Shape = Sequence[int] | None


def tensor(info: Any, dtype: int, shape: Shape) -> None:
    info.dtype = dtype
    if shape is None:
        info.tensor_shape.unknown_rank = True
    for size in shape or ():
        info.tensor_shape.dim.add(size=size)


def saved_model(
    folder: Path,
    *,
    shape: Shape = (-1, 8, 8, 3),
    dtype: int = FLOAT,
    scores: Shape = (-1, 10),
    inputs: Sequence[str] = ("images",),
    outputs: Sequence[str] = ("scores",),
    signatures: Sequence[str] = ("serving_default",),
    tags: Sequence[str] = ("serve",),
) -> Path:
    message = _saved_model_class()()
    graph = message.meta_graphs.add()
    graph.meta_info_def.tags.extend(tags)
    for name in signatures:
        for input_name in inputs:
            tensor(graph.signature_def[name].inputs[input_name], dtype, shape)
        for output_name in outputs:
            tensor(graph.signature_def[name].outputs[output_name], FLOAT, scores)
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    return folder


def refused(folder: Path, wanted: str = "") -> str:
    with pytest.raises(ModelError) as caught:
        read_signature(folder, wanted)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_input_and_output_are_read(tmp_path: Path) -> None:
    found = read_signature(saved_model(tmp_path, shape=(-1, 3, 24, 32), dtype=UINT8))
    assert (found.name, found.input.name, found.output.name) == ("serving_default", "images", "scores")
    assert (found.input.layout, found.input.size, found.input.dtype) == ("NCHW", (24, 32), "uint8")
    assert found.output.classes == 10
    assert str(found) == "signature 'serving_default': images uint8 [N, 3, H, W], H 24, W 32 -> scores"


@pytest.mark.parametrize("scores", [(-1, -1), None, (-1,), (-1, 10, 1)])
def test_classes_that_the_file_does_not_say_are_0(tmp_path: Path, scores: Shape) -> None:
    assert read_signature(saved_model(tmp_path, scores=scores)).output.classes == 0


def test_the_default_signature_is_taken_before_others_and_the_one_for_loading_never(tmp_path: Path) -> None:
    names = ("a", "serving_default", "__saved_model_init_op")
    assert read_signature(saved_model(tmp_path, signatures=names)).name == "serving_default"
    assert read_signature(tmp_path, "a").name == "a"
    assert "no signature '__saved_model_init_op'; it has: a, serving_default" in refused(
        tmp_path, "__saved_model_init_op"
    )
    assert read_signature(saved_model(tmp_path, signatures=("b", "__saved_model_init_op"))).name == "b"


def test_the_graph_that_is_to_be_served_is_read(tmp_path: Path) -> None:
    assert "no graph with the tag `serve`" in refused(saved_model(tmp_path, tags=("train",)))
    message = _saved_model_class()()
    for tags, shape in ((("train",), (-1, 4, 4, 3)), (("serve", "tpu"), (-1, 6, 6, 3))):
        graph = message.meta_graphs.add()
        graph.meta_info_def.tags.extend(tags)
        tensor(graph.signature_def["one"].inputs["x"], FLOAT, shape)
        tensor(graph.signature_def["one"].outputs["y"], FLOAT, (-1, 2))
    (tmp_path / "saved_model.pb").write_bytes(message.SerializeToString())
    assert read_signature(tmp_path).input.size == (6, 6)


@pytest.mark.parametrize(
    ("crafted", "words"),
    [
        ({"signatures": ()}, "which signature? It has: none"),
        ({"signatures": ("a", "b")}, "which signature? It has: a, b"),
        ({"inputs": ()}, "0 inputs (none)"),
        ({"inputs": ("left", "right")}, "2 inputs (left, right)"),
        ({"outputs": ("boxes", "scores")}, "2 outputs (boxes, scores)"),
        ({"dtype": STRING}, "images is string"),
        ({"dtype": 23}, "images is type 23"),
        ({"dtype": 0}, "images is type 0"),
        ({"shape": None}, "shape unknown"),
        ({"shape": ()}, "shape unknown"),
        ({"shape": (-1, -1, -1, 3)}, "[None, None, None, 3]"),
        ({"shape": (1, 8, 8, 3)}, "[1, 8, 8, 3]"),
        ({"shape": (-1, 8, 8, 4)}, "[None, 8, 8, 4]"),
        ({"shape": (-1, 0, 8, 3)}, "[None, 0, 8, 3]"),
        ({"shape": (-1, 8, 2**40, 3)}, "[None, 8, 1099511627776, 3]"),
        ({"shape": (-1, 3, 8, -(2**62))}, "[None, 3, 8, None]"),
        ({"shape": (-1, 8, 8, 3, 1)}, "[None, 8, 8, 3, 1]"),
    ],
    ids=str,
)
def test_what_is_no_way_from_images_to_scores_is_refused(tmp_path: Path, crafted: dict[str, Any], words: str) -> None:
    assert words in refused(saved_model(tmp_path, **crafted))


@pytest.mark.parametrize("body", [b"", b"\xff" * 100, b"\x0a\x7f", b"PK\x03\x04", b"\x0a\x02\x08"], ids=repr)
def test_bytes_that_are_no_saved_model_are_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "saved_model.pb").write_bytes(body)
    assert "cannot be loaded" in refused(tmp_path)


def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    dice = random.Random(5)
    whole = (saved_model(tmp_path, signatures=("a", "serving_default")) / "saved_model.pb").read_bytes()
    for _ in range(2_000):
        body = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        (tmp_path / "saved_model.pb").write_bytes(body[: dice.randint(0, len(body))] if dice.random() < 0.3 else body)
        try:
            found = read_signature(tmp_path)
        except ModelError:
            continue
        assert 1 <= min(found.input.size) <= max(found.input.size) <= 65_535


def test_a_file_in_the_place_of_the_folder_and_a_folder_in_that_of_the_file(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "not a folder" in refused(tmp_path / "file")
    (tmp_path / "saved_model.pb").mkdir()
    assert "no saved_model.pb" in refused(tmp_path)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ([None, 8, 9, 3], ("NHWC", 8, 9)),
        ([1, 3, 8, 9], ("NCHW", 8, 9)),
        ([None, 3, 9, 3], ("NHWC", 3, 9)),
        ([None, 8, None, 3], None),
        ([8, 9, 3], None),
        (None, None),
    ],
)
def test_layout_and_size_are_told_from_a_shape(shape: list[int | None] | None, found: object) -> None:
    assert image_layout(shape) == found
