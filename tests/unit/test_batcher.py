"""When a batch closes, and what it is padded to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.messages import Batch, CloseReason, DecodedImage, Delivery, ImageFacts, ImageJob, Lease, Partition
from consumer.stages.batch import Batcher, padded, padded_sizes

FACTS = ImageFacts(1, 1, "PNG", "00")


def _image(ready_s: float, size_bytes: int = 3) -> DecodedImage:
    delivery = Delivery(Lease(Partition("images", 0), epoch=1, topic_id=""), 0, b"")
    pixels = np.zeros((1, size_bytes // 3, 3), np.uint8)
    return DecodedImage(ImageJob(delivery, "i", data=b""), pixels, FACTS, 0.0, 0.0, ready_s)


def _batcher(*images: DecodedImage, max_size: int = 4, max_bytes: int = 300, max_wait_ms: float = 20) -> Batcher:
    batcher = Batcher(max_size=max_size, max_bytes=max_bytes, max_wait_ms=max_wait_ms)
    for image in images:
        batcher.add(image)
    return batcher


def _sizes(batch: Batch | None) -> tuple[int, CloseReason] | None:
    return None if batch is None else (len(batch.images), batch.closed_by)


def test_nothing_waiting_makes_no_batch() -> None:
    assert _batcher().take(0.0, more_coming=False) is None
    assert _batcher().due_in_s(0.0) is None


def test_a_batch_never_mixes_the_images_of_two_models() -> None:
    old, new = _image(1.0), replace(_image(1.0), serving=1)
    batcher = _batcher(old, old, new, old)
    taken = [_sizes(batcher.take(1.0, more_coming=True)) for _ in range(2)]
    assert taken == [(2, CloseReason.MODEL), (1, CloseReason.MODEL)]
    assert _sizes(batcher.take(1.0, more_coming=False)) == (1, CloseReason.IDLE)


def test_a_full_batch_closes_while_more_is_coming() -> None:
    batcher = _batcher(*[_image(1.0)] * 5)
    assert _sizes(batcher.take(1.0, more_coming=True)) == (4, CloseReason.SIZE)
    assert len(batcher) == 1


def test_bytes_close_a_batch_before_the_image_that_would_pass_the_bound() -> None:
    batcher = _batcher(*[_image(1.0, 120)] * 3)
    assert _sizes(batcher.take(1.0, more_coming=True)) == (2, CloseReason.BYTES)
    assert batcher.take(1.0, more_coming=True) is None


def test_a_batch_that_holds_exactly_its_bytes_waits_for_no_more() -> None:
    assert _sizes(_batcher(*[_image(1.0, 150)] * 2).take(1.0, more_coming=True)) == (2, CloseReason.BYTES)


@pytest.mark.parametrize("others", [0, 1])
def test_an_image_larger_than_the_whole_bound_goes_alone_and_at_once(others: int) -> None:
    batcher = _batcher(_image(1.0, 900), *[_image(1.0)] * others)
    assert _sizes(batcher.take(1.0, more_coming=True)) == (1, CloseReason.BYTES)
    assert len(batcher) == others


def test_age_counts_from_the_first_image_and_not_from_the_last() -> None:
    batcher = _batcher(_image(1.0), _image(1.019))
    assert batcher.take(1.0199, more_coming=True) is None
    assert batcher.due_in_s(1.0199) == pytest.approx(0.0001)
    assert _sizes(batcher.take(1.0201, more_coming=True)) == (2, CloseReason.AGE)


def test_an_idle_model_takes_what_waits_when_nothing_is_on_its_way() -> None:
    batcher = _batcher(_image(1.0))
    assert batcher.take(1.0, more_coming=True) is None
    assert _sizes(batcher.take(1.0, more_coming=False)) == (1, CloseReason.IDLE)


@given(st.lists(st.sampled_from([3, 30, 150, 300, 303, 900])), st.integers(1, 5))
def test_images_leave_in_order_and_none_is_lost(sizes: list[int], max_size: int) -> None:
    images = [_image(float(number), size) for number, size in enumerate(sizes)]
    batcher, left = _batcher(*images, max_size=max_size), list[DecodedImage]()
    while (batch := batcher.take(0.0, more_coming=False)) is not None:
        assert 1 <= len(batch.images) <= max_size
        assert len(batch.images) == 1 or sum(image.pixels.nbytes for image in batch.images) <= 300
        left += batch.images
    assert [image.ready_s for image in left] == [image.ready_s for image in images]


@given(st.integers(1, 4096))
def test_padding_is_at_most_a_third_of_a_batch(max_size: int) -> None:
    sizes = padded_sizes(max_size)
    assert sizes[-1] == max_size
    assert list(sizes) == sorted(set(sizes))
    for count in {1, max_size, max_size // 2 + 1, max_size // 3 + 1, max(1, max_size - 1)}:
        size = padded(count, sizes)
        assert count <= size <= max_size
        assert 3 * (size - count) <= size


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1)), max_size=30))
def test_a_model_that_waits_need_not_look_after_an_image_that_says_so(images: list[tuple[int, int]]) -> None:
    batcher = _batcher()
    for size, serving in images:
        before = batcher.due_in_s(1.0)
        look = batcher.add(replace(_image(1.0, 3 * size), serving=serving))
        changed = batcher.due_in_s(1.0) != before
        while batcher.take(1.0, more_coming=True) is not None:
            changed = True
        assert look or not changed
