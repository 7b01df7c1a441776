"""What `ouzel send` makes of paths, URIs and lines."""

import json
import os
from pathlib import Path

import pytest

from consumer.commands._sendable import Form, Image, Options, find_images, record_for, records_of_lines, suffix_filter
from consumer.errors import MalformedMessage
from consumer.names import MEDIA_TYPES
from consumer.settings import InputSettings


def accept(value: bytes) -> str:
    try:
        return str(json.loads(value)["image_id"])
    except (ValueError, KeyError, TypeError):
        raise MalformedMessage("no image_id") from None


def test_files_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    for name in ("a/cat.jpg", "b/cat.jpg", "cat.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found, missing = find_images([str(tmp_path)], suffix_filter(None, everything=False))
    assert [image.image_id for image in found] == ["a/cat.jpg", "b/cat.jpg", "cat.jpg"]
    assert missing == []


def test_a_folder_s_images_are_those_of_every_format_that_can_be_decoded(tmp_path: Path) -> None:
    names = sorted(f"a{suffix}" for suffix in MEDIA_TYPES)
    for name in [*names, "a.txt"]:
        (tmp_path / name).write_bytes(b"x")
    found, _ = find_images([str(tmp_path)], suffix_filter(None, everything=False))
    assert [image.image_id for image in found] == names
    formats = {*InputSettings().formats, "HEIF"}
    assert {f"image/{name.lower()}" for name in formats} <= set(MEDIA_TYPES.values())


def test_a_file_is_taken_whatever_its_suffix_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.dat").write_bytes(b"x")
    assert find_images([str(tmp_path)], suffix_filter(None, everything=False)) == ([], [])
    found, _ = find_images([str(tmp_path / "photo.dat")], suffix_filter(None, everything=False))
    assert [image.image_id for image in found] == ["photo.dat"]


def test_every_path_that_is_missing_is_told() -> None:
    found, missing = find_images(["absent-1", "s3://bucket/key.jpg", "absent-2"], suffix_filter(None, everything=False))
    assert missing == ["absent-1", "absent-2"]
    assert [image.uri for image in found] == ["s3://bucket/key.jpg"]


def test_no_password_of_a_uri_gets_into_the_id_of_its_image() -> None:
    (image,), _ = find_images(
        ["https://me:hunter2@example.org/cat.jpg?signature=hunter3#x"], suffix_filter(None, everything=False)
    )
    record = record_for(image, Options())
    assert (image.image_id, record.key) == ("https://example.org/cat.jpg", b"https://example.org/cat.jpg")
    assert json.loads(record.value)["uri"] == "https://me:hunter2@example.org/cat.jpg?signature=hunter3#x"


def test_a_name_that_is_no_text_becomes_an_id_that_is(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"a\nb\xff.jpg")  # noqa: PTH118  # bytes
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    ((image,), _) = find_images([str(tmp_path)], suffix_filter(None, everything=False))
    assert image.image_id == "a_b?.jpg"
    assert record_for(image, Options(form=Form.RAW)).key == b"a_b?.jpg"


def test_a_file_without_an_image_suffix_claims_no_media_type(tmp_path: Path) -> None:
    (tmp_path / "photo.dat").write_bytes(b"x")
    record = record_for(Image("photo.dat", path=tmp_path / "photo.dat"), Options())
    assert record.headers == (("image-id", b"photo.dat"),)


def test_options_fill_in_what_a_line_leaves_out_and_nothing_else() -> None:
    lines = [b'{"image_id": "a", "top_k": 9, "metadata": {"x": "theirs"}}', b'{"image_id": "b"}']
    options = Options(top_k=3, metadata={"x": "ours", "y": "2"})
    records = list(records_of_lines(lines, options, accept))
    values = [json.loads(record.value) for record in records if not isinstance(record, MalformedMessage)]
    assert values == [
        {"image_id": "a", "top_k": 9, "metadata": {"x": "theirs", "y": "2"}},
        {"image_id": "b", "top_k": 3, "metadata": {"x": "ours", "y": "2"}},
    ]


@pytest.mark.parametrize("options", [Options(), Options(top_k=3)])
def test_a_bad_line_is_told_by_its_number_and_the_next_is_read(options: Options) -> None:
    lines = [b"\n", b"{", b"[1]", b'{"image_id": "good"}']
    first, second, good = records_of_lines(lines, options, accept)
    assert isinstance(first, MalformedMessage)
    assert str(first).startswith("line 2:")
    assert isinstance(second, MalformedMessage)
    assert str(second).startswith("line 3:")
    assert not isinstance(good, MalformedMessage)
    assert good.key == b"good"
