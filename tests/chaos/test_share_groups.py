"""`delivery.guarantee = "share"` against a real broker: every image is labelled or a letter, by however many replicas,
whatever ends or is down meanwhile."""

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.conftest import MakeTopics, Topics
from tests.faulty_replica import ENTRY as FAULTY
from tests.hostile_decoder import with_mark
from tests.hostile_replica import ENTRY as HOSTILE
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import unique
from tests.processes import wait_until
from tests.replica import CRASHING, Replica
from tests.runs import Input, Run, inline_image
from tests.share_groups import configured

pytestmark = pytest.mark.kafka

SMALL_BATCHES = {"batch_num_messages": 4}
"""A sender's: the broker hands out whole batches."""


@pytest.fixture
def one_partition(make_topics: MakeTopics) -> Topics:
    return make_topics(partitions=1)


def _letters(run: Run) -> list[str]:
    return [line["error"] for line in map(json.loads, run.history_path.read_text().splitlines()) if line.get("error")]


def test_a_backlog_is_labelled_once_and_nothing_comes_again(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, topics)
    with Run(kafka, topics, tmp_path, share=True) as run, Replica(kafka, topics, settings=settings) as replica:
        run.send(run.photographs(300, photographs))
        run.send([Input(b"no image"), Input(None)])
        replica.start().wait_ready()
        run.observer.wait_answered(301)
        run.send(run.photographs(50, photographs))
        run.observer.wait_answered(351)
        assert replica.probe("livez")[0] == 200
        assert replica.samples("ouzel_consumer_lag") == []
        replica.wait_for(lambda: replica.metric("ouzel_images_total", outcome="skipped") == 1, 10, "the tombstone")
        assert replica.metric("ouzel_share_locks_lapsed_total") == 0
        assert replica.terminate() == 0
        replica.start().wait_ready()  # what was accepted is never handed out again
        run.send(run.photographs(20, photographs))
        run.observer.wait_answered(371)
        assert replica.metric("ouzel_share_deliveries_again_total") == 0
        assert replica.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert (summary.inputs, summary.letters) == (372, 1)
    assert summary.duplicate_events == 0


def test_replicas_beyond_the_partitions_are_all_busy(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, one_partition, TEST_SLOW_MODEL_S="0.05", BATCH__MAX_SIZE="4")
    with Run(kafka, one_partition, tmp_path, share=True) as run, ExitStack() as stack:
        replicas = [
            stack.enter_context(Replica(kafka, one_partition, settings=settings, entry=FAULTY)).start()
            for _ in range(3)
        ]
        for replica in replicas:
            replica.wait_ready()

        def labelled() -> list[float]:
            return [replica.metric("ouzel_images_total", outcome="labelled") for replica in replicas]

        with run.sending(small_photographs, per_second=120, **SMALL_BATCHES):
            replicas[0].wait_for(lambda: min(labelled()) >= 20, 60, "each replica to label images of the one partition")
        run.healed()
        assert [replica.terminate() for replica in replicas] == [0, 0, 0]
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0


@pytest.mark.parametrize("crash_at", ["decoded:60", "produced:60", "delivered:60"])
def test_a_replica_killed_in_its_work_leaves_it_to_the_others(
    kafka: Cluster, topics: Topics, small_photographs: list[Path], tmp_path: Path, crash_at: str
) -> None:
    settings = configured(kafka, topics)
    with (
        Run(kafka, topics, tmp_path, share=True) as run,
        Replica(kafka, topics, settings={**settings, "OUZEL_TEST_CRASH_AT": crash_at}, entry=CRASHING) as killed,
        Replica(kafka, topics, settings=settings) as other,
    ):
        run.send(run.photographs(400, small_photographs), **SMALL_BATCHES)
        assert killed.start().wait_exit() == -signal.SIGKILL
        other.start()
        run.healed()
        assert other.metric("ouzel_share_deliveries_again_total") > 0
        assert other.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0
    assert summary.duplicate_events <= 128


def test_a_store_that_is_down_for_longer_than_all_deliveries_makes_no_letters(
    kafka: Cluster, topics: Topics, photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(
        kafka,
        topics,
        lock_ms=1_000,
        TEST_STORE=str(tmp_path),
        RETRY__INITIAL_BACKOFF_MS="20",
        RETRY__MAX_BACKOFF_MS="100",
        DEAD_LETTERS__SYSTEM_CONSECUTIVE="5",
    )
    (tmp_path / "0.jpg").write_bytes(photographs[0].read_bytes())
    down = tmp_path / "a.down"
    down.touch()
    with (
        Run(kafka, topics, tmp_path, share=True) as run,
        Replica(kafka, topics, settings=settings, entry=FAULTY) as replica,
    ):
        replica.start().wait_ready()
        references = [
            Input(json.dumps({"image_id": f"{n}", "uri": "test://a/0.jpg"}).encode(), image_id=f"{n}")
            for n in range(40)
        ]
        run.send(references, **SMALL_BATCHES)
        replica.wait_for(lambda: replica.metric("ouzel_store_down") == 1, 20, "the store to be presumed down")
        tries = tmp_path / "tries"
        asked = len(tries.read_text().splitlines())
        # Each try is at most a tenth of a second after the one before: more than ten locks' time.
        replica.wait_for(lambda: len(tries.read_text().splitlines()) > asked + 150, 60, "150 more probes")
        assert replica.probe("readyz")[0] == 200
        down.unlink()
        run.healed()
        assert replica.metric("ouzel_share_deliveries_again_total") > 0
        assert replica.metric("ouzel_share_deliveries_again_total") <= 2 * len(references)
        assert replica.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0


def test_an_image_that_ends_its_decoder_ends_one_replica_and_becomes_one_letter(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, one_partition)
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings, entry=HOSTILE) as first,
        Replica(kafka, one_partition, settings=settings, entry=HOSTILE) as second,
    ):
        body = with_mark(small_photographs[0].read_bytes(), "segfault")
        run.send([Input(inline_image("culprit", body), image_id="culprit")])
        run.send(run.photographs(100, small_photographs), **SMALL_BATCHES)
        assert first.start().wait_exit() == -signal.SIGSEGV
        second.start()
        run.healed()
        assert second.exit_code is None, "it ended the next one too"
        assert second.metric("ouzel_decoder_crashes_total") == 1
        assert second.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.letters == 1
    assert _letters(run) == ["DecoderCrashed"]


def test_a_message_that_ends_every_replica_becomes_a_letter_before_the_broker_drops_it(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    """A killed replica may cost it two deliveries: what its second member has asked for is handed out."""
    settings = configured(kafka, one_partition, TEST_CRASH_AT="predicted:1")
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings, entry=CRASHING) as replica,
    ):
        run.send(run.photographs(1, small_photographs))
        killed = 0
        while not run.observer.answered:
            replica.start()
            wait_until(
                lambda: replica.exit_code is not None or run.observer.answered > 0,
                timeout_s=60,
                what="its end, or a letter",
            )
            killed += replica.exit_code == -signal.SIGKILL
        assert 1 <= killed <= 3, "the fourth delivery is the letter's"
        assert replica.terminate() == 0
    assert run.assert_all_promises_kept().letters == 1
    assert _letters(run) == ["DeliveriesExhausted"]


def test_records_of_aborted_transactions_are_not_labelled(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, one_partition)
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings) as replica,
    ):
        run.send(run.photographs(5, small_photographs))
        sender = Producer(kafka.client_properties(transactional_id=unique("aborts")))
        sender.init_transactions(30)
        sender.begin_transaction()
        for _ in range(5):
            sender.produce(one_partition.images, inline_image("never", small_photographs[0].read_bytes()))
        sender.flush(30)
        sender.abort_transaction(30)
        run.send(run.photographs(5, small_photographs))
        replica.start().wait_ready()
        run.healed()
        assert replica.terminate() == 0
    assert run.assert_all_promises_kept().events == 10


def test_a_replica_that_is_told_to_stop_hands_back_what_it_cannot_finish_at_once(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    """The locks are longer than this test waits."""
    settings = configured(kafka, one_partition, lock_ms=60_000)
    slow = {**settings, "OUZEL_TEST_SLOW_MODEL_S": "3600", "OUZEL_DRAIN__TIMEOUT_MS": "200"}
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=slow, entry=FAULTY) as stopped,
        Replica(kafka, one_partition, settings=settings) as other,
    ):
        run.send(run.photographs(20, small_photographs))
        stopped.start()
        stopped.wait_for(lambda: stopped.metric("ouzel_inflight_messages") == 20, 30, "all of it in hand")
        assert stopped.terminate(timeout_s=40) == 0
        other.start()
        run.healed(within_s=40)
        assert other.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.duplicate_events == 0


def test_a_replica_that_stood_still_past_its_locks_spoils_nothing(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, one_partition, lock_ms=1_500, TEST_SLOW_MODEL_S="0.05", BATCH__MAX_SIZE="4")
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings, entry=FAULTY) as frozen,
        Replica(kafka, one_partition, settings=settings, entry=FAULTY) as other,
    ):
        run.send(run.photographs(200, small_photographs), **SMALL_BATCHES)
        frozen.start()
        run.observer.wait_answered(20)
        frozen.freeze()
        other.start()
        run.observer.wait_answered(200)  # what the frozen one holds is among it
        frozen.thaw()
        run.send(run.photographs(100, small_photographs), **SMALL_BATCHES)
        run.healed()
        assert [replica.terminate() for replica in (frozen, other)] == [0, 0]
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0
    assert summary.duplicate_events <= 64


def test_a_broker_that_is_killed_and_comes_back_is_waited_for(
    broker: KafkaBroker, topics: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(broker, topics)
    with Run(broker, topics, tmp_path, share=True) as run, Replica(broker, topics, settings=settings) as replica:
        replica.start().wait_ready()
        with run.sending(small_photographs, per_second=60, **SMALL_BATCHES):
            run.observer.wait_answered(60)
            broker.kill()
            broker.start()
            answered = run.observer.answered
            run.observer.wait_answered(answered + 60)
        run.healed()
        assert replica.probe("livez")[0] == 200
        assert replica.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0


def test_a_senders_batch_that_takes_longer_than_a_lock_is_labelled_in_turns(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    """The broker hands out all of it at once: what is left when the locks lapse comes again."""
    settings = configured(kafka, one_partition, TEST_SLOW_MODEL_S="0.1", BATCH__MAX_SIZE="4")
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings, entry=FAULTY) as replica,
    ):
        run.send(run.photographs(150, small_photographs, keys=0), linger_ms=500)
        replica.start()
        run.healed()
        assert replica.metric("ouzel_share_deliveries_again_total") > 0
        assert replica.metric("ouzel_share_locks_lapsed_total") > 0
        assert replica.terminate() == 0
    summary = run.assert_all_promises_kept()
    assert summary.letters == 0


def test_a_topic_made_anew_is_read_from_its_beginning(
    kafka: Cluster, one_partition: Topics, small_photographs: list[Path], tmp_path: Path
) -> None:
    settings = configured(kafka, one_partition)
    with (
        Run(kafka, one_partition, tmp_path, share=True) as run,
        Replica(kafka, one_partition, settings=settings) as replica,
    ):
        run.send(run.photographs(20, small_photographs))
        replica.start()
        run.healed()
        kafka.delete_topic(one_partition.images)
        kafka.create_topic(one_partition.images, partitions=1)
        replica.wait_for(lambda: replica.said("was made anew"), 20, "the new topic to be seen")
        run.send(run.photographs(30, small_photographs))
        run.observer.wait_answered(30)  # places, and the new ones begin at the old ones
        replica.wait_for(
            lambda: replica.metric("ouzel_images_total", outcome="labelled") == 50, 30, "the images of both topics"
        )
        assert replica.terminate() == 0
    run.assert_all_promises_kept()
