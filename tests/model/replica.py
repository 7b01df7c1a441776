"""A replica whose every step is somebody's decision: the real `Pipeline`, `Publisher`, `KeyOrder` and
`PartitionLedger`, run in one thread. What their threads, the stages and the broker would do at a time of their own is
a method here.
"""

import queue
from collections import deque
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from consumer.errors import Fatal, NotAnImage, OutputUnavailable
from consumer.messages import (
    Abandoned,
    Delivery,
    ImageFacts,
    ImageJob,
    Labelled,
    Outcome,
    OutputRecord,
    Rejected,
    Skipped,
)
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.pipeline import Pipeline
from consumer.rules import Rules
from consumer.stages.dead_letter_limit import DeadLetterLimit
from consumer.stages.events import EventContext
from consumer.stages.intake import ByteBudget, Intake
from consumer.stages.publish import Publisher
from tests.fakes import Done, FakeClock, FakeGroupView, FakeRuntime
from tests.model.group import LETTERS, OUTPUT, TOPIC, GroupCluster, GroupSource
from tests.model.transactions import StableView, StepTransactions, TransactionalCluster

IDLE_S = 1.0
DRAIN_S = 6.0
BAD = b"bad"
"""The value of an input that is no image."""

_METRICS = Metrics(CollectorRegistry())  # nobody reads them, and to make them anew takes longer than a whole run


class _Inbox:
    """A queue whose wait is a step of the world."""

    def __init__(self, idle: Callable[[], None]) -> None:
        self._items: deque[Any] = deque()
        self._idle = idle

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get(self, timeout: float) -> Any:
        if not self._items:
            self._idle()
        return self.get_nowait()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class _Questions:
    """A thread that runs when it is told to."""

    def __init__(self) -> None:
        self.asked: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        self.asked.append(work)

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        self.asked.clear()


class StepFlow:
    """What the owner sees of a `Flow`: messages that are not begun, are at work, or wait for their store."""

    def __init__(self, budget: ByteBudget, on_outcome: Callable[[Outcome], None]) -> None:
        self._budget = budget
        self._on_outcome = on_outcome
        self.new: list[Delivery] = []
        self.at_work: list[Delivery] = []
        self.waiting: list[Delivery] = []

    # --- for the owner ----------------------------------------------------------------------------------------------

    def submit(self, delivery: Delivery) -> None:
        """See `Flow`."""
        self._budget.hold(delivery, delivery.size_bytes)
        self.new.append(delivery)

    def tick(self) -> None:
        """See `Flow`."""

    def is_decoding(self, delivery: Delivery) -> bool:
        """See `Flow`."""
        return False

    def has_begun(self, delivery: Delivery) -> bool:
        """See `Flow`."""
        return any(each is delivery for each in (*self.at_work, *self.waiting))

    def abandon_ended(self) -> None:
        """See `Flow`."""
        gone = [each for each in self.waiting if not each.lease.wants_new_work]
        self.waiting = [each for each in self.waiting if each.lease.wants_new_work]
        for delivery in gone:
            self._on_outcome(Abandoned(delivery))

    # --- steps ------------------------------------------------------------------------------------------------------

    def begin(self, which: int = 0) -> None:
        """A message is taken up, in any order."""
        if not self.new:
            return
        delivery = self.new.pop(which % len(self.new))
        if not delivery.lease.wants_new_work:
            self._on_outcome(Abandoned(delivery))
        elif delivery.value is None:
            self._on_outcome(Skipped(delivery, "tombstone"))
        else:
            self.at_work.append(delivery)

    def finish(self, which: int = 0) -> None:
        """A message has its outcome, in any order."""
        if not self.at_work:
            return
        delivery = self.at_work.pop(which % len(self.at_work))
        if delivery.lease.ended:
            self._on_outcome(Abandoned(delivery))
        elif delivery.value == BAD:
            self._on_outcome(Rejected(delivery, NotAnImage("no image"), stage="decode"))
        else:
            job = ImageJob(delivery, f"{delivery.partition}-{delivery.offset}", data=delivery.value)
            self._on_outcome(Labelled(job, (), ImageFacts(1, 1, "PNG", "00"), FakeRuntime.info, {}))

    def await_store(self, which: int = 0) -> None:
        """The store does not answer: it is tried again later."""
        if self.at_work:
            self.waiting.append(self.at_work.pop(which % len(self.at_work)))

    def try_again(self) -> None:
        """The store is back."""
        self.at_work += self.waiting
        self.waiting = []


class StepPublisher(Publisher):
    """The publisher without its thread. What waits for it lets the world go on."""

    idle: Callable[[], None] = staticmethod(lambda: None)
    """Lets the world go on by a step."""

    def start(self) -> None:
        """Nothing runs by itself."""

    def turn(self) -> bool:
        """One turn of the thread; whether there was anything to do."""
        try:
            item = self._inbox.get_nowait()
        except queue.Empty:
            item = None
        if item is not None:
            self._accept(item)
        self._redo_when_settled()
        self._come_to_rest()
        return item is not None

    def wait_sealed(self, timeout_s: float) -> bool:
        """See `Publisher`."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while not self.sealed:
            if not self.turn() and not self.sealed:
                if self._clock.monotonic_s() >= deadline_s:
                    return False
                self.idle()
        return True


class StepSink:
    """What is produced and not yet acknowledged, in order."""

    def __init__(self, cluster: GroupCluster) -> None:
        self._cluster = cluster
        self.under_way: deque[tuple[OutputRecord, Done]] = deque()

    def publish(self, record: OutputRecord, done: Done) -> None:
        """See the port."""
        self.under_way.append((record, done))

    def close(self, timeout_s: float) -> int:
        """See the port."""
        return len(self.under_way)

    def write(self) -> None:
        """The oldest is with the broker, and acknowledged."""
        if self.under_way:
            record, done = self.under_way.popleft()
            self._cluster.write_output(record)
            done(None)

    def fail(self, written: int) -> None:
        """No answer for any, though the broker has the oldest of them. A producer that gives up on a record gives up on
        those behind it: `test_real_pipeline.py` says what becomes of I4 otherwise."""
        failed, self.under_way = list(self.under_way), deque()
        for number, (record, done) in enumerate(failed):
            if number < written:
                self._cluster.write_output(record)
            done(OutputUnavailable("no answer"))


class StepReplica:
    """The real loop and publisher on a member of the group. At most four messages in flight, eight uncommitted."""

    sink: StepSink | StepTransactions

    def __init__(self, cluster: GroupCluster) -> None:
        """On a `TransactionalCluster` it is one of exactly-once."""
        self.cluster = cluster
        self.clock = FakeClock()
        self.source = GroupSource(cluster, self.clock)
        self.transactions: StepTransactions | None = None
        if isinstance(cluster, TransactionalCluster):
            self.sink = self.transactions = StepTransactions(cluster, self.source)
        else:
            self.sink = StepSink(cluster)
        self.plan: deque[str] = deque()
        """What happens while the owner waits in a drain, a step for each wait; then nothing, until its time is over."""
        self.crash: BaseException | None = None
        budget = ByteBudget(100_000)
        limit = DeadLetterLimit(
            window_s=60, min_sample=100_000, content_ratio=1.0, system_ratio=1.0, system_consecutive=100_000
        )
        observer = Observer(_METRICS, self.clock)
        self.pipeline = Pipeline(
            source=self.source,
            view=StableView(cluster) if isinstance(cluster, TransactionalCluster) else FakeGroupView(cluster),
            intake=Intake(max_messages=4, max_bytes=100_000, max_uncommitted=8),
            budget=budget,
            limit=limit,
            clock=self.clock,
            observer=observer,
            rules=Rules(
                commit_interval_s=0.0,
                drain_timeout_s=DRAIN_S,
                metadata_interval_s=3_600.0,
                topics=(TOPIC,),
                max_uncommitted_messages=8,
                start="earliest",
                stop_on_offset_lost=False,
                exit_on_limit=False,
                ignore_earlier_trips=False,
            ),
            transactions=self.transactions,
        )
        inbox, asking = _Inbox(self._idle), self.pipeline._questions
        asking.close()
        self.questions = _Questions()
        asking._thread, asking._tell = self.questions, inbox.put  # type: ignore[assignment]
        self.pipeline._inbox = inbox  # type: ignore[assignment]
        self.publisher = StepPublisher(
            self.sink,
            context=EventContext("cluster", "group", "replica", OUTPUT, LETTERS, 1024 * 1024),
            limit=limit,
            clock=self.clock,
            observer=observer,
            forward_tombstones=False,
            redo_backoff_s=0.0,
            on_settled=self.pipeline.settled,
            on_crash=self.pipeline.crashed,
            on_broken=self.pipeline.broken if self.transactions is not None else None,
        )
        self.publisher.idle = self._idle
        self.flow = StepFlow(budget, self.publisher.submit)
        self.pipeline._begin(self.flow, self.publisher)  # type: ignore[arg-type]
        self.source.subscribe(self.pipeline)
        cluster.join(self.source)

    @property
    def inside(self) -> bool:
        """Whether the group knows it."""
        return self.source in self.cluster.members

    # --- steps ------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One turn of the owner's loop."""
        self.pipeline._turn()

    def answer(self) -> None:
        """One question of the owner's is answered; it reads that in its next turn."""
        if self.questions.asked:
            self.questions.asked.popleft()()

    def hear(self) -> None:
        """It learns that the group has put it out, and joins again. What else the group had to say is of no account."""
        self.source._script.clear()
        if self.source.assigned:
            self.source.lose(*sorted(self.source.assigned))
            self.source._run_script()
        self.cluster.join(self.source)

    def stop(self) -> None:
        """Ends in order, as by SIGTERM."""
        self.source.idle = self._idle
        self.pipeline._shut_down()
        self._leave()

    def fail(self) -> bool:
        """Ends by an error that a poll brings, together with a message. False where its next turn polls nothing."""
        self.source.poll_error = Fatal("no more")
        try:
            self.turn()
        except Fatal:
            self.source.idle = self._idle
            self.pipeline._end_in_error()
            self._leave()
            return True
        self.source.poll_error = None
        return False

    def _leave(self) -> None:
        self.pipeline._close()
        self.sink.close(0.0)
        self.cluster.put_out(self.source)

    def die(self, *, written: int, commit_arrives: bool) -> None:
        """Ends without a word; some of what was on its way arrives."""
        for _ in range(min(written, len(self.sink.under_way))):
            self.sink.write()
        if self.transactions is not None:
            self.transactions.die(landed=commit_arrives)
        elif commit_arrives:
            self.source.commits_arrive()
        if self.inside:
            self.cluster.put_out(self.source)

    def work(self, *, last_first: bool = False) -> None:
        """All that can be done without the owner is done."""
        self.flow.try_again()
        while self.flow.new:
            self.flow.begin()
        while self.flow.at_work:
            self.flow.finish(-1 if last_first else 0)
        self.publish()
        while self.questions.asked:
            self.answer()

    def publish(self) -> None:
        """All that has its outcome is published and acknowledged."""
        while self.publisher.turn() or self.sink.under_way:
            self.sink.write()

    def commits_arrive(self, *, answered: bool = True) -> None:
        """What is asked to be committed is; without `answered` it never learns that."""
        if self.transactions is None:
            self.source.commits_arrive(answered=answered)
            return
        while self.transactions.busy:
            self.transactions.step("commit" if answered else "landed")

    def _idle(self) -> None:
        match self.plan.popleft() if self.plan else "nothing":
            case "begin":
                self.flow.begin()
            case "finish":
                self.flow.finish()
            case "publish":
                self.publisher.turn()
            case "write":
                self.sink.write()
            case "end" if self.transactions is not None:
                self.transactions.step("commit")
            case "fail":
                self.sink.fail(0)
            case "work":
                self.work()
        self.clock.advance(IDLE_S)
