"""The loop of a share group over fakes: what is published, acknowledged, released or left to lapse. The loop runs in
threads of its own and is led by events; its clock, which is the broker's too, stands still unless a test moves it."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from consumer.errors import DeadLetterLimit as DeadLetterLimitReached
from consumer.errors import Fatal, ShareGroupRefused, TopicMissing
from consumer.flow import Flow
from consumer.messages import OutputRecord
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.share_pipeline import SharePipeline, ShareRules
from consumer.silence import SilenceLimit
from consumer.stages.batch import Batcher
from consumer.stages.dead_letter_limit import DeadLetterLimit
from consumer.stages.events import EventContext
from consumer.stages.intake import ByteBudget, Intake
from consumer.stages.publish import Publisher
from consumer.stages.retry import Retries
from tests.fake_share import FakeShareGroup, FakeShareSource
from tests.fakes import (
    FakeClock,
    FakeCluster,
    FakeDecoder,
    FakeGroupView,
    FakeImageStore,
    FakeRuntime,
    FakeSandbox,
    FakeSink,
    fake_parse,
    fake_serving,
)
from tests.processes import wait_until

LOCK_S = 30.0
URI = b"fake://images/1"


class Rig:
    """A whole replica over fakes: two members, polls of four. Two system letters in a row reach the limit."""

    def __init__(self, group: FakeShareGroup | None = None, *, max_attempts: int = 1, **rules: Any) -> None:
        self.clock = group.clock if group is not None else FakeClock()
        self.group = group or FakeShareGroup(self.clock, lock_s=LOCK_S)
        self.source = FakeShareSource(self.group)
        self.cluster = FakeCluster({"images": 1})
        self.view = FakeGroupView(self.cluster)
        self.sink = FakeSink()
        self.store = FakeImageStore({URI.decode(): b"1"})
        self.decoder = FakeDecoder()
        self.sandbox = FakeSandbox()
        self.runtime = FakeRuntime()
        self.budget = ByteBudget(100_000)
        limit = DeadLetterLimit(
            window_s=60, min_sample=1_000, content_ratio=0.95, system_ratio=0.5, system_consecutive=2
        )
        self.metrics = Metrics(CollectorRegistry())
        observer = Observer(self.metrics, self.clock)
        options: dict[str, Any] = {
            "lock_duration_s": LOCK_S,
            "delivery_count_limit": 5,
            "drain_timeout_s": 10.0,
            "metadata_interval_s": 5.0,
            "topics": ("images",),
            "exit_on_limit": False,
        }
        self.pipeline = SharePipeline(
            source=self.source,
            view=self.view,
            intake=Intake(max_messages=64, max_bytes=100_000, max_uncommitted=1_000),
            budget=self.budget,
            clock=self.clock,
            observer=observer,
            rules=ShareRules(**{**options, **rules}),
        )
        self.publisher = Publisher(
            self.sink,
            context=EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024),
            limit=limit,
            clock=self.clock,
            observer=observer,
            forward_tombstones=False,
            redo_backoff_s=0.0,
            on_settled=self.pipeline.settled,
            on_crash=self.pipeline.crashed,
        )
        self.flow = Flow(
            parser=fake_parse,
            stores=[self.store],
            serving=fake_serving(self.runtime, self.decoder, self.sandbox, clock=self.clock),
            batcher=Batcher(max_size=4, max_bytes=10_000, max_wait_ms=0),
            retries=Retries(
                max_attempts=max_attempts,
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
            infer_deadline_s=600.0,
            decode_deadline_s=600.0,
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

    # --- what tests do ----------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(
            condition,
            timeout_s=8,
            what=f"{what} (error: {self.error!r}, messages: {self.group.records})",
            interval_s=0.002,
        )

    def until_states(self, *states: str) -> None:
        self.until(lambda: self.group.states() == list(states), f"messages to be {states}")

    def lapse(self) -> None:
        """Every lock that is held now is over."""
        self.clock.advance(LOCK_S + 0.001)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

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
        self.flow._model_thread.join(20)
        self.publisher.close()
        self.sink.close(0.0)
        assert not self.publisher._thread.is_alive()
        assert not any(seat.thread.is_alive() for seat in self.pipeline._seats), "a member did not leave"


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(group: FakeShareGroup | None = None, **options: Any) -> Rig:
        made.append(Rig(group, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.clean()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def _events(rig: Rig) -> list[str]:
    return sorted(_subject(each) for each in rig.sink.written if each.topic == "predictions")


def _letters(rig: Rig) -> list[str]:
    return [
        (dict(each.headers)["__connect.errors.exception.class.name"] or b"").decode()
        for each in rig.sink.written
        if each.topic == "images.dlq"
    ]


def _subject(record: OutputRecord) -> str:
    return (dict(record.headers)["ce_subject"] or b"").decode()


def _event_id(record: OutputRecord) -> bytes:
    return dict(record.headers)["ce_id"] or b""


def _nothing_left(rig: Rig) -> None:
    rig.until(lambda: rig.budget.used_bytes == 0, "every byte off the books")
    rig.until(lambda: not rig.flow._stage_of, "every stage to be empty")
    rig.until(lambda: not rig.publisher._held and rig.publisher._order.waiting == 0, "the publisher to be empty")


# --- plain sailing --------------------------------------------------------------------------------------------------


def test_messages_become_labels_letters_or_nothing_and_are_accepted(rig: Rig) -> None:
    rig.group.send(b"1", b"bad", None, b"2|skip", URI, b"3", b"4", b"5", b"6")
    rig.until_states(*["done"] * 9)
    assert len(_events(rig)) == 7
    assert _letters(rig) == ["NotAnImage"]
    _nothing_left(rig)
    rig.stop()
    assert rig.error is None
    assert all(member.closed for member in rig.source.members)
    assert rig.metric("ouzel_share_locks_lapsed_total") == 0


def test_nothing_is_accepted_before_the_output_has_it(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(b"1", b"2")
    rig.sink.wait(lambda: len(rig.sink.held) == 2, "two events")
    assert rig.group.states() == ["locked", "locked"]
    rig.sink.answer(1)
    rig.until(lambda: rig.group.states().count("done") == 1, "the one that the output has")
    rig.sink.answer()
    rig.until_states("done", "done")


def test_one_member_polls_while_the_images_of_another_are_labelled(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(*[b"1"] * 12)
    rig.sink.wait(lambda: len(rig.sink.held) == 8, "the images of two polls")
    assert rig.group.states() == ["locked"] * 8 + ["available"] * 4
    rig.sink.answers = lambda _: None
    for _ in range(8):
        rig.sink.answer()
    rig.until_states(*["done"] * 12)


def test_a_message_that_came_before_is_decoded_in_the_sandbox(rig: Rig) -> None:
    rig.group.send(b"1", deliveries=1)
    rig.until_states("done")
    assert rig.metric("ouzel_sandboxed_images_total") == 1
    assert rig.metric("ouzel_share_deliveries_again_total") == 1


# --- locks ----------------------------------------------------------------------------------------------------------


def test_nothing_is_published_for_a_message_whose_lock_has_lapsed(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.group.send(b"1")
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have it")
    rig.lapse()
    rig.runtime.gate.set()
    rig.until_states("done")  # by its second delivery
    assert _events(rig) == ["images[0]-0"]
    assert rig.group.records[0].deliveries == 2
    assert rig.metric("ouzel_share_locks_lapsed_total") == 1
    assert rig.group.released == []
    _nothing_left(rig)


def test_a_lock_is_taken_as_lapsed_a_while_before_it_is(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.group.send(b"1")
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have it")
    rig.clock.advance(LOCK_S * 0.95)
    rig.runtime.gate.set()
    rig.until_states("done")
    assert rig.group.records[0].deliveries == 2


def test_what_was_written_late_is_accepted_while_the_lock_still_holds(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(b"1", b"2", b"3")
    rig.sink.wait(lambda: len(rig.sink.held) == 3, "three events")
    rig.clock.advance(LOCK_S * 0.95)
    for _ in range(3):
        rig.sink.answer()
    rig.until_states("done", "done", "done")
    assert [each.deliveries for each in rig.group.records] == [1, 1, 1]


def test_an_acknowledgement_that_is_refused_is_counted(rig: Rig) -> None:
    rig.source.members[0].refuse = rig.source.members[1].refuse = True
    rig.group.send(b"1", b"2")
    rig.until(lambda: rig.metric("ouzel_share_locks_lapsed_total") == 2, "the count")
    assert rig.metric("ouzel_commits_total", result="error") >= 1


# --- what is down ---------------------------------------------------------------------------------------------------


def test_a_store_that_is_down_for_long_costs_a_message_one_delivery(rig: Rig) -> None:
    rig.store.available = False
    rig.group.send(URI, b"1")
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.until(lambda: not rig.pipeline.gate.is_set(), "members to stop polling")
    rig.until_states("locked", "done")
    rig.group.send(b"2", b"3")
    for _ in range(8):  # as many locks' time as would exhaust it
        rig.lapse()
        asked = len(rig.store.fetched)
        rig.until(lambda asked=asked: len(rig.store.fetched) > asked, "the probe to ask again")  # type: ignore[misc]
    assert rig.group.records[0].deliveries == 1
    assert rig.group.records[2].deliveries <= 1  # a poll may have been under way
    rig.store.available = True
    rig.clock.advance(5)
    rig.until_states("done", "done", "done", "done")
    assert _letters(rig) == []
    assert rig.group.records[0].deliveries == 2
    assert _events(rig) == ["images[0]-0", "images[0]-1", "images[0]-2", "images[0]-3"]


def test_a_store_too_slow_for_the_attempts_of_one_lock_is_presumed_down(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_attempts=5)
    rig.store.available = False
    rig.group.send(URI)
    rig.until(lambda: len(rig.store.fetched) == 1, "the first attempt")
    rig.lapse()
    rig.until(lambda: bool(rig.flow.down_stores()), "the second one to decide")
    assert rig.group.records[0].deliveries <= 2  # the other member may have been handed it meanwhile
    rig.store.available = True
    rig.clock.advance(5)
    rig.until_states("done")
    assert _letters(rig) == []


def test_an_output_that_is_slow_stops_polling(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(b"1")
    rig.sink.wait(lambda: len(rig.sink.held) == 1, "its event")
    rig.clock.advance(6)
    rig.until(lambda: not rig.pipeline.gate.is_set(), "members to stop polling")
    rig.sink.answer()
    rig.until(rig.pipeline.gate.is_set, "members to poll again")


def test_while_the_dead_letter_limit_holds_nothing_is_polled_and_locks_lapse(rig: Rig) -> None:
    rig.group.send(b"fake://images/absent", b"fake://images/gone")
    rig.until(lambda: rig.pipeline.holding, "the limit to hold")
    rig.until(lambda: not rig.pipeline.gate.is_set(), "members to stop polling")
    rig.until(lambda: sorted(rig.group.states()) == ["done", "locked"], "the first one, not the one that tripped it")
    rig.lapse()
    rig.pipeline.resume()
    rig.until_states("done", "done")
    assert sorted(_letters(rig)) == ["ImageNotFound"] * 2


def test_the_limit_may_end_the_replica(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(exit_on_limit=True)
    rig.group.send(b"fake://images/absent", b"fake://images/gone")
    assert isinstance(rig.ended(), DeadLetterLimitReached)
    assert "discarded" not in rig.group.states()


# --- the delivery limit ---------------------------------------------------------------------------------------------


def test_a_message_near_the_delivery_limit_becomes_a_letter_before_the_broker_drops_it(rig: Rig) -> None:
    rig.group.send(b"1", deliveries=3)
    rig.until_states("done")
    assert _letters(rig) == ["DeliveriesExhausted"]
    assert rig.group.records[0].deliveries == 4


def test_below_that_it_is_tried(rig: Rig) -> None:
    rig.group.send(b"1", deliveries=2)
    rig.until_states("done")
    assert _letters(rig) == []


def test_while_a_store_is_down_it_is_tried_once_more_and_a_letter_at_the_limit(rig: Rig) -> None:
    rig.store.available = False
    rig.runtime.gate.clear()
    rig.group.send(b"1")  # keeps one member busy
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have it")
    rig.group.send(URI)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.lapse()
    rig.runtime.gate.set()  # its lock lapsed for nothing: for a while that is what deliveries are spent by
    rig.group.send(b"2", deliveries=3)
    rig.group.send(b"3", deliveries=4)
    rig.store.available = True
    rig.clock.advance(5)
    rig.until_states("done", "done", "done", "done")
    assert _letters(rig) == ["DeliveriesExhausted"]
    assert "images[0]-2" in _events(rig)


def test_its_letter_is_not_held_back_by_the_dead_letter_limit(rig: Rig) -> None:
    rig.group.send(*[b"1"] * 6, deliveries=3)
    rig.until(lambda: len(_letters(rig)) >= 4, "the letters of a whole poll, over the limit")
    rig.until(lambda: rig.pipeline.holding, "the limit to hold all the same")
    rig.pipeline.resume()
    rig.until_states(*["done"] * 6)
    assert "discarded" not in rig.group.states()


# --- shutdown -------------------------------------------------------------------------------------------------------


def test_a_stop_finishes_what_has_begun_and_releases_the_rest_at_once(rig: Rig) -> None:
    rig.sink.answers = lambda record: FakeSink.HOLD if _subject(record) == "images[0]-0" else None
    rig.group.send(b"1", b"2")
    rig.sink.wait(lambda: bool(rig.sink.held), "the first event under way")
    rig.until(lambda: rig.group.states() == ["locked", "done"], "the second to be done")
    ticks = threading.Semaphore(0)
    rig.flow.tick = ticks.release  # type: ignore[method-assign]
    rig.pipeline.stop()
    rig.until(lambda: rig.pipeline.leaving, "the drain to begin")
    for _ in range(5):
        assert ticks.acquire(timeout=8), "it waits for what has begun"
    rig.sink.answer()
    rig.thread.join(8)
    assert rig.group.states() == ["done", "done"]
    assert rig.error is None


def test_what_is_not_finished_by_the_deadline_is_released_and_not_published(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.group.send(b"1", b"2", b"3", b"4", b"5")
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have some")
    rig.pipeline.stop()
    rig.until(lambda: rig.pipeline.leaving, "the drain to begin")
    rig.clock.advance(11)
    rig.thread.join(8)
    assert not rig.thread.is_alive()
    assert rig.group.states() == ["available"] * 5
    rig.runtime.gate.set()
    rig.until(lambda: not rig.flow._stage_of, "every stage to be empty")
    rig.until(lambda: not rig.publisher._held, "the publisher to be empty")
    assert _events(rig) == []
    assert all(each.deliveries == 1 for each in rig.group.records)


def test_messages_that_wait_for_a_store_are_released_at_once(rig: Rig) -> None:
    rig.store.available = False
    rig.group.send(URI, URI)
    rig.until(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.stop()
    assert rig.group.states() == ["available", "available"]
    assert sorted(rig.group.released) == [0, 1]


def test_after_an_error_another_replica_gets_what_was_in_hand_at_once(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.group.send(b"1")
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have it")
    rig.pipeline.crashed(Fatal("a fault"))
    assert isinstance(rig.ended(), Fatal)
    assert rig.group.states() == ["available"]


def test_what_a_last_poll_brings_for_the_last_time_becomes_a_letter(rig: Rig) -> None:
    polling, go = threading.Event(), threading.Event()
    poll = rig.source.members[0].poll

    def wait_and_poll(timeout_s: float) -> Any:
        polling.set()
        go.wait(8)
        return poll(timeout_s)

    rig.source.members[0].poll = wait_and_poll  # type: ignore[method-assign]
    assert polling.wait(8)
    rig.pipeline.stop()
    rig.until(lambda: rig.pipeline.leaving, "the replica to stop")
    rig.until(lambda: not rig.pipeline._seats[1].thread.is_alive(), "the other member to leave")
    rig.group.send(b"1", deliveries=4)
    rig.group.send(b"2", deliveries=3)
    go.set()
    rig.thread.join(8)
    assert not rig.thread.is_alive()
    assert rig.group.states() == ["done", "available"]
    assert _letters(rig) == ["DeliveriesExhausted"]


def test_after_an_error_a_letter_at_the_last_delivery_is_seen_off(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(b"1", deliveries=4)
    rig.sink.wait(lambda: bool(rig.sink.held), "the letter under way")
    rig.pipeline.crashed(Fatal("a fault"))
    rig.until(lambda: rig.pipeline.leaving, "the replica to stop")
    rig.sink.answer()
    assert isinstance(rig.ended(), Fatal)
    assert rig.group.states() == ["done"]


def test_a_broker_without_share_groups_ends_it(make_rig: Callable[..., Rig]) -> None:
    group = FakeShareGroup(FakeClock(), lock_s=LOCK_S)
    rig = make_rig(group)
    rig.source.members[0].poll_error = ShareGroupRefused("none")
    assert isinstance(rig.ended(), ShareGroupRefused)


# --- topics ---------------------------------------------------------------------------------------------------------


def test_nothing_is_polled_before_the_topic_id_is_known(make_rig: Callable[..., Rig]) -> None:
    class Silent(Rig):
        def _run(self) -> None:
            self.view.reachable = False
            super()._run()

    rig = Silent()
    try:
        rig.group.send(b"1")

        def asked(times: int) -> bool:
            rig.clock.advance(0.1)
            return rig.view.asked >= times

        rig.until(lambda: asked(3), "the question, three times")
        assert rig.group.polls == 0
        rig.view.reachable = True
        rig.until(lambda: asked(4), "the question once more")
        rig.until_states("done")
    finally:
        rig.clean()


def test_a_topic_made_anew_discards_the_old_work(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.group.send(b"1")
    rig.until(lambda: "infer" in rig.flow.oldest(), "the model to have it")
    ((in_hand, _),) = rig.pipeline._in_hand.values()
    rig.cluster.create("images", 1, topic_id="id-2")
    rig.clock.advance(5)
    rig.until(lambda: in_hand.lease.ended, "the old work to be discarded")
    rig.runtime.gate.set()
    rig.until_states("done")
    assert rig.group.records[0].deliveries == 2, "what was in hand was published"
    assert len(_events(rig)) == 1


def _both_members_read(rig: Rig) -> None:
    """Eight images, four each."""
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.group.send(*[b"1"] * 8)
    rig.sink.wait(lambda: len(rig.sink.held) == 8, "the images of two polls")
    rig.sink.answers = lambda _: None
    for _ in range(8):
        rig.sink.answer()
    rig.until_states(*["done"] * 8)


def test_offsets_that_go_back_are_not_begun_before_the_topic_id_is_asked_for(rig: Rig) -> None:
    """Within the metadata interval nobody has seen that the topic is another one."""
    _both_members_read(rig)
    before = {_event_id(each) for each in rig.sink.written}
    rig.view.answering.clear()
    with rig.group.changed:
        rig.group.records.clear()
    rig.cluster.create("images", 1, topic_id="id-2")
    rig.group.send(b"2", b"3")
    rig.until(lambda: rig.group.states() == ["locked", "locked"], "the new topic to be read")
    rig.until(lambda: bool(rig.pipeline._asked_for), "the question")
    assert len(rig.sink.written) == 8
    rig.view.answering.set()
    rig.until_states("done", "done")
    assert len(rig.sink.written) == 10
    assert len(before | {_event_id(each) for each in rig.sink.written}) == 10, "an event id belongs to two images"


def test_what_waits_for_the_topic_id_is_handed_back_at_a_stop(rig: Rig) -> None:
    _both_members_read(rig)
    rig.view.answering.clear()
    with rig.group.changed:
        rig.group.records.clear()
    rig.group.send(b"2")
    rig.until(lambda: bool(rig.pipeline._asked_for), "the question")
    rig.stop()
    assert rig.group.states() == ["available"]


def test_a_topic_that_stays_away_ends_it(rig: Rig) -> None:
    rig.until(lambda: bool(rig.pipeline._topic_ids), "the topic's id")
    del rig.cluster.topics["images"]
    rig.clock.advance(5)
    rig.until(lambda: bool(rig.pipeline._absences.since_s), "the absence to be seen")
    rig.clock.advance(31)
    assert isinstance(rig.ended(), TopicMissing)
