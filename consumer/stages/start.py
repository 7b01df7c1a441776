"""Start: where a partition begins. librdkafka's own `auto.offset.reset` is always `error`; we decide, here.

* A committed offset that the log still has: there.
* One that retention overtook: the earliest there is, and the range that was lost is reported.
* None, and the group is new to the topic: as `kafka.start` says. A group that starts at `latest` notes how many
  partitions there were, so that one which appears later starts at its beginning and loses nothing.
* A topic that was deleted and made again (its id changed): its beginning.
* A partition whose last owner ended without a word: where it was, and what that owner may have had in hand is suspect.

What the next owner must know travels in the offset commit's metadata, as a small JSON note. Where a range of the topic
is relabelled (`stages/relabel.py`), that is also where the range ends.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from consumer.errors import Family
from consumer.messages import CommitPoint, Partition
from consumer.ports import GroupView, TopicFacts

MADE_ANEW = -1


@dataclass(frozen=True, slots=True)
class Range:
    """A range of the input topics, as it was asked for. Times are milliseconds since the epoch."""

    from_ms: int | None
    """None: from the earliest message."""
    until_ms: int | None
    """Exclusive. None: to the end there was when the range was first begun."""


@dataclass(frozen=True, slots=True)
class RangePart:
    """What a range is in one partition: the offsets [start, end), fixed when the range was first begun."""

    of: Range
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Note:
    """What goes with a committed offset."""

    topic_id: str = ""
    start_partitions: int = 0
    """How many partitions the topic had when the group began; 0 where unknown, `MADE_ANEW` where it had another topic
    of that name: all its partitions appeared later."""
    trip: Family | None = None
    """The family of dead letters over whose limit the partition's owner tripped."""
    in_hand: int = 0
    """How many messages past the committed offset the owner may have in hand, as long as it lives: who finds this finds
    that the last owner ended without a word. 0 once it ended in order."""
    part: RangePart | None = None
    """Set where the group relabels a range: nothing at or after its end is read."""

    def dump(self) -> str:
        """As commit metadata."""
        fields: dict[str, Any] = {"v": 1, "topic_id": self.topic_id, "start_partitions": self.start_partitions}
        if self.trip is not None:
            fields["trip"] = self.trip
        if self.in_hand:
            fields["in_hand"] = self.in_hand
        if self.part is not None:
            of = self.part.of
            fields["range"] = {
                "from_ms": of.from_ms,
                "until_ms": of.until_ms,
                "start": self.part.start,
                "end": self.part.end,
            }
        return orjson.dumps(fields).decode()

    @classmethod
    def load(cls, metadata: str) -> "Note":
        """From commit metadata; another client's metadata says nothing to us.

        Replicas of several versions read one another's while a group is rolled from one to the next: a field that is
        not known here, or not of the form that is, is passed over. So fields are only ever added, with a meaning that a
        reader may miss; `v` changes only where an older reader must take the note for nothing.
        """
        try:
            fields = orjson.loads(metadata)
        except orjson.JSONDecodeError:
            return cls()
        if not isinstance(fields, dict) or fields.get("v") != 1:
            return cls()
        topic_id = fields.get("topic_id")
        trip = fields.get("trip")
        partitions = fields.get("start_partitions")
        in_hand = fields.get("in_hand")
        return cls(
            topic_id=topic_id if isinstance(topic_id, str) else "",
            start_partitions=partitions if isinstance(partitions, int) else 0,
            trip=trip if trip in ("content", "system") else None,
            in_hand=max(0, in_hand) if isinstance(in_hand, int) else 0,
            part=_part(fields.get("range")),
        )


def _part(fields: Any) -> RangePart | None:
    if not isinstance(fields, dict):
        return None
    start, end, times = fields.get("start"), fields.get("end"), (fields.get("from_ms"), fields.get("until_ms"))
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    from_ms, until_ms = (each if isinstance(each, int) else None for each in times)
    return RangePart(Range(from_ms, until_ms), start, end)


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where to begin with one partition."""

    offset: int
    topic_id: str
    committed: CommitPoint | None
    note: Note
    lost: tuple[int, int] | None = None
    """[first, end) of what the log no longer has."""
    suspects: tuple[int, int] | None = None
    """Where the last owner ended without a word: the log's end now, and how many messages it may have had in hand."""


@dataclass(frozen=True, slots=True)
class _Log:
    """What the broker has of one partition."""

    facts: TopicFacts
    earliest: int
    latest: int


def find_starts(
    view: GroupView,
    partitions: Sequence[Partition],
    *,
    start: str | int,
    positions: Mapping[Partition, int],
    recreated: bool,
    known_ids: Mapping[str, str],
    ours: Collection[Partition] = (),
) -> dict[Partition, StartPoint]:
    """Ask the cluster, and decide for each partition. Partitions whose topic is away are left out.

    Args:
        view: blocks; raises BrokerUnreachable, NotAuthorized.
        partitions: those to begin.
        start: `earliest`, `latest` or milliseconds since the epoch.
        positions: where we were, for partitions whose position the broker refused.
        recreated: the topics were made anew: what is known of the old ones counts for nothing.
        known_ids: the topics' ids when we last began one of their partitions. The group's offsets may have gone away
            with a topic, and then nothing else tells one made anew from one that is new to the group.
        ours: partitions that were ours all the while: that their mark is set is no sign of an end.
    """
    topics = view.topics(sorted({partition.topic for partition in partitions}))
    there = [p for p in partitions if p.topic in topics and p.number < topics[p.topic].partitions]
    everywhere = [Partition(name, number) for name, facts in topics.items() for number in range(facts.partitions)]
    committed = {} if recreated else dict(view.committed(everywhere))
    earliest, latest = view.offsets(there, "earliest"), view.offsets(there, "latest")
    known = _start_partitions(committed, topics)
    fresh = [p for p in there if p not in committed]
    at_start = view.offsets(fresh, start) if isinstance(start, int) and fresh and not recreated else {}
    points: dict[Partition, StartPoint] = {}
    for partition in there:
        log = _Log(topics[partition.topic], earliest[partition], latest[partition])
        found = committed.get(partition)
        note = Note.load(found.metadata) if found is not None else Note()
        same = found is not None and _same_topic(found, log.facts)
        anew = not same and (
            recreated or found is not None or is_another_topic(known_ids.get(partition.topic, ""), log.facts.topic_id)
        )
        at_first = note.start_partitions or known.get(partition.topic, 0) or log.facts.partitions
        in_hand, note = note.in_hand, replace(note, in_hand=0)
        note = replace(note, topic_id=log.facts.topic_id, start_partitions=MADE_ANEW if anew else at_first)
        if note.part is not None and note.part.end > log.latest:  # the log was cut short: nothing is left to wait for
            note = replace(note, part=replace(note.part, end=log.latest))
        position = positions.get(partition, found.offset if found is not None else None)
        if position is not None and not anew:
            point = _go_on(found, position, note, log)
            alive = partition in positions or partition in ours
            left_behind = in_hand and not alive and point.offset < log.latest
            points[partition] = replace(point, suspects=(log.latest, in_hand)) if left_behind else point
        elif anew or start == "earliest":
            points[partition] = StartPoint(log.earliest, log.facts.topic_id, None, note)
        elif isinstance(start, int):
            points[partition] = StartPoint(at_start[partition], log.facts.topic_id, None, note)
        else:
            later = partition.number >= note.start_partitions
            offset = log.earliest if later else log.latest
            points[partition] = StartPoint(offset, log.facts.topic_id, None, note)
    return points


def _go_on(found: CommitPoint | None, position: int, note: Note, log: _Log) -> StartPoint:
    """Where we were, or the nearest that the log still has."""
    topic_id = log.facts.topic_id
    if note.part is not None and position >= note.part.end:
        return StartPoint(position, topic_id, found, note)  # what retention took after the range is no loss
    if position < log.earliest:
        first = log.earliest if note.part is None else min(log.earliest, note.part.end)
        return StartPoint(first, topic_id, found, note, lost=(position, first))
    if position <= log.latest:
        return StartPoint(position, topic_id, found, note)
    # The log was cut short behind us, e.g. by an unclean leader election. Messages between the committed offset and our
    # position are not finished: those that are left are read again. A commit beyond the end is worth nothing: kept, it
    # would skip what is written there from now on.
    committed = found if found is not None and found.offset <= log.latest else None
    if found is None:
        return StartPoint(log.earliest, topic_id, None, note)
    return StartPoint(max(log.earliest, min(found.offset, log.latest)), topic_id, committed, note)


def _same_topic(found: CommitPoint, facts: TopicFacts) -> bool:
    return not is_another_topic(Note.load(found.metadata).topic_id, facts.topic_id)


def is_another_topic(known_id: str, topic_id: str) -> bool:
    """Whether both ids are known, and not the same: one that is not known says nothing."""
    return bool(known_id and topic_id and known_id != topic_id)


def _start_partitions(committed: Mapping[Partition, CommitPoint], topics: Mapping[str, TopicFacts]) -> dict[str, int]:
    """How many partitions each topic had when the group began, by the notes of any of its partitions."""
    known: dict[str, int] = {}
    for partition, point in committed.items():
        facts = topics.get(partition.topic)
        if facts is not None and _same_topic(point, facts):
            count = Note.load(point.metadata).start_partitions
            if known.get(partition.topic) != MADE_ANEW:
                known[partition.topic] = count if count == MADE_ANEW else max(known.get(partition.topic, 0), count)
    return known
