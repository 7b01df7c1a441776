"""What changes under us: the broker refuses our position, the log was cut short, a topic goes away or is made anew."""

from collections.abc import Mapping, Sequence

from loguru import logger

from consumer.commits import Commits
from consumer.leases import Leases
from consumer.messages import Partition
from consumer.owner import ASK_AGAIN_S, Questions
from consumer.ports import Clock, GroupView, TopicFacts
from consumer.rules import Rules
from consumer.stages.absences import Absences
from consumer.stages.commit import PartitionLedger
from consumer.stages.relabel import range_gone
from consumer.stages.start import StartPoint, is_another_topic


class TopicWatch:
    """Asks the cluster, and does what has to be done. Only the owner's thread calls it."""

    def __init__(
        self,
        *,
        view: GroupView,
        questions: Questions,
        leases: Leases,
        commits: Commits,
        clock: Clock,
        rules: Rules,
        relabels: bool,
    ) -> None:
        """With `relabels` a range is relabelled: it means nothing in another topic."""
        self._view = view
        self._questions = questions
        self._leases = leases
        self._commits = commits
        self._clock = clock
        self._rules = rules
        self._relabels = relabels
        self._absences = Absences(rules.topic_gone_s)
        self._check_at_s = 0.0
        self._asking = False
        self._lost_at_s: dict[Partition, tuple[PartitionLedger, float]] = {}
        """When to ask again where a partition goes on, and the books that it was on."""

    # --- positions that are lost ------------------------------------------------------------------------------------

    def ask_due(self) -> None:
        """Ask again where partitions go on, for those whose time has come."""
        now_s = self._clock.monotonic_s()
        for partition, (ledger, at_s) in list(self._lost_at_s.items()):
            if at_s <= now_s:
                del self._lost_at_s[partition]
                if self._leases.ledgers.get(partition) is ledger:
                    self.offset_lost(partition)

    def offset_lost(self, partition: Partition) -> None:
        """The broker refuses our position: find out where the partition goes on. What is in flight stays wanted."""
        leases = self._leases
        ledger = leases.ledgers.get(partition)
        if ledger is None:
            return

        def ask() -> Mapping[Partition, StartPoint]:
            return leases.find_starts([partition], positions={partition: ledger.next_offset}, recreated=False)

        def go_on(points: Mapping[Partition, StartPoint]) -> None:
            if leases.ledgers.get(partition) is not ledger:
                return  # taken away meanwhile
            point = points.get(partition)
            if point is None:  # the topic is away; `check` ends the wait
                ask_again()
            elif is_another_topic(ledger.lease.topic_id, point.topic_id):
                self._topic_made_anew([partition])
            elif point.offset < ledger.next_offset:  # the log was cut short: these offsets come again, as new messages
                if self._commits.transactional:
                    self._commits.undo(f"the log of {partition} was cut short")
                else:
                    leases.begin_anew([partition])
            else:
                leases.go_on(ledger, point)

        def ask_again() -> None:
            if leases.ledgers.get(partition) is ledger:
                self._lost_at_s[partition] = ledger, self._clock.monotonic_s() + ASK_AGAIN_S

        self._questions.ask(ask, go_on, ask_again)

    # --- topics that change -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ask whether the topics are there, and the same, when it is time."""
        now_s = self._clock.monotonic_s()
        if now_s < self._check_at_s or self._asking:
            return
        self._check_at_s = now_s + self._rules.metadata_interval_s
        self._asking = True  # brokers that are away answer none for long: no queue of questions, with others behind it
        self._questions.ask(lambda: self._view.topics(self._rules.topics), self._compare, self._asked)

    def _asked(self) -> None:
        self._asking = False

    def _compare(self, found: Mapping[str, TopicFacts]) -> None:
        self._asked()
        now_s = self._clock.monotonic_s()
        for name in self._rules.topics:
            self._absences.note(name, there=name in found, now_s=now_s)
        made_anew = [
            partition
            for partition, ledger in self._leases.ledgers.items()
            if (facts := found.get(partition.topic)) is not None
            and is_another_topic(ledger.lease.topic_id, facts.topic_id)
        ]
        if made_anew:
            self._topic_made_anew(made_anew)

    def _topic_made_anew(self, partitions: Sequence[Partition]) -> None:
        """The topic was deleted and made again: its old work means nothing, and it starts at its beginning."""
        logger.error("topic made anew under {}: its old work is discarded", ", ".join(map(str, partitions)))
        if self._relabels:
            raise range_gone(partitions[0].topic)
        if self._commits.transactional:
            self._commits.undo("a topic was made anew")  # what goes on finds that by the topic's id
            return
        self._leases.begin_anew(partitions)
        self._leases.ask_starts(partitions, recreated=True)
