"""All that can happen to small groups keeps the promises; every seeded bug is found, with the shortest way to it."""

import pytest

from tests.model import at_least_once, exactly_once, share
from tests.model.at_least_once import AtLeastOnce
from tests.model.exactly_once import ExactlyOnce
from tests.model.explore import Found, Model, TooManyStates, explore
from tests.model.share import Share
from tests.model.sizes import AT_LEAST_ONCE, EXACTLY_ONCE, SHARE


def _one_fault(kind: str) -> dict[str, int]:
    return {**dict.fromkeys(("crashes", "revokes", "evictions", "failures"), 0), **({kind: 1} if kind else {})}


def _found(model: Model) -> Found:  # type: ignore[type-arg]
    found = explore(model)
    print(found)
    return found


@pytest.mark.parametrize("size", AT_LEAST_ONCE.quick, ids=str)
def test_at_least_once_keeps_its_promises(size: at_least_once.Size) -> None:
    found = _found(AtLeastOnce(size))
    assert (found.broken, found.complete) == ("", True)


@pytest.mark.parametrize("size", EXACTLY_ONCE.quick, ids=str)
def test_exactly_once_keeps_its_promises(size: exactly_once.Size) -> None:
    found = _found(ExactlyOnce(size))
    assert (found.broken, found.complete) == ("", True)


@pytest.mark.parametrize("size", SHARE.quick, ids=str)
def test_share_groups_keep_their_promise(size: share.Size) -> None:
    found = _found(Share(size))
    assert (found.broken, found.complete) == ("", True)


@pytest.mark.parametrize(
    ("bug", "keys", "fault", "promise"),
    [
        ("commit before publish", ("ab",), "", "I1, I2"),
        ("commit highest offset", ("ab",), "", "I1, I2"),
        ("no key order", ("aa",), "", "I4"),
        ("finish what is abandoned", ("aa",), "failures", "I1, I2"),
        ("begin where the last lease stood", ("ab",), "evictions", "I1, I2"),
        ("commit without a generation", ("aa",), "evictions", "I3"),
        ("a second commit before the first is answered", ("aa",), "", "I3"),
    ],
)
def test_a_bug_in_at_least_once_is_found(
    bug: at_least_once.Bug, keys: tuple[str, ...], fault: str, promise: str
) -> None:
    size = at_least_once.Size(keys, **{**_one_fault(fault), "revokes": 1})
    assert explore(AtLeastOnce(size)).broken == ""
    assert _found(AtLeastOnce(size, bug)).broken.startswith(promise)


@pytest.mark.parametrize(
    ("bug", "keys", "faults", "promise"),
    [
        ("commit before publish", ("ab",), "", "I1, I2"),
        ("commit highest offset", ("ab",), "", "I1, I2"),
        ("no fence of late results", ("aa",), "revokes", "I"),
        ("end the lease after unsealing", ("aa",), "revokes", "I1"),
        ("key order in the place of partition order", ("ab",), "", "I"),
        ("reuse the producer after an ambiguous end", ("a",), "failures", "I"),
        ("offsets outside of the transaction", ("a",), "crashes", "I1, I2"),
        ("read offsets that are not stable", ("a",), "evictions", "I1"),
        ("offsets of the revoked partitions alone", ("a", "a"), "revokes", "I"),
        ("go on after an abort without rewinding", ("aa",), "failures", "I1, I2"),
        ("offsets without a generation", ("a",), "evictions", "I3"),
        ("transactions never time out", ("a",), "crashes", "I5"),
    ],
)
def test_a_bug_in_exactly_once_is_found(
    bug: exactly_once.Bug, keys: tuple[str, ...], faults: str, promise: str
) -> None:
    size = exactly_once.Size(keys, **_one_fault(faults))
    assert explore(ExactlyOnce(size)).broken == ""
    assert _found(ExactlyOnce(size, bug)).broken.startswith(promise)


def test_the_gap_that_kip_890_closes_is_there() -> None:
    """A commit request that was sent twice may end the transaction after the one that it was for. librdkafka has no
    defence yet: docs/guarantees.md says so."""
    size = exactly_once.Size(("aa",), crashes=1, revokes=0, evictions=0, failures=1)
    assert _found(ExactlyOnce(size, "a commit request that was sent twice")).broken.startswith("I")


@pytest.mark.parametrize(
    ("bug", "records", "promise"),
    [
        ("accept before publish", "g", "I1"),
        ("ignore the limit", "p", "I1"),
        ("release in an outage", "g", "the good record"),
        ("publish the letter after accepting", "p", "I1"),
        ("hold the letter back in an outage", "p", "I1"),
    ],
)
def test_a_bug_in_share_groups_is_found(bug: share.Bug, records: str, promise: str) -> None:
    size = share.Size(records, crashes=0, lapses=0)
    assert explore(Share(size)).broken == ""
    assert _found(Share(size, bug)).broken.startswith(promise)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_an_outage_costs_a_record_a_delivery_for_each_replica(replicas: int) -> None:
    """Each finds out for itself. With too few deliveries for that, a good image becomes a dead letter."""
    enough = share.Size("g", replicas=replicas, limit=replicas + 3, margin=1, crashes=0, lapses=0)
    assert explore(Share(enough)).broken == ""
    assert _found(Share(enough._replace(limit=replicas + 2))).broken.startswith("the good record")


@pytest.mark.parametrize("margin", [1, 2])
def test_a_record_outlives_as_many_faults_at_its_limit_as_there_is_margin(margin: int) -> None:
    """The broker discards without a word: what the deliveries that are kept for the letter do not outlive is lost."""
    outlived = share.Size("p", limit=4, margin=margin, crashes=margin, lapses=0, outages=0)
    assert explore(Share(outlived)).broken == ""
    one_more = outlived._replace(lapses=1)
    assert _found(Share(one_more)).broken.startswith("I1")


def test_an_exploration_that_stops_half_way_is_no_proof() -> None:
    with pytest.raises(TooManyStates):
        explore(Share(share.Size()), most_states=100)


def test_a_trace_tells_each_step() -> None:
    found = explore(Share(share.Size("g", crashes=0, lapses=0, outages=0), "accept before publish"))
    assert found.trace == ("A acquires 0, delivery 1", "A accepts 0")
    assert "   1 A acquires 0, delivery 1" in str(found)
