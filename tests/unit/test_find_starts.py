"""Where a partition begins, asked of a cluster in memory."""

from collections.abc import Mapping

import pytest

from consumer.messages import CommitPoint, Partition
from consumer.stages.start import MADE_ANEW, Note, StartPoint, find_starts
from tests.fakes import FakeCluster, FakeGroupView

A, B = Partition("images", 0), Partition("images", 1)


@pytest.fixture
def cluster() -> FakeCluster:
    cluster = FakeCluster({"images": 2})
    cluster.send(A, *[b"x"] * 10)
    cluster.send(B, *[b"x"] * 20)
    return cluster


def _starts(
    cluster: FakeCluster,
    *partitions: Partition,
    start: str | int = "earliest",
    positions: Mapping[Partition, int] | None = None,
    recreated: bool = False,
    known_id: str = "",
) -> dict[Partition, StartPoint]:
    return find_starts(
        FakeGroupView(cluster),
        partitions,
        start=start,
        positions=positions or {},
        recreated=recreated,
        known_ids={"images": known_id},
    )


def _commit(cluster: FakeCluster, partition: Partition, offset: int, **note: object) -> CommitPoint:
    text = Note(**{"topic_id": "id-1", "start_partitions": 2, **note}).dump()  # type: ignore[arg-type]
    cluster.committed[partition] = CommitPoint(offset, text)
    return cluster.committed[partition]


@pytest.mark.parametrize(("start", "offset"), [("earliest", 0), ("latest", 10), (4, 4), (99, 10)])
def test_a_new_group_begins_as_the_setting_says(cluster: FakeCluster, start: str | int, offset: int) -> None:
    point = _starts(cluster, A, start=start)[A]
    assert (point.offset, point.committed, point.lost) == (offset, None, None)
    assert (point.note.topic_id, point.note.start_partitions) == ("id-1", 2)


@pytest.mark.parametrize("start", ["earliest", "latest", 4])
def test_a_committed_offset_goes_before_the_setting(cluster: FakeCluster, start: str | int) -> None:
    committed = _commit(cluster, A, 7)
    assert _starts(cluster, A, start=start)[A] == StartPoint(7, "id-1", committed, Note("id-1", 2))


def test_under_latest_a_partition_that_appears_later_begins_at_its_beginning(cluster: FakeCluster) -> None:
    _commit(cluster, A, 10)
    _commit(cluster, B, 20)
    added = cluster.add_partition("images")
    cluster.send(added, b"x", b"x")
    point = _starts(cluster, added, start="latest")[added]
    assert point.offset == 0
    assert point.note.start_partitions == 2  # as the group began, so that the next one added is known for it too


def test_under_latest_a_first_partition_that_another_replica_began_is_none_that_appeared_later(
    cluster: FakeCluster,
) -> None:
    _commit(cluster, A, 10)
    assert _starts(cluster, B, start="latest")[B].offset == 20


def test_retention_that_overtook_the_group_is_reported_with_its_range(cluster: FakeCluster) -> None:
    committed = _commit(cluster, A, 3)
    cluster.retain_from(A, 8)
    point = _starts(cluster, A)[A]
    assert (point.offset, point.lost, point.committed) == (8, (3, 8), committed)


def test_the_position_that_the_broker_refused_counts_and_not_the_older_commit(cluster: FakeCluster) -> None:
    _commit(cluster, A, 3)
    cluster.retain_from(A, 8)
    assert _starts(cluster, A, positions={A: 6})[A].lost == (6, 8)


def test_retention_that_overtook_a_group_before_its_first_commit_is_reported_too(cluster: FakeCluster) -> None:
    cluster.retain_from(A, 8)
    for start in ("earliest", "latest"):
        point = _starts(cluster, A, positions={A: 6}, start=start)[A]
        assert (point.offset, point.lost) == (8, (6, 8))


def test_a_log_cut_short_goes_on_at_its_end_and_its_commit_goes_back_with_it(cluster: FakeCluster) -> None:
    """What is written from here on is new; a commit kept at 10 would skip it after a crash."""
    _commit(cluster, A, 10)
    cluster.cut(A, 6)
    point = _starts(cluster, A)[A]
    assert (point.offset, point.committed, point.lost) == (6, None, None)


def test_a_log_cut_short_behind_our_position_is_read_again_from_the_commit(cluster: FakeCluster) -> None:
    """What was in flight between the two is given up, so it must be read again where the log still has it."""
    committed = _commit(cluster, A, 3)
    cluster.cut(A, 6)
    point = _starts(cluster, A, positions={A: 9})[A]
    assert (point.offset, point.committed, point.lost) == (3, committed, None)


def test_a_topic_made_anew_begins_at_its_beginning_whatever_is_committed(cluster: FakeCluster) -> None:
    _commit(cluster, A, 7)
    cluster.create("images", 2, topic_id="id-2")
    cluster.send(A, *[b"new"] * 9)
    for recreated in (False, True):
        point = _starts(cluster, A, start="latest", recreated=recreated)[A]
        assert (point.offset, point.topic_id, point.committed, point.lost) == (0, "id-2", None, None)
        assert point.note.topic_id == "id-2"


def test_a_topic_made_anew_with_fewer_partitions_leaves_out_those_that_are_gone(cluster: FakeCluster) -> None:
    cluster.create("images", 1, topic_id="id-2")
    assert set(_starts(cluster, A, B)) == {A}


def test_a_topic_that_is_away_is_left_out(cluster: FakeCluster) -> None:
    del cluster.topics["images"]
    assert _starts(cluster, A) == {}


def test_another_clients_metadata_says_nothing_and_its_offset_counts(cluster: FakeCluster) -> None:
    for metadata in ("", "not json", "[1]", '{"v": 2, "topic_id": "id-9"}', '{"v": 1, "start_partitions": "x"}'):
        cluster.committed[A] = CommitPoint(4, metadata)
        point = _starts(cluster, A)[A]
        assert (point.offset, point.note) == (4, Note("id-1", 2))


def test_a_cluster_without_topic_ids_is_never_taken_for_one_made_anew(cluster: FakeCluster) -> None:
    _commit(cluster, A, 7)
    cluster.create("images", 2, topic_id="")
    cluster.send(A, *[b"x"] * 10)
    assert _starts(cluster, A)[A].offset == 7


@pytest.mark.parametrize("trip", ["content", "system"])
def test_an_earlier_trip_travels_to_the_next_owner(cluster: FakeCluster, trip: str) -> None:
    _commit(cluster, A, 7, trip=trip)
    assert _starts(cluster, A)[A].note.trip == trip


def test_a_topic_made_anew_whose_offsets_went_with_it_is_known_by_the_id_we_had(cluster: FakeCluster) -> None:
    for positions in ({}, {A: 5}):
        assert _starts(cluster, A, start="latest", known_id="id-0", positions=positions)[A].offset == 0
    assert _starts(cluster, A, start="latest", known_id="id-1")[A].offset == 10


def test_a_topic_made_anew_that_another_replica_has_begun_goes_on_where_that_one_stands(cluster: FakeCluster) -> None:
    _commit(cluster, A, 7)
    assert _starts(cluster, A, known_id="id-0")[A].offset == 7


def test_a_partition_of_a_topic_made_anew_that_comes_later_begins_at_its_beginning_too(cluster: FakeCluster) -> None:
    """Its first one told the group, by its note; nobody needs to remember the old topic's id."""
    first = _starts(cluster, A, start="latest", known_id="id-0")[A]
    cluster.committed[A] = CommitPoint(first.offset, first.note.dump())
    assert _starts(cluster, B, start="latest")[B].offset == 0


# --- an owner that ended without a word -----------------------------------------------------------------------------


def test_what_an_owner_that_ended_without_a_word_had_in_hand_is_suspect(cluster: FakeCluster) -> None:
    committed = _commit(cluster, A, 4, in_hand=1_200)
    _commit(cluster, B, 20, in_hand=1_200)
    starts = _starts(cluster, A, B)
    assert starts[A] == StartPoint(4, "id-1", committed, Note("id-1", 2), suspects=(10, 1_200))
    assert starts[B].suspects is None, "an idle partition has none"
    assert starts[B].note.in_hand == 0, "the mark was the last owner's"


def test_retention_may_have_taken_some_suspects(cluster: FakeCluster) -> None:
    _commit(cluster, A, 4, in_hand=1_200)
    cluster.retain_from(A, 6)
    point = _starts(cluster, A)[A]
    assert (point.offset, point.lost, point.suspects) == (6, (4, 6), (10, 1_200))


def test_our_own_mark_makes_no_suspects_of_what_we_have_in_hand(cluster: FakeCluster) -> None:
    _commit(cluster, A, 4, in_hand=1_200)
    assert _starts(cluster, A, positions={A: 8})[A].suspects is None


def test_a_topic_made_anew_has_no_suspects(cluster: FakeCluster) -> None:
    _commit(cluster, A, 4, in_hand=1_200, topic_id="id-0")
    point = _starts(cluster, A)[A]
    assert (point.offset, point.suspects, point.note.in_hand) == (0, None, 0)


@pytest.mark.parametrize("written", ['"many"', "null", "-3", "1.5", "[1]"])
def test_a_mark_of_another_form_is_no_mark(written: str) -> None:
    """An older replica writes none, and a newer one may write another."""
    text = '{"v":1,"topic_id":"id-1","start_partitions":2,"in_hand":' + written + "}"
    assert Note.load(text) == Note("id-1", 2)


def test_a_note_with_all_it_can_carry_is_far_smaller_than_brokers_allow() -> None:
    """offset.metadata.max.bytes is 4096 by default."""
    note = Note("x" * 36, 2**31, "content", 2**31)
    assert Note.load(note.dump()) == note
    assert len(note.dump()) < 256


# --- notes of other versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"v":1,"topic_id":"id-1","start_partitions":2}', Note("id-1", 2)),  # 0.1.0
        ('{"v":1,"topic_id":"id-1","start_partitions":2,"trip":"system"}', Note("id-1", 2, "system")),  # 0.1.0
        ('{"v":1,"topic_id":"id-1","start_partitions":-1,"in_hand":5200}', Note("id-1", MADE_ANEW, None, 5_200)),
    ],
)
def test_every_form_that_was_ever_written_is_read(written: str, read: Note) -> None:
    assert Note.load(written) == read
    assert read.dump() == written  # and an older replica reads what is written now


@pytest.mark.parametrize(
    "field",
    [
        '"owner":{"version":"9.0.0"}',
        '"seen":[1,null]',
        '"trip":"weather"',
        '"trip":{"family":"system"}',
        '"range":{"start":"0","end":9}',
        '"range":[0,9]',
    ],
)
def test_what_a_later_version_may_add_is_passed_over(field: str) -> None:
    assert Note.load('{"v":1,"topic_id":"id-1","start_partitions":2,"in_hand":7,' + field + "}") == Note(
        "id-1", 2, None, 7
    )


@pytest.mark.parametrize("topic_id", ["null", "7", '{"uuid":"x"}'])
def test_a_topic_id_of_another_form_is_not_taken_for_another_topic(cluster: FakeCluster, topic_id: str) -> None:
    """Or the partition would begin at its beginning."""
    cluster.committed[A] = CommitPoint(7, '{"v":1,"topic_id":' + topic_id + ',"start_partitions":2}')
    assert _starts(cluster, A)[A].offset == 7


@pytest.mark.parametrize("metadata", ["", "not ours", "[]", '{"v":2,"topic_id":"id-0"}', '"v"'])
def test_a_note_that_is_not_ours_says_nothing_and_the_offset_counts(cluster: FakeCluster, metadata: str) -> None:
    cluster.committed[A] = CommitPoint(7, metadata)
    point = _starts(cluster, A)[A]
    assert (point.offset, point.suspects, point.note.trip) == (7, None, None)
