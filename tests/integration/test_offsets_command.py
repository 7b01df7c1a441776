"""`ouzel offsets` against a real broker, with groups of both protocols."""

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from consumer.stages.start import Note
from tests.integration.command_line import Answer, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import unique

pytestmark = pytest.mark.kafka

Joined = Callable[..., Consumer]


@pytest.fixture
def topics(kafka: Cluster) -> Topics:
    found = Topics(kafka.bootstrap_servers, unique("cli"))
    kafka.create_topic(found.images, partitions=2, config={"retention.ms": "-1"})  # its records are of 2023
    producer = found.producer()
    for partition, count in ((0, 10), (1, 4)):
        for number in range(count):
            producer.produce(found.images, b"x", partition=partition, timestamp=1_700_000_000_000 + number * 60_000)
    assert producer.flush(20) == 0
    return found


@pytest.fixture(params=["classic", "consumer"])
def joined(request: pytest.FixtureRequest, topics: Topics) -> Iterator[Joined]:
    """Makes a member of the group that has all partitions."""
    members: list[Consumer] = []

    def join() -> Consumer:
        member = Consumer(
            {
                "bootstrap.servers": topics.bootstrap_servers,
                "group.id": topics.group,
                "group.protocol": request.param,
                "client.id": "replica-1",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        members.append(member)
        member.subscribe([topics.images])
        for _ in range(100):
            member.poll(0.2)
            if len(member.assignment()) == 2:
                return member
        raise AssertionError("did not get its partitions")

    yield join
    for member in members:
        member.close()


def commit(topics: Topics, member: Consumer, *, note: str = "a note", **offsets: int) -> None:
    wanted = [TopicPartition(topics.images, int(name[1:]), at, note) for name, at in offsets.items()]
    for done in member.commit(offsets=wanted, asynchronous=False) or []:
        assert done.error is None


def by_partition(answer: Answer, column: str) -> dict[int, object]:
    return {row["partition"]: row[column] for row in answer.rows}


def test_show_tells_committed_end_lag_and_the_member(topics: Topics, joined: Joined) -> None:
    member = joined()
    commit(topics, member, p0=7)
    answer = topics.ouzel("offsets", "show")
    assert answer.code == 0, answer.stderr
    assert by_partition(answer, "committed") == {0: 7, 1: None}
    assert by_partition(answer, "end") == {0: 10, 1: 4}
    assert by_partition(answer, "lag") == {0: 3, 1: None}
    assert "replica-1" in str(by_partition(answer, "member")[0])
    assert by_partition(answer, "note")[0] == "a note"


def test_the_lag_counts_to_the_last_stable_offset(topics: Topics) -> None:
    producer = topics.producer(transactional_id=topics.unique)
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topics.images, b"not yet", partition=0)
    producer.flush(20)
    assert by_partition(topics.ouzel("offsets", "show"), "end") == {0: 10, 1: 4}
    producer.abort_transaction(30)


def test_reset_is_refused_while_the_group_is_live_and_names_the_members(topics: Topics, joined: Joined) -> None:
    member = joined()
    commit(topics, member, p0=7, p1=1)
    answer = topics.ouzel("offsets", "reset", "--to", "earliest", "--execute")
    assert answer.code == 1
    assert "is live" in answer.stderr
    assert "replica-1" in answer.stderr
    assert by_partition(topics.ouzel("offsets", "show"), "committed") == {0: 7, 1: 1}


def test_reset_is_a_dry_run_until_told_otherwise(topics: Topics, joined: Joined) -> None:
    member = joined()
    commit(topics, member, p0=7, p1=1)
    member.close()
    dry = topics.ouzel("offsets", "reset", "--to", "earliest")
    assert dry.code == 0, dry.stderr
    assert "dry run" in dry.stderr
    assert [(row["before"], row["after"], row["repeats"]) for row in dry.rows] == [(7, 0, 7), (1, 0, 1)]
    assert by_partition(topics.ouzel("offsets", "show"), "committed") == {0: 7, 1: 1}
    assert topics.ouzel("offsets", "reset", "--to", "earliest", "--execute").code == 0
    shown = topics.ouzel("offsets", "show")
    assert by_partition(shown, "committed") == {0: 0, 1: 0}
    assert by_partition(shown, "note") == {0: None, 1: None}


def test_reset_keeps_our_note_of_how_the_group_began_but_not_its_trip(topics: Topics, joined: Joined) -> None:
    member = joined()
    commit(topics, member, note=Note("id-1", 2, trip="system").dump(), p0=7, p1=1)
    member.close()
    assert topics.ouzel("offsets", "reset", "--to", "earliest", "--execute").code == 0
    shown = topics.ouzel("offsets", "show")
    assert by_partition(shown, "committed") == {0: 0, 1: 0}
    assert by_partition(shown, "note") == dict.fromkeys((0, 1), Note("id-1", 2).dump())


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("latest", {0: 10, 1: 4}),
        ("2023-11-14T22:15:20Z", {0: 2, 1: 2}),  # 1,700,000,000 s and two minutes
        ("2023-11-14T23:18:20+01:00", {0: 5, 1: 4}),  # five minutes; partition 1 has nothing so late
    ],
)
def test_a_group_that_never_was_can_be_put_anywhere(topics: Topics, to: str, expected: dict[int, int]) -> None:
    assert topics.ouzel("offsets", "reset", "--to", to, "--execute").code == 0
    assert by_partition(topics.ouzel("offsets", "show"), "committed") == expected


def test_an_offset_is_for_one_partition_and_within_its_bounds(topics: Topics) -> None:
    assert topics.ouzel("offsets", "reset", "--to", "3", "--execute").code == 2
    outside = topics.ouzel("offsets", "reset", "--to", "11", "--partition", "0", "--execute")
    assert outside.code == 1
    assert "0 to 10" in outside.stderr
    assert topics.ouzel("offsets", "reset", "--to", "3", "--partition", "0", "--execute").code == 0
    assert by_partition(topics.ouzel("offsets", "show"), "committed") == {0: 3, 1: None}


def test_a_time_that_is_none_and_a_topic_that_is_missing_are_clear_errors(topics: Topics) -> None:
    time = topics.ouzel("offsets", "reset", "--to", "yesterday")
    assert (time.code, "RFC 3339" in time.stderr) == (2, True)
    naive = topics.ouzel("offsets", "reset", "--to", "2026-01-31T09:30:00")
    assert (naive.code, "RFC 3339" in naive.stderr) == (2, True)
    missing = topics.ouzel("offsets", "show", "--topic", "absent")
    assert (missing.code, "ouzel topics create" in missing.stderr) == (6, True)
