"""From score rows to labels: the best `top_k` of each image, by class index."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from consumer.messages import Label
from consumer.ports import Labels


def top_labels(
    scores: npt.NDArray[np.float32], labels: Labels, top_k: int | Sequence[int], min_score: float = 0.0
) -> list[tuple[Label, ...]]:
    """The labels of each row of `scores`, float32 [N, C], best first; equal scores in the order of their index.

    `top_k` is one number for all images, or one for each of the N. A score below `min_score` gives no label, so that
    an image may have none.
    """
    wanted = [top_k] * len(scores) if isinstance(top_k, int) else list(top_k)
    if len(wanted) != len(scores):
        raise ValueError(f"{len(wanted)} values of top_k for {len(scores)} images")
    if not wanted:
        return []
    most = min(max(wanted), scores.shape[1])
    # The least score that can be among the best `most`, for all rows in one pass; only what reaches it is sorted.
    floors = np.partition(scores, scores.shape[1] - most, axis=1)[:, scores.shape[1] - most]
    return [
        _best(row, np.flatnonzero(row >= max(floor, np.float32(min_score))), labels, count)
        for row, floor, count in zip(scores, floors, wanted, strict=True)
    ]


def _best(
    row: npt.NDArray[np.float32], candidates: npt.NDArray[np.intp], labels: Labels, count: int
) -> tuple[Label, ...]:
    # Candidates ascend by index and the sort is stable, which settles ties.
    order = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
    return tuple(Label(index=index, label=labels.name(index), score=float(row[index])) for index in order.tolist())
