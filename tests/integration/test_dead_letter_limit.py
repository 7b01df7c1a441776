"""Over the dead-letter limit the replica holds: it publishes and commits nothing more, stays in the group, and waits
for a person. Nothing is ever dropped."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.answers import Answers, Group, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.faulty_replica import ENTRY
from tests.kafka_broker import Cluster
from tests.kafka_clients import PROTOCOLS, Protocol, Record, end_offsets, send
from tests.replica import Replica
from tests.runs import Input, Run

pytestmark = pytest.mark.kafka

GARBAGE = b"good morning"
RULES = {
    "OUZEL_DEAD_LETTERS__MIN_SAMPLE": "20",
    "OUZEL_DEAD_LETTERS__WINDOW_S": "3600",
    # The group misses a killed member sooner.
    "OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS": "3000",
    "OUZEL_KAFKA__CONSUMER__HEARTBEAT_INTERVAL_MS": "300",
}
BROKER_SIDE = ("OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS", "OUZEL_KAFKA__CONSUMER__HEARTBEAT_INTERVAL_MS")


def rules_for(protocol: Protocol) -> dict[str, str]:
    if protocol == "classic":
        return RULES
    kept = {name: value for name, value in RULES.items() if name not in BROKER_SIDE}
    return kept | {"OUZEL_KAFKA__GROUP_PROTOCOL": protocol}


def garbage(count: int) -> list[Input]:
    """Messages that are no images: `content` letters."""
    return [Input(GARBAGE + b" %d" % number) for number in range(count)]


def holds(replica: Replica) -> bool:
    return replica.metric("ouzel_dead_letter_limit_reached") == 1


def letters_written(cluster: Cluster, topics: Topics) -> int:
    return sum(end_offsets(cluster, topics.dead_letters).values())


def events_written(cluster: Cluster, topics: Topics) -> int:
    return sum(end_offsets(cluster, topics.predictions).values())


@contextmanager
def tripped(cluster: Cluster, topics: Topics, run: Run, protocol: Protocol = "classic") -> Iterator[Replica]:
    """A replica that holds: it was sent 50 messages that are no images, and 20 make a sample; what is in flight
    may still turn out well, so it trips when 95 % of those in flight and done have turned out badly."""
    with (
        Replica(cluster, topics, settings=rules_for(protocol)) as replica,
        Group(cluster, topics.group, topics.images) as group,
    ):
        replica.start().wait_ready()
        run.send(garbage(50))
        replica.wait_for(lambda: holds(replica), 30, "the limit")

        def trip_is_noted() -> bool:
            return any('"trip":"content"' in (each.metadata or "") for each in group.committed().values())

        replica.wait_for(trip_is_noted, 20, "the note of the trip in the commit")
        yield replica


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_holds_and_then_goes_on_by_a_signal(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path, protocol: Protocol
) -> None:
    with (
        Run(kafka, topics, tmp_path) as run,
        Group(kafka, topics.group, topics.images) as group,
        tripped(kafka, topics, run, protocol) as replica,
    ):
        # 19 at least were written before there was a sample; what came after the trip is withheld.
        assert 19 <= letters_written(kafka, topics) < 50
        rebalances = replica.metric("ouzel_rebalances_total")
        status, body = replica.probe("readyz")
        assert status == 503
        assert json.loads(body)["status"] == "holding at the dead-letter limit"
        assert re.search(r"(\d+) of the last \1 messages ended as content letters", json.loads(body)["reason"])
        assert replica.probe("livez")[0] == 200

        # What comes meanwhile stays where it is, and the group does not notice.
        run.send(run.photographs(40, photographs))
        held, written = group.offsets(), letters_written(kafka, topics)
        turns = replica.metric("ouzel_commits_total", result="ok")
        for _ in range(3):  # a whole round of the observer each: the loop has turned many times
            run.observer.wait_rounds(1)
        assert 19 <= letters_written(kafka, topics) < 50
        assert letters_written(kafka, topics) == written
        assert events_written(kafka, topics) == 0
        assert group.offsets() == held
        assert sum(held.values()) <= written
        assert replica.metric("ouzel_commits_total", result="ok") - turns <= 1
        assert replica.metric("ouzel_rebalances_total") == rebalances
        assert replica.probe("livez")[0] == 200
        said = [line for line in replica.log_lines() if "dead-letter limit reached" in line["message"]]
        assert len(said) == 1
        assert "SIGUSR1" in said[0]["message"]

        replica.signal(signal.SIGUSR1)
        replica.wait_for(lambda: letters_written(kafka, topics) == 50, 30, "the letters that were withheld")
        run.healed(within_s=30)
        assert replica.metric("ouzel_dead_letter_limit_reached") == 0
        assert replica.probe("readyz")[0] == 200
        summary = run.assert_all_promises_kept()
        assert (summary.events, summary.letters) == (40, 50)
        assert replica.metric("ouzel_rebalances_total") == rebalances
        assert replica.terminate() == 0


def test_a_killed_replica_comes_back_on_probation(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics(partitions=1)
    with Run(kafka, topics, tmp_path) as run, tripped(kafka, topics, run) as replica:
        with Group(kafka, topics.group, topics.images) as group:
            committed, written = group.offsets(), letters_written(kafka, topics)
            replica.kill9()
            # A larger sample: what is left would trip a second time, before any image could come.
            replica.start(OUZEL_DEAD_LETTERS__MIN_SAMPLE="1000").wait_ready(30)
            # Ready, but it writes no letter of that family before it has labelled an image.
            replica.wait_for(lambda: replica.said("no such letter until one image succeeds"), 20, "its warning")
            left = 50 - sum(committed.values())
            replica.wait_for(lambda: replica.metric("ouzel_inflight_messages") == left, 20, "all to be read")
            for _ in range(3):
                run.observer.wait_rounds(1)
            assert letters_written(kafka, topics) == written
            assert group.offsets() == committed
            assert not holds(replica)
        run.send(run.photographs(1, photographs))
        run.healed(within_s=30)
        summary = run.assert_all_promises_kept()
        twice = written - sum(committed.values())  # written, and not committed yet when it was killed
        assert (summary.events, summary.letters, summary.duplicate_letters) == (1, 50 + twice, twice)
        assert replica.terminate() == 0


def test_a_start_with_resume_asks_no_probation(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics(partitions=1)
    with Run(kafka, topics, tmp_path) as run:
        with tripped(kafka, topics, run) as replica:
            assert replica.terminate() == 0  # a holding replica also stops cleanly
        assert letters_written(kafka, topics) < 50
        # Of a sample of 20 those that are left could trip it again.
        settings = RULES | {"OUZEL_DEAD_LETTERS__MIN_SAMPLE": "1000"}
        with Replica(kafka, topics, settings=settings, options=("--resume",)) as resumed:
            resumed.start().wait_ready()
            run.healed(within_s=30)
            assert resumed.terminate() == 0
        summary = run.assert_all_promises_kept()
        assert (summary.events, summary.letters) == (0, 50)


def test_for_supervisors_it_may_exit_instead(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics(partitions=1)
    with Run(kafka, topics, tmp_path) as run:
        settings = RULES | {"OUZEL_DEAD_LETTERS__ON_LIMIT": "exit"}
        with Replica(kafka, topics, settings=settings) as replica:
            replica.start().wait_ready()
            run.send(run.photographs(5, photographs))
            run.observer.wait_no_lag(timeout_s=20)
            run.send(garbage(200))
            assert replica.wait_exit() == 10
            (last,) = [line for line in replica.log_lines() if line.get("exit_code") == 10]
            assert "--resume" in last["remedy"]
        # What was done is committed, and nothing past it.
        with Group(kafka, topics.group, topics.images) as group:
            assert 5 <= sum(group.offsets().values()) <= events_written(kafka, topics) + letters_written(kafka, topics)
            assert 0 < letters_written(kafka, topics) < 200
        settings = RULES | {"OUZEL_DEAD_LETTERS__MIN_SAMPLE": "1000"}
        with Replica(kafka, topics, settings=settings, options=("--resume",)) as resumed:
            resumed.start().wait_ready()
            run.healed(within_s=30)
            assert resumed.terminate() == 0
        summary = run.assert_all_promises_kept()
        assert summary.events - summary.duplicate_events == 5
        assert summary.letters - summary.duplicate_letters == 200


def test_letters_that_point_at_a_store_trip_when_they_come_in_a_row(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    """A bucket that was emptied: every reference is a 404, and no ratio of a large window would notice."""
    topics = make_topics(partitions=1)
    folder = tmp_path / "images"
    folder.mkdir()
    settings = {
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(folder)]),
        "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "10",
        "OUZEL_DEAD_LETTERS__MIN_SAMPLE": "100000",
    }
    gone = [
        Input(json.dumps({"image_id": f"gone-{number}", "uri": (folder / f"{number}.jpg").as_uri()}).encode())
        for number in range(30)
    ]
    with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics, settings=settings) as replica:
        replica.start().wait_ready()
        run.send(run.photographs(50, photographs))
        run.observer.wait_answered(50)  # a success among the letters would begin the count anew
        run.send(gone)
        replica.wait_for(lambda: holds(replica), 30, "the limit")
        assert "10 letters in a row point at the service or a store" in replica.probe("readyz")[1]
        replica.wait_for(lambda: letters_written(kafka, topics) == 9, 10, "the letters before it")
        replica.signal(signal.SIGUSR1)
        replica.wait_for(lambda: letters_written(kafka, topics) >= 10, 10, "the letters that were withheld")
        # The count began anew: what is left trips it again, or is written.
        while letters_written(kafka, topics) < 30:
            replica.signal(signal.SIGUSR1)
            run.observer.wait_rounds(1)
        run.healed(within_s=30)
        summary = run.assert_all_promises_kept()
        assert (summary.events, summary.letters) == (50, 30)
        assert replica.terminate() == 0


def half_garbage(count: int, photograph: bytes) -> list[Record]:
    return [Record(photograph if number % 2 else GARBAGE, partition=0) for number in range(count)]


def test_half_of_the_messages_may_be_no_images(kafka: Cluster, topics: Topics, photographs: list[Path]) -> None:
    """That is a sender's matter; 95 in 100 would hold."""
    with Replica(kafka, topics, settings=RULES) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        records = half_garbage(100, photographs[0].read_bytes())
        for start in range(0, len(records), 10):
            answers.to_all(send(kafka, topics.images, records[start : start + 10]))
        wait_no_lag(kafka, topics)
        assert not holds(replica)
        assert (len(answers.events), len(answers.letters)) == (50, 50)
        assert replica.terminate() == 0


def test_half_of_a_burst_may_be_no_images(kafka: Cluster, topics: Topics, photographs: list[Path]) -> None:
    settings = RULES | {"OUZEL_TEST_SLOW_MODEL_S": "0.5"}
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        send(kafka, topics.images, half_garbage(100, photographs[0].read_bytes()))
        replica.start().wait_ready()
        answers.wait(lambda: len(answers.all) == 100 or holds(replica), "all to be answered, or the limit")
        assert not holds(replica)
