"""Relabel: a range of the input topics, in a group of its own that is done when all is committed to the range's end.

The range is fixed once, before any member joins: for every partition its first offset is committed, with a note that
says where it ends. So a replica that was killed, and all replicas of the group, keep to the same ends; and since only
a group without members takes such a commit, of several that start together one fixes it and the others find it.

Offsets have gaps, and the last one before an end may be a transaction's marker or compacted away: a partition is done
when the group has committed its end, which the position reaches past what is no message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumer.errors import CommandRefused, RecordsLost
from consumer.messages import CommitPoint, Partition
from consumer.ports import GroupView, TopicFacts
from consumer.stages.start import MADE_ANEW, Note, Range, RangePart, StartPoint
from consumer.times import rfc3339

_OTHER_GROUP = "choose another --group: each range has one of its own"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the group is. Counts offsets: what is no message counts too."""

    done: int
    total: int
    finished: bool


def progress_of(parts: Mapping[Partition, RangePart], committed: Mapping[Partition, CommitPoint]) -> Progress:
    """How far the group is with a range, by its committed offsets."""
    done = total = 0
    finished = True
    for partition, known in parts.items():
        point = committed.get(partition)
        part = (Note.load(point.metadata).part if point is not None else None) or known
        offset = part.start if point is None else point.offset
        total += part.end - part.start
        done += min(max(offset, part.start), part.end) - part.start
        finished = finished and offset >= part.end
    return Progress(done, total, finished)


def in_range(parts: Mapping[Partition, RangePart] | None, partition: Partition, point: StartPoint) -> bool:
    """Whether there is anything to do: not in a partition that appeared after the range was fixed. Without `parts`
    there is no range, and always something to do.

    Raises:
        RecordsLost: the range is gone.
    """
    if parts is None:
        return True
    if point.note.start_partitions == MADE_ANEW or (partition in parts and point.note.part is None):
        raise range_gone(partition.topic)
    return point.note.part is not None


def range_gone(topic: str) -> RecordsLost:
    """The error where what the range was fixed on is no more."""
    return RecordsLost(
        f"topic {topic} was deleted or made anew, or the group's offsets were, while a range of it was relabelled",
        remedy="look what is there now with `ouzel offsets show`, and begin the range again under another --group",
    )


def fix_range(view: GroupView, topics: Sequence[str], wanted: Range, *, group_id: str) -> dict[Partition, RangePart]:
    """What the range is in each partition: fixed now, or as it was fixed by the first replica that began it.

    Blocks. The ends are the logs' high watermarks: what transactions that are open now hold back is waited for, so
    that nothing acknowledged before is left out.

    Args:
        view: of the range's own group.
        topics: the input topics; they exist.
        wanted: the range.
        group_id: for what is said.

    Raises:
        CommandRefused: the group is used for something else, or for another range.
        BrokerUnreachable, NotAuthorized: nobody answers, or not to us.
    """
    facts = view.topics(topics)
    partitions = [Partition(name, number) for name, of in facts.items() for number in range(of.partitions)]
    committed = view.committed(partitions)
    if not committed:
        if not view.commit_while_empty(_first_points(view, facts, partitions, wanted)):
            committed = view.committed(partitions)  # another replica of ours was quicker, or it is another's group
            if not committed:
                raise CommandRefused(f"the group {group_id} has members that do something else", remedy=_OTHER_GROUP)
        else:
            committed = view.committed(partitions)
    return _fixed(committed, topics, wanted, group_id)


def _first_points(
    view: GroupView, facts: Mapping[str, TopicFacts], partitions: Sequence[Partition], wanted: Range
) -> dict[Partition, CommitPoint]:
    starts = view.offsets(partitions, "earliest" if wanted.from_ms is None else wanted.from_ms)
    ends = view.offsets(partitions, "latest" if wanted.until_ms is None else wanted.until_ms)
    points = {}
    for partition in partitions:
        of = facts[partition.topic]
        start, end = min(starts[partition], ends[partition]), ends[partition]
        note = Note(of.topic_id, of.partitions, part=RangePart(wanted, start, end))
        points[partition] = CommitPoint(start, note.dump())
    return points


def _fixed(
    committed: Mapping[Partition, CommitPoint], topics: Sequence[str], wanted: Range, group_id: str
) -> dict[Partition, RangePart]:
    parts: dict[Partition, RangePart] = {}
    for partition, point in committed.items():
        part = Note.load(point.metadata).part
        if part is None:
            raise CommandRefused(
                f"the group {group_id} has offsets of its own in {partition}: it is used for something else",
                remedy=_OTHER_GROUP,
            )
        if part.of != wanted:
            raise CommandRefused(
                f"the group {group_id} relabels another range, from {_told(part.of.from_ms, 'earliest')} until "
                f"{_told(part.of.until_ms, 'end')}",
                remedy=f"{_OTHER_GROUP}; to go on with that one, give the same --from and --until again",
            )
        parts[partition] = part
    begun = {partition.topic for partition in parts}
    if left_out := [name for name in topics if name not in begun]:
        raise CommandRefused(
            f"the group {group_id} began this range without the topic {left_out[0]}", remedy=_OTHER_GROUP
        )
    return parts


def _told(time_ms: int | None, otherwise: str) -> str:
    return otherwise if time_ms is None else rfc3339(time_ms)
