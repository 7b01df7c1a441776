"""From score rows to labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from consumer.adapters.labels import LabelMap, no_labels
from consumer.stages.rank import top_labels


def indexes(scores: list[list[float]], top_k: int | list[int], min_score: float = 0.0) -> list[list[int]]:
    ranked = top_labels(np.array(scores, np.float32), no_labels(), top_k, min_score)
    return [[label.index for label in row] for row in ranked]


def test_labels_come_best_first_with_name_and_score() -> None:
    labels = LabelMap({0: "finch", 1: "limpkin", 2: "hawk"})
    (row,) = top_labels(np.array([[0.25, 0.0, 0.75]], np.float32), labels, 2)
    assert [(label.index, label.label, label.score) for label in row] == [(2, "hawk", 0.75), (0, "finch", 0.25)]
    assert type(row[0].index) is int
    assert type(row[0].score) is float


def test_equal_scores_keep_the_order_of_their_index() -> None:
    assert indexes([[0.1, 0.3, 0.3, 0.3]], 2) == [[1, 2]]
    assert indexes([[0.25] * 4], 3) == [[0, 1, 2]]


def test_each_image_may_want_its_own_number() -> None:
    assert indexes([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]], [1, 2, 1]) == [[1], [0, 1], [0]]


def test_more_than_there_are_classes_is_all_of_them() -> None:
    assert indexes([[0.2, 0.8]], 1000) == [[1, 0]]


def test_scores_below_the_least_give_no_label() -> None:
    assert indexes([[0.05, 0.8, 0.15], [0.04, 0.03, 0.02]], 3, 0.1) == [[1, 2], []]
    assert indexes([[0.5, 0.5]], 2, 0.5) == [[0, 1]]


def test_no_images_give_no_labels() -> None:
    assert top_labels(np.zeros((0, 4), np.float32), no_labels(), 3) == []


def test_a_number_for_each_image_must_be_one_for_each() -> None:
    with pytest.raises(ValueError, match="2 values of top_k for 1 images"):
        indexes([[0.5, 0.5]], [1, 1])


@given(
    numpy_strategies.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 30)),
        elements=st.sampled_from([np.float32(0), np.float32(0.1), np.float32(0.3), np.float32(0.7), np.float32(1)]),
    ),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_it_is_a_sort_by_score_then_index(scores: np.typing.NDArray[np.float32], top_k: int, least: float) -> None:
    for row, ranked in zip(scores, top_labels(scores, no_labels(), top_k, least), strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        expected = [index for index in order if row[index] >= np.float32(least)][:top_k]
        assert [label.index for label in ranked] == expected
