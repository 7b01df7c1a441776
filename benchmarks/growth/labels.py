"""Labels: what more classes cost after the model has answered: ranking, names, and the label event.

In this process: a model's own time by its classes is the model's. Scores are of one real shape, a softmax of normal
logits, and differ from image to image.
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.growth.curve import Curve, Found, interleaved, text
from benchmarks.growth.draw import COLOURS, from_zero, legend, line, log_x, panels
from benchmarks.growth.others import Others
from consumer.adapters.labels import load_labels
from consumer.bench.stages import measure as timed
from consumer.clock import SystemClock
from consumer.messages import Delivery, ImageFacts, ImageJob, Label, Labelled, Lease, ModelInfo, Partition
from consumer.stages.events import EventContext, label_event
from consumer.stages.rank import top_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from consumer.ports import Labels

CLASSES = (10, 100, 1_000, 10_000, 100_000)
_BATCH = 16
_BATCHES = 4
_TOP_K = 5


def measure(options: Namespace) -> Found:
    """CPU of ranking a batch and of writing its events, by classes."""
    classes = [int(each) for each in options.sizes or CLASSES]
    seconds = 0.2 if options.quick else 2.0
    with tempfile.TemporaryDirectory() as folder:
        named = {count: _labels(Path(folder), count) for count in classes}
    scores = {count: [_scores(count, seed) for seed in range(_BATCHES)] for count in classes}

    def once(count: int, _round: int) -> dict[str, float]:
        def rank(batch: Any) -> list[tuple[Label, ...]]:
            return top_labels(batch, named[count], _TOP_K)

        ranked = timed(rank, scores[count], threads=1, seconds=seconds)
        events = timed(_events, [rank(batch) for batch in scores[count]], threads=1, seconds=seconds)
        return {"rank_cpu_ms": ranked.cpu_ms / _BATCH, "event_cpu_ms": events.cpu_ms / _BATCH}

    others = Others()
    found = interleaved(classes, options.rounds, once)
    facts = {"batch": _BATCH, "top_k": _TOP_K, "rounds": options.rounds, **others.figures()}
    return {"facts": facts, "points": [{"classes": count, **point} for count, point in found.items()]}


def _labels(folder: Path, count: int) -> "Labels":
    path = folder / f"{count}.csv"
    path.write_text("id,name\n" + "".join(f"{number},class {number}\n" for number in range(count)))
    return load_labels(path, count)


def _scores(classes: int, seed: int) -> Any:
    logits = np.random.default_rng(seed).normal(0, 2, (_BATCH, classes))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


_CONTEXT = EventContext("A" * 22, "bench", "bench", "predictions", "letters", 2**24)
_MODEL = ModelInfo("birds", "1", "sha256:" + "0" * 64, "null", "f32")
_JOB = ImageJob(
    Delivery(Lease(Partition("images", 0), epoch=0, topic_id="A" * 22), 1, b"", b"image-1", (), 0, "create"),
    image_id="image-1",
    uri=None,
    data=b"",
)
_IMAGE = ImageFacts(640, 480, "JPEG", "0" * 64)
_TIMINGS_MS = {"fetch": 0.123, "decode": 4.567, "queue": 12.345, "infer": 23.456}


def _events(batch: list[tuple[Label, ...]]) -> None:
    now = SystemClock().utc_now()
    for labels in batch:
        label_event(Labelled(_JOB, labels, _IMAGE, _MODEL, _TIMINGS_MS), _CONTEXT, now)


def draw(found: Found, figure: "Figure") -> None:
    """Ranking and event by classes."""
    points = found["points"]
    (panel,) = panels(figure, "CPU-ms an image after the model")
    line(panel, points, "classes", "rank_cpu_ms", label="ranking")
    line(panel, points, "classes", "event_cpu_ms", label="label event", colour=COLOURS[1])
    log_x(panel, [point["classes"] for point in points], name="classes")
    from_zero(panel)
    legend(panel)


def table(found: Found) -> list[list[str]]:
    """A row a count of classes."""
    return [
        ["classes", "ranking, CPU-ms an image", "label event, CPU-ms an image"],
        *(
            [f"{point['classes']:,}", text(point["rank_cpu_ms"], 4), text(point["event_cpu_ms"], 4)]
            for point in found["points"]
        ),
    ]


CURVE = Curve("labels", "CPU an image after the model by classes", measure, draw, table, panels=(1, 1))
