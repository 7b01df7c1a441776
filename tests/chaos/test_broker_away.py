"""The broker goes away under load and comes back: nothing is lost, and almost nothing is done twice."""

import threading
from pathlib import Path

import pytest

from tests.chaos.groups import membership, staying_alive
from tests.conftest import MakeTopics
from tests.kafka_broker import KafkaBroker
from tests.replica import CRASHING, Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

HEALED_WITHIN_S = 30
AWAY_S = 10.0
SESSION_MS = 180_000  # longer than any machine takes to stop a broker, wait and start it again
DELIVERY_TIMEOUT_MS = 3_000
MAX_IN_FLIGHT = 64
MAX_UNCOMMITTED = 40


def test_a_broker_away_for_10_seconds_costs_nothing_and_a_delivery_time_out_no_image(
    broker: KafkaBroker, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    """Two groups: one as it is by default, one whose records time out while the broker is away."""
    topics, timed_topics = make_topics(), make_topics()
    (tmp_path / "timed").mkdir()
    settings = membership(broker, topics, "classic", session_ms=SESSION_MS)
    timed_settings = settings | {
        "OUZEL_KAFKA__PRODUCER__DELIVERY_TIMEOUT_MS": str(DELIVERY_TIMEOUT_MS),
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": str(MAX_IN_FLIGHT),
        "OUZEL_TEST_SLOW_MODEL_S": "0.2",  # so that results come to be published when the broker is gone
    }
    with (
        Run(broker, topics, tmp_path) as run,
        Run(broker, timed_topics, tmp_path / "timed") as timed_run,
        Replica(broker, topics, settings=settings) as replica,
        Replica(broker, timed_topics, settings=timed_settings, entry=CRASHING) as timed,
    ):
        timed_run.send(timed_run.photographs(500, small_photographs))
        replica.start().wait_ready()
        timed.start().wait_ready()
        with staying_alive(replica), staying_alive(timed), run.sending(small_photographs, per_second=50):
            run.observer.wait_answered(50)
            timed_run.observer.wait_answered(20)
            broker.stop()
            threading.Event().wait(AWAY_S)  # the fault itself
            assert timed.metric("ouzel_retries_total", stage="publish") > 0, "no delivery timed out"
            broker.start()
            run.observer.wait_answered(run.observer.answered + 100)
        timed_run.healed(within_s=HEALED_WITHIN_S)
        run.healed(within_s=HEALED_WITHIN_S)
        assert replica.exit_code is None
        assert timed.exit_code is None
    summary = run.assert_all_promises_kept()
    assert summary.duplicate_events == 0  # the session outlasted it: nothing was read again
    assert summary.letters == 0
    timed_summary = timed_run.assert_all_promises_kept()  # an event that came twice has the same id (I7)
    assert timed_summary.duplicate_events <= MAX_IN_FLIGHT
    assert timed_summary.letters == 0


def test_a_broker_killed_under_load_and_started_again_loses_nothing(
    broker: KafkaBroker, make_topics: MakeTopics, small_photographs: list[Path], tmp_path: Path
) -> None:
    topics, other_topics = make_topics(), make_topics()
    (tmp_path / "other").mkdir()
    settings = membership(broker, topics, "classic") | {
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": str(MAX_IN_FLIGHT),
        "OUZEL_PIPELINE__MAX_UNCOMMITTED_MESSAGES": str(MAX_UNCOMMITTED),
    }
    other_settings = settings | membership(broker, other_topics, "consumer")
    del other_settings["OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS"]
    with (
        Run(broker, topics, tmp_path) as run,
        Run(broker, other_topics, tmp_path / "other") as other_run,
        Replica(broker, topics, settings=settings) as replica,
        Replica(broker, other_topics, settings=other_settings) as other,
    ):
        replica.start()
        other.start().wait_ready()
        with (
            staying_alive(replica.wait_ready()),
            staying_alive(other),
            run.sending(small_photographs, per_second=50),
            other_run.sending(small_photographs, per_second=50),
        ):
            run.observer.wait_answered(50)
            other_run.observer.wait_answered(50)
            broker.kill()
            broker.start()
            run.observer.wait_answered(run.observer.answered + 50)
            other_run.observer.wait_answered(other_run.observer.answered + 50)
        run.healed(within_s=HEALED_WITHIN_S)
        other_run.healed(within_s=HEALED_WITHIN_S)
        assert replica.exit_code is None
        assert other.exit_code is None
    for each in (run, other_run):
        summary = each.assert_all_promises_kept()
        assert summary.letters == 0
        # The session ended with the broker's: what was taken and not committed is read again, and no more than that.
        assert summary.duplicate_events <= topics.partitions * MAX_UNCOMMITTED + MAX_IN_FLIGHT
