"""Label files: by id, never by row."""

from pathlib import Path

import pytest
from loguru import logger

from consumer.adapters.labels import load_labels, no_labels
from consumer.errors import ModelError

IMAGENET = Path(__file__).resolve().parents[2] / "consumer" / "data" / "imagenet_labels.csv"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def test_names_are_looked_up_by_id_whatever_the_order_of_the_rows(file: Path) -> None:
    file.write_text("id,name\n2,background\n0,Haemorhous cassinii\n1,Aramus guarauna\n")
    labels = load_labels(file, 3)
    assert [labels.name(index) for index in range(3)] == ["Haemorhous cassinii", "Aramus guarauna", "background"]
    assert len(labels) == 3


@pytest.mark.parametrize(
    "text",
    [
        "1,b\n0,a\n",
        "id,name\n1,b\n0,a\n",
        "ID , Name\r\n1,b\r\n0,a\r\n",
        "\ufeffid,name\n\n1, b\n0,a",
        "name,wnid,id\nb,n2,1\na,n1,0\n",
        '"1","b"\n"0","a"\n',
        "a\nb\n",
        "a\r\nb",
        " a\nb \n\n",
    ],
    ids=repr,
)
def test_a_csv_or_one_name_a_line(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    labels = load_labels(file, 2)
    assert (labels.name(0), labels.name(1)) == ("a", "b")


def test_names_may_hold_commas(file: Path) -> None:
    file.write_text('id,name\n0,"tench, Tinca tinca"\n')
    assert load_labels(file, 1).name(0) == "tench, Tinca tinca"
    file.write_text("tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    assert load_labels(file, 2).name(0) == "tench, Tinca tinca"


def test_two_classes_may_have_one_name(file: Path) -> None:
    file.write_text("0,crane\n1,crane\n")
    assert load_labels(file, 2).name(1) == "crane"


def test_a_class_without_a_name_goes_by_its_index_and_that_is_said(file: Path) -> None:
    file.write_text("id,name\n0,a\n3,d\n")
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    labels = load_labels(file, 4)
    logger.remove(sink)
    assert [labels.name(index) for index in range(4)] == ["a", "1", "2", "d"]
    assert "WARNING 2 of 4 classes have no name" in "".join(lines)
    assert no_labels().name(7) == "7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,name\n0,a\n1,b\n0,c\n", "line 4: id 0 comes a second time ('a', then 'c')"),
        ("id,name\n0,a\none,b\n", "line 3: id 'one' is not a whole number"),
        ("id,name\n0,a\n1.0,b\n", "line 3: id '1.0' is not a whole number"),
        ("id,name\n0,a\n1_0,b\n", "line 3: id '1_0' is not a whole number"),
        ("id,name\n0,a\n2,b\n", "line 3: id 2 is outside 0 to 1"),
        ("id,name\n0,a\n-1,b\n", "line 3: id -1 is outside 0 to 1"),
        ("0,tench, Tinca tinca\n", "line 1: 3 fields where 2 are expected"),
        ("id,name\n0\n", "line 2: 1 fields where 2 are expected"),
        ("id,name\n0,\n", "line 2: id 0 has an empty name"),
        ("id,name\n", "no labels in it"),
        ('id,name\n0,"a\n', "broken CSV"),
        ("a\n", "1 names, and the model has 2 classes"),
        ("a\nb\nc\n", "3 names, and the model has 2 classes"),
        ("", "0 names"),
        ("a\n\nb\n", "line 2: an empty line would shift every name after it"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_with_its_line(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ModelError) as caught:
        load_labels(file, 2)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such label file"):
        load_labels(tmp_path / "absent.csv", 2)
    with pytest.raises(ModelError, match="cannot be read"):
        load_labels(tmp_path, 2)
    (tmp_path / "latin").write_bytes("grünfink\nmöwe\n".encode("latin-1"))
    with pytest.raises(ModelError, match="UTF-8"):
        load_labels(tmp_path / "latin", 2)


def test_the_imagenet_names_are_in_imagenets_order() -> None:
    labels = load_labels(IMAGENET, 1000)
    # https://gist.github.com/yrevar/942d3a0ac09ec9e5eb3a
    known = {0: "tench", 207: "golden retriever", 285: "Egyptian cat", 657: "missile", 967: "espresso", 999: "toilet"}
    assert all(labels.name(index).startswith(name) for index, name in known.items())
    assert len(labels) == 1000
