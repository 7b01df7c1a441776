"""From metrics and outcomes to the figures of an interval, and which images are shown."""

import math
import random
from dataclasses import replace

import pytest

from consumer.messages import ImageFacts, ImageJob, Label, Labelled, ModelInfo, Partition
from consumer.metrics import STAGE_BUCKETS_S, Metrics
from consumer.observer import Observer
from consumer.tracking import NAMED_LABELS_MOST, TOP_LABELS, Notebook, figures, quantile, read
from tests.fakes import FakeRunTracker
from tests.unit.deliveries import delivery

INFO = ModelInfo("birds", "1", "sha256:ab", "null", "f32")


class _Clock:
    now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def utc_now(self) -> str:
        return "2026-01-31T09:30:00.000Z"


class Bench:
    """A notebook over the fake, told through the observer as the stages tell it."""

    def __init__(self, *, images: int = 0, max_bytes: int = 1_000) -> None:
        self.clock, self.metrics, self.tracker = _Clock(), Metrics(), FakeRunTracker()
        self.notebook = Notebook(
            self.tracker,
            self.metrics,
            interval_s=3_600,
            images_per_interval=images,
            image_max_bytes=max_bytes,
            monotonic_s=self.clock.monotonic_s,
        )
        self.observer = Observer(self.metrics, self.clock, self.notebook)

    def label(self, name: str, score: float = 0.5, *, job: ImageJob | None = None) -> None:
        labels = (Label(0, name, score),) if name else ()
        self.observer.finished(Labelled(job or _job(), labels, ImageFacts(1, 1, "JPEG", "ab"), INFO, {}))

    def interval(self, seconds: float = 10.0) -> dict[str, float]:
        self.clock.now_s += seconds
        self.notebook.note()
        return self.tracker.rows[-1]


def _job(uri: str | None = None, *, image_id: str = "a") -> ImageJob:
    return ImageJob(delivery(b"jpeg"), image_id, uri=uri)


def test_an_interval_says_how_many_images_a_second_and_how_sure_the_model_was() -> None:
    bench = Bench()
    for name, score in (("robin", 0.9), ("robin", 0.7), ("wren", 0.2), ("robin", 0.6)):
        bench.label(name, score)
    row = bench.interval(2.0)
    assert row["images_per_second"] == 2.0
    assert row["confidence_mean"] == pytest.approx(0.6)
    assert (row["labels/robin"], row["labels/wren"]) == (0.75, 0.25)


def test_each_interval_begins_at_zero_and_one_without_images_has_no_means() -> None:
    bench = Bench()
    bench.label("robin")
    bench.interval()
    row = bench.interval()
    assert row["images_per_second"] == 0
    assert not [name for name in row if name.startswith(("labels/", "confidence", "batch/", "stage/"))]


def test_an_image_without_a_label_counts_and_has_no_confidence() -> None:
    bench = Bench()
    bench.label("")
    bench.label("robin", math.nan)
    row = bench.interval()
    assert row["labels/none"] == 0.5
    assert "confidence_mean" not in row


def test_batches_letters_stages_and_lag_come_from_the_metrics() -> None:
    bench = Bench()
    bench.metrics.dead_letter("NotAnImage")
    bench.interval()
    bench.metrics.batch(6, 2)
    bench.metrics.batch(8, 0)
    bench.metrics.dead_letter("NotAnImage")
    bench.metrics.dead_letter("NotAnImage")
    bench.metrics.stage_seconds("infer", 0.02)
    bench.metrics.lag({Partition("images", 0): 7, Partition("images", 1): 4})
    row = bench.interval()
    assert row["batch/fill"] == pytest.approx(14 / 16)
    assert row["batch/images_mean"] == 7
    assert row["dead_letters/NotAnImage"] == 2
    assert row["lag"] == 11
    assert 10 <= row["stage/infer_p99_ms"] <= 25
    assert "stage/decode_p50_ms" not in row


def test_the_commonest_labels_have_names_and_the_rest_is_one() -> None:
    bench = Bench()
    for number in range(TOP_LABELS + 5):
        for _ in range(100 - number):
            bench.label(f"bird {number}")
    row = bench.interval()
    named = [name for name in row if name.startswith("labels/")]
    assert len(named) == TOP_LABELS + 1
    assert "labels/bird 0" in named
    assert "labels/bird 24" not in named
    assert sum(row[name] for name in named) == pytest.approx(1.0)


def test_a_run_has_a_bounded_number_of_curves_whatever_the_model_says() -> None:
    bench = Bench()
    seen: set[str] = set()
    for number in range(300):
        bench.label(f"bird {number}")
        seen |= {name for name in bench.interval() if name.startswith("labels/")}
    assert len(seen) == NAMED_LABELS_MOST + 1


def test_a_label_becomes_a_name_without_levels_or_control_characters() -> None:
    bench = Bench()
    bench.label("St. Bernard\x1b[2J / dog")
    assert "labels/St Bernard [2J dog" in bench.interval()


# --- images ---------------------------------------------------------------------------------------------------------


def test_no_image_is_kept_unless_it_is_wanted() -> None:
    bench = Bench()
    job = _job()
    bench.observer.decoded(job, b"jpeg")
    bench.label("robin", job=job)
    bench.interval()
    assert bench.tracker.images == []


def test_so_many_images_an_interval_are_shown_none_too_large_and_none_that_is_a_suspect() -> None:
    bench = Bench(images=2, max_bytes=10)
    suspect = ImageJob(replace(delivery(b"jpeg"), suspect=True), "suspect")
    jobs = [_job(image_id=f"{number}") for number in range(4)]
    for job, body in ((suspect, b"s"), (jobs[0], b"x" * 11), (jobs[1], b"one"), (jobs[2], b"two"), (jobs[3], b"three")):
        bench.observer.decoded(job, body)
        bench.label("robin", job=job)
    assert [body for body, _ in bench.tracker.images] == [b"one", b"two"]
    bench.interval()
    bench.observer.decoded(jobs[0], b"four")
    bench.label("wren", 0.25, job=jobs[0])
    assert bench.tracker.images[-1][1]["label"] == "wren"
    assert bench.tracker.images[-1][1]["score"] == 0.25


def test_a_shown_image_tells_where_it_is_from_without_what_is_secret_in_it() -> None:
    bench = Bench(images=1)
    uri = "https://someone:hunter22@images.example.org/a.jpg?X-Amz-Signature=abcdef"
    job = _job(uri, image_id=uri)
    bench.observer.decoded(job, b"jpeg")
    bench.label("robin", job=job)
    row = bench.tracker.images[0][1]
    assert row["source"] == "https://images.example.org/a.jpg"
    assert "hunter22" not in str(row)
    assert "abcdef" not in str(row)


def test_an_image_that_is_never_labelled_is_let_go_of() -> None:
    bench = Bench(images=1)
    job = _job()
    bench.observer.decoded(job, b"jpeg")
    bench.interval()
    bench.interval()
    bench.label("robin", job=job)
    assert bench.tracker.images == []


# --- life -----------------------------------------------------------------------------------------------------------


def test_the_model_is_noted_with_where_it_is_from() -> None:
    bench = Bench()
    later = replace(INFO, version="2")
    bench.observer.serves(INFO, "s3://key:secret@models/birds:production")
    bench.observer.serves(later)
    assert bench.tracker.models == [(INFO, "s3://models/birds:production"), (later, "s3://models/birds:production")]


def test_closing_notes_what_the_last_interval_had() -> None:
    bench = Bench()
    bench.notebook.start()
    bench.label("robin")
    bench.notebook.close(10)
    bench.notebook.close(10)
    assert bench.tracker.closed
    assert [row["labels/robin"] for row in bench.tracker.rows] == [1.0]


# --- quantiles ------------------------------------------------------------------------------------------------------


def test_a_quantile_lies_evenly_in_its_bucket() -> None:
    # 10 observations to 1 s, 10 more to 2 s: the 15th of 20 is in the middle of the second.
    assert quantile(0.75, [(1.0, 10.0), (2.0, 20.0), (math.inf, 20.0)]) == 1.5
    assert quantile(0.25, [(1.0, 10.0), (2.0, 20.0), (math.inf, 20.0)]) == 0.5


def test_what_lies_above_all_bounds_is_told_as_the_last_of_them() -> None:
    assert quantile(0.99, [(1.0, 1.0), (2.0, 1.0), (math.inf, 100.0)]) == 2.0


def test_without_observations_there_is_no_quantile() -> None:
    assert quantile(0.5, []) is None
    assert quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]) is None


def test_an_estimate_is_in_the_bucket_of_the_true_quantile() -> None:
    dice = random.Random(1)
    seconds = sorted(dice.expovariate(50) for _ in range(1_000))
    metrics = Metrics()
    before = read(metrics)
    for each in seconds:
        metrics.stage_seconds("decode", each)
    found = figures(before, read(metrics), 1.0)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        true_s, told_s = seconds[int(share * 1_000) - 1], found[f"stage/decode_{name}_ms"] / 1000
        upper = next(bound for bound in STAGE_BUCKETS_S if bound >= true_s)
        lower = max((bound for bound in STAGE_BUCKETS_S if bound < true_s), default=0.0)
        assert lower <= told_s <= upper
