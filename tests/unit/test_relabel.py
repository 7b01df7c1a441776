"""What a range is in each partition, fixed once in the group's own offsets."""

import json

import pytest

from consumer.commands._range import _LogLines, in_group, range_of
from consumer.errors import CommandRefused, SettingsError
from consumer.log import configure
from consumer.messages import CommitPoint, Partition
from consumer.settings import LogSettings, Settings
from consumer.stages.relabel import Progress, fix_range, progress_of
from consumer.stages.start import Note, Range, RangePart, find_starts
from tests.fakes import FakeCluster, FakeGroupView

A, B = Partition("images", 0), Partition("images", 1)
ALL = Range(None, None)


@pytest.fixture
def cluster() -> FakeCluster:
    """Ten messages in A, twenty in B; the time of each is its offset."""
    cluster = FakeCluster({"images": 2})
    cluster.send(A, *[b"x"] * 10)
    cluster.send(B, *[b"x"] * 20)
    return cluster


def _fix(
    cluster: FakeCluster, wanted: Range = ALL, topics: tuple[str, ...] = ("images",)
) -> dict[Partition, RangePart]:
    return fix_range(FakeGroupView(cluster), topics, wanted, group_id="again")


@pytest.mark.parametrize(
    ("wanted", "in_a", "in_b"),
    [
        (ALL, (0, 10), (0, 20)),
        (Range(4, None), (4, 10), (4, 20)),
        (Range(4, 15), (4, 10), (4, 15)),
        (Range(12, 15), (10, 10), (12, 15)),
        (Range(None, 0), (0, 0), (0, 0)),
    ],
)
def test_times_become_offsets(
    cluster: FakeCluster, wanted: Range, in_a: tuple[int, int], in_b: tuple[int, int]
) -> None:
    assert _fix(cluster, wanted) == {A: RangePart(wanted, *in_a), B: RangePart(wanted, *in_b)}
    assert {each: point.offset for each, point in cluster.committed.items()} == {A: in_a[0], B: in_b[0]}


def test_the_ends_are_those_of_the_first_start(cluster: FakeCluster) -> None:
    first = _fix(cluster)
    cluster.send(A, b"later")
    cluster.has_members = True
    assert _fix(cluster) == first


def test_of_two_that_start_together_one_fixes_the_range(cluster: FakeCluster) -> None:
    view = FakeGroupView(cluster)
    rival: dict[Partition, RangePart] = {}
    inner = view.commit_while_empty

    def too_late(points: dict[Partition, CommitPoint]) -> bool:
        rival.update(_fix(cluster))
        cluster.has_members = True
        return inner(points)

    view.commit_while_empty = too_late  # type: ignore[method-assign, assignment]
    cluster.send(A, b"x")
    assert fix_range(view, ["images"], ALL, group_id="again") == rival


def test_a_group_with_members_and_no_range_is_anothers(cluster: FakeCluster) -> None:
    cluster.has_members = True
    with pytest.raises(CommandRefused, match="members that do something else"):
        _fix(cluster)
    assert cluster.committed == {}


@pytest.mark.parametrize("metadata", ["", Note("id-1", 2).dump(), "not ours"])
def test_a_group_with_offsets_of_its_own_is_anothers(cluster: FakeCluster, metadata: str) -> None:
    cluster.committed[B] = CommitPoint(3, metadata)
    with pytest.raises(CommandRefused, match="used for something else"):
        _fix(cluster)
    assert cluster.committed == {B: CommitPoint(3, metadata)}


def test_a_group_has_one_range_and_its_topics(cluster: FakeCluster) -> None:
    _fix(cluster, Range(0, 3_600_000))
    with pytest.raises(CommandRefused, match=r"from 1970-01-01T00:00:00.000Z until 1970-01-01T01:00:00.000Z"):
        _fix(cluster)
    cluster.create("more", 1)
    with pytest.raises(CommandRefused, match="without the topic more"):
        _fix(cluster, Range(0, 3_600_000), ("images", "more"))


def test_progress_is_the_groups() -> None:
    parts = {A: RangePart(ALL, 0, 10), B: RangePart(ALL, 5, 20)}
    assert progress_of(parts, {}) == Progress(0, 25, finished=False)
    assert progress_of(parts, {A: CommitPoint(10), B: CommitPoint(19)}) == Progress(24, 25, finished=False)
    assert progress_of(parts, {A: CommitPoint(10), B: CommitPoint(20)}) == Progress(25, 25, finished=True)
    cut_short = Note(part=RangePart(ALL, 0, 7)).dump()
    assert progress_of({A: parts[A]}, {A: CommitPoint(7, cut_short)}) == Progress(7, 7, finished=True)


def test_a_note_carries_its_part() -> None:
    note = Note("id-1", 2, "system", part=RangePart(Range(4, None), 4, 10))
    assert Note.load(note.dump()) == note
    assert "range" not in json.loads(Note("id-1", 2).dump())
    assert Note.load('{"v": 1, "range": {"start": "0", "end": 4}}').part is None


# --- where a partition of a range begins ----------------------------------------------------------------------------


def _begin(cluster: FakeCluster, offset: int, end: int) -> tuple[int, tuple[int, int] | None, int]:
    note = Note("id-1", 2, part=RangePart(ALL, 0, end))
    cluster.committed[A] = CommitPoint(offset, note.dump())
    found = find_starts(FakeGroupView(cluster), [A], start="earliest", positions={}, recreated=False, known_ids={})[A]
    assert found.note.part is not None
    return found.offset, found.lost, found.note.part.end


def test_it_begins_where_the_group_stands(cluster: FakeCluster) -> None:
    assert _begin(cluster, 3, 7) == (3, None, 7)


def test_only_what_retention_took_of_the_range_is_lost(cluster: FakeCluster) -> None:
    cluster.retain_from(A, 8)
    assert _begin(cluster, 3, 9) == (8, (3, 8), 9)
    assert _begin(cluster, 3, 7) == (7, (3, 7), 7)
    assert _begin(cluster, 7, 7) == (7, None, 7)


def test_a_log_that_was_cut_short_is_not_waited_for(cluster: FakeCluster) -> None:
    cluster.cut(A, 5)
    assert _begin(cluster, 3, 7) == (3, None, 5)
    assert _begin(cluster, 6, 7) == (6, None, 5)


# --- the command line -----------------------------------------------------------------------------------------------


def test_times_and_words_name_a_range() -> None:
    assert range_of("earliest", "end", now_ms=10) == ALL
    assert range_of("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z", now_ms=5_000) == Range(1_000, 2_000)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("1970-01-01T00:00:02Z", "1970-01-01T00:00:02Z"),
        ("1970-01-01T00:00:09Z", "end"),
        ("earliest", "1970-01-01T00:00:09Z"),
        ("end", "end"),
        ("earliest", "earliest"),
    ],
)
def test_what_is_no_range_is_told(since: str, until: str) -> None:
    with pytest.raises(SettingsError):
        range_of(since, until, now_ms=5_000)


def test_the_services_own_group_is_refused() -> None:
    assert in_group(Settings(), "again").kafka.group_id == "again"
    with pytest.raises(CommandRefused):
        in_group(Settings(), Settings().kafka.group_id)


def test_the_log_tells_the_progress_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    seconds = iter([0.0, 5.0, 10.0, 11.0])
    tell = _LogLines("again", lambda: next(seconds))
    for done in (0, 50, 100, 400):
        tell(Progress(done, 400, finished=done == 400))
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "relabelled 0 of 400 messages (0.0/s)",
        "relabelled 100 of 400 messages (10.0/s, 30 s left)",
        "relabelled 400 of 400 messages (300.0/s)",
    ]
