"""What the flow tells the outside: one place for the metric and the log line of each event."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from loguru import logger

from consumer.errors import Retryable
from consumer.log import rate_limited
from consumer.messages import (
    Delivery,
    ImageJob,
    Labelled,
    ModelInfo,
    OneOutcome,
    Partition,
    Rejected,
    Skipped,
    StallRemedy,
)
from consumer.metrics import Metrics, Stage, SwapResult, SwapState
from consumer.ports import Clock, CommitResult
from consumer.roofline_meter import RooflineMeter
from consumer.stages.dead_letter_limit import Trip
from consumer.stages.fetch_cache import Answer
from consumer.tracking import Notebook


class Observer:
    """Metrics and log lines. Any thread; never raises."""

    def __init__(
        self, metrics: Metrics, clock: Clock, notebook: Notebook | None = None, meter: RooflineMeter | None = None
    ) -> None:
        self.metrics = metrics
        self._clock = clock
        self._notebook = notebook
        self._meter = meter

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time one item in one stage."""
        started_s = self._clock.monotonic_s()
        cpu_s = self._meter.begin(name, started_s) if self._meter is not None else None
        try:
            yield
        finally:
            if cpu_s is not None and self._meter is not None:
                self._meter.end(name, cpu_s)
            self.metrics.stage_seconds(name, self._clock.monotonic_s() - started_s)

    def stage_seconds(self, name: Stage, seconds: float) -> None:
        """One item spent this long in a stage."""
        self.metrics.stage_seconds(name, seconds)

    def finished(self, outcome: OneOutcome) -> None:
        """The broker has what answers this image."""
        if isinstance(outcome, Labelled):
            self.metrics.image("labelled")
            if self._meter is not None:
                self._meter.labelled()
            if self._notebook is not None:
                self._notebook.labelled(outcome)
        elif isinstance(outcome, Rejected):
            name = type(outcome.error).__name__
            self.metrics.image("dead_letter")
            self.metrics.dead_letter(name)
            where = outcome.delivery.partition
            rate_limited(f"dead letter {name}").bind(
                topic=where.topic,
                partition=where.number,
                offset=outcome.delivery.offset,
                image_id=outcome.image_id,
                error_class=name,
                stage=outcome.stage,
            ).warning("dead letter: {}", outcome.error)
        elif isinstance(outcome, Skipped):
            self.metrics.image("skipped")
            self.metrics.skipped(outcome.reason)

    def serves(self, model: ModelInfo, source: str | None = None) -> None:
        """This model labels from now on; `source` is the `model.source` that it came from, None: the same as before."""
        self.metrics.model(model)
        if self._meter is not None:
            self._meter.serves(model.digest)
        if self._notebook is not None:
            self._notebook.model(model, source)

    def decoded(self, job: ImageJob, body: bytes) -> None:
        """An image's encoded bytes became pixels, and are let go of after this."""
        if self._notebook is not None:
            self._notebook.decoded(job, body)

    def sandboxed(self) -> None:
        """An image went to the sandbox."""
        self.metrics.sandboxed()

    def decoder_crashed(self) -> None:
        """The sandbox found an image that ends its decoder, or never lets it come back."""
        self.metrics.decoder_crash()

    def batch(self, images: int, padding: int) -> None:
        """A batch went through the model."""
        self.metrics.batch(images, padding)

    def retried(self, stage: Stage) -> None:
        """One more try is due."""
        self.metrics.retry(stage)

    def fetch_cache(self, answer: Answer) -> None:
        """A fetch was answered by the cache (`hit`), or by its store."""
        self.metrics.fetch_cache(answer)

    def store_down(self, store: str, error: Retryable) -> None:
        """A store has served nobody for a while: its images wait, none becomes a letter."""
        self._store(store, down=True)
        logger.bind(store=store).error("store presumed down, its images wait: {}", error)

    def store_back(self, store: str) -> None:
        """It serves again."""
        self._store(store, down=False)
        logger.bind(store=store).info("store is back")

    def store_forgotten(self, store: str) -> None:
        """Nobody waits for it any more: whether it serves again, the next image will tell."""
        self._store(store, down=False)
        logger.bind(store=store).info("no image waits for the store any more")

    def _store(self, store: str, *, down: bool) -> None:
        self.metrics.store_down(store, down=down)
        if self._meter is not None:
            self._meter.store(store, down=down)

    def output_down(self, error: Exception) -> None:
        """Records may not have been written; they are produced again."""
        logger.error("output cannot be written for now, its records wait: {}", error)

    def limit_reached(self, trip: Trip) -> None:
        """Too many dead letters."""
        self.metrics.dead_letter_limit(reached=True)
        logger.bind(family=trip.family).error(
            "dead-letter limit reached, holding: {}. See `ouzel dlq ls`; go on with SIGUSR1 or a start with --resume",
            trip.reason,
        )

    def limit_resumed(self) -> None:
        """A person said go on."""
        self.metrics.dead_letter_limit(reached=False)
        logger.info("resumed after the dead-letter limit")

    def swap_state(self, state: SwapState) -> None:
        """What is being done about a new model."""
        self.metrics.swap_state(state)
        if self._meter is not None:
            self._meter.swapping(under_way=state != "none")

    def swap_ended(self, result: SwapResult) -> None:
        """What became of a new model; its line is written by `swap`."""
        self.metrics.swap(result)

    def shadowed(self, *, same: bool, agreement: float) -> None:
        """A new model was compared on one more live image."""
        self.metrics.shadowed(same=same, agreement=agreement)

    def in_flight(self, messages: int, held_bytes: int) -> None:
        """How much is under way."""
        self.metrics.in_flight(messages, held_bytes)

    def turned(self, now_s: float, *, backlog: bool, waited_s: float) -> None:
        """The loop has turned: see `RooflineMeter.turned`."""
        if self._meter is not None:
            self._meter.turned(now_s, backlog=backlog, waited_s=waited_s)

    def lag(self, lag: Mapping[Partition, int]) -> None:
        """How far behind the log's end each partition is."""
        self.metrics.lag(lag)

    def lag_gone(self, partition: Partition) -> None:
        """The partition is another's: its lag is not ours to tell."""
        self.metrics.drop_lag(partition)

    def stalled(self, remedy: StallRemedy, partitions: Iterable[Partition], stall_s: float) -> None:
        """Partitions stand still though the broker has more of them, and this is done about it."""
        self.metrics.stall(remedy)
        done = {
            "restart": "begun anew where they stand",
            "rejoin": "leaving the group to join it again",
            "exit": "ending",
        }
        logger.bind(action=remedy).error(
            "no progress for {:g} s though the broker has more, in {}: {}",
            stall_s,
            ", ".join(map(str, sorted(partitions))),
            done[remedy],
        )

    def rebalanced(self) -> None:
        """The group moved partitions."""
        self.metrics.rebalance()

    def transaction_unresolved(self, *, unresolved: bool) -> None:
        """Whether it is unknown how the last transaction ended, and everything waits."""
        self.metrics.transaction_unresolved(unresolved=unresolved)

    def transaction_undone(self) -> None:
        """A transaction was undone: what it held is done again."""
        self.metrics.transaction_undone()

    def committed(self, result: CommitResult) -> None:
        """The broker's answer to a commit."""
        if result.committed:
            self.metrics.commit(ok=True)
        for partition, reason in result.errors.items():
            self.metrics.commit(ok=False)
            # Sent again with the next commit; after a rebalance that is the ordinary way.
            rate_limited("commit refused").bind(topic=partition.topic, partition=partition.number).info(
                "commit refused, to be sent again: {}", reason
            )

    def accepted(self, deliveries: Sequence[Delivery], refused: Mapping[Partition, str]) -> None:
        """The broker's answer to the acknowledgement of messages of a share group."""
        reasons = {**dict.fromkeys((each.partition for each in deliveries), ""), **refused}
        for partition, reason in reasons.items():
            self.metrics.commit(ok=not reason)
            if reason:
                lost = sum(each.partition == partition or partition.number < 0 for each in deliveries)
                self.metrics.locks_lapsed(lost)
                rate_limited("acknowledgement refused").bind(topic=partition.topic, partition=partition.number).warning(
                    "acknowledgement of {} messages refused, they may be labelled once more: {}", lost, reason
                )

    def lock_lapsed(self, delivery: Delivery) -> None:
        """Its lock was over before it was finished: another replica gets it."""
        self.metrics.locks_lapsed(1)
        where = delivery.partition
        rate_limited("lock lapsed").bind(topic=where.topic, partition=where.number, offset=delivery.offset).warning(
            "the lock on {} offset {} lapsed before it was done; where nothing is down, raise share.lock_duration_ms",
            where,
            delivery.offset,
        )

    def delivered_again(self) -> None:
        """A share group handed out a message that it had handed out before."""
        self.metrics.delivered_again()

    def offsets_lost(self, partition: Partition, first: int, end: int) -> None:
        """Retention took records before we read them."""
        self.metrics.offsets_lost(max(0, end - first))
        logger.bind(topic=partition.topic, partition=partition.number).error(
            "offsets {} to {} were deleted before they were read (retention); going on at {}", first, end - 1, end
        )
