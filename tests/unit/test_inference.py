"""A batch through the model: one outcome an image, in order; the culprit alone is rejected."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.errors import InferenceFailed, ModelError
from consumer.messages import (
    Batch,
    CloseReason,
    DecodedImage,
    Delivery,
    ImageFacts,
    ImageJob,
    Labelled,
    Lease,
    Partition,
    Rejected,
)
from consumer.stages.batch import padded_sizes
from consumer.stages.infer import Inference
from tests.fakes import FakeClock, FakeLabels, FakeRuntime

LEASE = Lease(Partition("images", 0), epoch=1, topic_id="")


def _image(value: int, *, top_k: int | None = None, shape: tuple[int, int, int] = (2, 2, 3)) -> DecodedImage:
    job = ImageJob(Delivery(LEASE, value, b""), str(value), data=b"", top_k=top_k)
    return DecodedImage(job, np.full(shape, value, np.uint8), ImageFacts(4, 4, "PNG", ""), 1.0, 2.0, 999.0)


def _batch(*values: int) -> Batch:
    return Batch(tuple(map(_image, values)), CloseReason.SIZE)


def _inference(runtime: FakeRuntime, clock: FakeClock | None = None, **more: Any) -> Inference:
    options: dict[str, Any] = {"sizes": padded_sizes(16), "top_k": 2, "min_score": 0.5, **more}
    return Inference(runtime, FakeLabels(), clock=clock or FakeClock(), **options)


def _best(outcomes: list[Labelled | Rejected]) -> list[int | None]:
    return [outcome.labels[0].index if isinstance(outcome, Labelled) else None for outcome in outcomes]


def test_every_size_is_warmed() -> None:
    runtime = FakeRuntime()
    _inference(runtime).warm_up()
    assert runtime.warmed == [1, 2, 3, 4, 6, 8, 12, 16]


def test_padding_is_black_and_never_leaks_into_results() -> None:
    runtime = FakeRuntime()
    inference = _inference(runtime)
    inference(_batch(*[7] * 16))  # leaves its pixels in the buffer
    outcomes = inference(_batch(1, 2, 3, 4, 5))
    assert _best(outcomes) == [1, 2, 3, 4, 5]
    assert runtime.calls[-1] == [1, 2, 3, 4, 5, 0]
    assert inference.padding(5) == 1


@settings(max_examples=60)
@given(st.lists(st.integers(1, 250), min_size=1, max_size=16, unique=True), st.sets(st.integers(1, 250)))
def test_halving_finds_exactly_the_culprits(values: list[int], poison: set[int]) -> None:
    runtime = FakeRuntime()
    runtime.poison = poison
    outcomes = _inference(runtime)(_batch(*values))
    assert [outcome.delivery.offset for outcome in outcomes] == values
    assert _best(outcomes) == [None if value in poison else value % 8 for value in values]
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            assert isinstance(outcome.error, InferenceFailed)
            assert isinstance(outcome.error.__cause__, ValueError)
            assert outcome.stage == "infer"


def test_scores_that_are_not_numbers_reject_their_image_alone() -> None:
    runtime = FakeRuntime()
    runtime.not_numbers = {3}
    outcomes = _inference(runtime)(_batch(2, 3, 4))
    assert _best(outcomes) == [2, None, 4]
    assert runtime.calls == [[2, 3, 4]]  # no second run for it


def test_pixels_of_a_wrong_shape_fail_no_neighbour() -> None:
    images = (_image(1), _image(2, shape=(5, 5, 3)), _image(3))
    assert _best(_inference(FakeRuntime())(Batch(images, CloseReason.AGE))) == [1, None, 3]


def test_a_model_that_is_gone_blames_no_image() -> None:
    runtime = FakeRuntime()
    runtime.fatal = ModelError("gone")
    with pytest.raises(ModelError):
        _inference(runtime)(_batch(1, 2))


def test_an_image_may_ask_for_fewer_labels_and_a_low_score_gives_none() -> None:
    images = (_image(1), _image(2, top_k=1))
    first, second = _inference(FakeRuntime(), min_score=0.0)(Batch(images, CloseReason.AGE))
    assert isinstance(first, Labelled)
    assert isinstance(second, Labelled)
    assert (len(first.labels), len(second.labels)) == (2, 1)
    (only,) = _inference(FakeRuntime())(_batch(1))
    assert isinstance(only, Labelled)
    assert [label.label for label in only.labels] == ["class-1"]


def test_timings_tell_the_wait_in_the_queue_from_the_model() -> None:
    (outcome,) = _inference(FakeRuntime(), FakeClock(999.5))(_batch(1))
    assert isinstance(outcome, Labelled)
    assert outcome.timings_ms == {"fetch": 1.0, "decode": 2.0, "queue": 500.0, "infer": 0.0}
