"""The service's loop, in reading order: messages, intake, assignment, rebalance, shutdown.

One thread, the owner, runs all of it. It never blocks on fetch, decode, inference, a synchronous commit, watermarks or
metadata: work goes to the flow and the publisher, questions to a thread of their own, and answers come back through
one inbox. The one place where it waits is a revoke: the partitions are gone when that callback returns.

The way of a message, and of what comes of it:

    source ──> leases.take ──> flow ──> publisher ──> (the inbox) ──> leases.finish ──> commits ──> the group

What the owner sees to is in parts, each for one thing, called by this thread (but for what asks the broker):

    leases                   what is ours, where it begins, and the books of it
    commits                  how what is finished reaches the group; `transactional_commits` where it is exactly once
    topic_watch              what changes under us: lost offsets, topics that go away or are made anew
    stall_watch              what stands still, and what is done about it
"""

import math
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loguru import logger

from consumer.commits import Commits
from consumer.errors import DeadLetterLimit, Retryable, TransactionBroken
from consumer.flow import Flow
from consumer.leases import MESSAGES_A_TURN, Leases
from consumer.messages import CommitPoint, Delivery, LeaseState, Partition
from consumer.observer import Observer
from consumer.owner import ASK_AGAIN_S, Answer, Crash, Owner
from consumer.ports import Clock, GroupView, MessageSource, OffsetLost, Transactions
from consumer.rules import Rules
from consumer.stages.commit import PartitionLedger
from consumer.stages.dead_letter_limit import DeadLetterLimit as Limit
from consumer.stages.intake import ByteBudget, Intake, PartitionLoad
from consumer.stages.publish import Publisher, Settled
from consumer.stages.relabel import Progress, progress_of
from consumer.stages.start import RangePart
from consumer.stall_watch import StallWatch
from consumer.topic_watch import TopicWatch
from consumer.transactional_commits import TransactionalCommits

_POLL_S = 0.1
_DRAIN_STEP_S = 0.02


@dataclass(frozen=True, slots=True)
class _Broken:
    """The open transaction can only be undone."""

    error: TransactionBroken


class Pipeline(Owner[_Broken]):
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
        super().__init__(clock)
        self._source = source
        self._view = view
        self._intake = intake
        self._budget = budget
        self._observer = observer
        self._rules = rules
        self._parts = parts
        self._on_progress = on_progress
        self._progress_at_s = 0.0
        self._flow: Flow
        self._publisher: Publisher
        self._leases = Leases(
            source=source,
            view=view,
            questions=self._questions,
            limit=limit,
            clock=clock,
            observer=observer,
            rules=rules,
            parts=parts,
            on_ended=self._let_go_of_ended,
        )
        self._commits = self._make_commits(transactions)
        self._topics = TopicWatch(
            view=view,
            questions=self._questions,
            leases=self._leases,
            commits=self._commits,
            clock=clock,
            rules=rules,
            relabels=parts is not None,
        )
        self._stalls = StallWatch(
            source=source,
            view=view,
            questions=self._questions,
            leases=self._leases,
            listener=self,
            clock=clock,
            observer=observer,
            stall_s=rules.stall_s,
        )
        self._lag_told: Mapping[Partition, int] = {}
        self._paused: frozenset[Partition] = frozenset()
        self._behind, self._few, self._waited_s = False, True, 0.0
        self._deferred: list[Answer] = []

    def _make_commits(self, transactions: Transactions | None) -> Commits:
        source, leases, clock, observer = self._source, self._leases, self._clock, self._observer
        interval_s = self._rules.commit_interval_s
        if transactions is None:
            return Commits(source, leases=leases, clock=clock, observer=observer, interval_s=interval_s)
        return TransactionalCommits(
            transactions,
            leases=leases,
            clock=clock,
            observer=observer,
            interval_s=interval_s,
            read_settled=self._read_settled,
            on_crash=self.crashed,
        )

    # --- from other threads (the rest: `Owner`) ---------------------------------------------------------------------

    @property
    def unresolved(self) -> bool:
        """See `Owner`."""
        return self._commits.unresolved

    @property
    def stalled(self) -> frozenset[Partition]:
        """See `Owner`."""
        return self._stalls.hopeless

    def broken(self, error: TransactionBroken) -> None:
        """The open transaction can only be undone."""
        self._inbox.put(_Broken(error))

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, flow: Flow, publisher: Publisher) -> None:
        """Until `stop`, or until the range is `finished`. The model is warm when this is called.

        Raises:
            Fatal: see `errors`. What was finished is committed, nothing past it.
        """
        self._begin(flow, publisher)
        publisher.start()
        self._source.subscribe(self)
        try:
            while not self._stop and not self.finished:
                self._turn()
            self._shut_down()
        except BaseException:
            self._end_in_error()
            raise
        finally:
            self._close()

    def _begin(self, flow: Flow, publisher: Publisher) -> None:
        self._flow, self._publisher = flow, publisher
        self._commits.begin(publisher)

    def _turn(self) -> None:
        self.turned_s = self._clock.monotonic_s()
        self._balance()
        self._take_messages()
        self._read_inbox()
        self._flow.tick()
        if not self._commits.unresolved:  # else it is not known where anything begins
            self._leases.ask_due()
            self._topics.ask_due()
        self._topics.check()
        self._ask_progress()
        self._heed_limit()
        self._commits.turn()
        self._leases.start_marked()
        self._stalls.turn(self.turned_s, self._is_excused)
        self._observer.turned(self.turned_s, backlog=self._behind and not self.holding, waited_s=self._waited_s)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        self._waited_s = 0.0
        if not self._has_room():
            self._wait_for_room()
        if not self._has_room() and len(self._paused) < len(self._leases.ledgers):
            return  # a poll would hand over a message; if this lasts, the partitions pause and polls are safe
        timeout_s = self._poll_s()
        polled_s = self._clock.monotonic_s() if self._few else None
        for _ in range(MESSAGES_A_TURN):
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
                self._topics.offset_lost(found.partition)
            else:
                self._take(found)
            if not self._has_room():
                return

    def _has_room(self) -> bool:
        return self._intake.room(self._leases.in_flight, self._budget.used_bytes)

    def _poll_s(self) -> float:
        return min(_POLL_S, self._commits.poll_at_most_s())

    def _wait_for_room(self) -> None:
        """Until something is settled, at most one poll's time."""
        try:
            self._accept(self._inbox.get(timeout=self._poll_s()))
        except queue.Empty:
            return
        self._read_inbox()

    def _take(self, found: Delivery) -> None:
        delivery = self._leases.take(found)
        if delivery is not None:
            self._publisher.took(delivery)
            self._flow.submit(delivery)

    def _read_again(self, error: Retryable) -> None:
        """What poll had in hand may be gone."""
        logger.error("{}; reading again from where each partition stands", error)
        self._leases.read_again()

    # --- the inbox --------------------------------------------------------------------------------------------------

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

    def _accept(self, item: Settled | Crash | Answer | _Broken) -> None:
        if isinstance(item, Settled):
            self._budget.release(item.delivery)
            if item.finished:
                self._leases.finish(item.delivery)
        elif isinstance(item, Answer):
            item.then()
        elif isinstance(item, _Broken):
            self._commits.undo(str(item.error))
        else:
            raise item.error

    # --- intake -----------------------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Pause what is over a bound, resume what is below it again."""
        ledgers = self._leases.ledgers
        lag = self._source.lag()
        loads = {
            partition: PartitionLoad(
                in_flight=ledger.in_flight,
                uncommitted=ledger.uncommitted,
                has_work=ledger.in_flight > 0 or (lag.get(partition, 0) > 0 and not ledger.past_end),
            )
            for partition, ledger in ledgers.items()
        }
        used_bytes = self._budget.used_bytes
        self._paused = self._intake.decide(loads, used_bytes=used_bytes, now_s=self.turned_s, hold=self.holding)
        self._paused |= {partition for partition, ledger in ledgers.items() if ledger.past_end}
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
            self._leases.note_trip(self._leases.ledgers, None)
            self._observer.limit_resumed()
        trip = self._publisher.trip
        if trip is not None and trip is not self._held_for:
            self._leases.note_trip(self._leases.ledgers, trip.family)
            self._commits.soon()
            if self._rules.exit_on_limit:
                raise DeadLetterLimit(
                    f"dead-letter limit reached: {trip.reason}",
                    remedy="look with `ouzel dlq ls`, then start again with --resume",
                )
        self._held_for = trip
        if trip is None:
            self._leases.end_probations()

    # --- assignment -------------------------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Ask where each partition begins; until then it is paused."""
        self._observer.rebalanced()
        if partitions:
            logger.info("assigned {}", ", ".join(map(str, sorted(partitions))))
        for partition in partitions:
            self._leases.await_start(partition)

    # --- stalls -----------------------------------------------------------------------------------------------------

    def _is_excused(self, partition: Partition) -> bool:
        """Whether it is known what the partition waits for: a person, a quota, a store, the output, the model."""
        if self.holding or self._source.throttled_until_s > self.turned_s:
            return True
        if self._commits.unresolved or self._commits.undoing:
            return True
        ledger = self._leases.ledgers.get(partition)
        if ledger is None:  # where to begin is being asked for
            return False
        waits = partition in self._paused or ledger.in_flight > 0
        # In a transaction no record is under way for longer than that may last: a publisher that holds one is stuck.
        holds_work = self._flow.holds_work or (not self._commits.transactional and self._publisher.holds_work)
        return ledger.past_end or (waits and holds_work)

    # --- a range ----------------------------------------------------------------------------------------------------

    def _ask_progress(self) -> None:
        """Ask how far the whole group is: a partition that is another's may become ours before it is done."""
        parts = self._parts
        if parts is None or self._clock.monotonic_s() < self._progress_at_s:
            return
        self._progress_at_s = math.inf  # one question at a time

        def ask_again() -> None:
            self._progress_at_s = self._clock.monotonic_s() + ASK_AGAIN_S

        def note(committed: Mapping[Partition, CommitPoint]) -> None:
            progress = progress_of(parts, committed)
            self._on_progress(progress)
            self.finished = progress.finished
            ask_again()

        self._questions.ask(lambda: self._view.committed(list(parts)), note, ask_again)

    # --- rebalance --------------------------------------------------------------------------------------------------

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget what has not begun, finish what has, commit, then fence. The group waits for this to return."""
        self._leases.in_callback = True
        try:
            self._give_up(partitions)
        except BaseException:
            self._commits.undo("partitions went away in an error")  # what is open holds records of theirs
            raise
        finally:
            self._leases.end(partitions)  # before the publisher goes on: it must find these ended
            self._leases.in_callback = False

    def _give_up(self, partitions: Sequence[Partition]) -> None:
        self._observer.rebalanced()
        ours = self._leases.ledgers
        ledgers = [ours[partition] for partition in partitions if partition in ours]
        if ledgers:
            logger.info("revoked {}", ", ".join(str(ledger.lease.partition) for ledger in ledgers))
        deadline_s = self._clock.monotonic_s() + self._rules.drain_timeout_s
        if not self._commits.leaving:
            self._drain(ledgers, deadline_s, wait=self._wait_for_inbox)
        self._leases.clear_marks(ledgers, self._flow.is_decoding)
        self._commits.last(ledgers, deadline_s)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Another member may have them already: discard, commit nothing."""
        self._observer.rebalanced()
        logger.warning("lost {}", ", ".join(map(str, sorted(partitions))))
        if any(partition in self._leases.ledgers for partition in partitions):
            self._commits.undo("partitions were lost")
        self._leases.end(partitions)

    def _drain(self, ledgers: Sequence[PartitionLedger], deadline_s: float, wait: Callable[[], None]) -> None:
        for ledger in ledgers:
            ledger.lease.state = LeaseState.DRAINING
        while True:
            self._flow.abandon_ended()  # also what came back from its store meanwhile
            wanted = [ledger for ledger in ledgers if not ledger.lease.ended]  # a transaction may be undone meanwhile
            waits = any(self._must_finish(delivery) for ledger in wanted for delivery in ledger.unfinished())
            self._read_settled()  # what was finished before we looked
            self._commits.while_draining()
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

    def _accept_or_defer(self, item: Settled | Crash | Answer | _Broken) -> None:
        if isinstance(item, Answer):
            self._deferred.append(item)  # it may start partitions, which a revoke callback must not
        else:
            self._accept(item)

    def _let_go_of_ended(self) -> None:
        """Of what is in hand of leases that have ended."""
        self._flow.abandon_ended()
        self._publisher.forget_ended()

    # --- shutdown ---------------------------------------------------------------------------------------------------

    def _shut_down(self) -> None:
        """Stop reading, finish what has begun, publish, commit, leave the group."""
        logger.info("stopping: finishing what is in flight")
        self._leases.begin_no_more()
        self._source.pause(self._leases.ledgers)
        deadline_s = self._clock.monotonic_s() + self._rules.drain_timeout_s
        self._drain(list(self._leases.ledgers.values()), deadline_s, wait=self._poll_while_stopping)
        self._leases.clear_marks(self._leases.ledgers.values(), self._flow.is_decoding)
        self._commits.finish(deadline_s, self._poll_while_stopping)

    def _poll_while_stopping(self) -> None:
        """Serves rebalances and commit answers. A message that slips through is entered and never finished, so that no
        commit passes it."""
        self.turned_s = self._clock.monotonic_s()
        try:
            found = self._source.poll(_DRAIN_STEP_S)
        except Retryable as error:
            self._read_again(error)
            self._source.pause(self._leases.ledgers)
            found = None
        if isinstance(found, Delivery):
            self._leases.take(found)
        self._read_inbox()

    def _end_in_error(self) -> None:
        self._commits.leave()  # before anything is committed: what ended the loop may have come with a message
        self._commits.save()

    def _close(self) -> None:
        self._commits.leave()
        self._source.close()
        self._questions.close()
