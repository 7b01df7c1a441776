"""The contract of `ports.ResultSink`, over the fake, librdkafka's mock cluster and a real broker."""

import threading
from collections.abc import Iterator

import pytest

from consumer.errors import EventTooLarge
from consumer.messages import OutputRecord
from consumer.ports import ResultSink
from tests.contract.kafka_places import KafkaPlace, Place


class Reports:
    """What `done` was called with."""

    def __init__(self) -> None:
        self.errors: dict[int, list[Exception | None]] = {}
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def of(self, number: int):  # type: ignore[no-untyped-def]
        """A `done` for the record of this number."""

        def done(error: Exception | None) -> None:
            with self._changed:
                self.errors.setdefault(number, []).append(error)
                self.threads.add(threading.get_ident())
                self._changed.notify_all()

        return done

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.errors) >= count, 10), self.errors


@pytest.fixture(scope="module")
def open_sinks() -> Iterator[dict[str, ResultSink]]:
    """One for each cluster: an idempotent producer takes a second to get its id."""
    sinks: dict[str, ResultSink] = {}
    yield sinks
    for sink in sinks.values():
        sink.close(5)


@pytest.fixture
def sink(place: Place, open_sinks: dict[str, ResultSink]) -> Iterator[ResultSink]:
    if isinstance(place, KafkaPlace):
        servers = place.cluster.bootstrap_servers
        if servers not in open_sinks:
            open_sinks[servers] = place.sink()
        yield open_sinks[servers]
        return
    sink = place.sink()
    yield sink
    sink.close(5)


def test_each_record_is_reported_exactly_once_from_the_sinks_own_thread(place: Place, sink: ResultSink) -> None:
    reports = Reports()
    for number in range(50):
        sink.publish(OutputRecord(place.topic, b"%d" % number, b"key"), reports.of(number))
    reports.wait(50)
    assert reports.errors == {number: [None] for number in range(50)}
    assert threading.get_ident() not in reports.threads


def test_records_of_one_key_stay_in_the_order_of_the_calls(place: Place, sink: ResultSink) -> None:
    reports = Reports()
    for number in range(200):
        sink.publish(OutputRecord(place.topic, b"%d" % number, b"key-%d" % (number % 3)), reports.of(number))
    reports.wait(200)
    written = place.written(sink)
    for key in (b"key-0", b"key-1", b"key-2"):
        values = [int(record.value or b"") for record in written if record.key == key]
        assert values == sorted(values)
    assert len(written) == 200


def test_a_record_arrives_as_it_was_handed_over(place: Place, sink: ResultSink) -> None:
    records = [
        OutputRecord(place.topic, b"value", b"a", (("h", b"1"), ("h", b"2"), ("null", None), ("empty", b""))),
        OutputRecord(place.topic, None, b"b"),
        OutputRecord(place.topic, b"", None),
    ]
    reports = Reports()
    for number, record in enumerate(records):
        sink.publish(record, reports.of(number))
    reports.wait(3)
    assert sorted(place.written(sink), key=repr) == sorted(records, key=repr)


def test_a_record_larger_than_the_producer_takes_is_too_large_and_stops_no_other(
    place: Place, sink: ResultSink
) -> None:
    reports = Reports()
    sink.publish(OutputRecord(place.topic, b"x" * 200_000, b"k"), reports.of(0))
    sink.publish(OutputRecord(place.topic, b"x", b"k"), reports.of(1))
    reports.wait(2)
    assert isinstance(reports.errors[0][0], EventTooLarge)
    assert reports.errors[1] == [None]


def test_closing_waits_for_what_is_under_way_and_a_second_time_for_nothing(place: Place) -> None:
    sink, reports = place.sink(), Reports()
    for number in range(20):
        sink.publish(OutputRecord(place.topic, b"%d" % number, b"key"), reports.of(number))
    assert sink.close(10) == 0
    assert reports.errors == {number: [None] for number in range(20)}
    assert sink.close(1) == 0
