"""Seeded bugs (I8): each a small patch of the service in a replica's process, by `entry`. `cases` has the schedule that
shows each.

What one of them breaks is a promise, and the harness must see it from outside: by what it reads from the brokers.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

_Patch = Callable[[], None]


def _commit_before_publish() -> None:
    """An image counts as finished when the model has answered."""
    publisher = _settling_once()
    submit = publisher.submit

    def submitted(self: Any, outcome: Any) -> None:
        submit(self, outcome)
        self._on_settled(_settled(outcome.delivery))

    publisher.submit = submitted


def _publish_not_awaited() -> None:
    """... when its event is with the producer, which has yet to send it."""
    publisher = _settling_once()
    send = publisher._send

    def sent(self: Any, number: int, produced: Any) -> None:
        send(self, number, produced)
        self._on_settled(_settled(produced.outcome.delivery))

    publisher._send = sent


def _publish_given_up() -> None:
    """An event that the broker did not take in time counts as published."""
    from consumer.errors import OutputUnavailable
    from consumer.stages.publish import Publisher

    publisher: Any = Publisher
    failed = publisher._failed

    def given_up(self: Any, failure: Any) -> None:
        if isinstance(failure.error, OutputUnavailable):
            self._finished(self._under_way.pop(failure.number).outcome)
        else:
            failed(self, failure)

    publisher._failed = given_up


def _commit_highest() -> None:
    """The highest finished offset is committed, with earlier ones still under way."""
    from consumer.stages.commit import PartitionLedger

    ledger: Any = PartitionLedger
    close_prefix = ledger._close_prefix

    def close(self: Any) -> None:
        highest = max((taken.end for taken in self._open if taken.finished), default=0)
        close_prefix(self)
        self._finished_to = max(self._finished_to, highest)

    ledger._close_prefix = close


def _no_fence() -> None:
    """Partitions that were lost stay on the books, and are committed."""
    from consumer.pipeline import Pipeline

    pipeline: Any = Pipeline
    pipeline.on_lost = lambda _self, _partitions: None


def _no_resume() -> None:
    """A partition that comes back stays paused, as it was left."""
    from consumer.adapters.kafka.source import KafkaSource

    source: Any = KafkaSource
    start = source.start
    seen: set[Any] = set()

    def started(self: Any, lease: Any, offset: int) -> None:
        start(self, lease, offset)
        if lease.partition in seen:
            from confluent_kafka import TopicPartition

            self._consumer.pause([TopicPartition(*lease.partition)])
        seen.add(lease.partition)

    source.start = started


def _lose_window() -> None:
    """What waits for the model at a revoke is let go of, and counts as finished."""
    from consumer.flow import Flow
    from consumer.messages import Abandoned, Batch

    flow: Any = Flow
    publisher = _settling_once()
    infer, publish = flow._infer, publisher._publish

    def inferred(self: Any, batch: Any, serving: Any) -> None:
        kept = tuple(image for image in batch.images if image.job.delivery.lease.wants_new_work)
        for image in batch.images:
            if image not in kept:
                self._leave(Abandoned(image.job.delivery))
        if kept:
            infer(self, Batch(kept, batch.closed_by), serving)

    def published(self: Any, outcome: Any) -> None:
        if isinstance(outcome, Abandoned):
            self._settle(_settled(outcome.delivery))
        else:
            publish(self, outcome)

    flow._infer, publisher._publish = inferred, published


def _drop_on_limit() -> None:
    """Over the dead-letter limit letters are dropped, and their messages committed."""
    from consumer.stages.dead_letter_limit import Verdict
    from consumer.stages.publish import Publisher

    publisher: Any = Publisher
    init = publisher.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        judge = self._limit.judge
        self._limit.judge = lambda *a, **k: judge(*a, **k) if self._limit.trip is None else "drop"

    def published(self: Any, rejected: Any) -> None:
        if self._judge(rejected) is Verdict.PUBLISH:
            from consumer.stages.events import dead_letter

            self._produce(rejected, dead_letter(rejected, self._context))
        else:
            self._finished(rejected)

    publisher.__init__, publisher._publish_letter = made, published


def _retry_given_up() -> None:
    """An image that its store keeps failing for is passed over without a letter."""
    from consumer.errors import StoreFailed

    _no_letter_for(StoreFailed)


def _event_id_from_clock() -> None:
    """A redelivery gets another event id."""
    from consumer.stages import events

    module: Any = events
    module.event_id = lambda *_args, **_kwargs: f"{time.time_ns():064x}"


def _commits_go_back() -> None:
    """Every third commit is an older one, sent again."""
    from consumer.adapters.kafka.source import KafkaSource

    source: Any = KafkaSource
    commit = source.commit
    history: list[Any] = []

    def committed(self: Any, points: Any) -> None:
        history.append(points)
        commit(self, history[-3] if len(history) % 3 == 0 else points)

    source.commit = committed


def _keys_out_of_order() -> None:
    """Whatever is done first is published first."""
    from consumer.stages.order import KeyOrder

    order: Any = KeyOrder
    order.took = lambda _self, _delivery: None
    order.release = lambda _self, outcome: [outcome]


def _neighbours_name() -> None:
    """Each event has the image id of the one before."""
    from dataclasses import replace

    from consumer.stages import publish

    module: Any = publish
    label_event = module.label_event
    names = ["nobody's"]

    def named(labelled: Any, *args: Any) -> Any:
        names.append(labelled.job.image_id)
        return label_event(replace(labelled, job=replace(labelled.job, image_id=names[-2])), *args)

    module.label_event = named


# --- exactly once ---------------------------------------------------------------------------------------------------


def _two_transactions() -> None:
    """Events are committed first, and the offsets that they answer a moment later."""
    from confluent_kafka import Producer

    from consumer.adapters.kafka.transactional_sink import TransactionalSink

    sink: Any = TransactionalSink
    end = sink._end

    def ended(self: Any, points: Any, me: Any) -> None:
        if self._open:
            Producer.commit_transaction(self._producer, 30)  # no crash point: that one is about offsets
            self._settled()
            time.sleep(0.3)
        end(self, points, me)

    sink._end = ended


def _undone_is_forgotten() -> None:
    """What a transaction held that was undone is not done again."""
    from consumer.transactional_commits import TransactionalCommits

    commits: Any = TransactionalCommits

    def undo(self: Any, _why: str) -> None:
        if not self._undoing:
            self._undoing, self._to_commit, self._sealing = True, False, True
            self._publisher.halt()
            self._transactions.undo()

    commits.undo = undo


def _keys_in_transactions() -> None:
    """Outcomes leave in the order of their key: what is in a transaction is no prefix of the partition."""
    from consumer.stages.order import KeyOrder

    order: Any = KeyOrder
    init = order.__init__
    order.__init__ = lambda self, **_options: init(self)


# --- share groups ---------------------------------------------------------------------------------------------------


def _limit_ignored() -> None:
    """Nobody minds how often a message was handed out: the broker discards it after its last time."""
    from dataclasses import replace

    from consumer import bootstrap

    module: Any = bootstrap
    rules = module._share_rules
    module._share_rules = lambda settings: replace(rules(settings), delivery_count_limit=1_000_000)


def _exhausted_dropped() -> None:
    """A message that was handed out too often is acknowledged, and its letter is not written."""
    from consumer.errors import DeliveriesExhausted

    _no_letter_for(DeliveriesExhausted)


def _unfinished_accepted() -> None:
    """What is handed back is accepted: at a stop, what the drain did not finish."""
    member = _share_member()

    def release(self: Any, deliveries: Any, timeout_s: float) -> None:
        self.accept(deliveries, timeout_s)

    member.release = release


def _lapsed_is_done() -> None:
    """An image whose time is up counts as done. The broker's lock holds a little longer, and takes the word for it."""
    from consumer.messages import Abandoned
    from consumer.stages.publish import Publisher

    publisher: Any = Publisher
    publish = publisher._publish

    def published(self: Any, outcome: Any) -> None:
        if isinstance(outcome, Abandoned) or outcome.delivery.lease.ended:
            self._settle(_settled(outcome.delivery))
        else:
            publish(self, outcome)

    publisher._publish = published


def _whole_poll_accepted() -> None:
    """All that a poll brought is accepted with the first of it that is done."""
    member = _share_member()
    poll, accept = member.poll, member.accept

    def polled(self: Any, timeout_s: float) -> Any:
        self.brought = poll(self, timeout_s)
        return self.brought

    member.poll = polled
    member.accept = lambda self, _deliveries, timeout_s: accept(self, self.brought, timeout_s)


def _done_is_released() -> None:
    """What is published is handed back, and comes again."""
    member = _share_member()

    def accept(self: Any, deliveries: Any, timeout_s: float) -> Mapping[Any, str]:
        self.release(deliveries, timeout_s)
        return {}

    member.accept = accept


def _event_id_of_the_delivery() -> None:
    """The event id has in it how often the message was handed out."""
    from consumer.stages import events, publish

    stages: tuple[Any, Any] = (events, publish)
    event_id, label_event = stages[0].event_id, stages[1].label_event

    def labelled_event(labelled: Any, *args: Any) -> Any:
        count = labelled.delivery.delivery_count
        stages[0].event_id = lambda *a, **k: f"{count:02x}{event_id(*a, **k)[2:]}"  # the publisher's thread alone
        return label_event(labelled, *args)

    stages[1].label_event = labelled_event


def _polls_no_more() -> None:
    """A store that was down once is taken to be down from then on, and nothing more is taken."""
    from consumer.flow import Flow

    flow: Any = Flow
    down_stores = flow.down_stores
    known: dict[str, float] = {}

    def down(self: Any) -> Mapping[str, float]:
        known.update(down_stores(self))
        return known

    flow.down_stores = down


def _elsewhere() -> None:
    """By `tests.crashing_replica`, which looks at the same variable."""


BUGS: Mapping[str, _Patch] = {
    "commit-before-publish": _commit_before_publish,
    "publish-not-awaited": _publish_not_awaited,
    "publish-given-up": _publish_given_up,
    "commit-highest": _commit_highest,
    "commit-taken": _elsewhere,
    "no-fence": _no_fence,
    "no-resume": _no_resume,
    "lose-window": _lose_window,
    "drop-on-limit": _drop_on_limit,
    "retry-given-up": _retry_given_up,
    "event-id-from-clock": _event_id_from_clock,
    "commits-go-back": _commits_go_back,
    "keys-out-of-order": _keys_out_of_order,
    "neighbours-name": _neighbours_name,
    "two-transactions": _two_transactions,
    "undone-is-forgotten": _undone_is_forgotten,
    "keys-in-transactions": _keys_in_transactions,
    "share-accepted-before-publish": _commit_before_publish,
    "share-limit-ignored": _limit_ignored,
    "share-exhausted-dropped": _exhausted_dropped,
    "share-unfinished-accepted": _unfinished_accepted,
    "share-lapsed-is-done": _lapsed_is_done,
    "share-whole-poll-accepted": _whole_poll_accepted,
    "share-done-is-released": _done_is_released,
    "share-event-id-of-the-delivery": _event_id_of_the_delivery,
    "share-polls-no-more": _polls_no_more,
}
"""By name."""


def plant(name: str) -> None:
    """Put a bug into this process; none where the name is empty."""
    if name:
        BUGS[name]()


def _settled(delivery: Any) -> Any:
    from consumer.stages.publish import Settled

    return Settled(delivery, finished=True)


def _share_member() -> Any:
    from consumer.adapters.kafka.share_source import KafkaShareMember

    return KafkaShareMember


def _no_letter_for(error: type[Exception]) -> None:
    """Messages that end so count as finished, without a letter."""
    from consumer.stages.publish import Publisher

    publisher: Any = Publisher
    publish = publisher._publish_letter

    def published(self: Any, rejected: Any) -> None:
        if isinstance(rejected.error, error):
            self._finished(rejected)
        else:
            publish(self, rejected)

    publisher._publish_letter = published


def _settling_once() -> Any:
    """The publisher, whose owner hears of each delivery no more than once: a bug tells it too soon."""
    from consumer.stages.publish import Publisher

    publisher: Any = Publisher
    init = publisher.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        tell = kwargs.pop("on_settled")
        heard: dict[int, Any] = {}

        def once(settled: Any) -> None:
            if heard.setdefault(id(settled.delivery), settled) is settled:  # kept, so that no id comes again
                tell(settled)

        init(self, *args, on_settled=once, **kwargs)

    publisher.__init__ = made
    return publisher
