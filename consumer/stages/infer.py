"""Infer: a batch through the model. Padded to a warmed size; one that fails is halved until the culprit is alone."""

import numpy as np
import numpy.typing as npt

from consumer.errors import Fatal, InferenceFailed
from consumer.messages import Batch, DecodedImage, Labelled, ModelInfo, Rejected
from consumer.ports import Clock, Labels, ModelRuntime
from consumer.stages.batch import padded
from consumer.stages.rank import top_labels


class Inference:
    """Owns the input buffer of every batch size. One thread at a time."""

    def __init__(
        self,
        runtime: ModelRuntime,
        labels: Labels,
        *,
        sizes: tuple[int, ...],
        top_k: int,
        min_score: float,
        clock: Clock,
    ) -> None:
        self._runtime = runtime
        self._labels = labels
        self._sizes = sizes
        self._top_k = top_k
        self._min_score = min_score
        self._clock = clock
        height, width = runtime.input_size
        self._buffer = np.zeros((sizes[-1], height, width, 3), dtype=np.uint8)

    @property
    def info(self) -> ModelInfo:
        """Which model it is."""
        return self._runtime.info

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that it pads to, ascending."""
        return self._sizes

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's pixels at the model's input size."""
        return int(self._buffer[0].nbytes)

    def warm_up(self, *sizes: int) -> None:
        """Run these of the padded sizes once, or all of them. Raises ModelError."""
        self._runtime.warm_up(sizes or self._sizes)

    def run_blank(self, size: int) -> None:
        """A batch of one of the padded sizes through the model, for nothing: to learn what it costs. Raises what the
        runtime raises."""
        self._runtime.infer(self._buffer[:size])

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._runtime.close()

    def padding(self, count: int) -> int:
        """Images of padding that a batch of `count` needs."""
        return padded(count, self._sizes) - count

    def __call__(self, batch: Batch) -> list[Labelled | Rejected]:
        """One outcome for each image, in order.

        Raises:
            Fatal: the model itself is gone; no image is at fault.
        """
        started_s = self._clock.monotonic_s()
        return self._label(batch.images, started_s)

    def _label(self, images: tuple[DecodedImage, ...], started_s: float) -> list[Labelled | Rejected]:
        try:
            scores = self._scores(images)
        except Fatal:
            raise
        except Exception as error:
            if len(images) == 1:
                message = f"the model failed on this image: {type(error).__name__}: {error}"
                return [_rejected(images[0], message, error)]
            half = len(images) // 2
            return self._label(images[:half], started_s) + self._label(images[half:], started_s)
        infer_ms = (self._clock.monotonic_s() - started_s) * 1000
        return self._outcomes(images, scores, started_s, infer_ms)

    def _scores(self, images: tuple[DecodedImage, ...]) -> npt.NDArray[np.float32]:
        size = padded(len(images), self._sizes)
        for slot, image in enumerate(images):
            self._buffer[slot] = image.pixels
        self._buffer[len(images) : size] = 0
        return self._runtime.infer(self._buffer[:size])[: len(images)]

    def _outcomes(
        self,
        images: tuple[DecodedImage, ...],
        scores: npt.NDArray[np.float32],
        started_s: float,
        infer_ms: float,
    ) -> list[Labelled | Rejected]:
        finite = np.atleast_1d(np.isfinite(scores).all(axis=1))
        # One call for the batch: the model waits meanwhile.
        wanted = [image.job.top_k or self._top_k for image in images]
        ranked = top_labels(np.where(finite[:, None], scores, 0), self._labels, wanted, self._min_score)
        outcomes: list[Labelled | Rejected] = []
        for image, labels, is_finite in zip(images, ranked, finite, strict=True):
            if not is_finite:
                outcomes.append(_rejected(image, "the model's scores for this image are not numbers"))
                continue
            timings_ms = {
                "fetch": image.fetch_ms,
                "decode": image.decode_ms,
                "queue": (started_s - image.ready_s) * 1000,
                "infer": infer_ms,
            }
            outcomes.append(
                Labelled(image.job, labels, image.facts, self._runtime.info, timings_ms, version=image.version)
            )
        return outcomes


def _rejected(image: DecodedImage, message: str, cause: Exception | None = None) -> Rejected:
    error = InferenceFailed(message)
    error.__cause__ = cause
    return Rejected(image.job.delivery, error, stage="infer", image_id=image.job.image_id)
