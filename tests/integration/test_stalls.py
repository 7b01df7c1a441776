"""A partition that gets stuck in its client, on a real broker: it is seen and begun anew, and nothing is lost. Where
nothing helps, the replica ends with a code, and another takes over."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import PROTOCOLS, Protocol, unique
from tests.replica import Replica
from tests.runs import Run
from tests.stuck_replica import ENTRY

pytestmark = pytest.mark.kafka

STUCK = 1
"""The partition that gets stuck."""
STALL_MS = 3_000
AT_LEAST_ONCE, EXACTLY_ONCE = "at_least_once", "exactly_once"
QUIET_S = 5.0  # longer than all remedies take at a stall_ms of 1,000: the quiet itself


@contextmanager
def _open_transaction(kafka: Cluster, topic: str) -> Iterator[None]:
    """Records are there, and nobody may read them yet; at the end they are aborted."""
    producer = Producer(kafka.client_properties(transactional_id=unique("writer")))
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition in range(3):
        producer.produce(topic, b"never to be read", partition=partition)
    assert producer.flush(10) == 0
    try:
        yield
    finally:
        producer.abort_transaction(10)


def _stuck(
    kafka: Cluster, topics: Topics, protocol: Protocol, guarantee: str = AT_LEAST_ONCE, *, starts: int
) -> Replica:
    settings = {
        "OUZEL_TEST_STUCK": f"{STUCK}:{starts}",
        "OUZEL_HEALTH__STALL_MS": str(STALL_MS),
        "OUZEL_KAFKA__GROUP_PROTOCOL": protocol,
        "OUZEL_DELIVERY__GUARANTEE": guarantee,
    }
    return Replica(kafka, topics, settings=settings, entry=ENTRY)


@pytest.mark.parametrize(
    ("protocol", "guarantee"),
    [(PROTOCOLS[0], AT_LEAST_ONCE), (PROTOCOLS[1], AT_LEAST_ONCE), (PROTOCOLS[1], EXACTLY_ONCE)],
)
@pytest.mark.parametrize(("starts", "remedy"), [(1, "restart"), (2, "rejoin")])
def test_a_partition_that_is_stuck_is_healed(
    kafka: Cluster,
    make_topics: MakeTopics,
    photographs: list[Path],
    tmp_path: Path,
    protocol: Protocol,
    guarantee: str,
    starts: int,
    remedy: str,
) -> None:
    topics = make_topics(partitions=3)
    stuck = _stuck(kafka, topics, protocol, guarantee, starts=starts)
    with Run(kafka, topics, tmp_path) as run, stuck as replica:
        replica.start().wait_ready()
        run.send(run.photographs(60, photographs))
        replica.wait_for(lambda: replica.metric("ouzel_stalls_total", action=remedy) == 1, 60, f"a {remedy}")
        run.healed(within_s=60)
        assert replica.probe("livez")[0] == 200
        assert replica.metric("ouzel_stalls_total") == starts  # each remedy once, up to the one that helped
        run.send(run.photographs(60, photographs))
        run.healed(within_s=30)
        assert replica.terminate() == 0
        # What leaves the group for a moment does so in order: nothing is seen twice under either guarantee.
        assert run.assert_all_promises_kept(exactly_once=True).letters == 0


def test_where_nothing_helps_the_replica_ends_and_another_takes_over(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics(partitions=3)
    with Run(kafka, topics, tmp_path) as run, _stuck(kafka, topics, "consumer", starts=1_000) as replica:
        replica.start().wait_ready()
        run.send(run.photographs(60, photographs))
        replica.wait_for(lambda: replica.probe("livez")[0] == 503, 60, "/livez to turn")
        assert "stands still" in replica.probe("livez")[1] or replica.exit_code == 17
        assert replica.wait_exit(60) == 17
        last = replica.log_lines()[-1]
        assert (last["error_class"], last["exit_code"]) == ("Stalled", 17)
        assert f"[{STUCK}]" in last["message"]
        with Replica(kafka, topics, settings={"OUZEL_KAFKA__GROUP_PROTOCOL": "consumer"}) as heir:
            heir.start().wait_ready()
            run.healed(within_s=60)
            assert heir.terminate() == 0
        run.assert_all_promises_kept()


def test_neither_a_quiet_topic_nor_an_open_transaction_nor_a_broker_that_is_away_is_a_stall(
    broker: KafkaBroker, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics(partitions=3)
    settings = {
        "OUZEL_HEALTH__STALL_MS": "1000",
        "OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "1000",
        "OUZEL_KAFKA__GROUP_PROTOCOL": "consumer",
    }
    with Run(broker, topics, tmp_path) as run, Replica(broker, topics, settings=settings) as replica:
        replica.start().wait_ready()
        run.send(run.photographs(30, photographs, keys=0))
        run.healed(within_s=30)
        with _open_transaction(broker, topics.images):
            threading.Event().wait(QUIET_S)
        broker.pause()
        try:
            threading.Event().wait(QUIET_S)
        finally:
            broker.resume()
        replica.wait_ready()
        threading.Event().wait(QUIET_S)  # at a tail of aborted records, which nobody is handed
        run.send(run.photographs(30, photographs))
        run.healed(within_s=60)
        assert replica.metric("ouzel_stalls_total") == 0
        assert replica.exit_code is None
        assert replica.terminate() == 0
