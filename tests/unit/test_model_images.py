"""The images that models are compared on: which are read, and how they are divided."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.image import PillowDecoder
from consumer.commands.model._images import Topic, read_images, topic_of
from consumer.commands.model._topic_images import last_offsets
from consumer.commands.model._variant import check_enough, divided
from consumer.errors import SettingsError
from consumer.settings import Settings
from tests.photographs import SEPARATOR, write_crops

DECODERS = [PillowDecoder((32, 32)), PillowDecoder((48, 40))]


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six crops of each of four photographs, and two files that are no images."""
    folder = write_crops(tmp_path_factory.mktemp("crops"), each=6)
    (folder / "torn.jpg").write_bytes(next(folder.glob("*.jpg")).read_bytes()[:2_000])
    (folder / "text.jpg").write_text("no image")
    return folder


def test_a_folder_is_read_for_every_decoder_and_what_is_no_image_is_counted(crops: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = read_images(
        Settings(), str(crops), DECODERS, limit=100, advance=lambda done, of: told.append((done, of)), thumbnails=True
    )
    assert len(found.images) == 24
    assert found.passed_over == {"NotAnImage": 1, "TruncatedImage": 1}
    assert [pixels.shape for pixels in found.images[0].pixels] == [(32, 32, 3), (48, 40, 3)]
    assert found.images[0].thumbnail is not None
    assert found.images[0].thumbnail[8:12] == b"WEBP"
    assert told[-1] == (26, 26)


def test_of_a_folder_with_too_many_the_same_ones_are_taken_each_time(crops: Path) -> None:
    first = read_images(Settings(), str(crops), DECODERS[:1], limit=10)
    again = read_images(Settings(), str(crops), DECODERS[:1], limit=10)
    assert len(first.images) + sum(first.passed_over.values()) == 10
    assert [each.name for each in first.images] == [each.name for each in again.images]
    assert len({each.name[:4] for each in first.images}) > 1  # not the first ones by name


@pytest.mark.parametrize(("made", "reason"), [(False, "no such file"), (True, "no images")])
def test_a_folder_without_images_is_an_error(tmp_path: Path, *, made: bool, reason: str) -> None:
    folder = tmp_path / "images"
    if made:
        folder.mkdir()
    with pytest.raises(SettingsError, match=reason):
        read_images(Settings(), str(folder), DECODERS, limit=10)


def test_a_folder_of_broken_images_says_what_was_wrong_with_them(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(SettingsError, match="1 NotAnImage"):
        read_images(Settings(), str(tmp_path), DECODERS, limit=10)


def test_a_topic_is_named_with_how_many_of_its_last_messages() -> None:
    assert topic_of("kafka://images?last=500") == Topic("images", 500)
    assert topic_of("kafka://images") == Topic("images", 2_000)
    assert topic_of("photographs/") is None


@pytest.mark.parametrize(
    "source", ["kafka://", "kafka:images", "kafka://images?last=0", "kafka://images?last=x", "kafka://i/2?last=5"]
)
def test_a_topic_that_is_named_wrongly_is_an_error(source: str) -> None:
    with pytest.raises(SettingsError, match=r"--images kafka:"):
        topic_of(source)


bounds = st.dictionaries(
    st.integers(0, 9), st.tuples(st.integers(0, 50), st.integers(0, 80)).map(lambda each: (each[0], sum(each)))
)


@given(bounds, st.integers(1, 400))
def test_the_last_messages_are_shared_among_the_partitions(found: dict[int, tuple[int, int]], last: int) -> None:
    starts = last_offsets(found, last)
    taken = {number: found[number][1] - start for number, start in starts.items()}
    assert sum(taken.values()) == min(last, sum(end - first for first, end in found.values()))
    assert all(found[number][0] <= start < found[number][1] for number, start in starts.items())
    # Evenly: one partition has more than another's only where that one has no more.
    for number, (first, end) in found.items():
        if taken.get(number, 0) < end - first:
            assert max(taken.values(), default=0) <= taken.get(number, 0) + 1


# --- hold-out and calibration ---------------------------------------------------------------------------------------


def test_hold_out_and_calibration_share_no_photograph(crops: Path) -> None:
    found = read_images(Settings(), str(crops), DECODERS[:1], limit=100, cluster_by=SEPARATOR)
    assert sorted(found.images_of.values()) == [6, 6, 6, 6]
    split = divided(found, calibration=8)
    assert len(split.calibration) == 8
    assert len(split.holdout) == 12
    calibrating = {each.name.partition(SEPARATOR)[0] for each in split.calibration}
    assert len(calibrating) == 2
    assert calibrating.isdisjoint(each.name.partition(SEPARATOR)[0] for each in split.holdout)
    assert split.calibration_sha256 == divided(found, calibration=8).calibration_sha256 != ""


def test_without_calibration_every_image_is_compared(crops: Path) -> None:
    found = read_images(Settings(), str(crops), DECODERS[:1], limit=100)
    split = divided(found, calibration=0)
    assert (len(split.holdout), split.calibration, split.calibration_sha256) == (24, [], "")


def test_too_few_images_are_an_error_that_says_how_many_are_missing(crops: Path) -> None:
    split = divided(read_images(Settings(), str(crops), DECODERS[:1], limit=100, cluster_by=SEPARATOR), calibration=6)
    with pytest.raises(SettingsError) as raised:
        check_enough(split, min_agreement=0.99, allow_small=False, calibrates=True)
    assert "3 photographs (18 images)" in str(raised.value)
    assert "296 are missing" in str(raised.value)
    assert "--allow-small" in raised.value.remedy
    check_enough(split, min_agreement=0.99, allow_small=True, calibrates=True)
    check_enough(split, min_agreement=0.3, allow_small=False, calibrates=True)  # 3 that agree are enough for this


def test_images_of_one_photograph_cannot_calibrate(tmp_path: Path) -> None:
    write_crops(tmp_path, each=3)
    for path in tmp_path.glob("*.jpg"):
        if not path.name.startswith("chelsea"):
            path.unlink()
    found = read_images(Settings(), str(tmp_path), DECODERS[:1], limit=100, cluster_by=SEPARATOR)
    with pytest.raises(SettingsError, match="one photograph"):
        check_enough(divided(found, calibration=2), min_agreement=0.5, allow_small=True, calibrates=True)
