"""What Prometheus sees. One method for each thing that happens; base units; no URI, key or id is ever a label."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client import disable_created_metrics as _without_created_series

from consumer.messages import ModelInfo, Partition, SkipReason, StallRemedy

ImageOutcome = Literal["labelled", "dead_letter", "skipped"]
Stage = Literal["parse", "fetch", "decode", "queue", "infer", "publish", "commit"]
SwapState = Literal["none", "loading", "shadowing"]
SwapResult = Literal["swapped", "refused", "failed", "no_memory", "superseded", "unreachable", "stuck"]

# Parsing takes tens of microseconds, decoding milliseconds, a slow store or model seconds.
STAGE_BUCKETS_S = (
    *(0.000_1, 0.000_25, 0.000_5),
    *(0.001, 0.002_5, 0.005),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
BATCH_BUCKETS_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one process. Thread-safe; every method takes about a microsecond."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """`registry` is what /metrics serves; a new one, with the process's own figures, where none is given."""
        _without_created_series()  # type: ignore[no-untyped-call]
        self.registry = registry if registry is not None else CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        own = self.registry
        self._images = Counter("ouzel_images", "Images by how they ended.", ["outcome"], registry=own)
        self._stages = Histogram(
            "ouzel_stage_duration_seconds",
            "Time that one image (infer: one batch) takes in a stage.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=own,
        )
        self._batch = Histogram(
            "ouzel_batch_images", "Images in a batch, padding left out.", buckets=BATCH_BUCKETS_IMAGES, registry=own
        )
        self._padding = Counter(
            "ouzel_batch_padding_images", "Blank images added to reach a warmed batch size.", registry=own
        )
        self._lag = Gauge(
            "ouzel_consumer_lag",
            "Messages between the position and the last stable offset of a partition that is ours.",
            ["topic", "partition"],
            registry=own,
        )
        self._sandboxed = Counter(
            "ouzel_sandboxed_images",
            "Images decoded in a child process: an owner of their partition had ended without a word.",
            registry=own,
        )
        self._decoder_crashes = Counter(
            "ouzel_decoder_crashes", "Images on which the decoder crashed or hung in its sandbox.", registry=own
        )
        self._messages = Gauge("ouzel_inflight_messages", "Messages read and not yet finished.", registry=own)
        self._bytes = Gauge("ouzel_inflight_bytes", "Bytes held for messages, images and pixels.", registry=own)
        self._skipped = Counter(
            "ouzel_skipped", "Messages and records that ask for no image, by reason.", ["reason"], registry=own
        )
        self._letters = Counter("ouzel_dead_letters", "Dead letters by class of error.", ["class"], registry=own)
        self._limit = Gauge(
            "ouzel_dead_letter_limit_reached", "1 while the replica holds for its dead letters.", registry=own
        )
        self._transaction_unresolved = Gauge(
            "ouzel_transaction_unresolved", "1 while it is not known how the last transaction ended.", registry=own
        )
        self._retries = Counter("ouzel_retries", "Attempts after the first one.", ["stage"], registry=own)
        self._rebalances = Counter("ouzel_rebalances", "Changes of the partitions that are ours.", registry=own)
        self._transactions_undone = Counter(
            "ouzel_transactions_undone", "Transactions whose work was done again.", registry=own
        )
        self._stalls = Counter(
            "ouzel_stalls",
            "Times that partitions stood still though the broker had more, by what was done about it.",
            ["action"],
            registry=own,
        )
        self._lost = Counter(
            "ouzel_offsets_lost", "Messages that retention removed before they were read.", registry=own
        )
        self._commits = Counter("ouzel_commits", "Offset commits by result.", ["result"], registry=own)
        self._lapsed = Counter(
            "ouzel_share_locks_lapsed",
            "Messages of a share group whose lock was over before they were finished and acknowledged.",
            registry=own,
        )
        self._again = Counter(
            "ouzel_share_deliveries_again", "Messages that a share group had handed out before.", registry=own
        )
        self._cache = Counter(
            "ouzel_fetch_cache", "Fetches by whether the cache answered them.", ["answer"], registry=own
        )
        self._stores = Gauge("ouzel_store_down", "1 while a store is presumed down.", ["store"], registry=own)
        self._tracking_dropped = Counter(
            "ouzel_tracking_dropped", "Figures and sampled images that the run's notebook could not take.", registry=own
        )
        self._roofline = Gauge(
            "ouzel_roofline_ratio",
            "Images/s over what these cores could do, while the backlog never empties; else NaN.",
            registry=own,
        )
        self._model = Info("ouzel_model", "The model that labels.", registry=own)
        self._swaps = Counter(
            "ouzel_model_swaps", "New models by what became of them in this replica.", ["result"], registry=own
        )
        self._swap_state = Gauge(
            "ouzel_swap_state",
            "1 while a new model is loaded, 2 while it is compared, else 0.",
            registry=own,
        )
        self._shadow = Counter(
            "ouzel_shadow_images",
            "Live images that a new model was compared on, by whether its first label was the running one's.",
            ["first_label"],
            registry=own,
        )
        self._agreement = Gauge(
            "ouzel_shadow_agreement",
            "Share of images on which the new model compared last gave the running one's first label.",
            registry=own,
        )

        # labels() looks up and locks at each call; the few that are hot are kept.
        self._image_by_outcome: dict[str, Counter] = {}
        self._stage_by_name: dict[str, Histogram] = {}
        for outcome in ("labelled", "dead_letter", "skipped"):
            self._image_by_outcome[outcome] = self._images.labels(outcome)
        for stage in ("parse", "fetch", "decode", "queue", "infer", "publish", "commit"):
            self._stage_by_name[stage] = self._stages.labels(stage)
        for result in ("ok", "error"):
            self._commits.labels(result)
        for remedy in get_args(StallRemedy):
            self._stalls.labels(remedy)
        for swap_result in get_args(SwapResult):
            self._swaps.labels(swap_result)
        self._limit.set(0)
        self._roofline.set(math.nan)

    def image(self, outcome: ImageOutcome) -> None:
        """One image, or a message that asks for none, ended this way."""
        self._image_by_outcome[outcome].inc()

    def skipped(self, reason: SkipReason) -> None:
        """A message, or a record of one, asks for no image."""
        self._skipped.labels(reason).inc()

    def stage_seconds(self, stage: Stage, seconds: float) -> None:
        """One image (infer: one batch) took this long in a stage."""
        self._stage_by_name[stage].observe(seconds)

    def batch(self, images: int, padding: int) -> None:
        """A batch of so many images went to the model, with so many blank ones added."""
        self._batch.observe(images)
        if padding:
            self._padding.inc(padding)

    def sandboxed(self) -> None:
        """One image was given to the sandbox."""
        self._sandboxed.inc()

    def decoder_crash(self) -> None:
        """One image ended its decoder in the sandbox, or hung it."""
        self._decoder_crashes.inc()

    def lag(self, messages: Mapping[Partition, int]) -> None:
        """The lag of our partitions, as last known."""
        for partition, value in messages.items():
            self._lag.labels(partition.topic, str(partition.number)).set(value)

    def drop_lag(self, partition: Partition) -> None:
        """The partition is no longer ours: another replica reports it."""
        self._lag.remove_by_labels({"topic": partition.topic, "partition": str(partition.number)})

    def in_flight(self, messages: int, size_bytes: int) -> None:
        """What is held now."""
        self._messages.set(messages)
        self._bytes.set(size_bytes)

    def fetch_cache(self, answer: Literal["hit", "miss"]) -> None:
        """The cache answered a fetch, or it did not."""
        self._cache.labels(answer).inc()

    def dead_letter(self, error_class: str) -> None:
        """A dead letter was written; the class is a name of `consumer.errors`, such as `NotAnImage`."""
        self._letters.labels(error_class).inc()

    def transaction_unresolved(self, *, unresolved: bool) -> None:
        """Whether everything waits for the transaction coordinator."""
        self._transaction_unresolved.set(1 if unresolved else 0)

    def dead_letter_limit(self, *, reached: bool) -> None:
        """Whether the replica holds."""
        self._limit.set(1 if reached else 0)

    def retry(self, stage: Stage) -> None:
        """One more attempt."""
        self._retries.labels(stage).inc()

    def stall(self, action: StallRemedy) -> None:
        """Partitions stood still, and this is done about it."""
        self._stalls.labels(action).inc()

    def rebalance(self) -> None:
        """Partitions came or went."""
        self._rebalances.inc()

    def transaction_undone(self) -> None:
        """One more."""
        self._transactions_undone.inc()

    def offsets_lost(self, messages: int) -> None:
        """So many messages were removed by retention before they were read."""
        self._lost.inc(messages)

    def commit(self, *, ok: bool) -> None:
        """The broker answered a commit."""
        self._commits.labels("ok" if ok else "error").inc()

    def locks_lapsed(self, messages: int) -> None:
        """So many messages are another replica's before they were finished here."""
        self._lapsed.inc(messages)

    def delivered_again(self) -> None:
        """A message came that was handed out before."""
        self._again.inc()

    def store_down(self, store: str, *, down: bool) -> None:
        """A store is presumed down, or answers again. `store` is an `ImageStore.health_key`, which holds no secret."""
        self._stores.labels(store).set(1 if down else 0)

    def swap_state(self, state: SwapState) -> None:
        """What is being done about a new model."""
        self._swap_state.set(get_args(SwapState).index(state))

    def swap(self, result: SwapResult) -> None:
        """What became of a new model, or of a look for one."""
        self._swaps.labels(result).inc()

    def shadowed(self, *, same: bool, agreement: float) -> None:
        """A new model was compared on one more image; `agreement` is the share of the same so far."""
        self._shadow.labels("same" if same else "other").inc()
        self._agreement.set(agreement)

    def tracking_dropped(self, items: int) -> None:
        """So many figures or images never reached the run's notebook."""
        self._tracking_dropped.inc(items)

    def roofline_ratio(self, ratio: float) -> None:
        """Images/s over what these cores could do; NaN where that cannot be said."""
        self._roofline.set(ratio)

    def model(self, info: ModelInfo) -> None:
        """The model that labels from now on."""
        self._model.info(
            {
                "name": info.name,
                "version": info.version,
                "digest": info.digest,
                "runtime": info.runtime,
                "precision": info.precision,
            }
        )
