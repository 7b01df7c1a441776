"""Outcomes become records: nothing is given up, the order of a key holds, letters wait where they must."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from consumer import headers as names
from consumer.errors import (
    EventTooLarge,
    Family,
    InvalidMessage,
    NotAnImage,
    OutputRefused,
    OutputUnavailable,
    StoreFailed,
    TopicMissing,
)
from consumer.messages import (
    Abandoned,
    Delivery,
    ImageFacts,
    ImageJob,
    Labelled,
    Lease,
    LeaseState,
    OutputRecord,
    Partition,
    Rejected,
    Several,
    Skipped,
)
from consumer.metrics import Metrics
from consumer.observer import Observer
from consumer.stages.dead_letter_limit import DeadLetterLimit
from consumer.stages.events import EventContext
from consumer.stages.publish import Publisher, Settled
from tests.fakes import FakeClock, FakeRuntime, FakeSink

CONTEXT = EventContext("cluster", "group", "replica", "predictions", "images.dlq", 1024 * 1024)
A, B = Partition("images", 0), Partition("images", 1)
LIMIT_METRIC = "ouzel_dead_letter_limit_reached"


class Rig:
    """A publisher over a fake sink. Three system letters in a row reach the limit; its window is 60 s."""

    def __init__(self, *, forward_tombstones: bool = False) -> None:
        self.clock = FakeClock()
        self.sink = FakeSink()
        self.limit = DeadLetterLimit(
            window_s=60, min_sample=1_000, content_ratio=0.95, system_ratio=0.5, system_consecutive=3
        )
        self.settled: list[Settled] = []
        self.crashes: list[BaseException] = []
        self.changed = threading.Condition()
        self.metrics = Metrics(CollectorRegistry())
        self.leases = {partition: Lease(partition, epoch=1, topic_id="id") for partition in (A, B)}
        self.publisher = Publisher(
            self.sink,
            context=CONTEXT,
            limit=self.limit,
            clock=self.clock,
            observer=Observer(self.metrics, self.clock),
            forward_tombstones=forward_tombstones,
            redo_backoff_s=1.0,
            on_settled=self._note,
            on_crash=self._note_crash,
        )
        self.next_offset = 0
        self._turned = threading.Event()
        check = self.limit.check_probation

        def turned(now_s: float) -> None:  # the end of each turn of the publisher's thread
            check(now_s)
            if self.publisher._inbox.empty():
                self._turned.set()

        self.limit.check_probation = turned  # type: ignore[method-assign]
        self.publisher.start()

    def _note(self, settled: Settled) -> None:
        with self.changed:
            self.settled.append(settled)
            self.changed.notify_all()

    def _note_crash(self, error: BaseException) -> None:
        with self.changed:
            self.crashes.append(error)
            self.changed.notify_all()

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def take(self, *, key: bytes | None = None, partition: Partition = A, value: bytes | None = b"image") -> Delivery:
        delivery = Delivery(self.leases[partition], self.next_offset, value, key)
        self.next_offset += 1
        self.publisher.took(delivery)
        return delivery

    def label(self, delivery: Delivery) -> Delivery:
        job = ImageJob(delivery, f"image-{delivery.offset}", data=b"")
        facts = ImageFacts(1, 1, "PNG", "00")
        self.publisher.submit(Labelled(job, (), facts, FakeRuntime.info, {}))
        return delivery

    def labelled(self, *, key: bytes | None = None, partition: Partition = A) -> Delivery:
        return self.label(self.take(key=key, partition=partition))

    def rejected(self, *, family: Family = "system", partition: Partition = A, key: bytes | None = None) -> Delivery:
        delivery = self.take(partition=partition, key=key)
        error: InvalidMessage = StoreFailed("503") if family == "system" else NotAnImage("no")
        self.publisher.submit(Rejected(delivery, error, "fetch"))
        return delivery

    def several(
        self, *kinds: str, key: bytes | None = None, partition: Partition = A, family: Family = "system"
    ) -> Delivery:
        """A message with a record of each kind: `label`, `letter` or `skip`."""
        message = self.take(key=key, partition=partition)
        parts = [replace(message, headers=((names.ORIGIN_RECORD_INDEX, b"%d" % n),), part_of=message) for n in range(9)]
        self.publisher.submit(
            Several(message, tuple(self._one(kind, n, parts[n], family) for n, kind in enumerate(kinds)))
        )
        return message

    def _one(self, kind: str, number: int, part: Delivery, family: Family) -> Labelled | Rejected | Skipped:
        if kind == "skip":
            return Skipped(part, "removed")
        if kind == "letter":
            return Rejected(part, StoreFailed("503") if family == "system" else NotAnImage("no"), "fetch")
        job = ImageJob(part, f"image-{part.offset}-{number}", data=b"", record_index=number)
        return Labelled(job, (), ImageFacts(1, 1, "PNG", "00"), FakeRuntime.info, {})

    # --- what came of them ------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 5), f"waited 5 s for {what}; settled: {self.settled}"

    def handed_over(self, count: int) -> list[OutputRecord]:
        self.sink.wait(lambda: len(self.sink.handed_over) >= count, f"{count} records")
        return self.sink.handed_over

    def finished(self, *deliveries: Delivery) -> None:
        self.wait(lambda: {id(s.delivery) for s in self.settled} >= set(map(id, deliveries)), "all to be settled")
        assert all(s.finished for s in self.settled if s.delivery in deliveries)

    def let_go(self, *deliveries: Delivery) -> None:
        self.wait(lambda: {id(s.delivery) for s in self.settled} >= set(map(id, deliveries)), "all to be settled")
        assert not any(s.finished for s in self.settled if s.delivery in deliveries)

    def passed(self) -> None:
        """Returns when the publisher's thread has handled all that was submitted before."""
        self._turned.clear()
        self.publisher.forget_ended()  # does nothing here, and wakes it
        assert self._turned.wait(5)

    def is_settled(self, delivery: Delivery) -> bool:
        return any(s.delivery is delivery for s in self.settled)

    def tripped(self) -> list[Delivery]:
        """Over the limit; the third letter is withheld."""
        letters = [self.rejected() for _ in range(3)]
        self.wait(lambda: self.is_settled(letters[1]), "two letters")
        self.passed()
        assert self.publisher.trip is not None
        return letters


def _id(record: OutputRecord) -> bytes | None:
    return dict(record.headers).get("ce_id")


def _offsets(records: list[OutputRecord]) -> list[str]:
    return [dict(record.headers)["ce_subject"].decode() for record in records]  # type: ignore[union-attr]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.publisher.close()
    rig.publisher.close()
    rig.sink.close(1.0)
    assert not rig.publisher._thread.is_alive()
    settled = [id(s.delivery) for s in rig.settled]
    assert len(settled) == len(set(settled)), "something was settled twice"
    assert all(s.delivery.part_of is None for s in rig.settled), "a part was settled for its message"
    assert rig.publisher._held.isdisjoint(settled)


# --- finished -------------------------------------------------------------------------------------------------------


def test_a_label_event_is_finished_when_the_broker_has_it_and_not_before(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    labelled = rig.labelled(key=b"k")
    (record,) = rig.handed_over(1)
    assert (record.topic, record.key) == ("predictions", b"k")
    assert rig.publisher.has(labelled)
    assert rig.settled == []
    assert rig.publisher.output_waiting_since_s() == 1_000.0
    rig.sink.answer()
    rig.finished(labelled)
    assert not rig.publisher.has(labelled)
    assert rig.publisher.output_waiting_since_s() is None


def test_a_rejected_message_is_one_letter_with_its_bytes(rig: Rig) -> None:
    rejected = rig.rejected(family="content")
    rig.finished(rejected)
    (letter,) = rig.sink.written
    assert (letter.topic, letter.value) == ("images.dlq", b"image")
    assert dict(letter.headers)[names.ERROR_STAGE] == b"fetch"


@pytest.mark.parametrize(
    ("forward", "key", "topics"), [(False, b"k", []), (True, b"k", ["predictions"]), (True, None, [])]
)
def test_a_tombstone_is_forwarded_only_where_the_setting_says_and_it_has_a_key(
    forward: bool, key: bytes | None, topics: list[str]
) -> None:
    rig = Rig(forward_tombstones=forward)
    delivery = rig.take(key=key, value=None)
    rig.publisher.submit(Skipped(delivery, "tombstone"))
    rig.finished(delivery)
    assert [record.topic for record in rig.sink.written] == topics
    assert all(record.value is None for record in rig.sink.written)
    rig.publisher.close()
    rig.sink.close(1.0)


def test_a_message_is_still_held_until_its_owner_has_been_told(rig: Rig) -> None:
    """A drain that saw neither would commit without it."""
    seen: list[bool] = []
    note = rig.publisher._on_settled

    def on_settled(settled: Settled) -> None:
        seen.append(rig.publisher.has(settled.delivery))
        note(settled)

    rig.publisher._on_settled = on_settled
    rig.finished(rig.labelled())
    assert seen == [True]


def test_an_event_that_cannot_be_written_out_is_that_messages_letter(rig: Rig) -> None:
    """A defect of ours in one message must not end every replica that takes it."""
    delivery = rig.take()
    job = ImageJob(delivery, "\ud800", data=b"")  # a lone surrogate has no UTF-8
    rig.publisher.submit(Labelled(job, (), ImageFacts(1, 1, "PNG", "00"), FakeRuntime.info, {}))
    rig.finished(delivery)
    (letter,) = rig.sink.written
    assert dict(letter.headers)[names.ERROR_EXCEPTION_CLASS] == b"ProcessingFailed"
    assert rig.crashes == []


# --- messages with several records ----------------------------------------------------------------------------------


def _record_index(record: OutputRecord) -> bytes | None:
    return dict(record.headers).get(names.ORIGIN_RECORD_INDEX)


def _counted(rig: Rig, name: str, **labels: str) -> float:
    return rig.metrics.registry.get_sample_value(name, labels) or 0


def test_a_message_with_several_records_is_finished_when_the_broker_has_all_of_them(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    message = rig.several("label", "skip", "letter", "label", key=b"k")
    first, letter, last = rig.handed_over(3)
    assert _offsets([first, last]) == ["image-0-0", "image-0-3"]
    assert (letter.topic, letter.value, _record_index(letter)) == ("images.dlq", b"image", b"2")
    assert len({_id(first), _id(last)}) == 2
    assert {record.key for record in (first, letter, last)} == {b"k"}
    rig.sink.answer(2)
    rig.sink.answer(0)
    assert rig.settled == []
    assert rig.publisher.has(message)
    rig.sink.answer(0)
    rig.finished(message)
    assert not rig.publisher.has(message)
    assert [_counted(rig, "ouzel_images_total", outcome=each) for each in ("labelled", "dead_letter", "skipped")] == [
        *(2, 1, 1)
    ]
    assert _counted(rig, "ouzel_skipped_total", reason="removed") == 1


def test_a_message_of_which_all_records_are_skipped_is_finished(rig: Rig) -> None:
    rig.finished(rig.several("skip", "skip"))
    assert rig.sink.handed_over == []


def test_a_skipped_notification_is_not_forwarded_as_a_tombstone() -> None:
    """It would delete the image's labels from a compacted topic."""
    rig = Rig(forward_tombstones=True)
    delivery = rig.take(key=b"k")
    rig.publisher.submit(Skipped(delivery, "removed"))
    rig.finished(delivery, rig.several("skip", "skip", key=b"k"))
    assert rig.sink.handed_over == []
    rig.publisher.close()
    rig.sink.close(1.0)


def test_the_events_of_a_key_keep_their_order_with_several_records_in_a_message(rig: Rig) -> None:
    first = rig.take(key=b"k")
    message = rig.several("label", "label", key=b"k")
    last = rig.labelled(key=b"k")
    rig.passed()
    assert rig.sink.handed_over == []
    rig.label(first)
    rig.finished(first, message, last)
    assert _offsets(rig.sink.written) == ["image-0", "image-1-0", "image-1-1", "image-2"]


def test_one_record_of_unknown_fate_is_produced_again_alone_with_the_same_id(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    message = rig.several("label", "label", "label")
    rig.handed_over(3)
    rig.sink.answer(1, OutputUnavailable("gone"))
    rig.sink.answer(0)
    rig.sink.answer(0)
    rig.passed()
    assert rig.settled == []
    rig.sink.answers = lambda _: None
    rig.clock.advance(2.0)
    rig.finished(message)
    assert _offsets(rig.sink.handed_over[3:]) == ["image-0-1"]
    assert _id(rig.sink.handed_over[3]) == _id(rig.sink.handed_over[1])


def test_one_record_whose_event_is_too_large_is_its_letter_and_the_others_are_labelled(rig: Rig) -> None:
    rig.sink.answers = lambda record: (
        EventTooLarge("no") if record.topic == "predictions" and b"image-0-1" in (record.value or b"") else None
    )
    message = rig.several("label", "label", "label")
    rig.finished(message)
    assert sorted(record.topic for record in rig.sink.written) == ["images.dlq", "predictions", "predictions"]
    (letter,) = [record for record in rig.sink.written if record.topic == "images.dlq"]
    assert _record_index(letter) == b"1"
    assert dict(letter.headers)[names.ERROR_EXCEPTION_CLASS] == b"EventTooLarge"


def test_a_letter_that_is_withheld_keeps_its_message_and_no_other_record(rig: Rig) -> None:
    rig.tripped()
    message = rig.several("label", "letter", "letter", "label")
    rig.sink.wait(lambda: len(rig.sink.written) == 4, "both events")  # and two letters before the limit
    rig.passed()
    assert rig.publisher.withholds(message)
    assert not rig.is_settled(message)
    rig.publisher.resume()
    rig.finished(message)
    assert [_record_index(record) for record in rig.sink.written[-2:]] == [b"1", b"2"]
    assert not rig.publisher.withholds(message)


def test_the_withheld_letters_of_a_message_are_let_go_of_with_its_lease(rig: Rig) -> None:
    rig.tripped()
    message = rig.several("label", "letter", "letter")
    rig.passed()
    rig.leases[A].state = LeaseState.ENDED
    rig.publisher.forget_ended()
    rig.let_go(message)
    assert not rig.publisher.withholds(message)


def test_an_image_of_a_message_ends_the_probation_for_the_letter_beside_it(rig: Rig) -> None:
    rig.limit.put_on_probation(A, "system")
    message = rig.several("letter", "label")
    rig.finished(message)
    assert sorted(record.topic for record in rig.sink.written) == ["images.dlq", "predictions"]


def test_a_message_whose_lease_ends_while_a_part_of_it_waits_is_let_go_of_once(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    message = rig.several("label", "label")
    rig.handed_over(2)
    rig.sink.answer(0)
    rig.sink.answer(0, OutputUnavailable("gone"))
    rig.passed()
    rig.leases[A].state = LeaseState.ENDED
    rig.clock.advance(10.0)
    rig.let_go(message)
    assert len(rig.sink.handed_over) == 2


def test_a_message_with_several_records_that_comes_after_its_lease_ended_is_not_published(rig: Rig) -> None:
    rig.leases[A].state = LeaseState.ENDED
    rig.let_go(rig.several("label", "skip", "letter"))
    assert rig.sink.handed_over == []


# --- ended leases ---------------------------------------------------------------------------------------------------


def test_what_comes_after_its_lease_ended_is_not_published(rig: Rig) -> None:
    rig.leases[A].state = LeaseState.ENDED
    late, letter = rig.labelled(), rig.rejected()
    abandoned = rig.take(partition=B)
    rig.publisher.submit(Abandoned(abandoned))
    rig.let_go(late, letter, abandoned)
    assert rig.sink.handed_over == []


def test_after_an_abandoned_message_none_of_its_key_is_published(rig: Rig) -> None:
    first, second = rig.take(key=b"k"), rig.take(key=b"k")
    rig.label(second)
    rig.publisher.submit(Abandoned(first))
    rig.let_go(first, second)
    assert rig.sink.handed_over == []


# --- an output that cannot be written -------------------------------------------------------------------------------


def test_an_unknown_fate_is_produced_again_in_its_old_place_with_the_same_id(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    first = [rig.labelled(key=b"k") for _ in range(3)]
    rig.handed_over(3)
    rig.sink.answer(2, OutputUnavailable("gone"))
    newer = rig.labelled(key=b"k")  # waits behind the one whose fate is unknown
    rig.sink.answer(0, OutputUnavailable("gone"))
    rig.sink.answer(0)  # the second is written
    rig.passed()
    rig.clock.advance(0.9)
    rig.passed()
    assert len(rig.sink.handed_over) == 3  # not before the backoff is over
    rig.clock.advance(0.2)
    rig.sink.answers = lambda _: None
    rig.finished(*first, newer)
    assert _offsets(rig.sink.handed_over[3:]) == ["image-0", "image-2", "image-3"]
    assert [_id(record) for record in rig.sink.handed_over[3:5]] == [
        _id(rig.sink.handed_over[0]),
        _id(rig.sink.handed_over[2]),
    ]


def test_nothing_is_produced_again_while_an_older_record_is_under_way(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    rig.labelled()
    rig.labelled()
    rig.handed_over(2)
    rig.sink.answer(1, OutputUnavailable("gone"))
    rig.passed()
    rig.clock.advance(10.0)
    rig.passed()
    assert len(rig.sink.handed_over) == 2
    rig.sink.answers = lambda _: None
    rig.sink.answer(0)
    rig.handed_over(3)


def test_an_output_that_stays_away_keeps_everything_and_says_since_when(rig: Rig) -> None:
    rig.sink.answers = lambda _: OutputUnavailable("gone")
    labelled = [rig.labelled() for _ in range(5)]
    for round_ in range(2, 5):
        rig.handed_over(5 * (round_ - 1))
        rig.sink.wait(lambda: not rig.sink.under_way, "all reports")
        rig.passed()
        rig.clock.advance(2.0)
        assert rig.publisher.output_waiting_since_s() == 1_000.0
    rig.sink.answers = lambda _: None
    rig.clock.advance(2.0)
    rig.finished(*labelled)
    assert len(rig.sink.written) == 5


def test_what_waits_to_be_produced_again_is_let_go_of_when_its_lease_ends(rig: Rig) -> None:
    rig.sink.answers = lambda _: OutputUnavailable("gone")
    labelled = rig.labelled()
    rig.handed_over(1)
    rig.sink.wait(lambda: not rig.sink.under_way, "the report")
    rig.passed()
    rig.leases[A].state = LeaseState.ENDED
    rig.clock.advance(10.0)
    rig.let_go(labelled)
    assert len(rig.sink.handed_over) == 1


@pytest.mark.parametrize("error", [OutputRefused("policy"), TopicMissing("gone")])
def test_an_output_that_refuses_for_good_ends_the_process(rig: Rig, error: Exception) -> None:
    rig.sink.answers = lambda _: error
    rig.labelled()
    rig.wait(lambda: bool(rig.crashes), "the crash")
    assert rig.crashes[0] is error
    assert rig.settled == []


# --- too large ------------------------------------------------------------------------------------------------------


def _refuse_above(size_bytes: int) -> Callable[[OutputRecord], Exception | None]:
    def answer(record: OutputRecord) -> Exception | None:
        size = len(record.value or b"") + len(record.key or b"")
        return EventTooLarge(f"{size} bytes") if size > size_bytes else None

    return answer


def test_an_event_that_is_too_large_becomes_a_letter(rig: Rig) -> None:
    rig.sink.answers = _refuse_above(20)
    rig.finished(rig.labelled())
    (letter,) = rig.sink.written
    assert (letter.topic, letter.value) == ("images.dlq", b"image")
    assert dict(letter.headers)[names.ERROR_EXCEPTION_CLASS] == b"EventTooLarge"


def test_a_letter_that_is_too_large_goes_without_its_value(rig: Rig) -> None:
    rig.sink.answers = _refuse_above(4)
    rig.finished(rig.labelled())
    (letter,) = rig.sink.written
    assert (letter.topic, letter.value) == ("images.dlq", None)
    assert dict(letter.headers)[names.ORIGINAL_SIZE_BYTES] == b"5"


def test_a_topic_that_takes_not_even_that_ends_the_process(rig: Rig) -> None:
    rig.sink.answers = _refuse_above(-1)
    rig.labelled()
    rig.wait(lambda: bool(rig.crashes), "the crash")
    assert isinstance(rig.crashes[0], OutputRefused)
    assert rig.settled == []


def test_a_forwarded_tombstone_whose_key_is_too_large_is_a_letter_and_ends_nobody() -> None:
    rig = Rig(forward_tombstones=True)
    rig.sink.answers = _refuse_above(100_000)
    delivery = rig.take(key=b"k" * 200_000, value=None)
    rig.publisher.submit(Skipped(delivery, "tombstone"))
    rig.finished(delivery)
    (letter,) = rig.sink.written
    assert (letter.topic, letter.key) == ("images.dlq", None)
    assert dict(letter.headers)[names.ORIGINAL_LEFT_OUT] == b"value,key"
    assert rig.crashes == []
    rig.publisher.close()
    rig.sink.close(1.0)


def test_a_letter_of_an_event_too_large_is_not_written_once_its_lease_ended(rig: Rig) -> None:
    rig.sink.answers = lambda _: FakeSink.HOLD
    labelled = rig.labelled()
    rig.handed_over(1)
    rig.leases[A].state = LeaseState.ENDED
    rig.sink.answer(0, EventTooLarge("no"))
    rig.let_go(labelled)
    assert len(rig.sink.handed_over) == 1


# --- the dead-letter limit ------------------------------------------------------------------------------------------


def test_over_the_limit_letters_wait_and_labels_go_on(rig: Rig) -> None:
    withheld = rig.tripped()[2]
    labelled = rig.labelled(partition=B)
    rig.finished(labelled)
    assert rig.publisher.withholds(withheld)
    assert not rig.is_settled(withheld)
    assert rig.metrics.registry.get_sample_value(LIMIT_METRIC) == 1


def test_later_events_of_a_withheld_letters_key_go_on(rig: Rig) -> None:
    rig.tripped()
    withheld = rig.rejected(key=b"k")
    later = rig.labelled(key=b"k")
    rig.finished(later)
    assert rig.publisher.withholds(withheld)


def test_a_person_who_says_go_on_releases_every_letter_in_order(rig: Rig) -> None:
    withheld = [rig.tripped()[2], rig.rejected(), rig.rejected(partition=B)]
    rig.passed()
    rig.publisher.resume()
    rig.finished(*withheld)
    offsets = [dict(letter.headers)[names.ERROR_OFFSET] for letter in rig.sink.written]
    assert offsets[2:] == [b"%d" % delivery.offset for delivery in withheld]
    assert rig.publisher.trip is None
    assert not any(map(rig.publisher.withholds, withheld))


def test_one_image_ends_the_probation_of_its_own_partition_only(rig: Rig) -> None:
    for partition in (A, B):
        rig.limit.put_on_probation(partition, "system")
    in_a, in_b = rig.rejected(partition=A), rig.rejected(partition=B)
    rig.labelled(partition=A)
    rig.finished(in_a)
    rig.passed()
    assert rig.publisher.withholds(in_b)


def test_the_end_of_a_probation_releases_nothing_over_the_limit(rig: Rig) -> None:
    rig.limit.put_on_probation(B, "content")
    rig.tripped()
    in_b = rig.rejected(partition=B, family="content")
    rig.finished(rig.labelled(partition=B))
    rig.passed()
    assert rig.publisher.withholds(in_b)
    assert len([record for record in rig.sink.written if record.topic == "images.dlq"]) == 2


def test_a_probation_without_success_trips_though_other_partitions_are_busy(rig: Rig) -> None:
    rig.limit.put_on_probation(A, "system")
    rig.rejected(partition=A)
    rig.passed()
    rig.clock.advance(61.0)
    for _ in range(3):  # never a quarter of a second without an outcome
        rig.finished(rig.labelled(partition=B))
    assert rig.publisher.trip is not None
    assert rig.metrics.registry.get_sample_value(LIMIT_METRIC) == 1  # and somebody is told


def test_withheld_letters_of_a_partition_that_went_away_are_let_go_of(rig: Rig) -> None:
    """Else their bytes stay on the books until a person comes, and a probation that is over trips the replica."""
    rig.limit.put_on_probation(A, "system")
    withheld = rig.rejected(partition=A)
    rig.passed()
    rig.limit.forget(A)
    rig.leases[A].state = LeaseState.ENDED
    rig.publisher.forget_ended()
    rig.let_go(withheld)
    assert not rig.publisher.withholds(withheld)
    rig.clock.advance(61.0)
    rig.leases[A] = Lease(A, epoch=2, topic_id="id")
    rig.passed()
    rig.passed()
    assert rig.publisher.trip is None
