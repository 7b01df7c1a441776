"""What is ours: which partitions wait to learn where they begin, which have begun, and the books of each.

    await_start ──> pending ──> ask_due ──> ledgers, unmarked ──> start_marked ──> read ──> end
                       ^                                                           │
                       └───────────── take_up <──────────── set_aside <────────────┘

A partition is read once its mark is at the broker: the mark is how the next owner learns that we ended without a word.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from loguru import logger

from consumer.errors import Family, RecordsLost
from consumer.messages import Delivery, Lease, LeaseState, Partition
from consumer.observer import Observer
from consumer.owner import ASK_AGAIN_S, Questions
from consumer.ports import Clock, GroupView, MessageSource
from consumer.rules import Rules
from consumer.stages.commit import PartitionLedger
from consumer.stages.dead_letter_limit import DeadLetterLimit as Limit
from consumer.stages.relabel import in_range
from consumer.stages.start import Note, RangePart, StartPoint, find_starts
from consumer.stages.suspects import Suspects

MESSAGES_A_TURN = 200
"""That a turn of the loop may take, at most."""


class Leases:
    """Only the owner's thread calls it, but for `find_starts`."""

    def __init__(
        self,
        *,
        source: MessageSource,
        view: GroupView,
        questions: Questions,
        limit: Limit,
        clock: Clock,
        observer: Observer,
        rules: Rules,
        parts: Mapping[Partition, RangePart] | None,
        on_ended: Callable[[], None],
    ) -> None:
        """`on_ended`: leases have ended; what is in hand of them is to be let go of."""
        self._source = source
        self._view = view
        self._questions = questions
        self._limit = limit
        self._clock = clock
        self._observer = observer
        self._rules = rules
        self._parts = parts
        self._on_ended = on_ended
        self.ledgers: dict[Partition, PartitionLedger] = {}
        """The books of those that have begun."""
        self.pending: dict[Partition, Lease] = {}
        """Those of which it is not known yet where they begin."""
        self.unmarked: set[Partition] = set()
        """Those that have begun and are not read yet."""
        self.mark_is_due = False
        """Whether a partition has begun since the last commit that was due: its mark goes with the next, at once."""
        self.in_callback = False
        """Whether a revoke is under way: in a callback no partition is started."""
        self._set_aside: set[Partition] = set()
        self._ours: set[Partition] = set()
        """Of those that wait to begin, the ones that were ours before."""
        self._suspects: dict[Partition, Suspects] = {}
        self._probations: set[Partition] = set()
        self._ask_at_s: dict[Partition, float] = {}
        self._topic_ids: dict[str, str] = {}
        self._epoch = 0

    @property
    def in_flight(self) -> int:
        """Messages taken and not finished, of all partitions."""
        return sum(ledger.in_flight for ledger in self.ledgers.values())

    # --- where partitions begin -------------------------------------------------------------------------------------

    def await_start(self, partition: Partition) -> None:
        """It is ours, and paused until it is known where it begins."""
        self._epoch += 1
        self.pending[partition] = Lease(partition, epoch=self._epoch, topic_id="")
        self._ask_at_s[partition] = 0.0

    def begin_anew(self, partitions: Sequence[Partition]) -> None:
        """Their books are wrong: find out again where they begin."""
        self.end(partitions)
        for partition in partitions:
            self.await_start(partition)

    def ask_due(self) -> None:
        """Send the question where partitions begin, for those whose time has come."""
        now_s = self._clock.monotonic_s()
        due = [partition for partition, at_s in self._ask_at_s.items() if at_s <= now_s]
        if due:
            self.ask_starts(due, recreated=False)

    def ask_starts(self, partitions: Sequence[Partition], *, recreated: bool) -> None:
        """Send the question where these begin, which wait for it."""
        leases = {partition: self.pending[partition] for partition in partitions}
        for partition in partitions:
            self._ask_at_s.pop(partition, None)
        ours = self._ours.intersection(partitions)

        def ask() -> Mapping[Partition, StartPoint]:
            return self.find_starts(list(leases), positions={}, recreated=recreated, ours=ours)

        def failed() -> None:
            for partition, lease in leases.items():
                if self.pending.get(partition) is lease:
                    self._ask_at_s[partition] = self._clock.monotonic_s() + ASK_AGAIN_S

        self._questions.ask(ask, lambda points: self._begin(leases, points), failed)

    def find_starts(
        self,
        partitions: Sequence[Partition],
        *,
        positions: Mapping[Partition, int],
        recreated: bool,
        ours: Collection[Partition] = (),
    ) -> Mapping[Partition, StartPoint]:
        """In the questions' thread."""
        return find_starts(
            self._view,
            partitions,
            start=self._rules.start,
            positions=positions,
            recreated=recreated,
            known_ids=self._topic_ids,
            ours=ours,
        )

    def _begin(self, leases: Mapping[Partition, Lease], points: Mapping[Partition, StartPoint]) -> None:
        for partition, lease in leases.items():
            if self.pending.get(partition) is not lease:
                continue  # taken away meanwhile
            point = points.get(partition)
            if point is None:  # the topic is away; `TopicWatch` ends the wait
                self._ask_at_s[partition] = self._clock.monotonic_s() + ASK_AGAIN_S
                continue
            if not in_range(self._parts, partition, point):
                self.pending.pop(partition)  # it stays paused
                continue
            if point.lost is not None:
                self._report_lost(partition, point.lost)
            self.pending.pop(partition)
            self._ours.discard(partition)
            lease.topic_id = self._topic_ids[partition.topic] = point.topic_id
            self._honour_trip(partition, point)
            note = replace(point.note, trip=None) if self._rules.ignore_earlier_trips else point.note
            note = replace(note, in_hand=self._most_in_hand)
            self.ledgers[partition] = PartitionLedger(
                lease, start=point.offset, committed=point.committed, note=note.dump(), end=_end(point)
            )
            self._suspect(partition, point)
            self.unmarked.add(partition)
            self.mark_is_due = True
        self.start_marked()

    def go_on(self, ledger: PartitionLedger, point: StartPoint) -> None:
        """Read a partition from where the log still has something; what is in flight of it stays wanted."""
        if point.lost is not None:
            self._report_lost(ledger.lease.partition, point.lost)
        if point.offset != ledger.next_offset:
            ledger.skip_to(point.offset)
        if ledger.end != _end(point):  # the log was cut short
            ledger.end, ledger.note = _end(point), replace(Note.load(ledger.note), part=point.note.part).dump()
        self.read_from(ledger, point.offset)

    def _report_lost(self, partition: Partition, lost: tuple[int, int]) -> None:
        self._observer.offsets_lost(partition, *lost)
        if self._rules.stop_on_offset_lost:
            raise RecordsLost(
                f"offsets {lost[0]} to {lost[1] - 1} of {partition} were deleted before they were read",
                remedy='kafka.on_offset_lost = "earliest" goes on without them; `ouzel offsets reset` moves the group',
            )

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_from(self, ledger: PartitionLedger, offset: int) -> None:
        """Begin, or begin anew, to read a partition; one whose range ends before `offset` stays at rest."""
        if ledger.wants(offset):
            self._source.start(ledger.lease, offset)

    def read_again(self) -> None:
        """Read every partition again from after the last message taken."""
        for partition, ledger in self.ledgers.items():
            if partition not in self.unmarked:
                self.read_from(ledger, ledger.next_offset)

    def take(self, delivery: Delivery) -> Delivery | None:
        """Enter a message that the source handed over, as `suspect` where it may have ended the last owner.

        None where it is not wanted: it was read under a lease that is over, and its next owner reads it again, or it is
        after the range, and the next turn pauses the partition.
        """
        ledger = self.ledgers.get(delivery.partition)
        if ledger is None or ledger.lease is not delivery.lease or not ledger.wants(delivery.offset):
            return None
        suspects = self._suspects.get(delivery.partition)
        if suspects is not None and suspects.take(delivery.offset):
            delivery = replace(delivery, suspect=True)
        ledger.take(delivery)
        return delivery

    def finish(self, delivery: Delivery) -> None:
        """What answers it is with the broker."""
        ledger = self.ledgers.get(delivery.partition)
        if ledger is not None:
            ledger.finish(delivery)  # a late result of an old lease is not on these books

    def read_to(self, partition: Partition) -> int:
        """How far a partition that has begun was read, past transaction markers, which no message shows."""
        position = self.position(partition)
        return max(self.ledgers[partition].next_offset, position or 0)

    def position(self, partition: Partition) -> int | None:
        """The source's own; None before the partition is read: it is then an older lease's."""
        return None if partition in self.unmarked else self._source.position(partition)

    # --- marks: how the next owner learns that we ended without a word ----------------------------------------------

    @property
    def _most_in_hand(self) -> int:
        """A partition is paused at its bound once a turn."""
        return self._rules.max_uncommitted_messages + MESSAGES_A_TURN

    def start_marked(self) -> None:
        """Read from where the mark is at the broker: no message may end us that the next owner would not suspect."""
        if self.in_callback:
            return  # the next turn does
        for partition in list(self.unmarked):
            ledger = self.ledgers[partition]
            committed = ledger.committed
            if committed is not None and Note.load(committed.metadata).in_hand >= self._most_in_hand:
                self.unmarked.discard(partition)
                self.read_from(ledger, ledger.next_offset)

    def clear_marks(self, ledgers: Iterable[PartitionLedger], is_decoding: Callable[[Delivery], bool]) -> None:
        """We end, or give these away, in order. Not where an image is still with the decoder, which may never come
        back, nor where suspects are left: they are the next owner's."""
        for ledger in ledgers:
            suspects = self._suspects.get(ledger.lease.partition)
            left = suspects is not None and not suspects.passed(
                next_offset=ledger.next_offset, finished_to=ledger.finished_to
            )
            if not left and not any(map(is_decoding, ledger.unfinished())):
                ledger.note = replace(Note.load(ledger.note), in_hand=0).dump()

    def _suspect(self, partition: Partition, point: StartPoint) -> None:
        if point.suspects is None:
            return
        end, most = point.suspects
        self._suspects[partition] = Suspects(end=end, most=most)
        logger.bind(topic=partition.topic, partition=partition.number).warning(
            "the last owner ended without a word: up to {} messages that it had in hand are decoded in a sandbox",
            min(most, end - point.offset),
        )

    # --- trips over the dead-letter limit, as owners tell each other of them ----------------------------------------

    def note_trip(self, partitions: Iterable[Partition], family: Family | None) -> None:
        """What the next commit tells the next owner."""
        for partition in partitions:
            ledger = self.ledgers.get(partition)
            if ledger is not None:
                ledger.note = replace(Note.load(ledger.note), trip=family).dump()

    def end_probations(self) -> None:
        """Of those that have passed it: the next owner is told of no trip."""
        passed = {partition for partition in self._probations if not self._limit.on_probation(partition)}
        self.note_trip(passed, None)
        self._probations -= passed

    def _honour_trip(self, partition: Partition, point: StartPoint) -> None:
        if point.note.trip is not None and not self._rules.ignore_earlier_trips:
            self._limit.put_on_probation(partition, point.note.trip)
            self._probations.add(partition)
            logger.bind(topic=partition.topic, partition=partition.number).warning(
                "an earlier owner reached the dead-letter limit ({}): no such letter until one image succeeds",
                point.note.trip,
            )

    # --- the end ----------------------------------------------------------------------------------------------------

    def begin_no_more(self) -> None:
        """What waits to begin does not, until it is awaited anew."""
        self.pending.clear()
        self._ask_at_s.clear()

    def set_aside(self) -> None:
        """End all that have begun. They stay ours, and `take_up` has them begin anew from what is committed then.
        Suspects stay suspects: the letter of the one that ends a decoder may be among what does not hold."""
        partitions = list(self.ledgers)
        suspects = {
            partition: self._suspects[partition].again() for partition in partitions if partition in self._suspects
        }
        self._source.pause(partitions)
        self.end(partitions)
        self._set_aside.update(partitions)
        self._suspects.update(suspects)

    def take_up(self) -> None:
        """See `set_aside`."""
        partitions, self._set_aside = self._set_aside, set()
        for partition in partitions:
            self.await_start(partition)
        self._ours.update(partitions)

    def end(self, partitions: Iterable[Partition]) -> None:
        """Fence: whatever still comes of these is discarded."""
        for partition in partitions:
            self._limit.forget(partition)
            self._probations.discard(partition)
            self.unmarked.discard(partition)
            self._suspects.pop(partition, None)
            self._set_aside.discard(partition)
            self._ours.discard(partition)
            self._observer.lag_gone(partition)
            self.pending.pop(partition, None)
            self._ask_at_s.pop(partition, None)
            ledger = self.ledgers.pop(partition, None)
            if ledger is not None:
                ledger.lease.state = LeaseState.ENDED
        self._on_ended()


def _end(point: StartPoint) -> int | None:
    """Where reading ends; None where it does not."""
    return None if point.note.part is None else point.note.part.end
