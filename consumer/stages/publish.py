"""Publish: outcomes become records on the output and dead-letter topics, and are reported when the broker has them.

Nothing is given up here. A record whose fate is unknown is produced again with the same event id, in its old place:
new records wait until every older one is settled, so that the events of a key keep their order (I4).

A message with several records is as many outcomes here, each under its own part of the delivery. It is settled once,
when all of them are.

Where records and offsets go out in transactions, three things differ. Outcomes leave in the order of their partition,
so that what is in a transaction is always a prefix of it, which one offset tells. A letter that is withheld holds back
what is behind it. And the owner can `seal` the publisher: then all that was produced is acknowledged, nothing more is
produced until `unseal`, and the owner may commit the records with the offsets that they answer.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from cachetools import LRUCache

from consumer.errors import (
    EventTooLarge,
    Fatal,
    OutputRefused,
    OutputUnavailable,
    ProcessingFailed,
    TransactionBroken,
)
from consumer.headers import ORIGIN_RECORD_INDEX
from consumer.messages import (
    Abandoned,
    Delivery,
    Labelled,
    OneOutcome,
    Outcome,
    OutputRecord,
    Rejected,
    Several,
    Skipped,
)
from consumer.observer import Observer
from consumer.ports import Clock, ResultSink
from consumer.stages.dead_letter_limit import DeadLetterLimit, Trip, Verdict
from consumer.stages.events import EventContext, dead_letter, label_event, tombstone_forward, without_value
from consumer.stages.gather import Gathering
from consumer.stages.order import KeyOrder
from consumer.stages.standstill import StandStill, letters_of

_TICK_S = 0.25
_HALT_S = 30.0
"""For the publisher's thread to take notice, which waits for nothing itself."""
_MOST_REFUSED = 1_000
"""Records that were refused for their size and are remembered; one that is forgotten is tried once more."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a delivery: `finished` is False where its lease went away first."""

    delivery: Delivery
    finished: bool


@dataclass(frozen=True, slots=True)
class _Produced:
    """A record on its way, and what it answers."""

    outcome: OneOutcome
    record: OutputRecord
    since_s: float
    alone: bool = False
    """Refused for its size once, in a request that it may have shared: tried again by itself before it is believed."""


@dataclass(frozen=True, slots=True)
class _Failed:
    number: int
    error: Exception


class _Resume:
    """A person says go on after the dead-letter limit."""


@dataclass(frozen=True, slots=True)
class _LoneDone:
    """A record that was produced by itself is with the broker."""

    number: int


class _ForgetEnded:
    """Partitions went away: their withheld letters are the next owner's."""


@dataclass(frozen=True, slots=True)
class _Seal:
    """Produce nothing more until `_Unseal`. With `take_back` nothing that is under way counts any more."""

    number: int
    take_back: bool = False


class _Unseal:
    """Go on."""


class _Quiet:
    """The last record that was under way is with the broker."""


_Event = _Failed | _LoneDone | _Resume | _ForgetEnded | _Seal | _Unseal | _Quiet


class Publisher:
    """One thread between the flow and the sink.

    `on_settled` is called once for every message, from the publisher's or the sink's thread; `on_crash` with what ends
    the process.
    """

    def __init__(
        self,
        sink: ResultSink,
        *,
        context: EventContext,
        limit: DeadLetterLimit,
        clock: Clock,
        observer: Observer,
        forward_tombstones: bool,
        redo_backoff_s: float,
        on_settled: Callable[[Settled], None],
        on_crash: Callable[[BaseException], None],
        on_broken: Callable[[TransactionBroken], None] | None = None,
    ) -> None:
        """With `on_broken` records go out in transactions; it is told when the open one can only be undone."""
        self._sink = sink
        self._context = context
        self._limit = limit
        self._clock = clock
        self._observer = observer
        self._forward_tombstones = forward_tombstones
        self._redo_backoff_s = redo_backoff_s
        self._on_settled = on_settled
        self._on_crash = on_crash
        self._on_broken = on_broken
        self._order = KeyOrder(whole_partitions=on_broken is not None)
        self._inbox: queue.SimpleQueue[Outcome | _Event | None] = queue.SimpleQueue()
        self._under_way: dict[int, _Produced] = {}
        self._last_number = 0
        self._taken = 0  # written by the owner alone
        self._decided = 0  # written by this thread alone
        self._redo: dict[int, _Produced] = {}
        self._lone: int | None = None
        """The record that is under way by itself; nothing else goes out meanwhile."""
        self._redo_at_s = 0.0
        self._backlog: deque[Outcome] = deque()
        self._withheld: dict[int, list[Rejected]] = {}
        """By message: one that carries several records may have several letters."""
        self._still = StandStill()
        self._released: set[int] = set()
        """Messages that have waited, and are not judged again."""
        self._refused_before: LRUCache[tuple[object, ...], int] = LRUCache(maxsize=_MOST_REFUSED)
        """In transactions: how often a record was refused for its size, by topic and by what it answers."""
        self._sealing: int | None = None
        """The number of the seal that we come to rest for."""
        self._asked_seal = 0  # written by the owner alone
        self._sealed: int | None = None
        self._at_rest = threading.Condition()
        self._runs = True
        self._claiming = threading.Lock()
        """A record under way is settled once: by its report, or by `halt`."""
        self._held: set[int] = set()
        self._gatherings: dict[int, Gathering[Settled]] = {}
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    # --- for the owner ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def took(self, delivery: Delivery) -> None:
        """A message came in; call it in the order of delivery, before it enters the flow."""
        self._taken += 1
        self._order.took(delivery)

    def submit(self, outcome: Outcome) -> None:
        """Publish this. Any thread; never blocks."""
        self._held.add(id(outcome.delivery))
        self._inbox.put(outcome)

    def resume(self) -> None:
        """Go on after the dead-letter limit; what was withheld is published."""
        self._inbox.put(_Resume())

    def forget_ended(self) -> None:
        """Let go of withheld letters whose lease has ended."""
        self._inbox.put(_ForgetEnded())

    @property
    def trip(self) -> Trip | None:
        """Why letters are withheld, if they are."""
        return self._limit.trip

    def withholds(self, delivery: Delivery) -> bool:
        """Whether this message's letter waits for a person."""
        return id(delivery) in self._withheld or self._still.holds(delivery)

    def has(self, delivery: Delivery) -> bool:
        """Whether this message's outcome came in and is not settled."""
        return id(delivery) in self._held

    @property
    def holds_work(self) -> bool:
        """Whether any outcome came in and is not settled."""
        return bool(self._held)

    # --- for the owner, in transactions -----------------------------------------------------------------------------

    def seal(self) -> None:
        """Come to rest between two messages; then `sealed`, and all that was produced has been settled before."""
        self._asked_seal += 1
        self._inbox.put(_Seal(self._asked_seal))

    @property
    def sealed(self) -> bool:
        """Whether nothing is under way and nothing more is produced, since the last `seal` or `halt`."""
        return self._sealed == self._asked_seal

    def wait_sealed(self, timeout_s: float) -> bool:
        """Whether it is `sealed` within so many seconds."""
        with self._at_rest:
            return self._at_rest.wait_for(lambda: self.sealed or not self._runs, timeout_s) and self.sealed

    def halt(self) -> None:
        """Come to rest at once, and take back what is under way: settled as not finished, whatever its report will say.
        Returns when nothing more is produced."""
        self._asked_seal += 1
        self._inbox.put(_Seal(self._asked_seal, take_back=True))
        if not self.wait_sealed(_HALT_S) and self._runs:
            raise RuntimeError("the publisher does not come to rest")

    def unseal(self) -> None:
        """Go on."""
        self._asked_seal += 1
        self._inbox.put(_Unseal())

    def output_waiting_since_s(self) -> float | None:
        """The monotonic second since which the oldest record waits for the broker's acknowledgement."""
        waiting = [produced.since_s for produced in (*list(self._under_way.values()), *list(self._redo.values()))]
        return min(waiting, default=None)

    def close(self) -> None:
        """Stop the thread. What it still holds was never committed. Idempotent."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                try:
                    item = self._inbox.get(timeout=_TICK_S)
                    if item is None:
                        return
                    self._accept(item)
                except queue.Empty:
                    pass
                self._redo_when_settled()
                self._come_to_rest()
                with self._telling_of_trips():
                    self._limit.check_probation(self._clock.monotonic_s())
        except BaseException as error:
            self._on_crash(error)
            with self._at_rest:  # nobody waits for it any more
                self._runs = False
                self._at_rest.notify_all()

    def _accept(self, item: Outcome | _Event) -> None:
        if isinstance(item, _Failed):
            self._failed(item)
        elif isinstance(item, _Resume):
            self._limit.resume()
            self._release_withheld(lambda _delivery: True)
        elif isinstance(item, _LoneDone):
            self._lone = None if item.number == self._lone else self._lone
        elif isinstance(item, _ForgetEnded):
            self._release_withheld(lambda delivery: delivery.lease.ended)
        elif isinstance(item, _Seal):
            self._sealing = item.number
            if item.take_back:
                self._take_back()
        elif isinstance(item, _Unseal):
            self._sealing = None
            self._publish_backlog()
        elif isinstance(item, _Quiet):
            pass  # the loop looks what that means
        else:
            self._decided += 1
            for outcome in self._order.release(item):
                self._backlog.append(outcome)
            self._publish_backlog()

    def _publish_backlog(self) -> None:
        while self._backlog and not self._redo and self._lone is None and self._sealing is None:
            self._publish(self._backlog.popleft())

    def _come_to_rest(self) -> None:
        """Tell the owner, who asked for it, that nothing is under way."""
        if self._sealing is not None and self._sealed != self._sealing and not self._under_way and not self._redo:
            with self._at_rest:
                self._sealed = self._sealing
                self._at_rest.notify_all()

    def _take_back(self) -> None:
        with self._claiming:
            gone = [*self._under_way.values(), *self._redo.values()]
            self._under_way.clear()
        self._redo.clear()
        self._lone = None
        for produced in gone:
            self._settle(Settled(produced.outcome.delivery, finished=False))

    def _publish(self, outcome: Outcome) -> None:
        delivery = outcome.delivery
        if isinstance(outcome, Abandoned) or delivery.lease.ended:
            self._released.discard(id(delivery))
            self._settle(Settled(delivery, finished=False))
        elif self._on_broken is not None and delivery.part_of is None and self._stands_still(outcome):
            return  # judged as a whole: its parts go out together
        elif isinstance(outcome, Several):
            self._gatherings[id(delivery)] = Gathering(delivery, (each.delivery for each in outcome.outcomes))
            for each in outcome.outcomes:
                self._publish(each)
        elif isinstance(outcome, Skipped):
            self._pass_over(outcome)
        elif isinstance(outcome, Labelled):
            self._publish_event(outcome)
        else:
            self._publish_letter(outcome)

    def _stands_still(self, outcome: Outcome) -> bool:
        """Whether it waits: for a letter before it, or as a letter of its own is withheld. The records of one message,
        and those of one partition, go out in order."""
        delivery = outcome.delivery
        if id(delivery) in self._released:
            self._released.remove(id(delivery))
            return False
        if not self._still.holds(delivery):
            verdicts = [self._judge(letter) for letter in letters_of(outcome)]
            if Verdict.WITHHOLD not in verdicts:
                return False
            self._withheld[id(delivery)] = letters_of(outcome)
        succeeded = self._still.add(outcome)
        if succeeded and self._limit.succeeded(delivery.partition, self._clock.monotonic_s()) and not self._limit.trip:
            self._release_withheld(lambda each: each.partition == delivery.partition)
        return True

    def _pass_over(self, skipped: Skipped) -> None:
        forward = self._forward_tombstones and skipped.reason == "tombstone"
        tombstone = tombstone_forward(skipped.delivery, self._context) if forward else None
        if tombstone is None:
            self._finished(skipped)
        else:
            self._produce(skipped, tombstone)

    def _publish_event(self, labelled: Labelled) -> None:
        delivery = labelled.delivery
        try:
            event = label_event(labelled, self._context, self._clock.utc_now())
        except Exception as error:  # a defect that would end every replica that takes this message
            failure = ProcessingFailed(f"its label event cannot be written out: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._reject_late(Rejected(delivery, failure, stage="publish", image_id=labelled.job.image_id))
            return
        if not self._still.counted(delivery):
            over = self._limit.succeeded(delivery.partition, self._clock.monotonic_s())
            if over and self._limit.trip is None:
                self._release_withheld(lambda each: each.partition == delivery.partition)
        self._produce(labelled, event)

    def _publish_letter(self, rejected: Rejected) -> None:
        goes = self._on_broken is not None or self._judge(rejected) is Verdict.PUBLISH
        if goes or not rejected.error.withheld:
            self._produce(rejected, dead_letter(rejected, self._context))
        else:
            self._withheld.setdefault(id(rejected.delivery.message), []).append(rejected)

    def _reject_late(self, rejected: Rejected) -> None:
        """A letter that nobody foresaw. In transactions it counts and goes: those behind it may be out already."""
        if self._on_broken is not None:
            self._judge(rejected)
        self._publish_letter(rejected)

    def _judge(self, rejected: Rejected) -> Verdict:
        with self._telling_of_trips():
            now_s = self._clock.monotonic_s()
            undecided = max(0, self._taken - self._decided)
            family = rejected.error.family
            return self._limit.judge(rejected.delivery.partition, family, now_s, undecided=undecided)

    @contextmanager
    def _telling_of_trips(self) -> Iterator[None]:
        known = self._limit.trip
        yield
        if known is None and self._limit.trip is not None:
            self._observer.limit_reached(self._limit.trip)

    def _release_withheld(self, which: Callable[[Delivery], bool]) -> None:
        withheld = [rejected for letters in self._withheld.values() for rejected in letters]
        released = [rejected for rejected in withheld if which(rejected.delivery)]
        gone = {id(rejected.delivery.message) for rejected in released}  # a message's letters go together
        self._withheld = {number: letters for number, letters in self._withheld.items() if number not in gone}
        if self._on_broken is not None:
            freed = self._still.release(which)
            self._released.update(id(outcome.delivery) for outcome in freed)
            self._backlog.extendleft(reversed(freed))  # published next; what is being published now comes before
            return
        for rejected in released:
            if rejected.delivery.lease.ended:
                self._settle(Settled(rejected.delivery, finished=False))
            else:
                self._produce(rejected, dead_letter(rejected, self._context))

    def _settle(self, settled: Settled) -> None:
        if settled.delivery.part_of is not None:
            message = settled.delivery.message
            parts = self._gatherings[id(message)].add(settled.delivery, settled)
            if parts is None:
                return
            del self._gatherings[id(message)]
            settled = Settled(message, finished=all(part.finished for part in parts))
        self._on_settled(settled)  # first: at every moment the publisher or its owner has it
        self._held.discard(id(settled.delivery))

    # --- records on their way ---------------------------------------------------------------------------------------

    def _produce(self, outcome: OneOutcome, record: OutputRecord) -> None:
        self._last_number += 1
        number, produced = self._last_number, _Produced(outcome, record, self._clock.monotonic_s())
        refused_before = self._refused_before.get(_place(produced), 0) if self._refused_before else 0
        if refused_before > 1:
            self._too_large(produced, EventTooLarge(f"{record.topic} refuses the record as too large"))
        elif refused_before:
            self._redo[number] = replace(produced, alone=True)
        else:
            self._send(number, produced)

    def _send(self, number: int, produced: _Produced) -> None:
        self._under_way[number] = produced
        self._sink.publish(produced.record, partial(self._done, number))

    def _done(self, number: int, error: Exception | None) -> None:
        """Called by the sink's thread."""
        if error is not None:
            self._inbox.put(_Failed(number, error))
            return
        with self._claiming:
            produced = self._under_way.get(number)
            if produced is None:
                return  # undone meanwhile, with its transaction
            self._observer.stage_seconds("publish", self._clock.monotonic_s() - produced.since_s)
            self._finished(produced.outcome)
            del self._under_way[number]  # last: once nothing is under way, all of it is settled
        if produced.alone:
            self._inbox.put(_LoneDone(number))
        if self._sealing is not None and not self._under_way:
            self._inbox.put(_Quiet())

    def _finished(self, outcome: OneOutcome) -> None:
        self._observer.finished(outcome)
        self._settle(Settled(outcome.delivery, finished=True))

    def _failed(self, failed: _Failed) -> None:
        if failed.number not in self._under_way:
            return  # undone meanwhile, with its transaction
        error = failed.error
        if isinstance(error, TransactionBroken) and self._on_broken is not None:
            self._broken(self._under_way[failed.number], error)
            return
        produced = self._under_way.pop(failed.number)
        if failed.number == self._lone:
            self._lone = None
        if isinstance(error, EventTooLarge) and not produced.alone:
            # The broker judges a request as a whole: the fault may be a neighbour's.
            self._redo[failed.number] = replace(produced, alone=True)
        elif isinstance(error, EventTooLarge):
            self._too_large(produced, error)
        elif isinstance(error, OutputUnavailable):
            if not self._redo:
                self._observer.output_down(error)
            self._redo[failed.number] = produced
            self._redo_at_s = self._clock.monotonic_s() + self._redo_backoff_s
            self._observer.retried("publish")
        elif isinstance(error, Fatal):
            self._on_crash(error)
        else:
            raise error

    def _broken(self, produced: _Produced, broken: TransactionBroken) -> None:
        """All that is in the transaction comes again. What was refused for its size is sent by itself then, and refused
        once more it becomes a letter."""
        cause = broken.__cause__
        if isinstance(cause, Fatal):
            self._on_crash(cause)
            return
        if isinstance(cause, EventTooLarge):
            place = _place(produced)
            self._refused_before[place] = self._refused_before.get(place, 0) + 1
        if self._on_broken is not None:
            self._on_broken(broken)

    def _too_large(self, produced: _Produced, error: EventTooLarge) -> None:
        outcome, record = produced.outcome, produced.record
        smaller = without_value(record)
        if not isinstance(outcome, Rejected):
            self._reject_late(Rejected(outcome.delivery, error, stage="publish"))
        elif smaller is not record:
            self._produce(outcome, smaller)
        else:
            self._on_crash(
                OutputRefused(
                    f"{record.topic} refuses even a letter without its value as too large",
                    remedy=f"raise max.message.bytes of {record.topic}; `ouzel topics describe` says to what",
                )
            )

    def _redo_when_settled(self) -> None:
        """Produce again what may not have been written, in its old order, once nothing else is under way."""
        if not self._redo:
            self._publish_backlog()
            return
        if self._under_way or self._clock.monotonic_s() < self._redo_at_s:
            return
        for number, produced in sorted(self._redo.items()):
            if produced.alone and self._under_way:
                return
            del self._redo[number]
            if produced.outcome.delivery.lease.ended:
                self._settle(Settled(produced.outcome.delivery, finished=False))
                continue
            self._send(number, produced)
            if produced.alone:
                self._lone = number
                return
        self._publish_backlog()


def _place(produced: _Produced) -> tuple[object, ...]:
    """Which record this is, also when it is made anew: its topic, what it answers, whether its value is left out."""
    delivery, record = produced.outcome.delivery, produced.record
    part = delivery.header(ORIGIN_RECORD_INDEX)
    return record.topic, delivery.lease.topic_id, delivery.partition, delivery.offset, part, record.value is None
