"""What two models say of the same images, side by side."""

import numpy as np
import pytest

from consumer.stages.comparison import compare

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


def rows(*scores: list[float]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.array(scores, np.float32)


def test_figures_of_models_that_differ_on_one_image() -> None:
    first = rows([0.6, 0.4, 0, 0, 0, 0], [0, 0.1, 0.9, 0, 0, 0], [0, 0, 0, 0.5, 0.3, 0.2])
    second = rows([0.4, 0.6, 0, 0, 0, 0], [0, 0.15, 0.85, 0, 0, 0], [0, 0, 0, 0.5, 0.3, 0.2])
    found = compare((first, second), (NAMES, NAMES), ["p", "q", "r"])
    assert (found.top1.images, found.top1.disagreements) == (3, 1)
    assert found.top1.share == pytest.approx(2 / 3)
    assert found.top5_share == 1.0
    assert found.largest_shift == pytest.approx(0.2)
    assert found.mean_shift == pytest.approx((0.2 + 0.05 + 0.0) / 3)
    assert found.confused() == [("ant", "bee", 1)]
    (differs,) = found.disagreements
    assert (differs.index, differs.first.labels[:2], differs.second.labels[:2]) == (0, ("ant", "bee"), ("bee", "ant"))
    assert differs.shift == pytest.approx(0.2)


def test_a_first_label_that_the_other_has_sixth_is_not_among_its_five() -> None:
    first, second = rows([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]), rows([0.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert compare((first, second), (NAMES, NAMES), ["p"]).top5_share == 0.0


def test_equal_scores_are_ranked_as_the_service_ranks_them() -> None:
    tied = rows([0.3, 0.3, 0.4 - 1e-9, 0, 0, 0])
    found = compare((tied, tied.copy()), (NAMES, NAMES), ["p"])
    assert found.images[0].first.labels[:3] == ("cat", "ant", "bee")
    assert found.images[0].agrees


def test_classes_in_another_order_are_compared_by_name() -> None:
    first = rows([0.7, 0.2, 0.1], [0.1, 0.2, 0.7])
    second = rows([0.1, 0.2, 0.7], [0.7, 0.2, 0.1])
    found = compare((first, second), (["ant", "bee", "cat"], ["cat", "bee", "ant"]), ["p", "q"])
    assert found.top1.disagreements == 0
    assert found.largest_shift == 0.0


def test_a_class_that_one_model_has_not_scores_nothing_there() -> None:
    found = compare((rows([0.2, 0.8]), rows([1.0])), (["ant", "bee"], ["ant"]), ["p"])
    assert found.confused() == [("bee", "ant", 1)]
    assert found.largest_shift == pytest.approx(0.8)


def test_of_two_classes_with_one_name_the_higher_counts() -> None:
    found = compare((rows([0.1, 0.6, 0.3]), rows([0.4, 0.6])), (["crane", "crane", "ant"], ["ant", "crane"]), ["p"])
    assert found.top1.disagreements == 0
    assert found.images[0].first.scores[0] == pytest.approx(0.6)


def test_confused_pairs_are_told_most_frequent_first() -> None:
    first = np.eye(6, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    second = np.eye(6, dtype=np.float32)[[3, 3, 4, 5, 1, 2]]
    found = compare((first, second), (NAMES, NAMES), list("pqrstu"))
    assert found.confused() == [("ant", "dog", 2), ("ant", "eel", 1), ("bee", "fox", 1)]


def test_nothing_compared_is_nothing_known() -> None:
    nothing = np.zeros((0, 6), np.float32)
    found = compare((nothing, nothing), (NAMES, NAMES), [])
    assert (found.top1.images, found.top5_share, found.largest_shift, found.images) == (0, 0.0, 0.0, ())
