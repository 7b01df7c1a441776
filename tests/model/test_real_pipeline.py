"""The real loop, publisher, key order and ledger against a broker and a group that do their worst, in any order."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from loguru import logger

from consumer.errors import Retryable
from consumer.leases import Leases
from consumer.messages import CommitPoint, Partition
from consumer.pipeline import Pipeline
from consumer.stages import events
from consumer.stages.commit import PartitionLedger
from consumer.stages.order import KeyOrder
from consumer.stages.publish import Settled
from tests.model.group import TOPIC, GroupCluster, GroupSource, PromiseBroken
from tests.model.replica import BAD, StepReplica

PARTITIONS = [Partition(TOPIC, number) for number in range(2)]
MOST_REPLICAS = 3
MOST_FAULTS = 4
"""In one run: more, and no replica ever gets to work."""
ROUNDS = 40
"""More turns than it ever takes to get on."""

partitions = st.sampled_from(PARTITIONS)
replicas = st.integers(0, MOST_REPLICAS - 1)
numbers = st.integers(0, 3)
values = st.sampled_from([b"image", b"image", b"image", BAD, None])
keys = st.sampled_from([b"a", b"a", b"b", None])
gaps = st.sampled_from([0, 0, 1, 2])
plans = st.lists(st.sampled_from(["begin", "finish", "publish", "write", "fail", "work", "nothing"]), max_size=5)


class Group(RuleBasedStateMachine):
    """Up to three replicas on two partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = self.make_cluster()
        self.replicas: list[StepReplica] = []
        self.faults = 0

    def make_cluster(self) -> GroupCluster:
        """What the replicas share."""
        return GroupCluster(len(PARTITIONS))

    @initialize()
    def begin(self) -> None:
        self.replicas += [StepReplica(self.cluster), StepReplica(self.cluster)]
        for partition in PARTITIONS:
            self.cluster.give(partition, self.replicas[0].source)
            for key in (b"a", b"b", None):
                self.cluster.write_input(partition, b"image", key, gap=0)
        self.works(3, False)

    def _one(self, number: int) -> StepReplica:
        return self.replicas[number % len(self.replicas)]

    # --- what is sent -----------------------------------------------------------------------------------------------

    @rule(
        partition=partitions,
        messages=st.lists(st.tuples(values, keys, gaps), min_size=1, max_size=4),
        marker=st.booleans(),
        turns=st.integers(0, 2),
    )
    def send(
        self,
        partition: Partition,
        messages: list[tuple[bytes | None, bytes | None, int]],
        marker: bool,
        turns: int,
    ) -> None:
        """Messages, offsets that hold none, and perhaps the end of a transaction; the loops may turn."""
        for value, key, gap in messages:
            self.cluster.write_input(partition, value, key, gap=gap)
        if marker:
            self.cluster.write_marker(partition)
        for replica in self.replicas * turns:
            replica.turn()

    # --- a replica's threads ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.replicas)
    @rule(times=st.integers(1, 4), last_first=st.booleans())
    def works(self, times: int, last_first: bool) -> None:
        """A good day."""
        for replica in self.replicas * times:
            replica.work(last_first=last_first)
            replica.commits_arrive()
            replica.turn()

    @precondition(lambda self: self.replicas)
    @rule(number=replicas, times=st.integers(1, 3))
    def turn(self, number: int, times: int) -> None:
        for _ in range(times):
            self._one(number).turn()

    @precondition(lambda self: any(each.questions.asked for each in self.replicas))
    @rule(number=replicas)
    def answer(self, number: int) -> None:
        self._one(number).answer()

    @precondition(lambda self: any(each.flow.new or each.flow.at_work for each in self.replicas))
    @rule(number=replicas, begin=st.integers(0, 4), finish=st.lists(numbers, max_size=4))
    def flow(self, number: int, begin: int, finish: list[int]) -> None:
        """Messages are taken up, and labelled in any order."""
        flow = self._one(number).flow
        for _ in range(begin):
            flow.begin()
        for which in finish:
            flow.finish(which)

    @precondition(lambda self: any(each.flow.at_work for each in self.replicas))
    @rule(number=replicas, which=numbers)
    def store_goes_away(self, number: int, which: int) -> None:
        self._one(number).flow.await_store(which)

    @precondition(lambda self: self.replicas)
    @rule(number=replicas, times=st.integers(1, 5))
    def publish(self, number: int, times: int) -> None:
        for _ in range(times):
            self._one(number).publisher.turn()

    @precondition(lambda self: self.replicas)
    @rule(number=replicas)
    def settles(self, number: int) -> None:
        """One more message has its outcome; what has is published, and committed as far as it goes."""
        replica = self._one(number)
        replica.flow.finish(-1)
        replica.publish()
        replica.turn()
        replica.commits_arrive()
        replica.turn()

    # --- the broker's answers ---------------------------------------------------------------------------------------

    @precondition(lambda self: any(each.sink.under_way for each in self.replicas))
    @rule(number=replicas, times=st.integers(1, 3))
    def write(self, number: int, times: int) -> None:
        for _ in range(times):
            self._one(number).sink.write()

    @precondition(lambda self: any(each.source.commit_under_way for each in self.replicas))
    @rule(number=replicas)
    def commit_arrives(self, number: int) -> None:
        self._one(number).source.commits_arrive()

    @precondition(lambda self: self.faults < MOST_FAULTS and self.replicas)
    @rule(number=replicas, what=st.sampled_from(["records", "commit", "answer", "poll"]), written=numbers)
    def broker_fails(self, number: int, what: str, written: int) -> None:
        """Records without an answer, a commit that never comes, an answer that never comes, a poll that fails."""
        self.faults += 1
        replica = self._one(number)
        if what == "records":
            replica.sink.fail(written)
        elif what == "commit":
            replica.source.commits_fail()
        elif what == "answer":
            replica.source.commits_arrive(answered=False)
        else:
            replica.source.poll_error = Retryable("poll failed")

    # --- the group --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.replicas and None in self.cluster.owners.values())
    @rule(number=replicas)
    def give(self, number: int) -> None:
        replica = self._one(number)
        if replica.inside:
            for partition in [each for each, owner in self.cluster.owners.items() if owner is None]:
                self.cluster.give(partition, replica.source)

    @precondition(lambda self: self.faults < MOST_FAULTS)
    @rule(partition=partitions, plan=plans, answers=st.booleans())
    def take_back(self, partition: Partition, plan: list[str], answers: bool) -> None:
        """The drain goes as planned; the coordinator may be away by then."""
        self.faults += 1
        owner = self.cluster.owners[partition]
        if owner is not None and partition not in self.cluster.wanted_back:
            replica = next(each for each in self.replicas if each.source is owner)
            replica.plan, owner.answers_questions = deque(plan), answers
            self.cluster.take_back(partition)

    @precondition(lambda self: self.faults < MOST_FAULTS and any(each.inside for each in self.replicas))
    @rule(number=replicas)
    def put_out(self, number: int) -> None:
        """Its session is over, and it does not know."""
        self.faults += 1
        replica = self._one(number)
        if replica.inside:
            self.cluster.zombies = True
            self.cluster.put_out(replica.source)

    @precondition(lambda self: any(not each.inside for each in self.replicas))
    @rule(number=replicas)
    def hear(self, number: int) -> None:
        replica = self._one(number)
        if not replica.inside:
            replica.hear()

    # --- replicas come and go ---------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.replicas) < (MOST_REPLICAS if self.faults else 2))
    @rule()
    def start(self) -> None:
        self.replicas.append(StepReplica(self.cluster))

    @precondition(lambda self: self.faults < MOST_FAULTS and self.replicas)
    @rule(number=replicas, written=numbers, commit_arrives=st.booleans())
    def crash(self, number: int, written: int, commit_arrives: bool) -> None:
        self.faults += 1
        replica = self._one(number)
        replica.die(written=written, commit_arrives=commit_arrives)
        self.replicas.remove(replica)

    @precondition(lambda self: self.faults < MOST_FAULTS and any(each.inside for each in self.replicas))
    @rule(number=replicas, plan=plans, answers=st.booleans())
    def stop(self, number: int, plan: list[str], answers: bool) -> None:
        self.faults += 1
        replica = self._one(number)
        if replica.inside:
            replica.plan, replica.source.answers_questions = deque(plan), answers
            replica.stop()
            self.replicas.remove(replica)

    # --- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nothing goes wrong any more: all is labelled and committed to the ends (I6), and the history is in order."""
        if self.cluster.broken is not None:
            raise self.cluster.broken
        rounds, before = 0, dict(self.cluster.committed)
        while not self._all_done():
            self._well_again()
            rounds = rounds + 1 if self.cluster.committed == before else 0
            before = dict(self.cluster.committed)
            if rounds > ROUNDS:
                raise PromiseBroken(f"I6: stuck, committed {self.cluster.committed}, logs {self.cluster.logs}")
        violations = self.cluster.verify()
        if violations:
            raise PromiseBroken("\n".join(map(str, violations)))

    def _all_done(self) -> bool:
        nothing = CommitPoint(0)
        return all(
            self.cluster.committed.get(partition, nothing).offset == log.end
            for partition, log in self.cluster.logs.items()
        )

    def _well_again(self) -> None:
        if not self.replicas:
            self.replicas.append(StepReplica(self.cluster))
        for replica in self.replicas:
            replica.source.answers_questions = True
            replica.plan = deque(["work"] * 3)
            if not replica.inside:
                replica.hear()
        for partition, owner in self.cluster.owners.items():
            if owner is None:
                self.cluster.give(partition, self.replicas[-1].source)
        for replica in self.replicas:
            replica.work()
            replica.commits_arrive()
            replica.turn()
            replica.clock.advance(1.0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger.disable("consumer")
    yield
    logger.enable("consumer")


def run(machine: type[Group] = Group, *, examples: int, steps: int, shrink: bool = True) -> None:
    """Random runs, the same in each run of the tests."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
            database=None,
        ),
    )


def test_the_real_loop_keeps_its_promises_whatever_the_order() -> None:
    run(examples=100, steps=50)


def test_a_commit_that_is_answered_too_late_is_not_followed_by_an_older_one() -> None:
    """At the end of a replica its position says nothing any more; what it asked for by it before may have landed."""
    group = Group()
    group.begin()
    group.works(4, False)
    partition = PARTITIONS[1]
    group.send(partition, [(b"image", None, 0)], True, 1)
    replica = group.replicas[0]
    replica.work()
    replica.turn()  # asks for the offset after the marker; the coordinator answers nobody
    replica.stop()
    assert group.cluster.committed[partition].offset == group.cluster.logs[partition].end


# --- each checker is shown to fail (I8) ------------------------------------------------------------------------------


def _commit_what_was_taken(patch: pytest.MonkeyPatch) -> None:
    """Commit before publish."""
    point = PartitionLedger.point

    def taken(self: PartitionLedger, position: int | None) -> CommitPoint | None:
        self._finished_to = self.next_offset
        return point(self, position)

    patch.setattr(PartitionLedger, "point", taken)


def _forget_the_order_of_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KeyOrder, "release", lambda _self, outcome: [outcome])


def _finish_what_is_abandoned(patch: pytest.MonkeyPatch) -> None:
    settled = Pipeline.settled
    patch.setattr(Pipeline, "settled", lambda self, item: settled(self, Settled(item.delivery, finished=True)))


def _begin_one_too_late(patch: pytest.MonkeyPatch) -> None:
    read_from = Leases.read_from
    patch.setattr(Leases, "read_from", lambda self, ledger, offset: read_from(self, ledger, offset + 1))


def _make_event_ids_anew(patch: pytest.MonkeyPatch) -> None:
    numbers = count()
    patch.setattr(events, "event_id", lambda *_, **__: str(next(numbers)))


def _wait_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "start_marked", lambda self: None)


def _commit_without_a_generation(patch: pytest.MonkeyPatch) -> None:
    def commit(self: GroupCluster, member: GroupSource, points: dict[Partition, CommitPoint], _: int) -> bool:
        self.members, members = [*self.members, member], self.members
        taken = fenced(self, member, points, self.generation)
        self.members = members
        return taken

    fenced = GroupCluster.commit
    patch.setattr(GroupCluster, "commit", commit)


@pytest.mark.parametrize(
    ("bug", "promise"),
    [
        (_commit_what_was_taken, "I1, I2"),
        (_forget_the_order_of_keys, "I4"),
        (_finish_what_is_abandoned, "I1, I2"),
        (_begin_one_too_late, "I"),
        (_make_event_ids_anew, "I7"),
        (_wait_for_ever, "I6"),
        (_commit_without_a_generation, "I3"),
    ],
)
def test_a_bug_in_the_real_code_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(PromiseBroken, match=f"^{promise}"):
        run(examples=1_000, steps=50, shrink=False)  # it ends at the first that is found
