"""Shadow: how a new model is compared with the one that labels, on live images, before it may take its place.

The stream never waits for it. After a batch is labelled it is offered to a hand-off that holds one batch at most; while
one is being compared, batches pass by.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from consumer.messages import DecodedImage, Labelled, Rejected
from consumer.stages.intake import ByteBudget


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Images of one live batch, each with what the running model said of it."""

    pairs: tuple[tuple[DecodedImage, Labelled], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds on to."""
        return sum(image.pixels.nbytes + len(image.body or b"") for image, _ in self.pairs)


class HandOff:
    """Between the thread of the model that labels and whoever compares. Never blocks the former."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._deliver: Callable[[Sample], None] | None = None
        self._with_bodies = False
        self._bodies_left = 0
        self._decode_bytes_left = 0

    def want(self, deliver: Callable[[Sample], None], *, bodies: int = 0, decode_bytes: int = 0) -> None:
        """One more batch for `deliver`, which must not block; whoever gets it calls `done`.

        With `bodies`, only images that keep their encoded bytes, as other pixels must be made of them: from now on so
        many are kept at most, and no more than can be decoded in `decode_bytes` all together.
        """
        with self._lock:
            self._deliver = deliver
            self._with_bodies = bodies > 0
            self._bodies_left, self._decode_bytes_left = bodies, decode_bytes

    def want_nothing(self) -> None:
        """Let all pass by."""
        with self._lock:
            self._deliver = None
            self._bodies_left = 0

    def keeps(self, decode_bytes: int) -> bool:
        """Whether an image should keep its encoded bytes; with them decoding takes so much."""
        if not self._bodies_left:
            return False
        with self._lock:
            if not self._bodies_left or decode_bytes > self._decode_bytes_left:
                return False
            self._bodies_left -= 1
            self._decode_bytes_left -= decode_bytes
            return True

    def offer(self, images: Sequence[DecodedImage], outcomes: Sequence[Labelled | Rejected]) -> None:
        """A batch is labelled: `outcomes` are those of its `images`, in order."""
        if self._deliver is None:
            return
        with self._lock:
            deliver = self._deliver
            pairs = tuple(
                (image, outcome)
                for image, outcome in zip(images, outcomes, strict=True)
                if isinstance(outcome, Labelled) and (image.body is not None or not self._with_bodies)
            )
            if deliver is None or not pairs:
                return
            self._deliver = None
            self._bodies_left = 0
        sample = Sample(pairs)
        self._budget.hold(sample, sample.size_bytes)
        deliver(sample)

    def done(self, sample: Sample) -> None:
        """Nobody needs it any more."""
        self._budget.release(sample)


class Verdict(Enum):
    """What a comparison has come to."""

    OPEN = "open"
    AGREES = "agrees"
    DISAGREES = "disagrees"


class ShadowComparison:
    """On how many images the first label of two models has the same name."""

    def __init__(self, *, images: int, min_agreement: float) -> None:
        self._wanted = images
        self._min_agreement = min_agreement
        self.compared = 0
        self.same = 0

    def add(self, running: Labelled, candidate: Labelled) -> bool:
        """One more image; whether both say the same."""
        same = first_label(running) == first_label(candidate)
        self.compared += 1
        self.same += same
        return same

    @property
    def agreement(self) -> float:
        """Share of the images so far, in [0, 1]; 1 of none."""
        return self.same / self.compared if self.compared else 1.0

    @property
    def verdict(self) -> Verdict:
        """Open until all images are there, or until those that are there leave no way to agree."""
        if self.compared >= self._wanted:
            return Verdict.AGREES if self.agreement >= self._min_agreement else Verdict.DISAGREES
        other = self.compared - self.same
        if (self._wanted - other) / self._wanted < self._min_agreement:
            return Verdict.DISAGREES
        return Verdict.OPEN

    def __str__(self) -> str:
        return f"{self.same} of {self.compared} first labels the same ({self.agreement:.1%})"


def first_label(labelled: Labelled) -> str:
    """By name, as the classes of two models may be numbered otherwise; empty where none reaches `model.min_score`."""
    return labelled.labels[0].label if labelled.labels else ""


def rest_s(worked_s: float, share: float) -> float:
    """Seconds of rest after so many of work, for work to be this share, in (0, 1], of the time."""
    return worked_s * (1.0 - share) / share
