"""What is noted of a replica in its run: figures of each interval, and a few images if wanted. No stage waits for it.

stages ──> metrics ────────────────┐ read once an interval
outcomes ──> counts, O(1) ─────────┼──> Notebook ──> ports.RunTracker
decoded images ──> a few, kept ────┘
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from loguru import logger

from consumer.messages import ImageJob, Labelled, ModelInfo
from consumer.metrics import Metrics
from consumer.ports import RunTracker
from consumer.redact import redact_text, redact_uri

TOP_LABELS = 20
"""Labels of an interval that are told by name."""
NAMED_LABELS_MOST = 100
"""Labels that a run ever tells by name; each is a curve of its own."""
_COUNTED_LABELS_MOST = 10_000
_OTHER = "other"
_NONE = "none"
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_TEXT_MOST_BYTES = 200

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""A reading of the metrics: the value by name and labels."""


@dataclass(frozen=True, slots=True)
class _Interval:
    """What was counted in it."""

    images: int = 0
    scored: int = 0
    score_sum: float = 0.0
    labels: Mapping[str, int] | None = None


class Notebook:
    """Gathers and hands over. Every method but `close` is any thread's, returns at once and never raises."""

    def __init__(
        self,
        tracker: RunTracker,
        metrics: Metrics,
        *,
        interval_s: float,
        images_per_interval: int = 0,
        image_max_bytes: int = 0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._metrics = metrics
        self._interval_s = interval_s
        self._images_most = images_per_interval
        self._image_most_bytes = image_max_bytes
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._images = self._scored = 0
        self._score_sum = 0.0
        self._chosen = 0
        self._round = 0
        self._kept: dict[int, tuple[int, ImageJob, bytes]] = {}
        self._named: set[str] = set()
        self._source = ""
        self._before = read(metrics)
        self._since_s = monotonic_s()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notebook", daemon=True)

    def start(self) -> None:
        """Note every interval from now on."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Note what is left, and send it within `timeout_s`. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._tracker.close(timeout_s)

    # --- told by the stages -----------------------------------------------------------------------------------------

    def model(self, info: ModelInfo, source: str | None = None) -> None:
        """The model that labels from now on, and where it came from; None: from where the last one did."""
        if source is not None:
            self._source = redact_uri(source) if "://" in source else source
        self._tracker.model(info, self._source)

    def labelled(self, outcome: Labelled) -> None:
        """An image is finished."""
        best = outcome.labels[0] if outcome.labels else None
        name = best.label if best is not None else _NONE
        with self._lock:
            self._images += 1
            if name in self._counts or len(self._counts) < _COUNTED_LABELS_MOST:
                self._counts[name] += 1
            else:
                self._counts[_OTHER] += 1
            if best is not None and math.isfinite(best.score):
                self._scored += 1
                self._score_sum += best.score
            kept = self._kept.pop(id(outcome.delivery), None) if self._kept else None
        if kept is not None:
            self._tracker.image(kept[2], _row(outcome))

    def decoded(self, job: ImageJob, body: bytes) -> None:
        """An image could be decoded: it may be one of the few that are shown."""
        if self._chosen >= self._images_most or len(body) > self._image_most_bytes or job.delivery.suspect:
            return
        with self._lock:
            if self._chosen < self._images_most:
                self._chosen += 1
                # The delivery is held with it, so that its id stays its own.
                self._kept[id(job.delivery)] = (self._round, job, body)

    # --- an interval ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._closing.wait(self._interval_s)
            try:
                self.note()
            except Exception as error:  # a defect of ours here must cost a figure, and nothing else
                logger.opt(exception=error).error("the figures of an interval could not be noted")

    def note(self) -> None:
        """Hand over the figures of the interval that ends now. For one thread."""
        now_s = self._monotonic_s()
        after = read(self._metrics)
        elapsed_s = max(now_s - self._since_s, 1e-9)
        interval = self._next_interval()
        values = figures(self._before, after, elapsed_s)
        if interval.scored:
            values["confidence_mean"] = interval.score_sum / interval.scored
        if interval.images and interval.labels is not None:
            values |= {
                f"labels/{name}": count / interval.images for name, count in self._told_labels(interval.labels).items()
            }
        self._before, self._since_s = after, now_s
        self._tracker.figures(values)

    def _next_interval(self) -> _Interval:
        with self._lock:
            interval = _Interval(self._images, self._scored, self._score_sum, self._counts)
            self._counts = Counter()
            self._images = self._scored = self._chosen = 0
            self._score_sum = 0.0
            # What has not been labelled for a whole interval became a letter, or another replica's.
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0] == self._round}
            self._round += 1
        return interval

    def _told_labels(self, counts: Mapping[str, int]) -> dict[str, int]:
        told: Counter[str] = Counter()
        for rank, (name, count) in enumerate(sorted(counts.items(), key=lambda each: (-each[1], each[0]))):
            plain = _plain_name(name)
            named = plain in self._named or len(self._named) < NAMED_LABELS_MOST
            if name != _OTHER and rank < TOP_LABELS and named:
                self._named.add(plain)
                told[plain] += count
            else:
                told[_OTHER] += count
        return dict(told)


def _row(outcome: Labelled) -> dict[str, object]:
    job, best = outcome.job, outcome.labels[0] if outcome.labels else None
    return {
        "image_id": redact_text(job.image_id, max_bytes=_TEXT_MOST_BYTES),
        "source": "message" if job.uri is None else redact_uri(job.uri),
        "label": "" if best is None else best.label,
        "score": 0.0 if best is None or not math.isfinite(best.score) else best.score,
        "labels": ", ".join(f"{label.label} {label.score:.3f}" for label in outcome.labels),
        "model": outcome.model.digest,
    }


def _plain_name(label: str) -> str:
    """A label as the name of a curve: W&B takes a dot for a level of its own."""
    kept = "".join(letter if letter.isprintable() and letter not in "./" else " " for letter in label)
    return " ".join(kept.split())[:_TEXT_MOST_BYTES] or _NONE


# --- from two readings of the metrics to figures --------------------------------------------------------------------


def read(metrics: Metrics) -> Samples:
    """Every sample now."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.registry.collect()
        if family.name.startswith("ouzel_")
        for sample in family.samples
    }


def figures(before: Samples, after: Samples, elapsed_s: float) -> dict[str, float]:
    """What happened between two readings, by the names that docs/tracking.md explains."""

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    found = {
        "images_per_second": grown("ouzel_images_total", outcome="labelled") / elapsed_s,
        "dead_letters_per_second": grown("ouzel_images_total", outcome="dead_letter") / elapsed_s,
        "lag": sum(value for (name, _), value in after.items() if name == "ouzel_consumer_lag"),
        "tracking_dropped": grown("ouzel_tracking_dropped_total"),
    }
    images, batches = grown("ouzel_batch_images_sum"), grown("ouzel_batch_images_count")
    if batches:
        found["batch/images_mean"] = images / batches
        found["batch/fill"] = images / (images + grown("ouzel_batch_padding_images_total"))
    for name, labels in after:
        if name == "ouzel_dead_letters_total":
            error = dict(labels)["class"]
            found[f"dead_letters/{error}"] = grown(name, **{"class": error})
    for stage, buckets in _grown_buckets(before, after).items():
        for name, share in _QUANTILES.items():
            if (seconds := quantile(share, buckets)) is not None:
                found[f"stage/{stage}_{name}_ms"] = seconds * 1000
    return found


def _grown_buckets(before: Samples, after: Samples) -> dict[str, list[tuple[float, float]]]:
    """By stage: (upper bound in seconds, observations up to it), the bounds rising."""
    found: dict[str, list[tuple[float, float]]] = {}
    for key, value in after.items():
        if key[0] == "ouzel_stage_duration_seconds_bucket":
            labels = dict(key[1])
            found.setdefault(labels["stage"], []).append((float(labels["le"]), value - before.get(key, 0.0)))
    return {stage: sorted(buckets) for stage, buckets in found.items()}


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """An estimate from a histogram's cumulative buckets, as Prometheus's `histogram_quantile` makes it (its
    documentation, "Query functions"): the observations are taken to lie evenly in their bucket, the first of which
    begins at 0; what lies above the last finite bound is told as that bound. None where there are no observations.
    """
    rising = list(buckets)
    if not rising or rising[-1][1] <= 0:
        return None
    wanted = share * rising[-1][1]
    low, seen = 0.0, 0.0
    for bound, count in rising:
        if count >= wanted and count > seen:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - seen) / (count - seen)
        if not math.isinf(bound):
            low, seen = bound, count
    return low
