"""What asks for three brokers, in one file as they are large: a coordinator that is lost, random faults, and the seeded
bugs that the same harness must see (I8). `make chaos` goes on to a count, `make chaos-bugs` through all bugs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import NewTopic

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.adapters.kafka.group_view import KafkaGroupView
from consumer.errors import BrokerUnreachable
from consumer.messages import Partition
from consumer.ports import TopicFacts
from tests.chaos.groups import owned
from tests.chaos.harness.cases import CASES, Case
from tests.chaos.harness.cluster import BROKERS, Brokers
from tests.chaos.harness.episode import run_episode
from tests.chaos.harness.plan import Guarantee, draw_plan
from tests.chaos.harness.proxy import Rule
from tests.conftest import Topics
from tests.kafka_clients import unique
from tests.processes import wait_until
from tests.replica import Replica
from tests.runs import Run

pytestmark = pytest.mark.kafka

# --- a coordinator that is lost ---------------------------------------------------------------------------------------

# librdkafka's call that sends a transaction's offsets ignores its time-out where the group's coordinator cannot be
# reached (librdkafka#5456, #5511): the replica ends with exit code 17, and nothing is lost or seen twice. Where a new
# librdkafka mends that, the first test here says so: its replica ends no more.
STALLED = 17
CUT_OFF = "cut-off"
"""`client.id` of the producer that is cut off."""
PARTITIONS = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """A group whose coordinator does nothing else for it: it leads none of the topics, and has no part in the
    transactions. So all of a transaction but its offsets goes well without it."""

    topics: Topics
    coordinator: int
    settings: dict[str, str]


@pytest.fixture
def stage(brokers: Brokers) -> Iterator[Stage]:
    group = unique("group")
    _make_internal_topics(brokers, group)
    wait_until(lambda: _led_as_preferred(brokers), timeout_s=60, what="the coordinators to be where they stay")
    coordinator = brokers.coordinator(group)
    assert coordinator is not None
    transaction_id = next(
        each
        for each in (f"{group}-{number}" for number in range(100))
        if brokers.coordinator(each, "__transaction_state") != coordinator
    )
    name = unique("images")
    topics = Topics(name, name.replace("images", "predictions"), f"{name}.dlq", group, PARTITIONS)
    one, other = (number for number in BROKERS if number != coordinator)
    replicas = [[one, other, coordinator], [other, one, coordinator], [one, other, coordinator]]
    asked = [
        NewTopic(each, PARTITIONS, replica_assignment=replicas)
        for each in (name, topics.predictions, topics.dead_letters)
    ]
    for made in brokers.admin().create_topics(asked).values():
        made.result(20)
    brokers.wait_whole([each.topic for each in asked])
    settings = {
        "OUZEL_KAFKA__GROUP_PROTOCOL": "consumer",
        "OUZEL_DELIVERY__GUARANTEE": "exactly_once",
        "OUZEL_TRANSACTION__MAX_MS": "100",
        "OUZEL_TRANSACTION__TIMEOUT_MS": "4000",
        "OUZEL_TRANSACTION__ID": transaction_id,
    }
    yield Stage(topics, coordinator, settings)
    brokers.ensure_running()


def _make_internal_topics(brokers: Brokers, group: str) -> None:
    """They are made by the first question about a group, and the first transaction."""
    Producer(brokers.client_properties(transactional_id=f"{group}-warm")).init_transactions(30)
    offsets = CommittedOffsets(brokers.client_properties(), group)

    def answered() -> bool:
        try:
            offsets.read([Partition("none", 0)], 5)
        except KafkaException:
            return False
        return True

    wait_until(answered, timeout_s=60, what="the group's coordinator")
    offsets.close()


def _led_as_preferred(brokers: Brokers) -> bool:
    """Whether no leader moves by itself, as one does some time after its broker came back."""
    found = brokers.admin().list_topics(timeout=5).topics
    return all(
        partition.leader == partition.replicas[0]
        for name, topic in found.items()
        if name.startswith("__")
        for partition in topic.partitions.values()
    )


def assert_ended_as_stalled(replica: Replica) -> None:
    assert replica.wait_exit(60) == STALLED
    last = replica.log_lines()[-1]
    assert last["error_class"] == "Stalled"
    assert "has not come back" in last["message"]
    assert "start again" in last["remedy"]


def test_a_replica_that_cannot_reach_the_coordinator_ends_and_the_other_does_its_work(
    brokers: Brokers, stage: Stage, small_photographs: list[Path], tmp_path: Path
) -> None:
    cut_off = stage.settings | {"OUZEL_KAFKA__PRODUCER__CLIENT_ID": CUT_OFF}
    healthy = stage.settings | {"OUZEL_TRANSACTION__ID": ""}
    with (
        Run(brokers, stage.topics, tmp_path) as run,
        Replica(brokers.clients, stage.topics, settings=cut_off) as replica,
        Replica(brokers.clients, stage.topics, settings=healthy) as other,
    ):
        with run.sending(small_photographs, per_second=60):
            replica.start().wait_for(lambda: owned(replica) == PARTITIONS, 30, "the first to have everything")
            other.start().wait_for(lambda: owned(other) >= 1, 30, "the other to take its share")
            run.observer.wait_answered(100)
            brokers.proxy.add(Rule("reset", broker=stage.coordinator, client=CUT_OFF))
            assert_ended_as_stalled(replica)
            other.wait_for(lambda: owned(other) == PARTITIONS, 30, "the other to have everything")
        run.healed(within_s=60)
    run.assert_all_promises_kept(exactly_once=True)


def test_a_coordinator_that_is_gone_is_done_without(
    brokers: Brokers, stage: Stage, small_photographs: list[Path], tmp_path: Path
) -> None:
    """librdkafka finds the next one, seldom within the time in which its call counts as stuck."""
    with (
        Run(brokers, stage.topics, tmp_path) as run,
        Replica(brokers.clients, stage.topics, settings=stage.settings) as replica,
    ):

        def answered(count: int) -> bool:
            if replica.exit_code is not None:  # what a supervisor does
                assert_ended_as_stalled(replica)
                replica.start()
            return run.observer.answered >= count

        with run.sending(small_photographs, per_second=60):
            replica.start()
            run.observer.wait_answered(100)
            brokers.nodes[stage.coordinator].kill()
            wanted = run.observer.answered + 200
            wait_until(lambda: answered(wanted), timeout_s=120, what="the work to go on")
        run.healed(within_s=60)
    run.assert_all_promises_kept(exactly_once=True)


def test_questions_go_on_where_the_broker_that_was_asked_is_gone(brokers: Brokers, stage: Stage) -> None:
    """librdkafka asks what it took for the controller, and by itself looks for another one every five minutes."""
    view = KafkaGroupView(brokers.client_properties(), group_id=stage.topics.group, timeout_ms=2_000)
    topics = (stage.topics.images,)
    before = view.topics(topics)
    asked: int = view._admin.list_topics(timeout=10).controller_id
    brokers.nodes[asked].kill()

    def answer() -> Mapping[str, TopicFacts]:
        try:
            return view.topics(topics)
        except BrokerUnreachable:
            return {}

    wait_until(lambda: answer() == before, timeout_s=60, what="an answer from another broker")
    view.close()


# --- random faults --------------------------------------------------------------------------------------------------

SEEDS: Mapping[Guarantee, int] = {"at_least_once": 20, "exactly_once": 20, "share": 20}
FAULTS = 14


@pytest.mark.parametrize("guarantee", SEEDS)
def test_random_faults_break_no_promise(
    brokers: Brokers, small_photographs: list[Path], tmp_path: Path, guarantee: Guarantee
) -> None:
    plan = draw_plan(guarantee, SEEDS[guarantee], FAULTS, replicas=(2, 3), partitions=(3, 6))
    result = run_episode(plan, brokers, tmp_path / "run", small_photographs)
    assert result.kept, "\n".join(result.stories)
    assert len(result.faults) == FAULTS
    assert result.lost == result.phantoms == 0
    assert result.inputs > 0


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_a_seeded_bug_is_seen(brokers: Brokers, small_photographs: list[Path], tmp_path: Path, case: Case) -> None:
    result = run_episode(case.plan(planted=True), brokers, tmp_path / "run", small_photographs)
    assert case.catches(result), f"{result.promises} broken, not {set(case.breaks)}"
    assert "python -m tests.chaos replay" in result.stories[0]
