"""I4: the outcomes of one key leave in the order in which its messages came."""

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from consumer.messages import Abandoned, Delivery, Lease, Outcome, Partition, Skipped
from consumer.stages.order import KeyOrder


def _lease(number: int = 0) -> Lease:
    return Lease(Partition("images", number), epoch=1, topic_id="")


def _done(delivery: Delivery) -> Outcome:
    return Skipped(delivery, "tombstone")


@given(st.lists(st.sampled_from([None, b"a", b"b", b"c"]), max_size=20), st.randoms())
def test_each_key_leaves_in_order_and_every_outcome_once(keys: list[bytes | None], random: object) -> None:
    order, lease = KeyOrder(), _lease()
    taken = [Delivery(lease, offset, b"", key) for offset, key in enumerate(keys)]
    for delivery in taken:
        order.took(delivery)
    shuffled = taken.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left = [outcome.delivery for delivery in shuffled for outcome in order.release(_done(delivery))]
    assert sorted(d.offset for d in left) == [d.offset for d in taken]
    for key in (b"a", b"b", b"c"):
        offsets = [d.offset for d in left if d.key == key]
        assert offsets == sorted(offsets)
    assert order.waiting == 0


def test_a_message_without_a_key_and_another_key_wait_for_nobody() -> None:
    order, lease = KeyOrder(), _lease()
    first, none, other = (Delivery(lease, n, b"", key) for n, key in enumerate((b"a", None, b"b")))
    for delivery in (first, none, other):
        order.took(delivery)
    assert [o.delivery for o in order.release(_done(none))] == [none]
    assert [o.delivery for o in order.release(_done(other))] == [other]


def test_the_same_key_under_another_lease_does_not_wait() -> None:
    order = KeyOrder()
    old, new = Delivery(_lease(), 0, b"", b"a"), Delivery(_lease(), 0, b"", b"a")
    order.took(old)
    order.took(new)
    assert order.release(_done(new)) == [_done(new)]
    assert order.release(_done(old)) == [_done(old)]


def test_what_follows_an_abandoned_message_of_its_key_is_abandoned_too() -> None:
    """Its next owner publishes the abandoned one first; published now, the later one would come before it."""
    order, lease = KeyOrder(), _lease()
    first, second, third, other = (Delivery(lease, n, b"", k) for n, k in enumerate((b"a", b"a", b"a", b"b")))
    for delivery in (first, second, third, other):
        order.took(delivery)
    assert order.release(_done(second)) == []
    assert order.release(Abandoned(first)) == [Abandoned(first), Abandoned(second)]
    assert order.release(_done(third)) == [Abandoned(third)]
    assert order.release(_done(other)) == [_done(other)]
    assert order.waiting == 0


def test_order_holds_between_threads() -> None:
    order, lease, lock = KeyOrder(), _lease(), threading.Lock()
    left: dict[bytes | None, list[int]] = defaultdict(list)

    def finish(delivery: Delivery) -> None:
        with lock:  # as in the publisher: one thread releases, whoever takes
            for outcome in order.release(_done(delivery)):
                left[outcome.delivery.key].append(outcome.delivery.offset)

    with ThreadPoolExecutor(8) as pool:
        for offset in range(2_000):
            delivery = Delivery(lease, offset, b"", b"%d" % (offset % 7))
            order.took(delivery)
            pool.submit(finish, delivery)
    assert sum(map(len, left.values())) == 2_000
    assert all(offsets == sorted(offsets) for offsets in left.values())
    assert order.waiting == 0
