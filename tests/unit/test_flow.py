"""The way of an image through the stages, with fakes at every port: every message has exactly one outcome."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consumer.errors import (
    ChecksumMismatch,
    DecoderCrashed,
    DecoderStuck,
    ImageNotFound,
    InferenceFailed,
    MalformedMessage,
    ModelError,
    NotAnImage,
    ProcessingFailed,
    ReferenceRefused,
    RuntimeStuck,
    SandboxFailed,
    SchemaNotLoaded,
    SchemaUnavailable,
    StoreBusy,
    StoreFailed,
)
from consumer.flow import Flow
from consumer.messages import (
    Abandoned,
    Decoded,
    Delivery,
    ImageJob,
    Labelled,
    Lease,
    LeaseState,
    Outcome,
    Parsed,
    Partition,
    Records,
    Rejected,
    Several,
    Skipped,
    StoredImage,
)
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.ports import MessageParser, RecordDecoder
from consumer.silence import SilenceLimit
from consumer.stages.batch import Batcher
from consumer.stages.fetch_cache import FetchCache
from consumer.stages.intake import ByteBudget
from consumer.stages.retry import Retries
from consumer.stages.serving import Serving, Servings
from consumer.stages.shadow import HandOff, Sample
from tests.fakes import (
    FakeClock,
    FakeDecoder,
    FakeImageStore,
    FakeRuntime,
    FakeSandbox,
    fake_parse,
    fake_serving,
)
from tests.processes import wait_until


class Rig:
    """A flow over fakes, its outcomes kept. `max_attempts` is 2 and backoff is drawn as 0."""

    def __init__(
        self,
        *,
        parser: MessageParser = fake_parse,
        tombstones: str = "skip",
        cache_bytes: int = 0,
        schemas: RecordDecoder | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.store = FakeImageStore()
        self.decoder = FakeDecoder()
        self.sandbox = FakeSandbox()
        self.runtime = FakeRuntime()
        self.budget = ByteBudget(10_000)
        self.outcomes: list[Outcome] = []
        self.crashes: list[BaseException] = []
        self.changed = threading.Condition()
        self.lease = Lease(Partition("images", 0), epoch=1, topic_id="")
        self.metrics = Metrics(CollectorRegistry())
        observer = Observer(self.metrics, self.clock)
        self.cache = FetchCache(
            max_bytes=cache_bytes, max_age_s=60, monotonic_s=self.clock.monotonic_s, told=observer.fetch_cache
        )
        self.hand_off = HandOff(self.budget)
        self.flow = Flow(
            parser=parser,
            stores=[self.store],
            cache=self.cache if cache_bytes else None,
            serving=fake_serving(self.runtime, self.decoder, self.sandbox, clock=self.clock),
            batcher=Batcher(max_size=4, max_bytes=10_000, max_wait_ms=5),
            retries=Retries(
                max_attempts=2,
                initial_backoff_ms=100,
                max_backoff_ms=1_000,
                max_retry_after_ms=60_000,
                dice=lambda: 0.0,
            ),
            budget=self.budget,
            clock=self.clock,
            observer=observer,
            tombstones=tombstones,
            max_image_bytes=1_000,
            fetch_deadline_s=1.0,
            infer_deadline_s=60.0,
            decode_deadline_s=30.0,
            silence=SilenceLimit(600.0),
            decode_threads=2,
            fetch_concurrency=2,
            on_outcome=self._note,
            on_crash=self._note_crash,
            schemas=schemas,
            hand_off=self.hand_off,
        )
        self.flow.start()

    def _note(self, outcome: Outcome) -> None:
        with self.changed:
            self.outcomes.append(outcome)
            self.budget.release(outcome.delivery)  # as the owner does
            self.changed.notify_all()

    def _note_crash(self, error: BaseException) -> None:
        with self.changed:
            self.crashes.append(error)
            self.changed.notify_all()

    def submit(self, *values: bytes | None, lease: Lease | None = None, suspect: bool = False) -> list[Delivery]:
        lease = lease or self.lease
        first = len(self.outcomes) + 1_000 * id(lease) % 7
        sent = [Delivery(lease, first + n, value, suspect=suspect) for n, value in enumerate(values)]
        for delivery in sent:
            self.flow.submit(delivery)
        return sent

    def put(self, name: str, body: bytes) -> bytes:
        """Have an image in the store; the message that asks for it."""
        self.store.images[f"fake://images/{name}"] = body
        return b"fake://images/" + name.encode()

    def outcome(self, count: int = 1) -> list[Outcome]:
        """The first `count` outcomes; retries that are due go on their way."""
        self.wait(lambda: len(self.outcomes) >= count, f"{count} outcomes, of {self.outcomes}")
        return self.outcomes

    def of(self, delivery: Delivery) -> Outcome:
        """The one outcome of this delivery."""
        self.wait(lambda: any(o.delivery is delivery for o in self.outcomes), "its outcome")
        (found,) = [outcome for outcome in self.outcomes if outcome.delivery is delivery]
        return found

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            for _ in range(1_000):
                if self.changed.wait_for(condition, 0.01):
                    return
                self.flow.tick()
        raise AssertionError(f"waited 10 s for {what}")

    def waiting(self, delivery: Delivery) -> bool:
        """Whether it waits for its store."""
        return self.flow._stage_of.get(id(delivery), ("", 0.0))[0] == "waiting"

    def close(self) -> None:
        self.decoder.gate.set()
        self.runtime.gate.set()
        self.flow.close()
        self.flow._model_thread.join(10)  # `close` does not wait for a call that is past its deadline
        assert not self.flow._model_thread.is_alive()


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(**options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()
        rig.wait(lambda rig=rig: not rig.flow._stage_of, "every stage to be empty")  # type: ignore[misc]
        assert rig.budget.used_bytes == 0
        assert rig.flow._coming == 0
        assert Counter(id(o.delivery) for o in rig.outcomes).most_common(1)[0][1] == 1 if rig.outcomes else True


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def _several(outcome: Outcome) -> tuple[Outcome, ...]:
    assert isinstance(outcome, Several), outcome
    return outcome.outcomes


def _class(outcome: Outcome) -> int:
    assert isinstance(outcome, Labelled), outcome
    return outcome.labels[0].index


def _error(outcome: Outcome) -> tuple[type[Exception], str]:
    assert isinstance(outcome, Rejected), outcome
    return type(outcome.error), outcome.stage


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_an_inline_image_and_a_fetched_one_are_labelled(rig: Rig) -> None:
    inline, fetched = rig.submit(b"3", rig.put("four", b"4"))
    assert (_class(rig.of(inline)), _class(rig.of(fetched))) == (3, 4)


def test_a_bad_image_fails_no_neighbour(rig: Rig) -> None:
    rig.runtime.poison, rig.runtime.not_numbers = {5}, {6}
    sent = rig.submit(b"1", b"bad", b"5", b"crash", b"6", b"malformed", b"7", b"fake://images/absent", b"fake://other/")
    found = [rig.of(delivery) for delivery in sent]
    assert [_class(found[number]) for number in (0, 6)] == [1, 7]
    assert [_error(found[number]) for number in (1, 2, 3, 4, 5, 7, 8)] == [
        (NotAnImage, "decode"),
        (InferenceFailed, "infer"),
        (ProcessingFailed, "decode"),
        (InferenceFailed, "infer"),
        (MalformedMessage, "parse"),
        (ImageNotFound, "fetch"),
        (ReferenceRefused, "fetch"),
    ]


def test_a_defect_that_a_message_brings_out_is_its_letter_with_the_cause(make_rig: Callable[..., Rig]) -> None:
    def parse(delivery: Delivery) -> ImageJob:
        raise KeyError("a defect")

    rig = make_rig(parser=parse)
    (sent,) = rig.submit(b"1")
    outcome = rig.of(sent)
    assert _error(outcome) == (ProcessingFailed, "parse")
    assert isinstance(outcome, Rejected)
    assert isinstance(outcome.error.__cause__, KeyError)


def test_a_store_that_raises_what_it_must_not_costs_one_message(rig: Rig) -> None:
    rig.store.images["fake://images/x"] = None  # type: ignore[assignment]  # len(None) is the defect
    rig.store.fetch = lambda uri, **_: len(None)  # type: ignore[method-assign,arg-type,assignment]
    (sent,) = rig.submit(b"fake://images/x")
    assert _error(rig.of(sent)) == (ProcessingFailed, "fetch")


def test_bytes_that_are_not_the_promised_ones_are_a_letter_of_the_stage_that_brought_them(
    make_rig: Callable[..., Rig],
) -> None:
    def parse(delivery: Delivery) -> ImageJob:
        job = fake_parse(delivery)
        assert isinstance(job, ImageJob)
        return ImageJob(delivery, job.image_id, uri=job.uri, data=job.data, sha256="ab" * 32)

    rig = make_rig(parser=parse)
    inline, fetched = rig.submit(b"1", rig.put("one", b"1"))
    assert _error(rig.of(inline)) == (ChecksumMismatch, "parse")
    assert _error(rig.of(fetched)) == (ChecksumMismatch, "fetch")


@pytest.mark.parametrize(("tombstones", "kind"), [("skip", Skipped), ("forward", Skipped), ("dead_letter", Rejected)])
def test_a_tombstone_is_what_the_setting_says(make_rig: Callable[..., Rig], tombstones: str, kind: type) -> None:
    rig = make_rig(tombstones=tombstones)
    (sent,) = rig.submit(None)
    assert isinstance(rig.of(sent), kind)


_VALUES = st.sampled_from(
    [
        *(b"1", b"2", b"bad", b"crash", b"malformed", None, b"9", b"fake://images/absent", b"skip"),
        *(b"1|2", b"skip|malformed", b"bad|crash|9|3|fake://images/absent|skip", b"|".join([b"4"] * 20)),
    ]
)


@settings(max_examples=15)
@given(st.lists(_VALUES, max_size=40))
def test_every_message_has_exactly_one_outcome(values: list[bytes | None]) -> None:
    rig = Rig()
    rig.runtime.poison = {9}
    try:
        sent = rig.submit(*values)
        rig.outcome(len(sent))
        assert Counter(id(o.delivery) for o in rig.outcomes) == Counter(map(id, sent))
        rig.wait(lambda: not rig.flow._stage_of, "every stage to be empty")
        assert (rig.budget.used_bytes, rig.flow._coming) == (0, 0)
    finally:
        rig.close()


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_a_fetched_body_counts_as_soon_as_it_is_here(rig: Rig) -> None:
    """Decoding is slower than fetching: what piles up between the two is what the bound is for."""
    rig.decoder.gate.clear()
    message = rig.put("long", b"1" * 900)
    fetch, go_on = rig.store.fetch, threading.Event()

    def slow(uri: str, **limits: Any) -> StoredImage:
        assert go_on.wait(5)
        return fetch(uri, **limits)

    rig.store.fetch = slow  # type: ignore[method-assign]
    sent = rig.submit(*[message] * 4)
    rig.wait(lambda: all(map(rig.flow.has_begun, sent)), "all to be parsed")  # by the threads that decode
    go_on.set()  # two decode, two wait for a thread
    held = sum(delivery.size_bytes for delivery in sent) + 4 * 900
    rig.wait(lambda: rig.budget.used_bytes >= held, f"{held} bytes on the books")
    rig.decoder.gate.set()
    rig.outcome(4)


# --- retries --------------------------------------------------------------------------------------------------------


def test_a_store_that_fails_for_a_moment_costs_nothing(rig: Rig) -> None:
    rig.store.available = False
    (sent,) = rig.submit(rig.put("one", b"1"))
    rig.wait(lambda: len(rig.store.fetched) >= 1 and rig.waiting(sent), "a failed attempt")
    rig.store.available = True
    assert _class(rig.of(sent)) == 1


def test_images_that_find_no_room_at_their_store_are_fetched_one_after_the_other(rig: Rig) -> None:
    room = threading.Semaphore(1)
    serve = rig.store.fetch

    def fetch(uri: str, **bounds: Any) -> StoredImage:
        if not room.acquire(blocking=False):
            raise StoreBusy("no room")
        try:
            return serve(uri, **bounds)
        finally:
            room.release()

    rig.store.fetch = fetch  # type: ignore[method-assign]
    rig.submit(*(rig.put(f"{number}", b"7") for number in range(50)))
    assert {type(outcome) for outcome in rig.outcome(50)} == {Labelled}
    assert rig.metrics.registry.get_sample_value("ouzel_retries_total", {"stage": "fetch"}) in {None, 0.0}


def test_an_image_that_fails_while_its_store_serves_others_is_a_letter(rig: Rig) -> None:
    bad = rig.put("bad", b"1")
    good = rig.put("good", b"2")
    fetch = rig.store.fetch

    def flaky(uri: str, **limits: Any) -> StoredImage:
        rig.store.available = not uri.endswith("bad")
        return fetch(uri, **limits)

    rig.store.fetch = flaky  # type: ignore[method-assign]
    (sent,) = rig.submit(bad)
    rig.wait(lambda: bool(rig.store.fetched) and rig.waiting(sent), "a failed attempt")
    (other,) = [Delivery(rig.lease, 99, good)]
    rig.clock.advance(1.0)
    rig.flow.submit(other)
    assert _class(rig.of(other)) == 2
    outcome = rig.of(sent)
    assert _error(outcome) == (StoreFailed, "fetch")


def _down(rig: Rig, *messages: bytes) -> list[Delivery]:
    """The store is presumed down, and these wait for it; the first is the probe."""
    rig.store.available = False
    sent = rig.submit(messages[0])
    rig.wait(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.clock.advance(0.001)
    for number, message in enumerate(messages[1:], 1):
        sent.append(Delivery(rig.lease, 500 + number, message))
        rig.flow.submit(sent[-1])
    rig.wait(lambda: all(map(rig.waiting, sent)), "all to wait")
    return sent


def test_an_outage_empties_nothing_into_the_dead_letters(rig: Rig) -> None:
    sent = _down(rig, *[rig.put(str(n), b"%d" % n) for n in range(1, 6)])
    asked = len(rig.store.fetched)
    rig.wait(lambda: len(rig.store.fetched) > asked + 5, "more probes")
    # In turn: it may fail for the oldest alone. Each probe waits for the answer to the one before.
    assert rig.store.fetched[asked] == "fake://images/1"
    assert len(set(rig.store.fetched[asked : asked + 5])) == 5
    assert rig.outcomes == []
    assert rig.flow.oldest() == {}  # waiting for a store is progress
    rig.store.available = True
    assert [_class(rig.of(delivery)) for delivery in sent] == [1, 2, 3, 4, 5]
    assert rig.flow.down_stores() == {}


def test_a_probe_that_is_a_letter_leaves_no_image_waiting_for_ever(rig: Rig) -> None:
    """The probe's image was deleted during the outage: the store answers 404, and the others must go on."""
    probe, other = _down(rig, b"fake://images/deleted", rig.put("one", b"1"))
    rig.store.available = True
    assert _error(rig.of(probe)) == (ImageNotFound, "fetch")
    assert _class(rig.of(other)) == 1
    (later,) = rig.submit(rig.put("two", b"2"))
    assert _class(rig.of(later)) == 2


def test_a_probe_that_brings_out_a_defect_leaves_no_image_waiting_for_ever(rig: Rig) -> None:
    probe, other = _down(rig, rig.put("probe", b"3"), rig.put("one", b"1"))
    fetch = rig.store.fetch

    def defective(uri: str, **limits: Any) -> StoredImage:
        if uri.endswith("probe"):
            raise ZeroDivisionError
        return fetch(uri, **limits)

    rig.store.fetch = defective  # type: ignore[method-assign]
    rig.store.available = True
    assert _error(rig.of(probe)) == (ProcessingFailed, "fetch")
    assert _class(rig.of(other)) == 1


def test_a_probe_whose_lease_ends_while_it_is_out_leaves_no_image_waiting_for_ever(rig: Rig) -> None:
    old = Lease(Partition("images", 1), epoch=1, topic_id="")
    out, go_on = threading.Event(), threading.Event()
    fetch = rig.store.fetch

    def slow(uri: str, **limits: Any) -> StoredImage:
        if uri.endswith("probe") and not go_on.is_set():
            out.set()
            assert go_on.wait(5)
        return fetch(uri, **limits)

    rig.store.available = False
    (probe,) = rig.submit(rig.put("probe", b"3"), lease=old)
    rig.wait(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.store.fetch = slow  # type: ignore[method-assign]
    rig.wait(out.is_set, "the probe to be out")
    other = Delivery(rig.lease, 77, rig.put("one", b"1"))
    rig.flow.submit(other)
    rig.wait(lambda: rig.waiting(other), "another to wait")
    old.state = LeaseState.ENDED
    rig.flow.abandon_ended()
    go_on.set()
    assert isinstance(rig.of(probe), Abandoned)
    rig.store.available = True
    assert _class(rig.of(other)) == 1


def test_a_store_that_nobody_waits_for_is_not_shown_as_down(rig: Rig) -> None:
    _down(rig, rig.put("one", b"1"))
    down = ("ouzel_store_down", {"store": "fake://images"})
    assert rig.metrics.registry.get_sample_value(*down) == 1
    rig.lease.state = LeaseState.ENDED
    rig.flow.abandon_ended()
    rig.outcome(1)
    assert rig.metrics.registry.get_sample_value(*down) == 0


# --- leases ---------------------------------------------------------------------------------------------------------


def test_what_has_not_begun_when_a_drain_begins_is_abandoned(rig: Rig) -> None:
    rig.lease.state = LeaseState.DRAINING
    (sent,) = rig.submit(b"1")
    assert isinstance(rig.of(sent), Abandoned)


def test_what_has_begun_when_a_drain_begins_is_finished(rig: Rig) -> None:
    rig.decoder.gate.clear()
    (sent,) = rig.submit(b"1")
    rig.wait(lambda: rig.flow.has_begun(sent), "decoding to begin")
    rig.lease.state = LeaseState.DRAINING
    rig.decoder.gate.set()
    assert _class(rig.of(sent)) == 1


def test_a_message_is_still_begun_while_its_outcome_is_handed_on(rig: Rig) -> None:
    """A drain that saw it neither here nor with the publisher would not wait for it."""
    begun: list[bool] = []
    hand_on = rig.flow._on_outcome

    def note(outcome: Outcome) -> None:
        begun.append(rig.flow.has_begun(outcome.delivery))
        hand_on(outcome)

    rig.flow._on_outcome = note
    sent = rig.submit(b"1", b"bad", b"malformed", None, b"fake://images/absent", b"crash")
    rig.outcome(len(sent))
    assert begun == [True] * len(sent)


def test_a_drain_waits_for_no_store(rig: Rig) -> None:
    sent = _down(rig, rig.put("one", b"1"), rig.put("two", b"2"))
    rig.lease.state = LeaseState.DRAINING
    rig.flow.abandon_ended()
    assert [type(rig.of(delivery)) for delivery in sent] == [Abandoned, Abandoned]
    assert not any(rig.flow.has_begun(delivery) for delivery in sent)


def test_a_first_attempt_that_fails_after_its_lease_was_let_go_of_does_not_wait(rig: Rig) -> None:
    """Nobody would fetch it from the waiting room before its store is back, or the next rebalance."""
    _down(rig, rig.put("one", b"1"))
    ended = Lease(Partition("images", 9), epoch=1, topic_id="")
    parse, parsing, go_on = rig.flow._parser, threading.Event(), threading.Event()

    def slow(delivery: Delivery) -> Parsed:
        parsing.set()
        assert go_on.wait(5)
        return parse(delivery)

    rig.flow._parser = slow
    (sent,) = rig.submit(rig.put("two", b"2"), lease=ended)
    assert parsing.wait(5)
    ended.state = LeaseState.ENDED
    rig.flow.abandon_ended()
    go_on.set()
    assert isinstance(rig.of(sent), Abandoned)
    rig.store.available = True
    rig.outcome(2)


@pytest.mark.parametrize("value", [b"2", b"2|3|4|5"], ids=["one image", "several records"])
@pytest.mark.parametrize("stage", ["decode", "batch"])
def test_what_is_under_way_when_its_lease_ends_is_abandoned(rig: Rig, stage: str, value: bytes) -> None:
    gate = rig.decoder.gate if stage == "decode" else rig.runtime.gate
    gate.clear()
    if stage == "batch":
        rig.submit(b"1")
        assert rig.runtime.running.wait(5)
    ended = Lease(Partition("images", 9), epoch=1, topic_id="")
    (sent,) = rig.submit(value, lease=ended)
    rig.wait(lambda: rig.flow.oldest().keys() >= {stage}, f"the image in {stage}")
    ended.state = LeaseState.ENDED
    gate.set()
    assert isinstance(rig.of(sent), Abandoned)


# --- messages with several records ----------------------------------------------------------------------------------


def test_each_record_is_labelled_and_the_message_leaves_once(rig: Rig) -> None:
    (sent,) = rig.submit(b"|".join([b"3", rig.put("four", b"4"), b"5"]))
    outcomes = _several(rig.of(sent))
    assert [_class(outcome) for outcome in outcomes] == [3, 4, 5]
    assert [outcome.job.record_index for outcome in outcomes if isinstance(outcome, Labelled)] == [0, 1, 2]
    assert all(outcome.delivery.message is sent for outcome in outcomes)


def test_a_record_that_ends_otherwise_costs_no_other(rig: Rig) -> None:
    rig.runtime.poison = {6}
    values = [b"1", b"bad", b"skip", b"malformed", b"crash", b"6", b"fake://images/absent", b"fake://other/", b"2"]
    (sent,) = rig.submit(b"|".join(values))
    found = _several(rig.of(sent))
    assert [_class(found[number]) for number in (0, 8)] == [1, 2]
    assert isinstance(found[2], Skipped)
    assert [_error(found[number]) for number in (1, 3, 4, 5, 6, 7)] == [
        (NotAnImage, "decode"),
        (MalformedMessage, "parse"),
        (ProcessingFailed, "decode"),
        (InferenceFailed, "infer"),
        (ImageNotFound, "fetch"),
        (ReferenceRefused, "fetch"),
    ]


def test_a_record_of_a_scheme_that_no_store_serves_is_refused_alone(rig: Rig) -> None:
    def parse(delivery: Delivery) -> Records:
        found = fake_parse(delivery)
        assert isinstance(found, Records)
        first, second = found.entries
        assert isinstance(first, ImageJob)
        return Records(delivery, (replace(first, uri="gs://bucket/x", data=None), second))

    rig.flow._parser = parse
    (sent,) = rig.submit(b"1|2")
    refused, labelled = _several(rig.of(sent))
    assert (_error(refused), _class(labelled)) == ((ReferenceRefused, "parse"), 2)


@pytest.mark.parametrize("value", [b"skip", b"skip|skip", b"malformed|skip"])
def test_a_message_that_asks_for_no_image_leaves_at_once(rig: Rig, value: bytes) -> None:
    (sent,) = rig.submit(value)
    assert isinstance(rig.of(sent), Skipped | Several)
    assert rig.runtime.calls == []


def test_a_record_whose_store_fails_for_a_moment_is_tried_again_while_the_others_wait_for_it(rig: Rig) -> None:
    rig.store.available = False
    (sent,) = rig.submit(b"1|" + rig.put("two", b"2"))
    rig.wait(lambda: bool(rig.flow.down_stores()) and bool(rig.runtime.calls), "the store to be presumed down")
    assert rig.outcomes == []
    assert rig.flow.has_begun(sent)
    rig.wait(lambda: rig.flow.oldest() == {}, "the first to leave")  # and waiting for the second is no standstill
    rig.store.available = True
    assert [_class(outcome) for outcome in _several(rig.of(sent))] == [1, 2]


def test_a_message_of_which_one_record_is_abandoned_is_abandoned_once_the_others_are_done(rig: Rig) -> None:
    """The next owner reads it again, whole: publishing a part of it is nobody's gain."""
    rig.store.available = False
    rig.runtime.gate.clear()
    (sent,) = rig.submit(b"1|" + rig.put("two", b"2"))
    rig.wait(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    assert rig.runtime.running.wait(5)
    rig.lease.state = LeaseState.DRAINING
    rig.flow.abandon_ended()
    assert rig.flow.has_begun(sent)  # a drain waits for the one that is on the model
    assert rig.outcomes == []
    rig.runtime.gate.set()
    assert isinstance(rig.of(sent), Abandoned)


def test_after_an_abandoned_record_no_further_one_begins(rig: Rig) -> None:
    rig.budget.hold(rig, 10_000)
    rig.store.available = False
    (sent,) = rig.submit(rig.put("one", b"1") + b"|2|3")
    rig.wait(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
    rig.lease.state = LeaseState.DRAINING
    rig.flow.abandon_ended()
    assert isinstance(rig.of(sent), Abandoned)
    assert rig.runtime.calls == []
    rig.budget.release(rig)


def test_a_drain_finishes_a_message_whose_records_have_not_all_begun(rig: Rig) -> None:
    rig.budget.hold(rig, 10_000)
    rig.decoder.gate.clear()
    (sent,) = rig.submit(b"1|2|3")
    rig.wait(lambda: rig.flow.oldest().keys() >= {"decode"}, "the first record to be decoded")
    rig.lease.state = LeaseState.DRAINING
    rig.flow.abandon_ended()
    rig.decoder.gate.set()
    assert [_class(outcome) for outcome in _several(rig.of(sent))] == [1, 2, 3]
    rig.budget.release(rig)


def test_more_images_than_fit_begin_in_turn(rig: Rig) -> None:
    rig.budget.hold(rig, 10_000)
    fetch, most, under_way, lock = rig.store.fetch, [0], [0], threading.Lock()

    def counted(uri: str, **limits: Any) -> StoredImage:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], len(rig.flow._wholes[id(sent)].to_begin) + under_way[0])
        try:
            return fetch(uri, **limits)
        finally:
            with lock:
                under_way[0] -= 1

    rig.store.fetch = counted  # type: ignore[method-assign]
    sent = Delivery(rig.lease, 5, b"|".join(rig.put(str(n), b"%d" % n) for n in range(1, 7)))
    rig.flow.submit(sent)
    assert [_class(outcome) for outcome in _several(rig.of(sent))] == [1, 2, 3, 4, 5, 6]
    assert most[0] == 6  # the first was under way alone, with five to begin
    assert rig.runtime.calls == [[n] for n in range(1, 7)]  # and nothing ever waited beside another
    rig.budget.release(rig)


def test_a_message_with_several_records_is_begun_until_its_outcome_is_handed_on(rig: Rig) -> None:
    begun: list[bool] = []
    hand_on = rig.flow._on_outcome

    def note(outcome: Outcome) -> None:
        begun.append(rig.flow.has_begun(outcome.delivery))
        hand_on(outcome)

    rig.flow._on_outcome = note
    sent = rig.submit(b"1|2|bad", b"skip|skip", b"malformed|fake://images/absent")
    rig.outcome(len(sent))
    assert begun == [True] * 3


def test_closing_with_records_that_have_not_begun_ends_every_thread(rig: Rig) -> None:
    rig.budget.hold(rig, 10_000)
    rig.runtime.gate.clear()
    rig.submit(b"1|2|3")
    assert rig.runtime.running.wait(5)
    rig.flow._decode_pool.close()
    rig.flow._decode_pool.join(10)
    rig.flow._closed = True
    rig.runtime.gate.set()
    rig.flow.close()
    assert rig.crashes == []
    assert rig.outcomes == []
    rig.flow._stage_of.clear()  # dropped, never committed
    rig.flow._coming = 0
    rig.budget._held.clear()
    rig.budget._used = 0


# --- the model ------------------------------------------------------------------------------------------------------


def test_a_model_call_past_its_deadline_ends_the_process(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    rig.clock.advance(59.0)
    rig.flow.tick()
    rig.clock.advance(2.0)
    with pytest.raises(RuntimeStuck):
        rig.flow.tick()
    rig.runtime.gate.set()
    rig.outcome(1)


def _keep_decoding(rig: Rig, value: bytes) -> None:
    rig.decoder.gate.clear()
    (sent,) = rig.submit(value)
    rig.wait(lambda: rig.flow.is_decoding(sent), "decoding to begin")


def test_a_process_that_was_stopped_does_not_take_its_pause_for_a_stuck_model_or_decoder(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    _keep_decoding(rig, b"2")
    rig.clock.advance(100.0)
    rig.flow.tick()
    rig.clock.advance(1.0)
    rig.flow.tick()
    rig.runtime.gate.set()
    rig.decoder.gate.set()
    rig.outcome(2)
    rig.clock.advance(1.0)
    rig.flow.tick()


def test_a_decode_past_its_deadline_ends_the_process(rig: Rig) -> None:
    _keep_decoding(rig, b"1")
    rig.clock.advance(29.0)
    rig.flow.tick()
    rig.clock.advance(2.0)
    with pytest.raises(DecoderStuck, match=r"images\[0\] offset \d+ has not ended for 30 s") as caught:
        rig.flow.tick()
    assert "decode.deadline_ms" in caught.value.remedy
    rig.decoder.gate.set()
    rig.outcome(1)
    rig.flow.tick()


# --- a swap ---------------------------------------------------------------------------------------------------------


def _by(outcome: Outcome) -> str:
    assert isinstance(outcome, Labelled), outcome
    return outcome.model.version


def test_each_image_is_labelled_by_the_model_that_it_was_decoded_for(rig: Rig) -> None:
    """A swap while images wait for the model: those before it are the old one's, and no batch mixes the two."""
    second = FakeRuntime("2", side=3)
    second.others = set(range(256))
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    before = rig.submit(b"2", b"3", b"4")
    rig.wait(lambda: len(rig.flow._batcher) == 3, "three that wait for the model")
    rig.flow.swap(fake_serving(second))
    after = rig.submit(b"2", b"3", b"4")
    rig.wait(lambda: len(rig.flow._batcher) == 6, "six that do")
    assert rig.runtime.closed == 0
    rig.runtime.gate.set()
    assert [(_by(rig.of(each)), _class(rig.of(each))) for each in before] == [("1", 2), ("1", 3), ("1", 4)]
    assert [(_by(rig.of(each)), _class(rig.of(each))) for each in after] == [("2", 3), ("2", 4), ("2", 5)]
    assert rig.runtime.calls == [[1], [2, 3, 4]]
    assert second.calls == [[2, 3, 4]]
    assert rig.runtime.closed == 1
    assert second.closed == 0


def test_under_load_every_image_has_one_outcome_and_the_labels_of_its_digest(rig: Rig) -> None:
    runtimes = [rig.runtime, *(FakeRuntime(str(version), side=version) for version in (2, 3, 4))]
    for odd in runtimes[1::2]:
        odd.others = set(range(256))
    sent: list[Delivery] = []
    for runtime in runtimes:
        if runtime is not rig.runtime:
            rig.flow.swap(fake_serving(runtime))
        for number in range(50):
            sent += rig.submit(*[b"%d" % (number % 250)] * 3, rig.put(f"{number}", b"%d" % number), b"bad")
    outcomes = [rig.of(delivery) for delivery in sent]
    for delivery, outcome in zip(sent, outcomes, strict=True):
        if not isinstance(outcome, Labelled):
            assert delivery.value == b"bad"
            continue
        value = int(rig.store.images.get((delivery.value or b"").decode(), delivery.value or b""))
        even = int(outcome.model.version) % 2 == 0
        assert _class(outcome) == (value + even) % 8
    assert {_by(each) for each in outcomes if isinstance(each, Labelled)} >= {"4"}
    assert [runtime.closed for runtime in runtimes] == [1, 1, 1, 0]


def test_an_old_model_is_closed_when_its_last_image_turns_out_to_be_none(rig: Rig) -> None:
    began, go_on = threading.Event(), threading.Event()

    def refuse(body: bytes) -> Decoded:
        began.set()
        assert go_on.wait(5)
        raise NotAnImage(repr(body))

    rig.decoder.decode = refuse  # type: ignore[method-assign]
    (last,) = rig.submit(b"1")
    assert began.wait(5)
    rig.flow.swap(fake_serving(FakeRuntime("2")))
    assert rig.runtime.closed == 0
    go_on.set()
    assert _error(rig.of(last)) == (NotAnImage, "decode")
    rig.wait(lambda: rig.runtime.closed == 1, "its end")


def test_an_old_model_that_cannot_be_closed_harms_nobody(rig: Rig) -> None:
    rig.runtime.close = lambda: 1 / 0  # type: ignore[method-assign,assignment]
    rig.runtime.gate.clear()
    (last,) = rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    rig.flow.swap(fake_serving(FakeRuntime("2")))
    rig.runtime.gate.set()  # the model's thread closes it
    assert _by(rig.of(last)) == "1"
    (after,) = rig.submit(b"2")
    assert _by(rig.of(after)) == "2"
    assert rig.crashes == []
    assert rig.sandbox.closed == 1


def test_what_a_model_holds_is_freed_though_a_part_of_it_cannot_be() -> None:
    runtime, sandbox, released = FakeRuntime(), FakeSandbox(), []
    sandbox.close = lambda: 1 / 0  # type: ignore[method-assign,assignment]
    replace(fake_serving(runtime, sandbox=sandbox), release=lambda: released.append(1)).close()
    assert (runtime.closed, released) == (1, [1])


def test_the_current_model_is_one_however_swaps_fall() -> None:
    """A swap that comes between the look at the number and at its model waits."""
    servings = Servings(fake_serving(FakeRuntime("1")))
    swapping = threading.Thread(target=lambda: servings.swap(fake_serving(FakeRuntime("2"))))

    class Late(dict[int, Serving]):
        def __getitem__(self, number: int) -> Serving:
            if not swapping.ident:
                swapping.start()
                swapping.join(0.1)
            return super().__getitem__(number)

    servings._by_number = Late(servings._by_number)
    assert servings.current.info.version == "1"
    swapping.join(5)
    assert servings.current.info.version == "2"


def test_an_abandoned_batch_lets_the_old_model_go_too(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    other = Lease(Partition("images", 1), epoch=1, topic_id="")
    rig.submit(b"2", lease=other)
    rig.wait(lambda: len(rig.flow._batcher) == 1, "one that waits")
    rig.flow.swap(fake_serving(FakeRuntime("2")))
    other.state = LeaseState.ENDED
    rig.runtime.gate.set()
    rig.outcome(2)
    rig.wait(lambda: rig.runtime.closed == 1, "its end")


def test_suspects_are_decoded_in_the_sandbox_of_the_model_that_labels_them(rig: Rig) -> None:
    serving = fake_serving(FakeRuntime("2", side=3))
    rig.flow.swap(serving)
    assert rig.sandbox.closed == 1
    (sent,) = rig.submit(b"1", suspect=True)
    assert _by(rig.of(sent)) == "2"
    assert isinstance(serving.sandbox, FakeSandbox)
    assert serving.sandbox.decoded == [b"1"]
    assert rig.sandbox.decoded == []


def test_room_is_held_for_the_pixels_of_the_model_that_labels(rig: Rig) -> None:
    rig.decoder.gate.clear()
    rig.submit(b"1", b"1")
    rig.wait(lambda: len(rig.flow._with_decoder) == 2, "both threads to decode")
    (waiting,) = rig.submit(b"2")  # let in for the old model, decoded for the new one
    held = rig.budget.used_bytes
    serving = fake_serving(FakeRuntime("2", side=5))
    decoder = serving.decoder
    assert isinstance(decoder, FakeDecoder)
    decoder.gate.clear()
    rig.flow.swap(serving)
    (fresh,) = rig.submit(b"3")
    assert rig.budget.used_bytes == held + fresh.size_bytes + 5 * 5 * 3
    rig.decoder.gate.set()
    rig.wait(lambda: rig.flow.is_decoding(waiting) and rig.flow.is_decoding(fresh), "both to be with the new decoder")
    rig.clock.advance(1.0)  # others are on their way, and a batch waits for them no longer than it may
    with rig.flow._batch_changed:
        rig.flow._batch_changed.notify_all()
    rig.wait(lambda: len(rig.outcomes) == 2, "those of the old one")
    reserved = 2 * 4 * 4 * 3
    rig.wait(
        lambda: rig.budget.used_bytes == waiting.size_bytes + fresh.size_bytes + 2 * 5 * 5 * 3 + reserved,
        "room for two of the new size",
    )
    decoder.gate.set()
    rig.outcome(4)


def test_batches_of_the_running_model_are_offered_with_the_bytes_that_were_asked_for(rig: Rig) -> None:
    taken: list[Sample] = []
    rig.hand_off.want(taken.append, bodies=2, decode_bytes=10_000)
    rig.submit(b"3", suspect=True)  # not to be decoded again outside the sandbox
    rig.outcome(1)
    assert taken == []
    rig.submit(b"1", rig.put("two", b"2"))
    rig.outcome(3)
    rig.wait(lambda: bool(taken), "a sample")
    (sample,) = taken
    assert {image.body for image, _ in sample.pairs} <= {b"1", b"2"}
    assert all(outcome.labels[0].index == int(image.body or b"") for image, outcome in sample.pairs)
    assert rig.budget.used_bytes == sample.size_bytes
    rig.hand_off.done(sample)
    assert not rig.hand_off.keeps(1)


def test_the_largest_delay_is_that_of_the_oldest_image_of_a_batch_since_the_last_time(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    rig.clock.advance(3.0)
    rig.runtime.gate.set()
    rig.outcome(1)
    assert rig.flow.take_largest_delay_s() >= 3.0
    assert rig.flow.take_largest_delay_s() == 0.0


# --- suspects -------------------------------------------------------------------------------------------------------


def test_suspects_are_decoded_in_the_sandbox_and_the_rest_is_not(rig: Rig) -> None:
    fetched = rig.put("a", b"3")
    rig.submit(b"1", fetched, suspect=True)
    rig.submit(b"2")
    found = rig.outcome(3)
    assert sorted(type(outcome).__name__ for outcome in found) == ["Labelled"] * 3
    assert sorted(rig.sandbox.decoded) == [b"1", b"3"]
    assert rig.metrics.registry.get_sample_value("ouzel_sandboxed_images_total") == 2
    assert rig.metrics.registry.get_sample_value("ouzel_decoder_crashes_total") == 0


def test_the_culprit_is_a_letter_and_the_suspects_beside_it_are_labelled(rig: Rig) -> None:
    rig.sandbox.culprits = {b"2"}
    one, two, three = rig.submit(b"1", b"2", b"3", suspect=True)
    rejected = rig.of(two)
    assert isinstance(rejected, Rejected)
    assert isinstance(rejected.error, DecoderCrashed)
    assert rejected.stage == "decode"
    assert isinstance(rig.of(one), Labelled)
    assert isinstance(rig.of(three), Labelled)
    assert rig.metrics.registry.get_sample_value("ouzel_decoder_crashes_total") == 1


def test_suspects_that_wait_hold_up_nobody_and_no_deadline_counts_for_them(rig: Rig) -> None:
    rig.sandbox.gate.clear()
    suspects = rig.submit(*[b"1"] * 5, suspect=True)
    rig.wait(
        lambda: len(rig.flow._stage_of) == 5 and rig.flow.oldest().keys() == {"decode"},
        "one with the sandbox, and four that wait for it",
    )
    (other,) = rig.submit(b"2")
    assert isinstance(rig.of(other), Labelled)
    rig.clock.advance(10_000.0)
    rig.flow.tick()  # the sandbox has a deadline of its own
    rig.sandbox.gate.set()
    assert all(isinstance(rig.of(each), Labelled) for each in suspects)


def test_suspects_that_have_not_begun_when_a_drain_begins_are_left_to_the_next_owner(rig: Rig) -> None:
    rig.sandbox.gate.clear()
    (first,) = rig.submit(b"1", suspect=True)
    rig.wait(lambda: rig.flow.is_decoding(first), "one with the sandbox")
    (second,) = rig.submit(b"2", suspect=True)
    rig.wait(lambda: rig.flow._stage_of.get(id(second), ("",))[0] == "waiting", "one that waits for it")
    rig.lease.state = LeaseState.DRAINING
    rig.sandbox.gate.set()
    assert isinstance(rig.of(first), Labelled)
    assert isinstance(rig.of(second), Abandoned)


def test_without_a_sandbox_no_suspect_is_decoded_at_all(rig: Rig) -> None:
    rig.sandbox.missing = True
    (sent,) = rig.submit(b"1", suspect=True)
    rig.wait(lambda: bool(rig.crashes), "the crash")
    assert isinstance(rig.crashes[0], SandboxFailed)
    assert rig.outcomes == []
    rig.flow._stage_of.clear()  # it stays there: the process ends
    rig.budget.release(sent)


def test_a_sandbox_that_nobody_needs_any_more_is_let_go_of(rig: Rig) -> None:
    rig.submit(b"1", suspect=True)
    rig.outcome(1)
    rig.clock.advance(29.0)
    rig.flow.tick()
    rig.clock.advance(2.0)
    rig.wait(lambda: rig.sandbox.closed == 1, "its end")
    rig.flow.tick()
    rig.submit(b"2", suspect=True)
    rig.outcome(2)
    assert rig.sandbox.closed == 1


def test_a_model_that_is_gone_is_a_crash_and_no_letter(rig: Rig) -> None:
    rig.runtime.fatal = ModelError("gone")
    (sent,) = rig.submit(b"1")
    rig.wait(lambda: bool(rig.crashes), "the crash")
    assert isinstance(rig.crashes[0], ModelError)
    assert rig.outcomes == []
    rig.flow._stage_of.clear()  # it stays there: the process ends
    rig.budget.release(sent)


def test_closing_twice_and_with_work_under_way_ends_every_thread(rig: Rig) -> None:
    rig.runtime.gate.clear()
    rig.submit(b"1")
    assert rig.runtime.running.wait(5)
    rig.submit(*[b"1"] * 8)
    rig.wait(lambda: len(rig.flow._batcher) == 8 and rig.flow._coming == 0, "the others to wait for the model")
    rig.runtime.gate.set()
    rig.flow.close()
    rig.flow.close()
    done = {id(outcome.delivery) for outcome in rig.outcomes}
    for image in rig.flow._batcher._waiting:  # dropped, never committed
        assert id(image.job.delivery) not in done
        rig.flow._stage_of.pop(id(image.job.delivery))
        rig.budget.release(image.job.delivery)


def test_a_burst_about_one_image_costs_its_store_one_request() -> None:
    rig = Rig(cache_bytes=1_000)
    try:
        one = rig.put("one", b"1")
        rig.submit(*[one] * 10)
        assert [_class(outcome) for outcome in rig.outcome(10)] == [1] * 10
        assert rig.store.fetched == ["fake://images/one"]
    finally:
        rig.flow.close()


def test_an_answer_of_the_cache_does_not_say_that_the_store_is_up() -> None:
    """Otherwise an image that its store, being down, did not give would be taken for the one at fault."""
    rig = Rig(cache_bytes=1_000)
    try:
        one, two = rig.put("one", b"1"), rig.put("two", b"2")
        rig.submit(one)
        rig.outcome(1)
        rig.store.available = False
        (lost,) = rig.submit(two)
        # No tick: the second attempt comes after the cache's answer.
        wait_until(lambda: bool(rig.store.fetched[1:]) and rig.waiting(lost), timeout_s=10, what="a failed attempt")
        rig.clock.advance(1)
        rig.submit(one)
        wait_until(lambda: len(rig.outcomes) == 2, timeout_s=10, what="the cache's answer")
        rig.wait(lambda: bool(rig.flow.down_stores()), "the store to be presumed down")
        assert not any(isinstance(outcome, Rejected) for outcome in rig.outcomes)
        rig.store.available = True
        assert _class(rig.of(lost)) == 2
    finally:
        rig.flow.close()


# --- schemas --------------------------------------------------------------------------------------------------------


class Registry:
    """Knows schemas once they are loaded; `answer` is raised instead while it is set. A message's value is its schema's
    number; the image is its first byte."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.answer: Exception | None = None
        self.loads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def parse(self, delivery: Delivery) -> ImageJob:
        value = delivery.value or b""
        if value.isdigit() and int(value) not in self.known:
            raise SchemaNotLoaded(int(value))
        return ImageJob(delivery, image_id="a", data=b"1")

    def decode(self, schema: int | str, payload: bytes) -> dict[str, object]:
        raise AssertionError("the parser does this")

    def load(self, schema: int | str) -> bool:
        assert isinstance(schema, int)
        self.gate.wait(10)
        if schema in self.known:
            return False
        self.loads.append(schema)
        if self.answer is not None:
            raise self.answer
        self.known.add(schema)
        return True


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def framed(make_rig: Callable[..., Rig], registry: Registry) -> Rig:
    """A rig whose parser needs the registry."""
    return make_rig(parser=registry.parse, schemas=registry)


def test_a_schema_is_asked_for_once_and_its_messages_are_parsed_then(framed: Rig, registry: Registry) -> None:
    (first,) = framed.submit(b"7")
    assert isinstance(framed.of(first), Labelled)
    (second,) = framed.submit(b"7")
    assert isinstance(framed.of(second), Labelled)
    assert registry.loads == [7]


def test_a_registry_that_hangs_holds_up_no_message_that_needs_none(framed: Rig, registry: Registry) -> None:
    registry.gate.clear()
    waiting = framed.submit(b"7", b"8", b"9")
    (other,) = framed.submit(b"json")
    assert isinstance(framed.of(other), Labelled)
    registry.gate.set()
    assert all(isinstance(framed.of(each), Labelled) for each in waiting)


def test_while_the_registry_is_away_messages_wait_and_none_is_a_letter(framed: Rig, registry: Registry) -> None:
    registry.answer = SchemaUnavailable("away")
    waiting = framed.submit(b"7", b"8", b"9")
    framed.wait(lambda: "schema-registry" in framed.flow.down_stores(), "the registry to be presumed down")
    (other,) = framed.submit(b"json")
    assert isinstance(framed.of(other), Labelled)
    assert len(framed.outcomes) == 1
    registry.answer = None
    assert all(isinstance(framed.of(each), Labelled) for each in waiting)
    assert framed.flow.down_stores() == {}


def test_a_schema_that_is_here_already_does_not_say_that_the_registry_is_up(framed: Rig, registry: Registry) -> None:
    """Otherwise a schema that a registry, being down, did not give would be taken for the one at fault."""
    registry.answer = SchemaUnavailable("away")
    (lost, known) = framed.submit(b"7", b"8")
    framed.wait(lambda: "schema-registry" in framed.flow.down_stores(), "the registry to be presumed down")
    registry.known.add(8)  # as if another message's question had been answered just before
    assert isinstance(framed.of(known), Labelled)
    assert "schema-registry" in framed.flow.down_stores()
    assert [outcome.delivery for outcome in framed.outcomes] == [known]
    registry.answer = None
    assert isinstance(framed.of(lost), Labelled)


def test_a_schema_that_nobody_has_is_one_letter(framed: Rig, registry: Registry) -> None:
    registry.answer = MalformedMessage("no such schema")
    (sent,) = framed.submit(b"7")
    outcome = framed.of(sent)
    assert _error(outcome) == (MalformedMessage, "parse")
    assert isinstance(outcome, Rejected)
    assert outcome.image_id is None


def test_a_message_that_waits_for_its_schema_goes_with_its_lease(framed: Rig, registry: Registry) -> None:
    registry.answer = SchemaUnavailable("away")
    (sent,) = framed.submit(b"7")
    framed.wait(lambda: framed.waiting(sent), "it to wait")
    framed.lease.state = LeaseState.ENDED
    framed.flow.abandon_ended()
    assert isinstance(framed.of(sent), Abandoned)
