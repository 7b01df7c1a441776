"""The service's loop where a share group hands out messages one by one (`delivery.guarantee = "share"`).

There are no partitions to own and no offsets to commit: each message is locked for us for a while, and settled alone.
Each member of the group has a thread, which polls, hands over what it got, and waits until each message of it is
settled before it polls again. The owner, this loop, does the rest: it begins messages and ends them, decides whether
members may poll, watches the topics, and shuts down.

    member: poll ──> owner: begin ──> flow ──> publisher ──> owner: settled ──> member: accept, or let lapse

Nothing is published for a message whose lock has lapsed (`messages.LockLease`): another replica may have it.
"""

import itertools
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from loguru import logger

from consumer.errors import DeadLetterLimit, DeliveriesExhausted
from consumer.flow import Flow
from consumer.messages import Delivery, Lease, LeaseState, LockLease, Partition, Rejected
from consumer.observer import Observer
from consumer.owner import ASK_AGAIN_S, Answer, Crash, Owner
from consumer.ports import Clock, GroupView, ShareMember, ShareSource, TopicFacts
from consumer.stages.absences import Absences
from consumer.stages.intake import ByteBudget, Intake
from consumer.stages.publish import Publisher, Settled
from consumer.stages.start import is_another_topic

_POLL_S = 0.25
_TURN_S = 0.1
_DRAIN_STEP_S = 0.02
_GATHER_S = 0.005
"""For how long a member waits for more to acknowledge at once: label events come a batch at a time."""
_ANSWER_S = 10.0
"""For the broker's answer to an acknowledgement."""
_LEAVE_S = 5.0
"""For members to release what is left and to leave the group, after the drain."""
_OUTPUT_SLOW_S = 5.0
"""For how long a record may wait for the output before members stop polling: its lock runs meanwhile."""
_MARGIN = 0.1
"""Share of the lock that is left when it is taken as lapsed: what was handed to the output before is there by then."""
_TROUBLE_LOCKS = 2.0
"""For how many locks' time after one that lapsed for nothing deliveries are taken to be spent by that."""


@dataclass(frozen=True, slots=True)
class ShareRules:
    """The numbers that the loop goes by."""

    lock_duration_s: float
    """The group's, at the broker."""
    delivery_count_limit: int
    """The group's: after so many deliveries the broker discards a message without a word."""
    drain_timeout_s: float
    metadata_interval_s: float
    topics: tuple[str, ...]
    """The input topics."""
    exit_on_limit: bool
    topic_gone_s: float = 30.0
    """How long a deleted input topic may stay away."""


@dataclass(frozen=True, slots=True)
class _Polled:
    seat: "_Seat"
    deliveries: Sequence[Delivery]


class _Seat:
    """A member of the group and its thread."""

    def __init__(self, number: int, member: ShareMember, pipeline: "SharePipeline") -> None:
        self._member = member
        self._pipeline = pipeline
        self._settled: queue.SimpleQueue[Settled] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"share-{number}", daemon=True)

    def settled(self, settled: Settled) -> None:
        """One of those that it polled is finished, or never will be. Any thread."""
        self._settled.put(settled)

    def _run(self) -> None:
        pipeline = self._pipeline
        try:
            self._member.subscribe(pipeline.lease_of)
            while not pipeline.leaving:
                if pipeline.gate.wait(_TURN_S):
                    self._turn()
            self._member.close()
        except BaseException as error:
            pipeline.crashed(error)

    def _turn(self) -> None:
        deliveries = self._member.poll(_POLL_S)
        self._pipeline.polled(self, deliveries)
        left = len(deliveries)
        while left:
            settled = self._gather(left)
            left -= len(settled)
            self._acknowledge(settled)

    def _gather(self, most: int) -> list[Settled]:
        """At least one."""
        found = [self._settled.get()]
        while len(found) < most:
            try:
                found.append(self._settled.get(timeout=_GATHER_S))
            except queue.Empty:
                break
        return found

    def _acknowledge(self, settled: Iterable[Settled]) -> None:
        finished = [each.delivery for each in settled if each.finished]
        if finished:
            with self._pipeline.observer.stage("commit"):
                refused = self._member.accept(finished, _ANSWER_S)
            self._pipeline.observer.accepted(finished, refused)
        # Each has to be acknowledged; where its lock has lapsed the broker does not heed it.
        unfinished = [each.delivery for each in settled if not each.finished]
        if unfinished:
            self._member.release(unfinished, _ANSWER_S)


class SharePipeline(Owner[_Polled]):
    """Owns the members. No partition is ever `stalled`: whether a share group has more for us, its broker alone
    knows."""

    def __init__(
        self,
        *,
        source: ShareSource,
        view: GroupView,
        intake: Intake,
        budget: ByteBudget,
        clock: Clock,
        observer: Observer,
        rules: ShareRules,
    ) -> None:
        super().__init__(clock)
        self._view = view
        self._intake = intake
        self._budget = budget
        self.observer = observer
        self._rules = rules
        self._flow: Flow
        self._publisher: Publisher
        self._seats = [_Seat(number, member, self) for number, member in enumerate(source.members)]
        self._in_hand: dict[int, tuple[Delivery, _Seat]] = {}
        self._epochs = itertools.count(1)
        self._topic_ids: dict[str, str] = {}
        self._absences = Absences(rules.topic_gone_s)
        self._highest: dict[tuple[int, Partition], int] = {}
        """By member: the offset handed out last for the first time."""
        self._unsure: list[_Polled] = []
        """What may be of a topic made anew, until its id is asked for."""
        self._asked_for: list[_Polled] = []
        self._asking = False
        self._metadata_at_s = 0.0
        self._trouble_until_s = 0.0
        self._empty_s = clock.monotonic_s()
        self.gate = threading.Event()
        """Set while members may poll."""
        self._ended = False
        self.leaving = False
        """Whether members are to leave the group."""

    # --- from the members' threads ----------------------------------------------------------------------------------

    def polled(self, seat: _Seat, deliveries: Sequence[Delivery]) -> None:
        """A member has these."""
        if deliveries:
            self._inbox.put(_Polled(seat, deliveries))
        else:
            self._empty_s = self._clock.monotonic_s()

    def lease_of(self, partition: Partition, since_s: float) -> Lease:
        """The lease of a message whose lock began at `since_s` or after."""
        return LockLease(
            partition,
            epoch=next(self._epochs),
            topic_id=self._topic_ids.get(partition.topic, ""),
            ends_s=since_s + self._rules.lock_duration_s * (1 - _MARGIN),
            now_s=self._clock.monotonic_s,
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, flow: Flow, publisher: Publisher) -> None:
        """Until `stop`. The model is warm when this is called.

        Raises:
            Fatal: see `errors`. What was finished is acknowledged, and nothing else.
        """
        self._flow, self._publisher = flow, publisher
        publisher.start()
        for seat in self._seats:
            seat.thread.start()
        try:
            while not self._stop:
                self._turn()
            self._shut_down()
        finally:
            self._close()

    def _turn(self) -> None:
        self.turned_s = self._clock.monotonic_s()
        self._read_inbox(_TURN_S)
        self._flow.tick()
        self._check_topics()
        self._heed_limit()
        self._let_poll()
        used_bytes = self._budget.used_bytes
        self.observer.in_flight(len(self._in_hand), used_bytes)
        behind = self.turned_s - self._empty_s > 1.0 and bool(self._in_hand)
        self.observer.turned(self.turned_s, backlog=behind and not self.holding, waited_s=0.0)

    def _read_inbox(self, wait_s: float) -> None:
        try:
            self._accept(self._inbox.get(timeout=wait_s))
            while True:
                self._accept(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _accept(self, item: Settled | Crash | Answer | _Polled) -> None:
        if isinstance(item, Settled):
            self._settle(item)
        elif isinstance(item, _Polled):
            self._receive(item)
        elif self._ended:
            return
        elif isinstance(item, Answer):
            item.then()
        else:
            raise item.error

    # --- messages ---------------------------------------------------------------------------------------------------

    def _receive(self, polled: _Polled) -> None:
        """Begin with these, unless they may be of another topic than we think: what a member is handed for the first
        time goes up and up, until the topic is made anew."""
        went_back = False
        for each in polled.deliveries:
            place = (id(polled.seat), each.partition)
            if each.delivery_count <= 1:
                went_back = went_back or each.offset <= self._highest.get(place, -1)
                self._highest[place] = each.offset
        if went_back and not self._stop:
            self._unsure.append(polled)
            self._metadata_at_s = 0.0
        else:
            self._begin(polled)

    def _begin(self, polled: _Polled) -> None:
        # Those that came before go first: they have the fewest deliveries left.
        for delivery in sorted(polled.deliveries, key=lambda each: -each.delivery_count):
            self._take(polled.seat, delivery)

    def _take(self, seat: _Seat, delivery: Delivery) -> None:
        again = delivery.delivery_count > 1
        if again:
            self.observer.delivered_again()
            delivery = replace(delivery, suspect=True)  # it may have ended the replica that had it before
        self._in_hand[id(delivery)] = (delivery, seat)
        # It waited in the client, or we stop: another replica is handed it now.
        if delivery.lease.ended or (self._stop and not self._is_last(delivery)):
            self._settle(Settled(delivery, finished=False))
            return
        self._publisher.took(delivery)
        if self._exhausted(delivery):
            said = f"handed out {delivery.delivery_count} times, and the group's limit is "
            error = DeliveriesExhausted(f"{said}{self._rules.delivery_count_limit} (share.delivery_count_limit)")
            self._publisher.submit(Rejected(delivery, error, stage="parse"))
        else:
            self._flow.submit(delivery)

    def _exhausted(self, delivery: Delivery) -> bool:
        """Whether this is the last chance to write its letter: were its lock to lapse once more, nobody would. While
        something else is known to make locks lapse it is tried once more."""
        nearly = delivery.delivery_count >= self._rules.delivery_count_limit - 1
        return self._is_last(delivery) or (nearly and not self._in_trouble())

    def _is_last(self, delivery: Delivery) -> bool:
        """Whether the broker hands it to nobody after this."""
        return delivery.delivery_count >= self._rules.delivery_count_limit

    def _in_trouble(self) -> bool:
        return bool(self._why_not_poll()) or self._clock.monotonic_s() < self._trouble_until_s

    def _settle(self, settled: Settled) -> None:
        delivery = settled.delivery
        known = self._in_hand.pop(id(delivery), None)
        if known is None:
            return  # let go of at the drain's deadline
        self._budget.release(delivery)
        if not settled.finished and delivery.lease.ended and not self._stop:
            self.observer.lock_lapsed(delivery)
            self._trouble_until_s = self._clock.monotonic_s() + _TROUBLE_LOCKS * self._rules.lock_duration_s
        known[1].settled(settled)

    # --- may members poll? ------------------------------------------------------------------------------------------

    def _let_poll(self) -> None:
        room = self._intake.room(len(self._in_hand), self._budget.used_bytes)
        known = all(topic in self._topic_ids for topic in self._rules.topics)
        if room and known and not self._why_not_poll():
            self.gate.set()
        else:
            self.gate.clear()

    def _why_not_poll(self) -> str:
        """What is down, so that a message that is taken would only have its lock lapse; empty where nothing is."""
        if self.holding or self._publisher.trip is not None:
            return "the dead-letter limit holds"
        waiting_s = self._publisher.output_waiting_since_s()
        if waiting_s is not None and self._clock.monotonic_s() - waiting_s > _OUTPUT_SLOW_S:
            return "the output cannot be written"
        return ", ".join(self._flow.down_stores())

    def _heed_limit(self) -> None:
        if self._resume:
            self._resume = False
            self._publisher.resume()  # in its own thread: until then the trip that we hold for is still there
            self.observer.limit_resumed()
        trip = self._publisher.trip
        if trip is not None and trip is not self._held_for and self._rules.exit_on_limit:
            raise DeadLetterLimit(
                f"dead-letter limit reached: {trip.reason}", remedy="look with `ouzel dlq ls`, then start again"
            )
        self._held_for = trip

    # --- topics that change -----------------------------------------------------------------------------------------

    def _check_topics(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._metadata_at_s or self._asking:
            return
        self._metadata_at_s = now_s + self._rules.metadata_interval_s
        self._asking = True
        self._asked_for, self._unsure = self._unsure, []
        self._questions.ask(lambda: self._view.topics(self._rules.topics), self._compare_topics, self._ask_topics_again)

    def _ask_topics_again(self) -> None:
        self._asking = False
        self._unsure, self._asked_for = [*self._asked_for, *self._unsure], []
        self._metadata_at_s = min(self._metadata_at_s, self._clock.monotonic_s() + ASK_AGAIN_S)

    def _compare_topics(self, found: Mapping[str, TopicFacts]) -> None:
        self._asking = False
        now_s = self._clock.monotonic_s()
        for name in self._rules.topics:
            self._absences.note(name, there=name in found, now_s=now_s)
            if name in found:
                self._note_topic(name, found[name].topic_id)
        asked_for, self._asked_for = self._asked_for, []
        for polled in asked_for:
            for delivery in polled.deliveries:
                delivery.lease.topic_id = self._topic_ids[delivery.partition.topic]
            self._begin(polled)

    def _note_topic(self, name: str, topic_id: str) -> None:
        before = self._topic_ids.get(name, "")
        self._topic_ids[name] = topic_id or before
        if is_another_topic(before, topic_id):
            logger.error("topic {} was made anew: its old work is discarded", name)
            for delivery, _ in self._in_hand.values():
                if delivery.partition.topic == name:
                    delivery.lease.state = LeaseState.ENDED
            self._flow.abandon_ended()
            self._publisher.forget_ended()

    # --- shutdown ---------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """Take nothing more, finish what has begun, publish, acknowledge; release the rest, leave the group."""
        logger.info("stopping: finishing what is in flight")
        deadline_s = self._clock.monotonic_s() + self._rules.drain_timeout_s
        self._leave()
        for delivery, _ in self._in_hand.values():
            delivery.lease.state = LeaseState.DRAINING
        while True:
            self._flow.abandon_ended()
            waits = any(self._must_finish(delivery) for delivery, _ in list(self._in_hand.values()))
            self._read_inbox(_DRAIN_STEP_S)  # also what was finished before we looked
            if not waits:
                break
            if self._clock.monotonic_s() >= deadline_s:
                logger.warning("drain deadline passed with {} messages unfinished", len(self._in_hand))
                break
            self.turned_s = self._clock.monotonic_s()
            self._flow.tick()

    def _must_finish(self, delivery: Delivery) -> bool:
        """Whether a drain waits for it: a stage or the publisher has it, its lock holds, and no person must act."""
        if delivery.lease.ended or self._publisher.withholds(delivery):
            return False
        return self._flow.has_begun(delivery) or self._publisher.has(delivery)

    def _leave(self) -> None:
        self._stop = self.leaving = True
        self.gate.set()  # nobody waits for it any more

    def _let_go(self) -> None:
        """Fence, and hand back: whatever still comes of these is discarded. Not what is here for the last time: its
        letter is on its way, and nobody else would write one."""
        for delivery, seat in list(self._in_hand.values()):
            if not self._is_last(delivery):
                delivery.lease.state = LeaseState.ENDED
                seat.settled(Settled(delivery, finished=False))
                del self._in_hand[id(delivery)]
        for polled in (*self._unsure, *self._asked_for):
            self._begin(polled)  # which hands it back
        self._unsure, self._asked_for = [], []
        self._flow.abandon_ended()
        self._publisher.forget_ended()

    def _see_members_off(self) -> None:
        """What a last poll brought is handed back, too, or becomes a letter."""
        until_s = self._clock.monotonic_s() + _LEAVE_S
        while any(seat.thread.is_alive() for seat in self._seats):
            self.turned_s = self._clock.monotonic_s()
            if self.turned_s >= until_s:
                logger.warning("the share group is not left in time: the locks that are left lapse by themselves")
                return
            self._read_inbox(_DRAIN_STEP_S)

    def _close(self) -> None:
        """After an error, too: what is in hand goes to another replica at once."""
        self._ended = True
        self._leave()
        self._let_go()
        self._see_members_off()
        self._questions.close()
