"""What two models say of the same images, side by side. Pure: from rows of scores to figures and tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consumer.stages.agreement import Agreement, agreement

TOP = 5
"""`top5`: the first label of the one is among so many of the other."""

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Side:
    """What one model says of one image: names and scores, the best first."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """One image, and what both say of it."""

    index: int
    """Its place among the images."""
    first: Side
    second: Side
    shift: float
    """The largest difference of a class's scores."""

    @property
    def agrees(self) -> bool:
        """Whether both have the same first label."""
        return self.first.labels[:1] == self.second.labels[:1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models over the same images."""

    top1: Agreement
    top5_share: float
    """Of the images, on how many the first model's first label is among the second's first five."""
    largest_shift: float
    """Of a score, over all images and classes."""
    mean_shift: float
    """Mean over the images of the first label's shift."""
    images: tuple[ComparedImage, ...]

    @property
    def disagreements(self) -> list[ComparedImage]:
        """The images with another first label, the largest shift first."""
        return sorted((each for each in self.images if not each.agrees), key=lambda each: -each.shift)

    def confused(self) -> list[tuple[str, str, int]]:
        """(first model's label, second's, on how many images), the most frequent first; only where they differ."""
        pairs = Counter((each.first.labels[0], each.second.labels[0]) for each in self.images if not each.agrees)
        return [(one, other, count) for (one, other), count in sorted(pairs.items(), key=lambda item: (-item[1], item))]


def compare(
    scores: tuple[Scores, Scores],
    names_of: tuple[Sequence[str], Sequence[str]],
    photographs: Sequence[str],
    *,
    top_k: int = TOP,
) -> Comparison:
    """Compare two models.

    Args:
        scores: float32 [N, C] of each, for the same images.
        names_of: their classes by index. Where they are not the same in the same order, classes are compared by name;
            a class that one model does not have has the score 0 there.
        photographs: for each image the id of its photograph.
        top_k: labels of each image to keep.
    """
    first, second = scores
    names = list(dict.fromkeys([*names_of[0], *names_of[1]]))
    if list(names_of[0]) == list(names_of[1]):
        names = list(names_of[0])
    else:
        column = {name: index for index, name in enumerate(names)}
        first, second = _spread(first, names_of[0], column), _spread(second, names_of[1], column)
    shifts = np.abs(first - second)
    first_order, second_order = _best(first, max(top_k, TOP)), _best(second, max(top_k, TOP))
    same = first_order[:, 0] == second_order[:, 0]
    among = (second_order[:, :TOP] == first_order[:, :1]).any(axis=1)
    rows = np.arange(len(first))
    images = tuple(
        ComparedImage(
            index,
            _side(first[index], first_order[index, :top_k], names),
            _side(second[index], second_order[index, :top_k], names),
            float(shifts[index].max()),
        )
        for index in range(len(first))
    )
    return Comparison(
        top1=agreement(zip(photographs, same.tolist(), strict=True)),
        top5_share=float(among.mean()) if len(among) else 0.0,
        largest_shift=float(shifts.max()) if len(first) else 0.0,
        mean_shift=float(shifts[rows, first_order[:, 0]].mean()) if len(first) else 0.0,
        images=images,
    )


def _spread(scores: Scores, names: Sequence[str], column: dict[str, int]) -> Scores:
    """The scores in their names' columns; of two classes with one name the higher."""
    spread = np.zeros((len(scores), len(column)), np.float32)
    for index, name in enumerate(names):
        np.maximum(spread[:, column[name]], scores[:, index], out=spread[:, column[name]])
    return spread


def _best(scores: Scores, count: int) -> npt.NDArray[np.intp]:
    """Indices of the best of each row, equal scores in the order of their index, as `rank` has it."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _side(row: Scores, order: npt.NDArray[np.intp], names: Sequence[str]) -> Side:
    return Side(tuple(names[index] for index in order), tuple(float(row[index]) for index in order))
