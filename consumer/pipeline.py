"""The service's loop, in reading order: assignment, messages, intake, commits, rebalance, shutdown.

One thread, the owner, runs all of it. It never blocks on fetch, decode, inference, a synchronous commit, watermarks or
metadata: work goes to the flow and the publisher, questions to a thread of their own, and answers come back through
one inbox. The one place where it waits is a revoke: the partitions are gone when that callback returns.
"""

import math
import queue
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from loguru import logger

from consumer.errors import (
    BrokerUnreachable,
    DeadLetterLimit,
    Family,
    OutputRefused,
    RecordsLost,
    Retryable,
    Stalled,
    TopicMissing,
    TransactionBroken,
)
from consumer.flow import Flow
from consumer.messages import CommitPoint, Delivery, Lease, LeaseState, Partition, StallRemedy
from consumer.observer import Observer
from consumer.ports import (
    Clock,
    GroupView,
    MessageSource,
    OffsetCommitter,
    OffsetLost,
    TopicFacts,
    Transactions,
)
from consumer.stages.commit import PartitionLedger
from consumer.stages.dead_letter_limit import DeadLetterLimit as Limit
from consumer.stages.dead_letter_limit import Trip
from consumer.stages.intake import ByteBudget, Intake, PartitionLoad
from consumer.stages.publish import Publisher, Settled
from consumer.stages.relabel import Progress, progress_of
from consumer.stages.stalls import Stalls, Standing
from consumer.stages.start import MADE_ANEW, Note, RangePart, StartPoint, find_starts
from consumer.stages.suspects import Suspects

T = TypeVar("T")

_POLL_S = 0.1
_DRAIN_STEP_S = 0.02
_MESSAGES_A_TURN = 200
_ASK_AGAIN_S = 1.0
_POLL_FOR_ANSWER_S = 0.005  # an answer is read after a poll, and partitions wait for it
_POLL_IN_TRANSACTION_S = 0.01  # readers wait for its end, and its last record may be in any moment
_MARK_AGAIN_S = 0.1
_LAST_TRANSACTION_S = 3.0
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.2, 5.0
"""Before work that was undone is done again, when it was undone before."""
_MOST_IN_A_ROW = 30
"""Transactions that were undone, and none committed between: some two minutes."""
_LOOKS = 10  # at what stands still, in `stall_s`


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers that the loop goes by, in seconds."""

    commit_interval_s: float
    drain_timeout_s: float
    """At most half of max.poll.interval.ms, so that a drain never costs the membership."""
    metadata_interval_s: float
    topics: tuple[str, ...]
    """The input topics."""
    max_uncommitted_messages: int
    """Of one partition: where the intake pauses it."""
    start: str | int
    """`earliest`, `latest` or milliseconds since the epoch."""
    stop_on_offset_lost: bool
    exit_on_limit: bool
    ignore_earlier_trips: bool
    topic_gone_s: float = 30.0
    """How long a deleted input topic may stay away."""
    stall_s: float = 0.0
    """How long a partition may stand still though the broker has more of it; 0: nobody looks."""


@dataclass(frozen=True, slots=True)
class _Crash:
    error: BaseException


@dataclass(frozen=True, slots=True)
class _Broken:
    error: TransactionBroken


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a question brought; `then` runs in the owner's thread."""

    then: Callable[[], None]


@dataclass(slots=True)
class _Ending:
    """Where the end of a transaction stands."""

    sealing: bool = False
    """Whether the publisher is asked to rest."""
    to_commit: bool = False
    """Whether it rests for a commit that has not been sent."""
    undoing: bool = False
    undone: set[Partition] = field(default_factory=set)
    """Partitions that go on from what is committed, once it is certain what that is."""
    told_unresolved: bool = False
    in_a_row: int = 0
    """Transactions that were undone since the last one that was committed."""
    again_at_s: float = 0.0
    """Before that no other is begun."""
    in_callback: bool = False
    """Whether a revoke waits for it."""
    ours: set[Partition] = field(default_factory=set)
    """Of those that begin, the ones that were ours before."""


class Pipeline:
    """Owns the source; listens to the group (`ports.AssignmentListener`)."""

    def __init__(
        self,
        *,
        source: MessageSource,
        view: GroupView,
        intake: Intake,
        budget: ByteBudget,
        limit: Limit,
        clock: Clock,
        observer: Observer,
        rules: Rules,
        parts: Mapping[Partition, RangePart] | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        transactions: Transactions | None = None,
    ) -> None:
        """With `parts` only that range is labelled, and `run` returns when the whole group is through with it. With
        `transactions` offsets are committed by them, together with the records that answer; else by the source."""
        self._source = source
        self._transactions = transactions
        self._committer: OffsetCommitter = source if transactions is None else transactions
        self._view = view
        self._intake = intake
        self._budget = budget
        self._limit = limit
        self._clock = clock
        self._observer = observer
        self._rules = rules
        self._parts = parts
        self._on_progress = on_progress
        self._progress_at_s = 0.0
        self.finished = False
        """Whether the range is labelled and committed to its end, by all replicas together."""
        self._flow: Flow
        self._publisher: Publisher
        self._inbox: queue.SimpleQueue[Settled | _Crash | _Broken | _Answer] = queue.SimpleQueue()
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="questions")
        self._ledgers: dict[Partition, PartitionLedger] = {}
        self._pending: dict[Partition, Lease] = {}
        self._unmarked: set[Partition] = set()
        self._suspects: dict[Partition, Suspects] = {}
        self._ask_at_s: dict[Partition, float] = {}
        self._lost_at_s: dict[Partition, float] = {}
        self._topic_ids: dict[str, str] = {}
        self._missing_since_s: dict[str, float] = {}
        self._lag_told: Mapping[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        self._behind, self._few, self._waited_s = False, True, 0.0
        self._epoch = 0
        self._commit_at_s = 0.0
        self._metadata_at_s = 0.0
        self._deferred: list[_Answer] = []
        self._sent: tuple[dict[Partition, CommitPoint], float] = ({}, 0.0)
        """The commit that was sent last, and the monotonic second when."""
        self._ending = _Ending()
        self._closing = False
        # Plain flags: a signal handler runs in the owner's thread, which may be inside the lock of an Event.
        self._stop = False
        self._resume = False
        self._held_for: Trip | None = None
        self._probations: set[Partition] = set()
        self._stalls = Stalls(rules.stall_s)
        self._stalls_at_s = 0.0
        self._asking_of_stalls = False
        self._rejoining = False
        self.turned_s = clock.monotonic_s()
        """Monotonic second of the loop's last turn."""

    # --- from other threads, and from signal handlers ---------------------------------------------------------------

    def stop(self) -> None:
        """Finish what is in flight, commit, leave the group."""
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop

    def resume(self) -> None:
        """Go on after the dead-letter limit."""
        self._resume = True

    @property
    def holding(self) -> bool:
        """Whether the dead-letter limit holds the replica."""
        return self._held_for is not None

    @property
    def stalled(self) -> frozenset[Partition]:
        """Partitions that stand still though the broker has more of them, and that a rejoin did not help."""
        return self._stalls.hopeless

    def settled(self, settled: Settled) -> None:
        """The publisher's word on one delivery."""
        self._inbox.put(settled)

    def crashed(self, error: BaseException) -> None:
        """A thread cannot go on."""
        self._inbox.put(_Crash(error))

    def broken(self, error: TransactionBroken) -> None:
        """The open transaction can only be undone."""
        self._inbox.put(_Broken(error))

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, flow: Flow, publisher: Publisher) -> None:
        """Until `stop`, or until the range is `finished`. The model is warm when this is called.

        Raises:
            Fatal: see `errors`. What was finished is committed, nothing past it.
        """
        self._flow, self._publisher = flow, publisher
        publisher.start()
        self._source.subscribe(self)
        try:
            while not self._stop and not self.finished:
                self._turn()
            self._shut_down()
        except BaseException:
            self._save_transaction()
            raise
        finally:
            self._close()

    def _turn(self) -> None:
        self.turned_s = self._clock.monotonic_s()
        self._balance()
        self._take_messages()
        self._read_inbox()
        self._flow.tick()
        self._begin_pending()
        self._check_topics()
        self._ask_progress()
        self._heed_limit()
        self._commit_when_due()
        self._go_on_after_transaction()
        self._tell_unresolved()
        self._start_marked()
        self._watch_for_stalls()
        self._observer.turned(self.turned_s, backlog=self._behind and not self.holding, waited_s=self._waited_s)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        self._waited_s = 0.0
        if not self._has_room():
            self._wait_for_room()
        if not self._has_room() and len(self._paused) < len(self._ledgers):
            return  # a poll would hand over a message; if this lasts, the partitions pause and polls are safe
        timeout_s = self._poll_s()
        polled_s = self._clock.monotonic_s() if self._few else None
        for _ in range(_MESSAGES_A_TURN):
            try:
                found = self._source.poll(timeout_s)
            except Retryable as error:
                self._read_again(error)
                return
            if polled_s is not None:
                self._waited_s, polled_s = self._clock.monotonic_s() - polled_s, None
            if found is None:
                return
            timeout_s = 0.0
            if isinstance(found, OffsetLost):
                self._offset_lost(found.partition)
            else:
                self._take(found)
            if not self._has_room():
                return

    def _has_room(self) -> bool:
        return self._intake.room(self._in_flight(), self._budget.used_bytes)

    def _poll_s(self) -> float:
        if self._unmarked or self._ending.sealing:
            return _POLL_FOR_ANSWER_S
        if self._transactions is not None and (self._in_flight() or self.unresolved):
            return _POLL_IN_TRANSACTION_S
        return _POLL_S

    def _wait_for_room(self) -> None:
        """Until something is settled, at most one poll's time."""
        try:
            self._accept(self._inbox.get(timeout=self._poll_s()))
        except queue.Empty:
            return
        self._read_inbox()

    def _take(self, delivery: Delivery) -> None:
        ledger = self._ledgers.get(delivery.partition)
        if ledger is None or ledger.lease is not delivery.lease:
            return  # read under a lease that is over; its next owner reads it again
        if not ledger.wants(delivery.offset):
            return  # after the range; the next turn pauses the partition
        suspects = self._suspects.get(delivery.partition)
        if suspects is not None and suspects.take(delivery.offset):
            delivery = replace(delivery, suspect=True)
        ledger.take(delivery)
        self._publisher.took(delivery)
        self._flow.submit(delivery)

    def _read_again(self, error: Retryable) -> None:
        """What poll had in hand may be gone: read every partition again from after the last message taken."""
        logger.error("{}; reading again from where each partition stands", error)
        for partition, ledger in self._ledgers.items():
            if partition not in self._unmarked:
                self._read_from(ledger, ledger.next_offset)

    def _read_from(self, ledger: PartitionLedger, offset: int) -> None:
        """Begin, or begin anew, to read a partition; one whose range ends before `offset` stays at rest."""
        if ledger.wants(offset):
            self._source.start(ledger.lease, offset)

    def _read_inbox(self) -> None:
        deferred, self._deferred = self._deferred, []
        for answer in deferred:
            answer.then()
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._accept(item)

    def _accept(self, item: Settled | _Crash | _Broken | _Answer) -> None:
        if isinstance(item, Settled):
            delivery = item.delivery
            self._budget.release(delivery)
            ledger = self._ledgers.get(delivery.partition)
            if item.finished and ledger is not None:
                ledger.finish(delivery)  # a late result of an old lease is not on these books
        elif isinstance(item, _Answer):
            item.then()
        elif isinstance(item, _Broken):
            self._undo(str(item.error))
        else:
            raise item.error

    # --- intake -----------------------------------------------------------------------------------------------------

    def _in_flight(self) -> int:
        return sum(ledger.in_flight for ledger in self._ledgers.values())

    def _balance(self) -> None:
        """Pause what is over a bound, resume what is below it again."""
        lag = self._source.lag()
        loads = {
            partition: PartitionLoad(
                in_flight=ledger.in_flight,
                uncommitted=ledger.uncommitted,
                has_work=ledger.in_flight > 0 or (lag.get(partition, 0) > 0 and not ledger.past_end),
            )
            for partition, ledger in self._ledgers.items()
        }
        used_bytes = self._budget.used_bytes
        self._paused = self._intake.decide(loads, used_bytes=used_bytes, now_s=self.turned_s, hold=self.holding)
        self._paused |= {partition for partition, ledger in self._ledgers.items() if ledger.past_end}
        self._source.pause(self._paused)
        self._source.resume(set(loads) - self._paused)
        in_flight = sum(load.in_flight for load in loads.values())
        self._few = self._intake.few(in_flight)
        self._observer.in_flight(in_flight, used_bytes)
        if lag is not self._lag_told:  # a new one with each statistics, and many turns between them
            self._lag_told = lag
            self._behind = any(lag.values())
            self._observer.lag(lag)

    def _heed_limit(self) -> None:
        if self._resume:
            self._resume = False
            self._publisher.resume()  # in its own thread: until then the trip that we hold for is still there
            self._note_trip(self._ledgers, None)
            self._observer.limit_resumed()
        trip = self._publisher.trip
        if trip is not None and trip is not self._held_for:
            self._note_trip(self._ledgers, trip.family)
            self._commit_at_s = 0.0
            if self._rules.exit_on_limit:
                raise DeadLetterLimit(
                    f"dead-letter limit reached: {trip.reason}",
                    remedy="look with `ouzel dlq ls`, then start again with --resume",
                )
        self._held_for = trip
        if trip is None:
            passed = {partition for partition in self._probations if not self._limit.on_probation(partition)}
            self._note_trip(passed, None)
            self._probations -= passed

    def _note_trip(self, partitions: Iterable[Partition], family: Family | None) -> None:
        """What the next commit tells the next owner."""
        for partition in partitions:
            ledger = self._ledgers.get(partition)
            if ledger is not None:
                ledger.note = replace(Note.load(ledger.note), trip=family).dump()

    # --- assignment -------------------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Ask where each partition begins; until then it is paused."""
        self._observer.rebalanced()
        if partitions:
            logger.info("assigned {}", ", ".join(map(str, sorted(partitions))))
        for partition in partitions:
            self._await_start(partition)

    def _await_start(self, partition: Partition) -> None:
        self._epoch += 1
        self._pending[partition] = Lease(partition, epoch=self._epoch, topic_id="")
        self._ask_at_s[partition] = 0.0

    def _begin_pending(self) -> None:
        """Send the question where partitions begin, for those whose time has come."""
        if self.unresolved:
            return
        now_s = self._clock.monotonic_s()
        due = [partition for partition, at_s in self._ask_at_s.items() if at_s <= now_s]
        if due:
            self._ask_starts(due, recreated=False)
        for partition in [each for each, at_s in self._lost_at_s.items() if at_s <= now_s]:
            del self._lost_at_s[partition]
            self._offset_lost(partition)

    def _ask_starts(self, partitions: Sequence[Partition], *, recreated: bool) -> None:
        leases = {partition: self._pending[partition] for partition in partitions}
        for partition in partitions:
            self._ask_at_s.pop(partition, None)
        ours = self._ending.ours.intersection(partitions)

        def ask() -> Mapping[Partition, StartPoint]:
            return self._find_starts(list(leases), positions={}, recreated=recreated, ours=ours)

        def failed() -> None:
            for partition, lease in leases.items():
                if self._pending.get(partition) is lease:
                    self._ask_at_s[partition] = self._clock.monotonic_s() + _ASK_AGAIN_S

        self._ask(ask, lambda points: self._begin(leases, points), failed)

    def _find_starts(
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
            if self._pending.get(partition) is not lease:
                continue  # taken away meanwhile
            point = points.get(partition)
            if point is None:  # the topic is away; `_check_topics` ends the wait
                self._ask_at_s[partition] = self._clock.monotonic_s() + _ASK_AGAIN_S
                continue
            if not self._in_range(partition, point):
                self._pending.pop(partition)  # it stays paused
                continue
            if point.lost is not None:
                self._report_lost(partition, point.lost)
            self._pending.pop(partition)
            self._ending.ours.discard(partition)
            lease.topic_id = self._topic_ids[partition.topic] = point.topic_id
            self._honour_trip(partition, point)
            note = replace(point.note, trip=None) if self._rules.ignore_earlier_trips else point.note
            note = replace(note, in_hand=self._most_in_hand)
            self._ledgers[partition] = PartitionLedger(
                lease, start=point.offset, committed=point.committed, note=note.dump(), end=_end(point)
            )
            self._suspect(partition, point)
            self._unmarked.add(partition)
            self._commit_at_s = 0.0
        self._start_marked()

    # --- marks: how the next owner learns that we ended without a word ----------------------------------------------

    @property
    def _most_in_hand(self) -> int:
        """A partition is paused at its bound once a turn."""
        return self._rules.max_uncommitted_messages + _MESSAGES_A_TURN

    def _start_marked(self) -> None:
        """Read from where the mark is at the broker: no message may end us that the next owner would not suspect."""
        if self._ending.in_callback:
            return  # a callback must not start partitions; the next turn does
        for partition in list(self._unmarked):
            ledger = self._ledgers[partition]
            committed = ledger.committed
            if committed is not None and Note.load(committed.metadata).in_hand >= self._most_in_hand:
                self._unmarked.discard(partition)
                self._read_from(ledger, ledger.next_offset)

    def _clear_marks(self, ledgers: Iterable[PartitionLedger]) -> None:
        """We end, or give these away, in order. Not where an image is still with the decoder, which may never come
        back, nor where suspects are left: they are the next owner's."""
        for ledger in ledgers:
            suspects = self._suspects.get(ledger.lease.partition)
            left = suspects is not None and not suspects.passed(
                next_offset=ledger.next_offset, finished_to=ledger.finished_to
            )
            if not left and not any(map(self._flow.is_decoding, ledger.unfinished())):
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

    def _honour_trip(self, partition: Partition, point: StartPoint) -> None:
        if point.note.trip is not None and not self._rules.ignore_earlier_trips:
            self._limit.put_on_probation(partition, point.note.trip)
            self._probations.add(partition)
            logger.bind(topic=partition.topic, partition=partition.number).warning(
                "an earlier owner reached the dead-letter limit ({}): no such letter until one image succeeds",
                point.note.trip,
            )

    def _offset_lost(self, partition: Partition) -> None:
        """The broker refuses our position: find out where the partition goes on. What is in flight stays wanted."""
        ledger = self._ledgers.get(partition)
        if ledger is None:
            return

        def ask() -> Mapping[Partition, StartPoint]:
            positions = {partition: ledger.next_offset}
            return self._find_starts([partition], positions=positions, recreated=False)

        def go_on(points: Mapping[Partition, StartPoint]) -> None:
            if self._ledgers.get(partition) is not ledger:
                return  # taken away meanwhile
            point = points.get(partition)
            if point is None:  # the topic is away; `_check_topics` ends the wait
                ask_again()
            elif point.topic_id != ledger.lease.topic_id:
                self._begin_anew([partition])
            elif point.offset < ledger.next_offset:  # the log was cut short: these offsets come again, as new messages
                if self._transactions is not None:
                    self._undo(f"the log of {partition} was cut short")
                else:
                    self._end([partition])
                    self._await_start(partition)
            else:
                self._go_on(ledger, point)

        def ask_again() -> None:
            if self._ledgers.get(partition) is ledger:
                self._lost_at_s[partition] = self._clock.monotonic_s() + _ASK_AGAIN_S

        self._ask(ask, go_on, ask_again)

    def _go_on(self, ledger: PartitionLedger, point: StartPoint) -> None:
        if point.lost is not None:
            self._report_lost(ledger.lease.partition, point.lost)
        if point.offset != ledger.next_offset:
            ledger.skip_to(point.offset)
        if ledger.end != _end(point):  # the log was cut short
            ledger.end, ledger.note = _end(point), replace(Note.load(ledger.note), part=point.note.part).dump()
        self._read_from(ledger, point.offset)

    def _report_lost(self, partition: Partition, lost: tuple[int, int]) -> None:
        self._observer.offsets_lost(partition, *lost)
        if self._rules.stop_on_offset_lost:
            raise RecordsLost(
                f"offsets {lost[0]} to {lost[1] - 1} of {partition} were deleted before they were read",
                remedy='kafka.on_offset_lost = "earliest" goes on without them; `ouzel offsets reset` moves the group',
            )

    # --- topics that change -----------------------------------------------------------------------------------------

    def _check_topics(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._metadata_at_s:
            return
        self._metadata_at_s = now_s + self._rules.metadata_interval_s
        self._ask(lambda: self._view.topics(self._rules.topics), self._compare_topics, lambda: None)

    def _compare_topics(self, found: Mapping[str, TopicFacts]) -> None:
        now_s = self._clock.monotonic_s()
        for name in self._rules.topics:
            if name in found:
                self._missing_since_s.pop(name, None)
            elif now_s - self._missing_since_s.setdefault(name, now_s) > self._rules.topic_gone_s:
                raise TopicMissing(f"topic {name} was deleted", remedy="ouzel topics create")
        recreated = [
            partition
            for partition, ledger in self._ledgers.items()
            if (facts := found.get(partition.topic)) is not None
            and facts.topic_id
            and ledger.lease.topic_id
            and facts.topic_id != ledger.lease.topic_id
        ]
        if recreated:
            self._begin_anew(recreated)

    def _begin_anew(self, partitions: Sequence[Partition]) -> None:
        """The topic was deleted and made again: its old work means nothing, and it starts at its beginning."""
        logger.error("topic made anew under {}: its old work is discarded", ", ".join(map(str, partitions)))
        if self._parts is not None:
            raise _range_gone(partitions[0].topic)
        if self._transactions is not None:
            self._undo("a topic was made anew")  # what goes on finds that by the topic's id
            return
        self._end(partitions)
        for partition in partitions:
            self._await_start(partition)
        self._ask_starts(partitions, recreated=True)

    # --- stalls: lag without progress --------------------------------------------------------------------------------

    def _watch_for_stalls(self) -> None:
        now_s = self.turned_s
        if self._rejoining and not self._ledgers and not self._pending:
            self._rejoining = False
            self._source.subscribe(self)
        if not self._rules.stall_s or now_s < self._stalls_at_s:
            return
        self._stalls_at_s = now_s + self._rules.stall_s / _LOOKS
        standings = {partition: _standing(ledger) for partition, ledger in self._ledgers.items()}
        standings |= {partition: _not_begun(lease) for partition, lease in self._pending.items()}
        suspects = self._stalls.look(standings, self._is_excused, now_s)
        if suspects and not self._asking_of_stalls:
            self._ask_of_stalls(suspects)
        found = self._stalls.due(now_s)
        if found is not None:
            self._end_stall(*found)

    def _is_excused(self, partition: Partition) -> bool:
        """Whether it is known what the partition waits for: a person, a quota, a store, the output, the model."""
        if self.holding or self._source.throttled_until_s > self.turned_s:
            return True
        if self.unresolved or self._ending.undoing:
            return True
        ledger = self._ledgers.get(partition)
        if ledger is None:  # where to begin is being asked for
            return False
        waits = partition in self._paused or ledger.in_flight > 0
        # In a transaction no record is under way for longer than that may last: a publisher that holds one is stuck.
        holds_work = self._flow.holds_work or (self._transactions is None and self._publisher.holds_work)
        return ledger.past_end or (waits and holds_work)

    def _ask_of_stalls(self, suspects: frozenset[Partition]) -> None:
        """Whether the broker has more of these than was read, or less than was finished; where those begin that have
        not begun, it told long ago. One that does not answer is away, which is no stall."""
        self._asking_of_stalls = True
        asked = sorted(suspects)

        def heard(behind: Iterable[Partition]) -> None:
            self._asking_of_stalls = False
            self._stalls.heard(asked, behind, self._clock.monotonic_s())

        def compare(found: tuple[Mapping[Partition, int], Mapping[Partition, CommitPoint]]) -> None:
            ends, committed = found
            heard(
                each
                for each in asked
                if (ledger := self._ledgers.get(each)) is None
                or ends[each] > self._read_to(ledger)
                or each not in committed
                or committed[each].offset < ledger.finished_to
            )

        self._ask(
            lambda: (self._view.offsets(asked, "stable"), self._view.committed(asked)), compare, lambda: heard(())
        )

    def _read_to(self, ledger: PartitionLedger) -> int:
        """Past transaction markers, which no message shows. Before it is read, the position is an older lease's."""
        partition = ledger.lease.partition
        position = None if partition in self._unmarked else self._source.position(partition)
        return max(ledger.next_offset, position or 0)

    def _end_stall(self, remedy: StallRemedy, partitions: frozenset[Partition]) -> None:
        self._observer.stalled(remedy, partitions, self._rules.stall_s)
        if remedy == "restart":
            for partition in partitions & self._ledgers.keys() - self._unmarked:
                self._read_from(self._ledgers[partition], self._ledgers[partition].next_offset)
            for partition in partitions & self._pending.keys():
                self._await_start(partition)
        elif remedy == "rejoin":
            self._rejoining = True
            self._source.leave()
        else:
            raise Stalled(
                f"no progress in {', '.join(map(str, sorted(partitions)))} though the broker has more, and neither "
                "beginning anew nor joining the group again helped",
                remedy="start again, as a supervisor does; where it comes back, look at the broker's log and at "
                '`ouzel offsets show`, and report it with the log at kafka.client debug = "cgrp,fetch"',
            )

    # --- a range ----------------------------------------------------------------------------------------------------

    def _in_range(self, partition: Partition, point: StartPoint) -> bool:
        """Whether there is anything to do: not in a partition that appeared after the range was fixed."""
        if self._parts is None:
            return True
        if point.note.start_partitions == MADE_ANEW or (partition in self._parts and point.note.part is None):
            raise _range_gone(partition.topic)
        return point.note.part is not None

    def _ask_progress(self) -> None:
        """Ask how far the whole group is: a partition that is another's may become ours before it is done."""
        parts = self._parts
        if parts is None or self._clock.monotonic_s() < self._progress_at_s:
            return
        self._progress_at_s = math.inf  # one question at a time

        def ask_again() -> None:
            self._progress_at_s = self._clock.monotonic_s() + _ASK_AGAIN_S

        def note(committed: Mapping[Partition, CommitPoint]) -> None:
            progress = progress_of(parts, committed)
            self._on_progress(progress)
            self.finished = progress.finished
            ask_again()

        self._ask(lambda: self._view.committed(list(parts)), note, ask_again)

    # --- questions --------------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[], T], then: Callable[[T], None], failed: Callable[[], None]) -> None:
        """Ask in the questions' thread; `then` or `failed` runs in the owner's."""

        def work() -> None:
            try:
                answer = question()
            except BrokerUnreachable as error:
                logger.warning("{}", error)
                self._inbox.put(_Answer(failed))
            except BaseException as error:
                self._inbox.put(_Crash(error))
            else:
                self._inbox.put(_Answer(lambda: then(answer)))

        self._questions.submit(work)

    # --- commits ----------------------------------------------------------------------------------------------------

    def _commit_when_due(self) -> None:
        self._read_commit_result()
        now_s = self._clock.monotonic_s()
        if not self._commit_is_due(now_s) or self._committer.commit_under_way:
            return
        if self._transactions is not None and not self._all_is_sealed(self._transactions):
            return
        self._commit_at_s = now_s + self._rules.commit_interval_s
        self._commit(self._ledgers.values())

    def _commit_is_due(self, now_s: float) -> bool:
        if now_s >= self._commit_at_s or self._ending.sealing:
            return True
        # Readers wait for a transaction's end, so one with nothing to wait for ends at once.
        done = self._transactions is not None and not self._in_flight()
        return done and any(ledger.ahead for ledger in self._ledgers.values() if not self._is_unmarked(ledger))

    def _commit(self, ledgers: Iterable[PartitionLedger]) -> dict[Partition, CommitPoint]:
        points: dict[Partition, CommitPoint] = {}
        for ledger in ledgers:
            partition = ledger.lease.partition
            # Once the group is being left, a message may have been read that nobody took: what ended the loop came
            # with it. The position is past it.
            # Nor does it count before the partition is read: it is then an older lease's.
            unknown = self._closing or partition in self._unmarked
            point = ledger.point(None if unknown else self._source.position(partition))
            if point is not None:
                points[partition] = point
        if points:
            self._sent = points, self._clock.monotonic_s()
            self._committer.commit(points)
        return points

    def _read_commit_result(self) -> None:
        result = self._committer.commit_result()
        if result is None:
            return
        if result.undone:
            self._undo(result.undone)
        else:
            self._ending.in_a_row = 0
        for partition, point in result.committed.items():
            if partition in self._ledgers:
                self._ledgers[partition].committed_to(point)
        self._start_marked()
        if self._unmarked and result.errors:  # refused in the midst of a rebalance, say, and partitions wait for it
            self._commit_at_s = min(self._commit_at_s, self._clock.monotonic_s() + _MARK_AGAIN_S)
        self._observer.committed(result)
        self._observer.stage_seconds("commit", self._clock.monotonic_s() - self._sent[1])

    # --- transactions -----------------------------------------------------------------------------------------------

    def _is_unmarked(self, ledger: PartitionLedger) -> bool:
        return ledger.lease.partition in self._unmarked

    @property
    def unresolved(self) -> bool:
        """Whether everything waits for the transaction coordinator, as it is unknown how the last transaction ended."""
        return self._transactions is not None and self._transactions.unresolved

    def _tell_unresolved(self) -> None:
        if self.unresolved != self._ending.told_unresolved:
            self._ending.told_unresolved = self.unresolved
            self._observer.transaction_unresolved(unresolved=self._ending.told_unresolved)

    def _is_undoing(self) -> bool:
        return self._ending.undoing

    def _all_is_sealed(self, transactions: Transactions) -> bool:
        """Whether the open transaction holds what the ledgers say is finished, no more and no less; else sees to it."""
        if transactions.unresolved or self._is_undoing():
            return False
        self._ending.to_commit = True
        if not self._ending.sealing:
            self._ending.sealing = True
            self._publisher.seal()
        if not self._publisher.sealed:
            return False
        self._read_settled()
        if self._is_undoing():  # what was read said that it is broken
            return False
        self._ending.to_commit = False
        return True

    def _seals_within(self, transactions: Transactions, timeout_s: float) -> bool:
        """Whether `_all_is_sealed`, waiting up to so many seconds."""
        if self._all_is_sealed(transactions):
            return True
        return self._publisher.wait_sealed(timeout_s) and self._all_is_sealed(transactions)

    def _go_on_after_transaction(self) -> None:
        """Publish again once a transaction has ended, either way; after one that was undone begin anew."""
        transactions = self._transactions
        if transactions is None or not self._ending.sealing or self._ending.to_commit or not self._publisher.sealed:
            return
        if transactions.unresolved or transactions.commit_under_way:
            return
        if self._ending.undoing and self._clock.monotonic_s() < self._ending.again_at_s:
            return
        self._ending.sealing = False
        self._publisher.unseal()
        self._ending.undoing = False
        undone, self._ending.undone = self._ending.undone, set()
        for partition in undone:
            self._await_start(partition)
        self._ending.ours.update(undone)

    def _undo(self, why: str) -> None:
        """Nothing since the last commit holds. Fence while nothing is published, so that no record of what is given up
        enters another transaction; then every partition goes on from what is committed, and does this work again."""
        if self._transactions is None or self._ending.undoing:
            return
        self._ending.undoing = True
        self._ending.to_commit = False
        self._ending.in_a_row += 1
        again = self._ending.in_a_row - 3  # the first ones are done again at once
        pause_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2**again) if again >= 0 else 0.0
        self._ending.again_at_s = self._clock.monotonic_s() + pause_s
        logger.warning("the transaction is undone: {}", why)
        self._observer.transaction_undone()
        self._ending.sealing = True
        self._publisher.halt()
        partitions = list(self._ledgers)
        self._source.pause(partitions)
        self._end(partitions)
        self._ending.undone.update(partitions)
        self._transactions.undo()
        if self._ending.in_a_row >= _MOST_IN_A_ROW:
            self._inbox.put(_Crash(_no_transaction_ends(self._ending.in_a_row, why)))

    def _go_on_while_draining(self) -> None:
        """A transaction that is about to end ends first: what the drain waits for goes into the next."""
        if self._transactions is not None:
            self._ending.to_commit = False
            self._read_commit_result()
            self._go_on_after_transaction()

    def _end_transaction(self, transactions: Transactions, deadline_s: float) -> None:
        """Commit what is finished of all partitions, and see it land, before some of them go away; else undo it."""
        committed = not transactions.commit_under_way or self._sees_committed(self._sent[0], deadline_s)
        if committed and not transactions.unresolved:
            committed = self._seals_within(transactions, self._left_s(deadline_s))
        if committed and not transactions.unresolved:
            points = self._commit(self._ledgers.values())
            committed = not points or self._sees_committed(points, deadline_s)
        if not committed:
            self._undo("it did not end before partitions went away")

    def _save_transaction(self) -> None:
        """The loop ends in an error: what is finished is committed all the same, if that needs nothing but a moment."""
        transactions = self._transactions
        if transactions is None or self._ending.undoing or transactions.unresolved or transactions.commit_under_way:
            return
        try:
            deadline_s = self._clock.monotonic_s() + _LAST_TRANSACTION_S
            if self._seals_within(transactions, _LAST_TRANSACTION_S):
                self._sees_committed(self._commit(self._ledgers.values()), deadline_s)
        except Exception as error:
            logger.warning("the last transaction is given up, its images will be labelled again: {}", error)

    def _sees_committed(self, points: Mapping[Partition, CommitPoint], deadline_s: float) -> bool:
        landed = self._committer.confirm_commit(points, self._left_s(deadline_s))
        self._read_commit_result()
        return landed

    # --- rebalance --------------------------------------------------------------------------------------------------

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget what has not begun, finish what has, commit, then fence. The group waits for this to return."""
        self._ending.in_callback = True
        try:
            self._give_up(partitions)
        except BaseException:
            self._undo("partitions went away in an error")  # what is open holds records of theirs
            raise
        finally:
            self._end(partitions)  # before the publisher goes on: it must find these ended
            self._ending.in_callback = False

    def _give_up(self, partitions: Sequence[Partition]) -> None:
        self._observer.rebalanced()
        ledgers = [self._ledgers[partition] for partition in partitions if partition in self._ledgers]
        if ledgers:
            logger.info("revoked {}", ", ".join(str(ledger.lease.partition) for ledger in ledgers))
        deadline_s = self._clock.monotonic_s() + self._rules.drain_timeout_s
        if not self._closing:
            self._drain(ledgers, deadline_s, wait=self._wait_for_inbox)
        self._clear_marks(ledgers)
        self._last_commit(ledgers, deadline_s)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Another member may have them already: discard, commit nothing."""
        self._observer.rebalanced()
        logger.warning("lost {}", ", ".join(map(str, sorted(partitions))))
        if any(partition in self._ledgers for partition in partitions):
            self._undo("partitions were lost")
        self._end(partitions)

    def _last_commit(self, ledgers: Sequence[PartitionLedger], deadline_s: float) -> None:
        """Commit what is finished of partitions that go away, and see it land."""
        if self._transactions is not None:
            if not self._closing:
                self._end_transaction(self._transactions, deadline_s)
            return
        if self._closing:
            self._commit(ledgers)  # no answer can be had in `close`, but it is sent before the group is left
            return
        # An older commit that is still under way could land after this one, and take the group back.
        older = self._sent[0] if self._committer.commit_under_way else {}
        if not self._committer.confirm_commit(older, self._left_s(deadline_s)):
            logger.warning("an earlier commit is not answered: the next owner may repeat some images")
            return
        points = self._commit(ledgers)
        if not self._committer.confirm_commit(points, self._left_s(deadline_s)):
            logger.warning("the last commit is not confirmed: the next owner may repeat some images")

    def _left_s(self, deadline_s: float) -> float:
        return max(1.0, deadline_s - self._clock.monotonic_s())

    def _drain(self, ledgers: Sequence[PartitionLedger], deadline_s: float, wait: Callable[[], None]) -> None:
        for ledger in ledgers:
            ledger.lease.state = LeaseState.DRAINING
        while True:
            self._flow.abandon_ended()  # also what came back from its store meanwhile
            wanted = [ledger for ledger in ledgers if not ledger.lease.ended]  # a transaction may be undone meanwhile
            waits = any(self._must_finish(delivery) for ledger in wanted for delivery in ledger.unfinished())
            self._read_settled()  # what was finished before we looked
            self._go_on_while_draining()
            if not waits:
                return
            if self._clock.monotonic_s() >= deadline_s:
                break
            wait()
            self._flow.tick()
        left = sum(ledger.in_flight for ledger in ledgers)
        logger.warning("drain deadline passed with {} messages unfinished: they will be delivered again", left)

    def _must_finish(self, delivery: Delivery) -> bool:
        """Whether a drain waits for it: a stage or the publisher has it, and no person must act first."""
        return not self._publisher.withholds(delivery) and (
            self._flow.has_begun(delivery) or self._publisher.has(delivery)
        )

    def _wait_for_inbox(self) -> None:
        self.turned_s = self._clock.monotonic_s()
        try:
            item = self._inbox.get(timeout=_DRAIN_STEP_S)
        except queue.Empty:
            return
        self._accept_or_defer(item)

    def _read_settled(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._accept_or_defer(item)

    def _accept_or_defer(self, item: Settled | _Crash | _Broken | _Answer) -> None:
        if isinstance(item, _Answer):
            self._deferred.append(item)  # it may start partitions, which a revoke callback must not
        else:
            self._accept(item)

    def _end(self, partitions: Iterable[Partition]) -> None:
        """Fence: whatever still comes of these is discarded."""
        for partition in partitions:
            self._limit.forget(partition)
            self._probations.discard(partition)
            self._unmarked.discard(partition)
            self._suspects.pop(partition, None)
            self._ending.undone.discard(partition)
            self._ending.ours.discard(partition)
            self._observer.lag_gone(partition)
            for waiting in (self._pending, self._ask_at_s, self._lost_at_s):
                waiting.pop(partition, None)
            ledger = self._ledgers.pop(partition, None)
            if ledger is not None:
                ledger.lease.state = LeaseState.ENDED
        self._flow.abandon_ended()
        self._publisher.forget_ended()

    # --- shutdown ---------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """Stop reading, finish what has begun, publish, commit, leave the group."""
        logger.info("stopping: finishing what is in flight")
        self._pending.clear()
        self._ask_at_s.clear()
        self._source.pause(self._ledgers)
        deadline_s = self._clock.monotonic_s() + self._rules.drain_timeout_s
        self._drain(list(self._ledgers.values()), deadline_s, wait=self._poll_while_stopping)
        self._clear_marks(self._ledgers.values())
        if self._transactions is not None:
            self._end_transaction(self._transactions, deadline_s)
            return
        sent = False
        while self._clock.monotonic_s() < deadline_s:
            self._poll_while_stopping()
            self._read_commit_result()
            if self._committer.commit_under_way:
                continue
            if sent or not self._commit(self._ledgers.values()):
                return
            sent = True

    def _poll_while_stopping(self) -> None:
        """Serves rebalances and commit answers. A message that slips through is entered and never finished, so that no
        commit passes it."""
        self.turned_s = self._clock.monotonic_s()
        try:
            found = self._source.poll(_DRAIN_STEP_S)
        except Retryable as error:
            self._read_again(error)
            self._source.pause(self._ledgers)
            found = None
        if isinstance(found, Delivery):
            ledger = self._ledgers.get(found.partition)
            if ledger is not None and ledger.lease is found.lease and ledger.wants(found.offset):
                ledger.take(found)
        self._read_inbox()

    def _close(self) -> None:
        self._closing = True
        self._source.close()
        self._questions.shutdown(wait=False, cancel_futures=True)


def _standing(ledger: PartitionLedger) -> Standing:
    committed = ledger.committed
    return Standing(
        epoch=ledger.lease.epoch,
        read=ledger.next_offset,
        finished=ledger.finished_to,
        committed=-1 if committed is None else committed.offset,
    )


def _not_begun(lease: Lease) -> Standing:
    return Standing(epoch=-lease.epoch, read=-1, finished=-1, committed=-1)  # to begin is no progress yet


def _end(point: StartPoint) -> int | None:
    """Where reading ends; None where it does not."""
    return None if point.note.part is None else point.note.part.end


def _range_gone(topic: str) -> RecordsLost:
    return RecordsLost(
        f"topic {topic} was deleted or made anew, or the group's offsets were, while a range of it was relabelled",
        remedy="look what is there now with `ouzel offsets show`, and begin the range again under another --group",
    )


def _no_transaction_ends(count: int, why: str) -> OutputRefused:
    """What the broker says of a right that is missing, say, librdkafka tells its log alone."""
    return OutputRefused(
        f"{count} transactions were undone and none was committed; the last one: {why}",
        remedy="look at the lines of the kafka logger before this; `ouzel doctor` shows which right is missing",
    )
