"""The owner's loop over fakes: rebalances, commits, holds, topics that change. The loop runs in a thread of its own and
is led by events; its clock stands still unless a test moves it."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from consumer.errors import DeadLetterLimit as DeadLetterLimitReached
from consumer.errors import (
    DecoderStuck,
    Fatal,
    ModelError,
    NotAuthorized,
    RecordsLost,
    Retryable,
    RuntimeStuck,
    SandboxFailed,
    Stalled,
    TopicMissing,
)
from consumer.flow import Flow
from consumer.messages import CommitPoint, Delivery, OutputRecord, Partition, StoredImage
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.pipeline import Pipeline
from consumer.roofline_meter import RooflineMeter
from consumer.rules import Rules
from consumer.silence import SilenceLimit
from consumer.stages.batch import Batcher
from consumer.stages.commit import PartitionLedger
from consumer.stages.dead_letter_limit import DeadLetterLimit
from consumer.stages.events import EventContext
from consumer.stages.intake import ByteBudget, Intake
from consumer.stages.publish import Publisher
from consumer.stages.relabel import Progress, fix_range
from consumer.stages.retry import Retries
from consumer.stages.start import Note, Range
from tests.fakes import (
    FakeClock,
    FakeCluster,
    FakeDecoder,
    FakeGroupView,
    FakeImageStore,
    FakeRuntime,
    FakeSandbox,
    FakeSink,
    FakeSource,
    FakeTransactionalSink,
    fake_parse,
    fake_serving,
)
from tests.processes import wait_until

A, B = Partition("images", 0), Partition("images", 1)


class TurnsSeen(RooflineMeter):
    """Keeps what it was told of the last turn."""

    backlog: bool | None = None

    def turned(self, now_s: float, *, backlog: bool, waited_s: float) -> None:
        super().turned(now_s, backlog=backlog, waited_s=waited_s)
        self.backlog = backlog


class Rig:
    """A whole replica over fakes. Two system letters in a row reach the limit; drains have 10 s."""

    def __init__(
        self,
        cluster: FakeCluster | None = None,
        *,
        relabel: Range | None = None,
        transactional: bool = False,
        **rules: Any,
    ) -> None:
        self.cluster = cluster or FakeCluster({"images": 2})
        self.progress: list[Progress] = []
        self.clock = FakeClock()
        self.source = FakeSource(self.cluster, clock=self.clock)
        self.view = FakeGroupView(self.cluster)
        self.transactions = FakeTransactionalSink(self.cluster) if transactional else None
        self.sink = self.transactions or FakeSink()
        self.store = FakeImageStore()
        self.decoder = FakeDecoder()
        self.sandbox = FakeSandbox()
        self.runtime = FakeRuntime()
        self.budget = ByteBudget(100_000)
        self.limit = DeadLetterLimit(
            window_s=60, min_sample=1_000, content_ratio=0.95, system_ratio=0.5, system_consecutive=2
        )
        self.metrics = Metrics(CollectorRegistry())
        self.meter = TurnsSeen(cores=1.0, overhead_ms=1.0)
        observer = Observer(self.metrics, self.clock, meter=self.meter)
        options: dict[str, Any] = {
            "commit_interval_s": 0.0,
            "drain_timeout_s": 10.0,
            "metadata_interval_s": 5.0,
            "topic_gone_s": 30.0,
            "topics": ("images",),
            "max_uncommitted_messages": 1_000,
            "start": "earliest",
            "stop_on_offset_lost": False,
            "exit_on_limit": False,
            "ignore_earlier_trips": False,
        }
        self.pipeline = Pipeline(
            source=self.source,
            view=self.view,
            intake=Intake(max_messages=64, max_bytes=100_000, max_uncommitted=1_000),
            budget=self.budget,
            limit=self.limit,
            clock=self.clock,
            observer=observer,
            rules=Rules(**{**options, **rules}),
            parts=None if relabel is None else fix_range(self.view, ["images"], relabel, group_id="group"),
            on_progress=self.progress.append,
            transactions=self.transactions,
        )
        self.publisher = Publisher(
            self.sink,
            context=EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024),
            limit=self.limit,
            clock=self.clock,
            observer=observer,
            forward_tombstones=False,
            redo_backoff_s=0.0,
            on_settled=self.pipeline.settled,
            on_crash=self.pipeline.crashed,
            on_broken=self.pipeline.broken if transactional else None,
        )
        self.flow = Flow(
            parser=fake_parse,
            stores=[self.store],
            serving=fake_serving(self.runtime, self.decoder, self.sandbox, clock=self.clock),
            batcher=Batcher(max_size=4, max_bytes=10_000, max_wait_ms=0),
            retries=Retries(
                max_attempts=1,
                initial_backoff_ms=100,
                max_backoff_ms=1_000,
                max_retry_after_ms=60_000,
                dice=lambda: 0.0,
            ),
            budget=self.budget,
            clock=self.clock,
            observer=observer,
            tombstones="skip",
            max_image_bytes=10_000,
            fetch_deadline_s=1.0,
            infer_deadline_s=60.0,
            decode_deadline_s=30.0,
            silence=SilenceLimit(600.0),
            decode_threads=2,
            fetch_concurrency=2,
            on_outcome=self.publisher.submit,
            on_crash=self.pipeline.crashed,
        )
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="owner", daemon=True)
        self.flow.start()
        self.thread.start()

    def _run(self) -> None:
        try:
            self.pipeline.run(self.flow, self.publisher)
        except BaseException as error:
            self.error = error

    @property
    def ledgers(self) -> dict[Partition, PartitionLedger]:
        """The books of what has begun."""
        return self.pipeline._leases.ledgers

    # --- what tests do ----------------------------------------------------------------------------------------------

    def own(self, *partitions: Partition) -> None:
        """The group gives these, and they have begun."""
        self.done(self.source.assign(*partitions))
        self.until(lambda: all(p in self.ledgers for p in partitions), "the partitions to begin")

    def done(self, event: threading.Event) -> None:
        assert event.wait(8), "the listener did not return"

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, timeout_s=8, what=f"{what} (error: {self.error!r})", interval_s=0.002)

    def turns(self, count: int = 2) -> None:
        """The loop turns a few times more."""
        seen = threading.Semaphore(0)
        self.source.on_poll = seen.release
        for _ in range(count):
            assert seen.acquire(timeout=8)
        self.source.on_poll = lambda: None

    def committed(self, partition: Partition) -> int | None:
        point = self.cluster.committed.get(partition)
        return None if point is None else point.offset

    def until_committed(self, partition: Partition, offset: int) -> None:
        self.cluster.wait(lambda: self.committed(partition) == offset, f"{partition} committed at {offset}")

    def note(self, partition: Partition) -> Note:
        return Note.load(self.cluster.committed[partition].metadata)

    def stop(self) -> None:
        self.pipeline.stop()
        self.thread.join(8)
        assert not self.thread.is_alive(), "the loop did not end"

    def ended(self) -> BaseException:
        self.thread.join(8)
        assert self.error is not None
        return self.error

    def clean(self) -> None:
        """What must be true when a test is over."""
        self.decoder.gate.set()
        self.sandbox.gate.set()
        self.runtime.gate.set()
        self.view.answering.set()
        self.sink.answers = lambda _: None
        if self.thread.is_alive():
            self.stop()
        self.flow.close()
        self.flow._model_thread.join(20)  # a stuck one is not waited for
        self.publisher.close()
        self.sink.close(0.0)
        assert not self.flow._model_thread.is_alive()
        assert not self.publisher._thread.is_alive()


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(cluster: FakeCluster | None = None, *, relabel: Range | None = None, **rules: Any) -> Rig:
        made.append(Rig(cluster, relabel=relabel, **rules))
        return made[-1]

    yield make
    for rig in made:
        rig.clean()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def _ids(records: list[OutputRecord]) -> list[str]:
    return [dict(record.headers)["ce_subject"].decode() for record in records]  # type: ignore[union-attr]


def _nothing_left(rig: Rig) -> None:
    rig.until(lambda: rig.budget.used_bytes == 0, "every byte off the books")
    rig.until(lambda: not rig.flow._stage_of, "every stage to be empty")
    rig.until(lambda: not rig.publisher._held and rig.publisher._order.waiting == 0, "the publisher to be empty")


# --- plain sailing --------------------------------------------------------------------------------------------------


def test_messages_become_labels_and_then_commits(rig: Rig) -> None:
    rig.cluster.send(A, b"1", b"2", b"bad", None, b"3", gap=2)
    rig.own(A)
    rig.until_committed(A, 15)
    assert sorted(_ids([r for r in rig.sink.written if r.topic == "predictions"])) == [
        "images[0]-14",
        "images[0]-2",
        "images[0]-5",
    ]
    _nothing_left(rig)
    rig.stop()
    assert rig.error is None
    assert rig.source.closed


def test_a_message_with_several_records_is_committed_once_all_of_them_are_done(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1|skip|2|bad", b"skip", b"skip|skip")
    rig.own(A)
    rig.sink.wait(lambda: len(rig.sink.held) == 3, "both events and the letter")
    rig.sink.answer()
    rig.sink.answer()
    rig.turns()
    assert rig.committed(A) in {None, 0}
    rig.sink.answer()
    rig.until_committed(A, 3)
    _nothing_left(rig)


def test_a_transaction_marker_at_the_end_leaves_no_lag(rig: Rig) -> None:
    rig.cluster.send(A, b"1")
    rig.cluster.logs[A].end += 1
    rig.own(A)
    rig.until_committed(A, 2)


def test_nothing_past_the_finished_prefix_is_committed(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1", b"2", b"3")
    rig.own(A)
    rig.sink.wait(lambda: len(rig.sink.under_way) == 3, "three records")
    second = next(n for n, (r, _) in enumerate(rig.sink.held) if _ids([r]) == ["images[0]-1"])
    rig.sink.answer(second)
    rig.turns()
    assert rig.committed(A) in (None, 0)
    rig.sink.answer()
    rig.sink.answer()
    rig.until_committed(A, 3)


def test_a_refused_commit_is_sent_again(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.source.refuse_commits = True
    rig.cluster.send(A, b"1")
    rig.sink.wait(lambda: len(rig.sink.written) == 1, "the label")
    rig.turns(4)
    assert rig.committed(A) == 0
    rig.source.refuse_commits = False
    rig.until_committed(A, 1)


def test_never_two_commits_under_way(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.until(lambda: not rig.source.commit_under_way, "its answer")
    rig.source.hold_commits = True
    rig.cluster.send(A, b"1")
    rig.until(lambda: rig.source.commit_under_way, "a commit")
    rig.cluster.send(A, b"2")
    rig.sink.wait(lambda: len(rig.sink.written) == 2, "two labels")
    rig.turns(4)
    assert len(rig.source._sent) == 1
    rig.source.hold_commits = False
    rig.until_committed(A, 2)


def test_a_poll_that_fails_reads_again_what_it_may_have_had_in_hand(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)

    def lose_one() -> None:
        """The position moves on, and nobody gets the message."""
        if rig.cluster.logs[A].records and rig.source.poll_error is None:
            rig.source.on_poll = lambda: None
            rig.source._at[A] = 2
            rig.source._handed_over.add(A)
            rig.source.poll_error = Retryable("poll failed")

    rig.source.on_poll = lose_one
    rig.cluster.send(A, b"1", b"2", b"3")
    rig.until_committed(A, 3)
    assert sorted(_ids(rig.sink.written)) == ["images[0]-0", "images[0]-1", "images[0]-2"]


# --- revoke ---------------------------------------------------------------------------------------------------------


def _stuck_in(rig: Rig, stage: str) -> None:
    """One image of A is in this stage and stays there."""
    if stage == "decode":
        rig.decoder.gate.clear()
    elif stage == "model":
        rig.runtime.gate.clear()
    else:
        rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1")
    rig.own(A, B)
    if stage == "decode":
        rig.until(lambda: "decode" in rig.flow.oldest(), "decoding to begin")
    elif stage == "model":
        assert rig.runtime.running.wait(8)
    else:
        rig.sink.wait(lambda: bool(rig.sink.under_way), "the record to be under way")


def _let_go(rig: Rig) -> None:
    rig.decoder.gate.set()
    rig.runtime.gate.set()
    rig.sink.answers = lambda _: None
    while rig.sink.held:
        rig.sink.answer()


@pytest.mark.parametrize("stage", ["decode", "model", "sink"])
def test_a_revoke_waits_for_what_has_begun_and_commits_it_before_it_returns(rig: Rig, stage: str) -> None:
    _stuck_in(rig, stage)
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    assert not revoked.is_set()
    assert rig.committed(A) in (None, 0)
    _let_go(rig)
    rig.done(revoked)
    assert rig.committed(A) == 1
    _nothing_left(rig)


def test_a_revoke_never_returns_before_what_was_published_is_committed(rig: Rig) -> None:
    """Between the broker's acknowledgement and the ledger there is a gap; look into it many times."""
    rig.own(A)
    for turn in range(60):
        (offset,) = rig.cluster.send(A, b"1")
        rig.sink.wait(lambda turn=turn: len(rig.sink.handed_over) == turn + 1, "the record")  # type: ignore[misc]
        rig.done(rig.source.revoke(A))
        assert rig.committed(A) == offset + 1
        rig.own(A)


def test_a_settled_message_that_the_owner_has_not_read_yet_is_in_the_last_commit(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1")
    rig.sink.wait(lambda: bool(rig.sink.under_way), "the record")

    def acknowledge_and_revoke() -> None:
        rig.source.on_poll = lambda: None
        rig.sink.answer()  # Settled is in the owner's inbox now; the revoke comes in this very poll
        rig.source.revoke(A)

    rig.source.on_poll = acknowledge_and_revoke
    rig.until(lambda: A not in rig.ledgers, "the revoke")
    assert rig.committed(A) == 1


def test_a_revoke_waits_for_nothing_of_another_partition(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.done(rig.source.revoke(B))
    assert A in rig.ledgers
    _let_go(rig)
    rig.until_committed(A, 1)


def test_what_has_not_begun_at_a_revoke_is_left_to_the_next_owner(rig: Rig) -> None:
    rig.decoder.gate.clear()
    rig.cluster.send(A, *[b"1"] * 6)  # two decode, four wait for a thread
    rig.own(A)
    rig.until(lambda: rig.ledgers[A].in_flight == 6, "six in flight")
    taken = rig.ledgers[A].unfinished()
    rig.until(lambda: sum(map(rig.flow.is_decoding, taken)) == 2, "two to decode")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.decoder.gate.set()
    rig.done(revoked)
    assert rig.committed(A) == 2
    assert len(rig.sink.written) == 2
    _nothing_left(rig)


def test_a_drain_waits_for_no_store_that_is_down(rig: Rig) -> None:
    """Its clock stands still: were it to wait for its deadline, it would never return."""
    rig.store.available = False
    rig.store.images["fake://images/a"] = b"1"
    rig.cluster.send(A, *[b"fake://images/a"] * 3)
    rig.own(A)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.done(rig.source.revoke(A))
    assert rig.sink.written == []
    assert rig.committed(A) in (None, 0)
    _nothing_left(rig)


def test_a_drain_waits_for_the_records_under_way_and_for_none_at_a_store_that_is_down(rig: Rig) -> None:
    rig.store.available = False
    rig.runtime.gate.clear()
    rig.store.images["fake://images/a"] = b"1"
    rig.cluster.send(A, b"1|2", b"3|fake://images/a|4")
    rig.own(A)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    assert rig.runtime.running.wait(5)
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    assert not revoked.is_set()
    rig.runtime.gate.set()
    rig.done(revoked)
    assert rig.committed(A) == 1  # the other is the next owner's, whole
    assert _ids(rig.sink.written) == ["images[0]-0", "images[0]-0"]
    rig.store.available = True
    _nothing_left(rig)


def test_a_drain_does_not_wait_for_a_fetch_that_fails_while_it_waits(rig: Rig) -> None:
    fetch, out, go_on = rig.store.fetch, threading.Event(), threading.Event()

    def slow(uri: str, **limits: Any) -> StoredImage:
        out.set()
        assert go_on.wait(8)
        return fetch(uri, **limits)

    rig.store.fetch = slow  # type: ignore[method-assign]
    rig.store.available = False
    rig.cluster.send(A, b"fake://images/a")
    rig.own(A)
    assert out.wait(8)
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    go_on.set()
    rig.done(revoked)
    _nothing_left(rig)


def test_a_drain_ends_at_its_deadline_and_what_comes_later_is_never_committed(rig: Rig) -> None:
    _stuck_in(rig, "model")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.clock.advance(11.0)
    rig.done(revoked)
    _let_go(rig)
    _nothing_left(rig)
    rig.turns()
    assert rig.committed(A) in (None, 0)
    assert rig.sink.written == []


def test_a_record_acknowledged_after_the_fence_is_not_committed(rig: Rig) -> None:
    _stuck_in(rig, "sink")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.clock.advance(11.0)
    rig.done(revoked)
    rig.own(A)
    _let_go(rig)  # the old lease's record; the new lease has the message in flight again
    rig.until_committed(A, 1)
    assert _ids(rig.sink.written) == ["images[0]-0"] * 2
    _nothing_left(rig)


def test_a_commit_under_way_at_a_revoke_lands_before_the_last_one(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.until(lambda: not rig.source.commit_under_way, "its answer")
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, b"1", b"2")
    rig.sink.wait(lambda: len(rig.sink.under_way) == 2, "two records")
    rig.source.hold_commits = True
    first = next(n for n, (r, _) in enumerate(rig.sink.held) if _ids([r]) == ["images[0]-0"])
    rig.sink.answer(first)
    rig.until(lambda: rig.source.commit_under_way, "a commit under way")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.source.hold_commits = False
    rig.sink.answer()
    rig.done(revoked)
    assert [commit[A].offset for commit in rig.cluster.commits] == [0, 1, 2]


def test_a_late_answer_to_an_old_leases_commit_moves_no_new_ledger(rig: Rig) -> None:
    rig.cluster.send(A, *[b"1"] * 5)
    rig.own(A)
    rig.until_committed(A, 5)
    rig.until(lambda: not rig.source.commit_under_way, "its answer")
    rig.source.hold_commits = True
    rig.cluster.send(A, b"1")
    rig.until(lambda: rig.source.commit_under_way, "a commit of 6")
    rig.done(rig.source.lose(A))
    rig.cluster.create("images", 2, topic_id="id-2")  # the group's offsets went with the topic
    rig.cluster.committed.clear()
    rig.done(rig.source.assign(A))
    rig.until(lambda: A in rig.ledgers, "the partition to begin again")
    rig.source._answer_later({A: CommitPoint(6, "old")})
    rig.source.hold_commits = False
    rig.turns()
    rig.cluster.send(A, b"1")
    rig.until_committed(A, 1)


# --- order ----------------------------------------------------------------------------------------------------------


def test_no_event_of_a_key_leaves_before_an_earlier_one_that_the_next_owner_publishes(rig: Rig) -> None:
    rig.store.available = False
    rig.cluster.send(A, b"fake://images/a", b"7", key=b"k")
    rig.own(A)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.until(lambda: bool(rig.publisher._held), "the later image to wait for the earlier one")
    rig.done(rig.source.revoke(A))
    _nothing_left(rig)
    assert rig.sink.handed_over == []
    rig.store.available = True
    rig.store.images["fake://images/a"] = b"1"
    rig.own(A)
    rig.until_committed(A, 2)
    assert _ids(rig.sink.written) == ["images[0]-0", "images[0]-1"]


# --- lost -----------------------------------------------------------------------------------------------------------


def test_what_was_lost_is_discarded_and_nothing_of_it_is_committed(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.done(rig.source.lose(A))
    _let_go(rig)
    _nothing_left(rig)
    rig.turns()
    assert rig.committed(A) in (None, 0)
    assert rig.sink.written == []


def test_what_is_finished_and_not_committed_when_it_is_lost_stays_uncommitted(make_rig: Callable[..., Rig]) -> None:
    """Another member may have committed further already."""
    rig = make_rig(commit_interval_s=1_000.0)
    rig.turns()
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.until(lambda: rig.ledgers[A].in_flight == 0 and bool(rig.sink.written), "it to be finished")
    rig.done(rig.source.lose(A))
    rig.turns()
    assert [commit[A].offset for commit in rig.cluster.commits] == [0]  # the mark, before it was read


def test_a_partition_lost_and_regained_begins_where_the_group_stands(rig: Rig) -> None:
    rig.cluster.send(A, b"1", b"2", b"3")
    rig.own(A)
    rig.until_committed(A, 3)
    rig.done(rig.source.lose(A))
    rig.cluster.committed[A] = CommitPoint(1, rig.cluster.committed[A].metadata)
    rig.own(A)
    rig.until_committed(A, 3)
    assert len(rig.sink.written) == 5


# --- where partitions begin -----------------------------------------------------------------------------------------


def test_a_partition_revoked_while_its_question_is_out_does_not_begin(rig: Rig) -> None:
    rig.cluster.send(A, b"1")
    rig.view.answering.clear()
    rig.done(rig.source.assign(A))
    rig.until(lambda: rig.view.asked > 0, "the question")
    rig.done(rig.source.revoke(A))
    rig.view.answering.set()
    rig.turns(4)
    assert rig.ledgers == {}
    rig.own(A)  # and it begins when it comes again
    rig.until_committed(A, 1)


def test_topics_are_asked_about_one_question_at_a_time(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.view.answering.clear()
    asked: list[object] = []
    ask = rig.pipeline._questions.ask

    def counting(*question: Any) -> None:
        asked.append(question)
        ask(*question)

    rig.pipeline._questions.ask = counting  # type: ignore[method-assign,assignment]
    for _ in range(10):
        rig.clock.advance(6.0)
        rig.turns()
    assert len(asked) == 1
    rig.view.answering.set()
    rig.until(lambda: not rig.pipeline._topics._asking, "the answer")
    rig.clock.advance(6.0)
    rig.until(lambda: len(asked) == 2, "the next question")


def test_an_answer_that_comes_during_a_drain_begins_nothing_inside_it(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.cluster.send(A, b"1")
    rig.own(A)
    assert rig.runtime.running.wait(8)
    rig.view.answering.clear()
    asked = rig.view.asked
    rig.done(rig.source.assign(B))
    rig.until(lambda: rig.view.asked > asked, "the question")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.view.answering.set()
    rig.until(lambda: bool(rig.pipeline._deferred), "the answer")
    assert B not in rig.ledgers
    _let_go(rig)
    rig.done(revoked)
    rig.until(lambda: B in rig.ledgers, "it to begin")


def test_a_broker_that_does_not_answer_is_asked_again(rig: Rig) -> None:
    rig.view.reachable = False
    rig.cluster.send(A, b"1")
    rig.done(rig.source.assign(A))
    rig.until(lambda: rig.view.asked > 0, "the question")
    rig.until(lambda: A in rig.pipeline._leases._ask_at_s, "the wait")
    rig.view.reachable = True
    rig.clock.advance(1.1)
    rig.until_committed(A, 1)


def test_a_view_that_may_not_look_ends_the_process(rig: Rig) -> None:
    error = NotAuthorized("no")

    def refuse(_names: object) -> dict[str, Any]:
        raise error

    rig.view.topics = refuse  # type: ignore[method-assign,assignment]
    rig.source.assign(A)
    assert rig.ended() is error


def test_retention_that_overtakes_us_loses_nothing_that_is_in_flight(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.cluster.retain_from(A, 50)
    rig.cluster.send(A, b"2")
    lost = "ouzel_offsets_lost_total"
    rig.until(lambda: rig.metrics.registry.get_sample_value(lost) == 49, "the loss to be told")
    _let_go(rig)
    rig.until_committed(A, 51)
    assert _ids(rig.sink.written) == ["images[0]-0", "images[0]-50"]


def test_a_log_cut_short_is_read_again_from_the_commit(rig: Rig) -> None:
    rig.sink.answers = lambda record: FakeSink.HOLD if _ids([record]) == ["images[0]-1"] else None
    rig.cluster.send(A, *[b"1"] * 8)
    rig.own(A)
    rig.until_committed(A, 1)
    rig.sink.wait(lambda: len(rig.sink.handed_over) == 8, "all to be produced")
    rig.sink.answers = lambda _: None
    rig.cluster.cut(A, 4)
    rig.sink.wait(lambda: len(rig.sink.handed_over) == 11, "1, 2 and 3 again")
    rig.cluster.send(A, b"2")
    rig.until_committed(A, 5)
    rig.sink.answer()
    assert set(_ids(rig.sink.written[-4:])) >= {"images[0]-4"}
    _nothing_left(rig)


def test_offsets_lost_while_the_topic_is_away_are_asked_about_again(rig: Rig) -> None:
    """The source says it once: were it not asked again, the partition would stand still for ever."""
    rig.own(A)
    rig.until_committed(A, 0)
    facts = rig.cluster.topics.pop("images")
    asked = rig.view.asked
    rig.cluster.retain_from(A, 50)
    rig.until(lambda: rig.view.asked > asked, "the question")
    rig.turns()
    rig.cluster.topics["images"] = facts
    rig.cluster.send(A, b"1")
    rig.clock.advance(1.1)
    rig.until_committed(A, 51)


def test_offsets_lost_can_end_the_process_instead(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stop_on_offset_lost=True)
    rig.own(A)
    rig.cluster.retain_from(A, 50)
    assert "offsets 0 to 49" in str(rig.ended())
    assert isinstance(rig.error, Fatal)


# --- topics that change ---------------------------------------------------------------------------------------------


def test_a_topic_made_anew_discards_old_work_and_starts_at_its_beginning(rig: Rig) -> None:
    rig.cluster.send(A, b"1", b"2")
    rig.own(A)
    rig.until_committed(A, 2)
    rig.runtime.running.clear()
    rig.runtime.gate.clear()
    rig.cluster.send(A, b"3")
    assert rig.runtime.running.wait(8)
    rig.cluster.create("images", 2, topic_id="id-2")
    rig.cluster.send(A, b"4", b"5", b"6", b"7")
    rig.clock.advance(5.1)
    rig.until(lambda: rig.ledgers.get(A) is None or rig.ledgers[A].lease.topic_id == "id-2", "it")
    rig.runtime.gate.set()
    rig.until_committed(A, 4)
    assert rig.note(A).topic_id == "id-2"
    assert sorted(_ids(rig.sink.written)) == sorted(
        ["images[0]-0", "images[0]-1"] + [f"images[0]-{number}" for number in range(4)]
    )
    _nothing_left(rig)


def test_under_latest_too_a_topic_made_anew_starts_at_its_beginning(make_rig: Callable[..., Rig]) -> None:
    """The group's offsets went away with the old topic; what is in the new one was written for us."""
    rig = make_rig(start="latest")
    rig.own(A)
    rig.until_committed(A, 0)
    rig.done(rig.source.lose(A))
    rig.cluster.create("images", 2, topic_id="id-2")
    rig.cluster.committed.clear()
    rig.cluster.send(A, b"1", b"2")
    rig.own(A)
    rig.until_committed(A, 2)
    assert len(rig.sink.written) == 2


def test_a_topic_that_stays_away_ends_the_process(rig: Rig) -> None:
    rig.own(A)
    del rig.cluster.topics["images"]
    for _ in range(8):
        asked = rig.view.asked
        rig.clock.advance(5.1)
        rig.until(lambda asked=asked: rig.view.asked > asked or not rig.thread.is_alive(), "it to look")  # type: ignore[misc]
    assert isinstance(rig.ended(), TopicMissing)


# --- the dead-letter limit ------------------------------------------------------------------------------------------


def _hold(rig: Rig) -> None:
    """Two system letters: the second reaches the limit."""
    rig.cluster.send(A, b"fake://images/absent", b"fake://images/absent")
    rig.own(A)
    rig.until(lambda: rig.pipeline.holding, "the hold")


def test_over_the_limit_the_replica_commits_what_is_done_and_holds(rig: Rig) -> None:
    _hold(rig)
    rig.until_committed(A, 1)
    rig.until(lambda: rig.note(A).trip == "system", "the trip in the commit")
    rig.until(lambda: A in rig.source.paused, "the pause")
    rig.cluster.send(A, b"1")
    rig.turns(4)
    assert rig.committed(A) == 1
    assert rig.error is None


def test_there_is_a_backlog_while_more_is_to_be_read_and_the_replica_does_not_hold(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.cluster.send(A, *[b"1"] * 100)  # 64 are in flight at most
    rig.own(A)
    rig.until(lambda: rig.meter.backlog is True, "the backlog")
    rig.runtime.gate.set()
    rig.until_committed(A, 100)
    rig.until(lambda: rig.meter.backlog is False, "its end")
    rig.cluster.send(A, b"fake://images/absent", b"fake://images/absent")
    rig.until(lambda: rig.pipeline.holding, "the hold")
    rig.until(lambda: A in rig.source.paused, "the pause")
    rig.cluster.send(A, *[b"1"] * 100)
    rig.turns(4)
    assert rig.source.lag()[A] == 100
    assert rig.meter.backlog is False


def test_a_person_who_says_go_on_needs_to_say_it_once(rig: Rig) -> None:
    _hold(rig)
    rig.cluster.send(A, b"1")
    resume = rig.limit.resume

    def late() -> None:  # in the publisher's thread, which may well be slower than the loop
        rig.turns(4)
        resume()

    rig.limit.resume = late  # type: ignore[method-assign]
    rig.pipeline.resume()
    rig.until_committed(A, 3)
    assert not rig.pipeline.holding
    rig.until(lambda: rig.note(A).trip is None, "the trip to be gone from the commit")
    assert rig.metrics.registry.get_sample_value("ouzel_dead_letter_limit_reached") == 0
    _nothing_left(rig)


def test_it_can_hold_again_after_a_person_said_go_on(rig: Rig) -> None:
    _hold(rig)
    rig.pipeline.resume()
    rig.until_committed(A, 2)
    rig.until(lambda: not rig.pipeline.holding, "the end of the hold")
    rig.cluster.send(A, b"fake://images/absent", b"fake://images/absent")
    rig.until(lambda: rig.pipeline.holding, "the second hold")
    rig.until(lambda: rig.note(A).trip == "system", "the trip in the commit")


def test_a_replica_that_holds_drains_and_stops_without_waiting_for_a_person(rig: Rig) -> None:
    _hold(rig)
    rig.done(rig.source.revoke(A))
    assert rig.committed(A) == 1
    assert rig.note(A).trip == "system"
    _nothing_left(rig)  # the withheld letter too is off the books


def test_the_limit_can_end_the_process_with_its_trip_in_the_commit(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(exit_on_limit=True)
    rig.cluster.send(A, b"fake://images/absent", b"fake://images/absent")
    rig.done(rig.source.assign(A))
    assert isinstance(rig.ended(), DeadLetterLimitReached)
    assert (rig.committed(A), rig.note(A).trip) == (1, "system")


def test_the_next_owner_is_on_probation_until_one_image_succeeds(rig: Rig) -> None:
    rig.cluster.committed[A] = CommitPoint(0, Note("id-1", 2, "system").dump())
    rig.cluster.send(A, b"fake://images/absent")
    rig.own(A)
    rig.until(lambda: bool(rig.publisher._withheld), "the letter to be withheld")
    assert not rig.pipeline.holding
    rig.cluster.send(A, b"1")
    rig.until_committed(A, 2)
    rig.until(lambda: rig.note(A).trip is None, "the trip to be gone from the commit")


def test_a_start_with_resume_knows_no_earlier_trip(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(ignore_earlier_trips=True)
    rig.cluster.committed[A] = CommitPoint(0, Note("id-1", 2, "system").dump())
    rig.cluster.send(A, b"fake://images/absent")
    rig.own(A)
    rig.until_committed(A, 1)
    assert rig.note(A).trip is None


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["decode", "model", "sink"])
def test_a_stop_finishes_what_has_begun_and_commits_it(rig: Rig, stage: str) -> None:
    _stuck_in(rig, stage)
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    _let_go(rig)
    rig.stop()
    assert rig.error is None
    assert rig.committed(A) == 1
    _nothing_left(rig)


def test_a_stop_that_cannot_finish_ends_at_its_deadline(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.clock.advance(11.0)
    rig.stop()
    assert rig.committed(A) in (None, 0)


def test_a_message_that_slips_through_while_stopping_is_not_committed(rig: Rig) -> None:
    """It is read, so the position is past it; nobody will ever label it here."""
    _stuck_in(rig, "model")
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.cluster.send(A, b"2")
    rig.source.paused.clear()
    rig.until(lambda: rig.source.position(A) == 2, "the message to slip through")
    _let_go(rig)
    rig.stop()
    assert rig.committed(A) == 1


def test_a_poll_that_fails_while_stopping_spoils_nothing(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.cluster.send(A, b"2")
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.source.poll_error = Retryable("poll failed")
    rig.until(lambda: rig.source.poll_error is None, "the failed poll")
    _let_go(rig)
    rig.stop()
    assert rig.error is None
    assert rig.committed(A) in (1, 2)


def test_a_revoke_while_stopping_is_served(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    revoked = rig.source.revoke(A)
    _let_go(rig)
    rig.done(revoked)
    rig.stop()
    assert rig.committed(A) == 1


def test_a_stop_waits_for_the_answer_to_its_last_commit_and_no_longer(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.until(lambda: not rig.source.commit_under_way, "its answer")
    rig.source.hold_commits = True
    rig.cluster.send(A, b"1")
    rig.until(lambda: rig.source.commit_under_way, "a commit")
    rig.pipeline.stop()
    rig.turns(3)
    rig.clock.advance(11.0)
    rig.stop()
    assert rig.committed(A) == 1  # sent before the group was left


@pytest.mark.parametrize("where", ["model", "poll", "stuck"])
def test_what_ends_the_process_commits_what_is_finished_and_nothing_past_it(rig: Rig, where: str) -> None:
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.until_committed(A, 1)
    rig.runtime.running.clear()
    if where == "poll":

        def fail_with_a_message_in_hand() -> None:
            if len(rig.cluster.logs[A].records) == 2:
                rig.source._at[A] = 2
                rig.source._handed_over.add(A)
                rig.source.poll_error = Fatal("fenced")

        rig.source.on_poll = fail_with_a_message_in_hand
    elif where == "model":
        rig.runtime.fatal = ModelError("gone")
    else:
        rig.runtime.gate.clear()
    rig.cluster.send(A, b"2")
    if where == "stuck":
        assert rig.runtime.running.wait(8)
        rig.clock.advance(61.0)
        rig.turns()  # a clock that leaps is a process that was stopped: what is under way gets a moment
        rig.clock.advance(2.0)
    assert isinstance(rig.ended(), {"model": ModelError, "poll": Fatal, "stuck": RuntimeStuck}[where])
    assert rig.committed(A) == 1
    assert rig.source.closed


def test_a_crash_during_a_drain_ends_the_process_and_fences(rig: Rig) -> None:
    _stuck_in(rig, "model")
    rig.runtime.fatal = ModelError("gone")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.runtime.gate.set()
    rig.done(revoked)
    assert isinstance(rig.ended(), ModelError)
    assert rig.committed(A) in (None, 0)


# --- marks and suspects ---------------------------------------------------------------------------------------------

MOST_IN_HAND = 1_000 + 200  # max_uncommitted, and what one turn may take over it


def test_no_message_is_read_before_the_mark_is_at_the_broker(rig: Rig) -> None:
    rig.source.hold_commits = True
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.until(lambda: rig.source.commit_under_way, "the mark to be sent")
    rig.turns(4)
    assert rig.source._leases == {}
    rig.source.hold_commits = False
    rig.until_committed(A, 1)
    assert [(commit[A].offset, Note.load(commit[A].metadata).in_hand) for commit in rig.cluster.commits] == [
        (0, MOST_IN_HAND),
        (1, MOST_IN_HAND),
    ]


def test_a_mark_that_the_broker_refuses_is_sent_again_and_nothing_is_read_before(rig: Rig) -> None:
    rig.source.refuse_commits = True
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.turns(4)
    assert rig.sink.handed_over == []
    rig.source.refuse_commits = False
    rig.until_committed(A, 1)


def test_partitions_do_not_wait_for_the_next_commit_when_their_mark_is_refused(make_rig: Callable[..., Rig]) -> None:
    """As the broker does in the midst of a rebalance."""
    rig = make_rig(commit_interval_s=1_000.0)
    rig.turns()
    rig.source.refuse_commits = True
    rig.cluster.send(A, b"1")
    rig.own(A)
    rig.turns(4)
    rig.source.refuse_commits = False
    rig.clock.advance(0.2)
    rig.sink.wait(lambda: len(rig.sink.written) == 1, "the label")


def test_what_poll_lost_before_the_mark_is_there_is_not_read_either(rig: Rig) -> None:
    rig.source.hold_commits = True
    rig.own(A)
    rig.source.poll_error = Retryable("poll failed")
    rig.until(lambda: rig.source.poll_error is None, "the error")
    rig.turns(2)
    assert rig.source._leases == {}
    rig.source.hold_commits = False


@pytest.mark.parametrize("how", ["revoke", "stop"])
def test_an_owner_that_ends_in_order_leaves_no_mark(rig: Rig, how: str) -> None:
    rig.cluster.send(A, b"1")
    rig.own(A, B)
    rig.until_committed(A, 1)
    assert rig.note(A).in_hand == rig.note(B).in_hand == MOST_IN_HAND
    if how == "revoke":
        rig.done(rig.source.revoke(A, B))
    else:
        rig.stop()
    assert rig.note(A).in_hand == rig.note(B).in_hand == 0
    assert (rig.committed(A), rig.committed(B)) == (1, 0)


def test_a_partition_that_is_lost_keeps_its_mark(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    rig.done(rig.source.lose(A))
    assert rig.note(A).in_hand == MOST_IN_HAND


def test_a_decoder_that_hangs_ends_the_process_and_leaves_its_mark_alone(rig: Rig) -> None:
    _stuck_in(rig, "decode")
    rig.until_committed(A, 0)
    rig.until_committed(B, 0)
    rig.clock.advance(31.0)
    rig.turns()
    rig.clock.advance(2.0)
    assert isinstance(rig.ended(), DecoderStuck)
    assert (rig.note(A).in_hand, rig.note(B).in_hand) == (MOST_IN_HAND, 0)
    assert rig.committed(A) == 0


def test_a_decode_that_a_drain_leaves_behind_keeps_the_mark(rig: Rig) -> None:
    _stuck_in(rig, "decode")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.clock.advance(11.0)
    rig.done(revoked)
    assert rig.note(A).in_hand == MOST_IN_HAND


def _left_without_a_word(rig: Rig, *values: bytes, in_hand: int = 1_200) -> None:
    """The last owner of A is gone, and these lie behind what it committed."""
    rig.cluster.committed[A] = CommitPoint(0, Note("id-1", 2, in_hand=in_hand).dump())
    rig.cluster.send(A, *values)


def test_what_an_owner_left_without_a_word_is_decoded_in_the_sandbox_and_nothing_else(rig: Rig) -> None:
    _left_without_a_word(rig, b"1", b"2", b"3")
    rig.sandbox.culprits = {b"2"}
    rig.own(A, B)
    rig.until_committed(A, 3)
    rig.cluster.send(A, b"4")
    rig.cluster.send(B, b"5")
    rig.until_committed(A, 4)
    rig.until_committed(B, 1)
    assert sorted(rig.sandbox.decoded) == [b"1", b"2", b"3"]
    assert [record.topic for record in rig.sink.written].count("images.dlq") == 1
    rig.done(rig.source.revoke(A, B))
    assert rig.note(A).in_hand == 0
    _nothing_left(rig)


def test_no_more_are_suspect_than_the_last_owner_had_in_hand(rig: Rig) -> None:
    _left_without_a_word(rig, b"1", b"2", b"3", in_hand=2)
    rig.own(A)
    rig.until_committed(A, 3)
    assert sorted(rig.sandbox.decoded) == [b"1", b"2"]


def test_suspects_that_are_left_at_a_revoke_stay_suspects_of_the_next_owner(rig: Rig) -> None:
    _left_without_a_word(rig, b"1", b"2", b"3")
    rig.sandbox.gate.clear()
    rig.own(A)
    rig.until(lambda: bool(rig.sandbox.decoded), "a suspect to be with the sandbox")
    revoked = rig.source.revoke(A)
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.sandbox.gate.set()
    rig.done(revoked)
    assert (rig.committed(A) or 0) <= 1
    assert rig.note(A).in_hand == MOST_IN_HAND
    rig.own(A)
    rig.until_committed(A, 3)
    assert set(rig.sandbox.decoded) == {b"1", b"2", b"3"}
    rig.done(rig.source.revoke(A))
    assert rig.note(A).in_hand == 0


def test_a_suspect_that_slips_through_while_stopping_stays_one(rig: Rig) -> None:
    _left_without_a_word(rig, b"1", b"2")
    rig.sandbox.gate.clear()

    def one_only() -> None:
        if rig.source._at.get(A) == 1:
            rig.source.deaf[A] = 1_000

    rig.source.on_poll = one_only
    rig.own(A)
    rig.until(lambda: bool(rig.sandbox.decoded), "a suspect to be with the sandbox")
    rig.pipeline.stop()
    rig.until(lambda: not rig.ledgers[A].lease.wants_new_work, "the drain to begin")
    rig.source.on_poll = lambda: None
    rig.source.deaf.clear()
    rig.source.paused.clear()
    rig.until(lambda: rig.source.position(A) == 2, "the other to slip through")
    rig.sandbox.gate.set()
    rig.stop()
    assert (rig.committed(A), rig.note(A).in_hand) == (1, MOST_IN_HAND)


def test_without_a_sandbox_the_process_ends_and_the_suspects_stay(rig: Rig) -> None:
    _left_without_a_word(rig, b"1")
    rig.sandbox.missing = True
    rig.own(A)
    assert isinstance(rig.ended(), SandboxFailed)
    assert (rig.committed(A), rig.note(A).in_hand) == (0, MOST_IN_HAND)


# --- intake ---------------------------------------------------------------------------------------------------------


def test_no_more_is_in_flight_than_the_bound_and_intake_goes_on_below_it(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.cluster.send(A, *[b"1"] * 300)
    rig.own(A)
    rig.until(lambda: rig.ledgers[A].in_flight == 64, "64 in flight")
    rig.clock.advance(2.0)
    rig.until(lambda: A in rig.source.paused, "the pause")
    assert rig.ledgers[A].in_flight == 64
    rig.runtime.gate.set()
    rig.until_committed(A, 300)
    assert len(rig.sink.written) == 300
    _nothing_left(rig)


def test_a_message_of_an_old_lease_is_not_taken(rig: Rig) -> None:
    rig.own(A)
    rig.until_committed(A, 0)
    stale = Delivery(rig.ledgers[A].lease, 0, b"1")
    rig.done(rig.source.lose(A))
    rig.own(A)
    rig.pipeline._take(stale)
    assert rig.ledgers[A].in_flight == 0


# --- a range --------------------------------------------------------------------------------------------------------

ALL = Range(None, None)


def _with_messages() -> FakeCluster:
    """Three messages in A, at 0, 1 and 4; two in B."""
    cluster = FakeCluster({"images": 2})
    cluster.send(A, b"1", b"2")
    cluster.send(A, b"3", gap=2)
    cluster.send(B, b"1", b"2")
    return cluster


def test_a_range_ends_the_loop_when_all_of_it_is_committed(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.cluster.send(A, b"later")
    rig.own(A, B)
    rig.until_committed(A, 5)
    rig.until_committed(B, 2)
    rig.clock.advance(1.5)  # the group is asked once a second
    rig.thread.join(8)
    assert not rig.thread.is_alive()
    assert rig.error is None
    assert rig.pipeline.finished
    assert len(rig.sink.written) == 5
    assert rig.progress[-1] == Progress(done=7, total=7, finished=True)


def test_a_message_after_the_range_is_not_taken_and_its_partition_rests(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.cluster.send(A, b"later", b"and later")
    rig.own(A)  # B is another's
    rig.until_committed(A, 5)
    rig.until(lambda: A in rig.source.paused, "A to pause")
    assert len(rig.sink.written) == 3
    assert not rig.pipeline.finished


def test_a_range_waits_for_the_other_replicas(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.own(A)
    rig.until_committed(A, 5)
    rig.clock.advance(1.5)
    rig.until(lambda: rig.progress[-1] == Progress(5, 7, finished=False), "the progress to be told")
    assert rig.thread.is_alive()
    rig.cluster.committed[B] = CommitPoint(2, rig.cluster.committed[B].metadata)  # the other one is done
    rig.clock.advance(1.5)
    rig.until(lambda: rig.pipeline.finished, "the end")


def test_a_partition_that_another_left_half_done_is_finished(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.own(A)
    rig.cluster.committed[B] = CommitPoint(1, rig.cluster.committed[B].metadata)
    rig.own(B)
    rig.until_committed(B, 2)
    assert len(rig.sink.written) == 4


def test_a_gap_at_the_end_of_a_range_is_no_message_to_wait_for(make_rig: Callable[..., Rig]) -> None:
    cluster = _with_messages()
    cluster.logs[A].end = 9  # transaction markers
    rig = make_rig(cluster, relabel=ALL)
    rig.own(A)
    rig.until_committed(A, 9)


def test_a_partition_that_appears_after_the_range_was_fixed_is_left_alone(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    added = rig.cluster.add_partition("images")
    rig.cluster.send(added, b"1")
    rig.done(rig.source.assign(added))
    rig.own(A, B)
    rig.until_committed(A, 5)
    rig.until_committed(B, 2)
    rig.clock.advance(1.5)
    rig.thread.join(8)
    assert rig.pipeline.finished
    assert len(rig.sink.written) == 5
    assert rig.committed(added) is None


def test_a_range_whose_topic_is_made_anew_ends_with_an_error(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.own(A)
    rig.cluster.create("images", 2, topic_id="id-2")
    rig.clock.advance(6)
    assert isinstance(rig.ended(), RecordsLost)


def test_a_range_is_not_finished_by_a_stop(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(_with_messages(), relabel=ALL)
    rig.own(A)
    rig.stop()
    assert not rig.pipeline.finished


def test_the_note_of_a_range_survives_the_dead_letter_limit(make_rig: Callable[..., Rig]) -> None:
    cluster = FakeCluster({"images": 1})
    cluster.send(A, b"0", b"fake://images/absent", b"fake://images/absent", b"fake://images/absent")
    rig = make_rig(cluster, relabel=ALL)
    part = rig.note(A).part
    assert part is not None
    rig.own(A)
    rig.until(lambda: rig.note(A).trip == "system", "the trip to be noted")
    assert rig.note(A).part == part


# --- stalls ---------------------------------------------------------------------------------------------------------

STALL_S = 10.0


def _pass_time(rig: Rig, seconds: float) -> None:
    """A second at a time; the loop turns, and its questions are answered, in each. Less where the loop ends."""
    polls: list[None] = []
    rig.source.on_poll = lambda: polls.append(None)
    for _ in range(int(seconds)):
        rig.clock.advance(1.0)
        polls.clear()
        rig.until(lambda: len(polls) >= 3 or not rig.thread.is_alive(), "three turns")
        rig.until(lambda: not rig.pipeline._stalls._asking or not rig.thread.is_alive(), "the answer")


def _is_read(rig: Rig, partition: Partition) -> None:
    """Its mark is at the broker, and reading has begun."""
    rig.until_committed(partition, 0)
    rig.until(lambda: partition not in rig.pipeline._leases.unmarked, "reading to begin")


def _stalls(rig: Rig, action: str) -> float:
    return rig.metrics.registry.get_sample_value("ouzel_stalls_total", {"action": action}) or 0.0


def test_a_partition_that_hands_nothing_over_is_begun_anew_and_goes_on(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A, B)
    _is_read(rig, A)
    rig.source.deaf[A] = 0  # hears again once it is started
    rig.cluster.send(A, b"1")
    rig.cluster.send(B, b"1")
    rig.until_committed(B, 1)
    _pass_time(rig, STALL_S - 2)
    assert _stalls(rig, "restart") == 0
    _pass_time(rig, 4)
    rig.until_committed(A, 1)
    assert (_stalls(rig, "restart"), _stalls(rig, "rejoin")) == (1, 0)
    assert rig.pipeline.stalled == frozenset()
    rig.stop()
    assert rig.error is None


def test_where_that_does_not_help_the_group_is_joined_again(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A, B)
    _is_read(rig, A)
    rig.source.deaf[A] = 1
    rig.cluster.send(A, b"1")
    _pass_time(rig, 2 * STALL_S + 6)
    rig.until_committed(A, 1)
    assert (_stalls(rig, "restart"), _stalls(rig, "rejoin"), _stalls(rig, "exit")) == (1, 1, 0)
    rig.cluster.send(B, b"1")
    rig.until_committed(B, 1)  # everything is owned again
    rig.stop()
    assert rig.error is None


def test_where_nothing_helps_the_process_ends_and_livez_turns_before(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    _is_read(rig, A)
    rig.source.deaf[A] = 1_000
    rig.cluster.send(A, b"1")
    seen = False
    for _ in range(5 * int(STALL_S)):
        _pass_time(rig, 1)
        seen = seen or rig.pipeline.stalled == {A}
        if not rig.thread.is_alive():
            break
    assert seen
    error = rig.ended()
    assert isinstance(error, Stalled)
    assert error.exit_code == 17
    assert "images[0]" in str(error)
    assert _stalls(rig, "exit") == 1


def test_no_traffic_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.cluster.send(A, b"1")
    rig.cluster.logs[A].end += 1  # a marker at the end
    rig.own(A, B)
    rig.until_committed(A, 2)
    _pass_time(rig, 4 * STALL_S)
    assert _stalls(rig, "restart") == 0


def test_an_output_that_is_away_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    _is_read(rig, A)
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.cluster.send(A, *[b"1"] * 80)  # more than may be in flight
    rig.sink.wait(lambda: len(rig.sink.held) == 64, "all that there is room for")
    _pass_time(rig, 5 * STALL_S)
    assert _stalls(rig, "restart") == 0
    rig.sink.answers = lambda _: None
    for _ in range(64):
        rig.sink.answer()
    rig.until_committed(A, 80)


def test_a_store_that_is_down_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.store.available = False
    rig.own(A)
    rig.cluster.send(A, *[b"fake://images/1"] * 80)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    _pass_time(rig, 5 * STALL_S)
    assert _stalls(rig, "restart") == 0


def test_a_broker_that_does_not_answer_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    _is_read(rig, A)
    rig.source.deaf[A] = 0
    rig.view.reachable = False
    rig.cluster.send(A, b"1")
    _pass_time(rig, 5 * STALL_S)
    assert _stalls(rig, "restart") == 0
    rig.view.reachable = True
    _pass_time(rig, 2 * STALL_S)
    rig.until_committed(A, 1)


def test_a_quota_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    _is_read(rig, A)
    rig.source.deaf[A] = 0
    rig.source.throttled_until_s = rig.clock.now_s + 5 * STALL_S
    rig.cluster.send(A, b"1")
    _pass_time(rig, 5 * STALL_S)
    assert _stalls(rig, "restart") == 0


def test_a_replica_that_holds_is_no_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    rig.cluster.send(A, *[b"fake://images/absent"] * 4)
    rig.until(lambda: rig.pipeline.holding, "the limit")
    rig.cluster.send(A, b"1")
    _pass_time(rig, 5 * STALL_S)
    assert _stalls(rig, "restart") == 0


def test_a_commit_that_is_refused_for_ever_is_a_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    rig.own(A)
    _is_read(rig, A)
    rig.source.refuse_commits = True
    rig.cluster.send(A, b"1")
    rig.sink.wait(lambda: len(rig.sink.written) == 1, "the label")
    _pass_time(rig, STALL_S + 2)
    assert _stalls(rig, "restart") == 1
    rig.source.refuse_commits = False
    rig.until_committed(A, 1)


def test_nobody_looks_for_stalls_where_the_setting_says_so(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=0.0)
    rig.own(A)
    _is_read(rig, A)
    rig.source.deaf[A] = 0
    rig.cluster.send(A, b"1")
    _pass_time(rig, 30)
    assert _stalls(rig, "restart") == 0


def test_a_partition_that_never_begins_is_a_stall(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(stall_s=STALL_S)
    asked = rig.pipeline._leases.ask_starts
    rig.pipeline._leases.ask_starts = lambda *_, **__: rig.pipeline._leases._ask_at_s.clear()  # type: ignore[method-assign]
    rig.cluster.send(A, b"1")
    rig.done(rig.source.assign(A))
    _pass_time(rig, STALL_S - 2)
    rig.pipeline._leases.ask_starts = asked  # type: ignore[method-assign]
    _pass_time(rig, 4)
    assert _stalls(rig, "restart") == 1
    rig.until_committed(A, 1)
