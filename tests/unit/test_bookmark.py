"""The place up to which all is acknowledged: it never passes what is not."""

from pathlib import Path

import orjson
import pytest

from consumer.commands._bookmark import Bookmark, place_in
from consumer.errors import CommandRefused

ABOUT = {"topic": "images", "source": "s3://photos/"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "send" / "place.json"


def _bookmark(path: Path, *, resume: bool = True) -> Bookmark:
    return Bookmark(path, ABOUT, resume=resume, clock_s=lambda: 0.0)


def _sent(bookmark: Bookmark, *keys: str) -> None:
    for number, key in enumerate(keys):
        bookmark.sent(number, key)


def test_the_place_waits_for_the_oldest(path: Path) -> None:
    bookmark = _bookmark(path)
    _sent(bookmark, "a", "b", "c")
    bookmark.settled(1, acknowledged=True)
    bookmark.settled(2, acknowledged=True)
    assert bookmark.place is None
    bookmark.settled(0, acknowledged=True)
    assert bookmark.place == "c"


def test_what_is_no_image_is_passed_when_all_before_it_is_settled(path: Path) -> None:
    bookmark = _bookmark(path)
    bookmark.passed_over("a.txt")
    assert bookmark.place == "a.txt"
    bookmark.sent(0, "b")
    bookmark.passed_over("c.txt")
    assert bookmark.place == "a.txt"
    bookmark.settled(0, acknowledged=True)
    assert bookmark.place == "c.txt"


def test_the_place_stays_before_what_was_not_acknowledged(path: Path) -> None:
    bookmark = _bookmark(path)
    _sent(bookmark, "a", "b", "c", "d")
    bookmark.settled(2, acknowledged=False)
    bookmark.settled(3, acknowledged=True)
    bookmark.sent(4, "e")
    bookmark.settled(4, acknowledged=True)
    bookmark.passed_over("f")
    bookmark.settled(0, acknowledged=True)
    assert bookmark.place == "a"
    bookmark.settled(1, acknowledged=True)
    assert bookmark.place == "b"
    bookmark.finish()
    assert place_in(path, ABOUT) == "b"


def test_of_two_failures_the_first_in_order_counts(path: Path) -> None:
    bookmark = _bookmark(path)
    _sent(bookmark, "a", "b", "c")
    bookmark.settled(2, acknowledged=False)
    bookmark.settled(0, acknowledged=False)
    bookmark.settled(1, acknowledged=True)
    assert bookmark.place is None


def test_the_file_is_written_whole_and_read_again(path: Path) -> None:
    bookmark = _bookmark(path)
    _sent(bookmark, "k\u00e9y")
    bookmark.settled(0, acknowledged=True)
    assert place_in(path, ABOUT) is None  # a second has not passed
    bookmark.save()
    assert orjson.loads(path.read_bytes()) == {"v": 1, **ABOUT, "after": "k\u00e9y"}
    assert [each.name for each in path.parent.iterdir()] == ["place.json"]
    assert _bookmark(path).place == "k\u00e9y"
    assert _bookmark(path, resume=False).place is None
    assert place_in(path, ABOUT) is None  # begun anew


def test_a_finished_source_leaves_no_file(path: Path) -> None:
    bookmark = _bookmark(path)
    assert path.exists()  # that it can be written is known before anything is sent
    _sent(bookmark, "a")
    bookmark.settled(0, acknowledged=True)
    bookmark.finish()
    assert not path.exists()


@pytest.mark.parametrize("text", [b"not json", b"[1]", b'{"v": 2}', b'{"v": 1, "topic": "others"}'])
def test_a_file_about_something_else_is_refused(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    with pytest.raises(CommandRefused):
        _bookmark(path)
    assert path.read_bytes() == text


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandRefused, match="cannot be noted"):
        _bookmark(tmp_path / "file" / "place.json", resume=False)
