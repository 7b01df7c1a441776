"""The cache of what was fetched: what counts as the same image, for how long, and one fetch for a burst."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from consumer.errors import StoreUnavailable
from consumer.messages import Delivery, ImageJob, Lease, Partition, StoredImage
from consumer.stages.fetch_cache import FetchCache, key_of

LEASE = Lease(Partition("images", 0), epoch=1, topic_id="")
KEY = ("s3://photos/a", "etag:1")


def _job(uri: str = "s3://photos/a", *, sha256: str | None = None, etag: str | None = None) -> ImageJob:
    return ImageJob(Delivery(LEASE, 0, b"{}"), "a", uri=uri, sha256=sha256, etag=etag)


class Rig:
    """A cache of 100 bytes and 10 s, its clock, and a store whose fetches are counted."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.told: Counter[str] = Counter()
        self.fetched = 0
        self.cache = FetchCache(
            max_bytes=100, max_age_s=10, monotonic_s=lambda: self.now_s, told=lambda answer: self.told.update([answer])
        )

    def fetch(self, key: tuple[str, str] = KEY, *, size_bytes: int = 10) -> tuple[StoredImage, str]:
        def fetch() -> StoredImage:
            self.fetched += 1
            return StoredImage(bytes([self.fetched]) * size_bytes)

        return self.cache.fetch(key, fetch, wait_s=10)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(_job(), _job(), True, id="uri"),
        pytest.param(_job(), _job("s3://photos/b"), False, id="another uri"),
        pytest.param(_job(etag="1"), _job(etag="1"), True, id="uri and etag"),
        pytest.param(_job(etag="1"), _job(etag="2"), False, id="another etag"),
        pytest.param(_job(etag="1"), _job(), False, id="one without its etag"),
        pytest.param(_job(sha256="ab"), _job("s3://photos/b", sha256="ab"), True, id="sha256 under two names"),
        pytest.param(_job(sha256="ab"), _job(sha256="cd"), False, id="another sha256"),
    ],
)
def test_what_counts_as_the_same_image(one: ImageJob, other: ImageJob, same: bool) -> None:
    assert (key_of(one, "s3://photos") == key_of(other, "s3://photos")) is same


def test_a_digest_is_known_in_its_own_place_only() -> None:
    """A sender who knows the digest of an image gets nothing from a place that the settings do not allow him."""
    assert key_of(_job(sha256="ab"), "s3://photos") != key_of(_job(sha256="ab"), "s3://private")


def test_the_second_fetch_is_answered_from_memory(rig: Rig) -> None:
    (first, first_answer), (second, second_answer) = rig.fetch(), rig.fetch()
    assert (first_answer, second_answer) == ("miss", "hit")
    assert first == second
    assert rig.fetched == 1
    assert rig.told == {"miss": 1, "hit": 1}


def test_an_entry_is_forgotten_after_its_time(rig: Rig) -> None:
    rig.fetch()
    rig.now_s = 9.9
    assert rig.fetch()[1] == "hit"
    rig.now_s = 10.1
    assert rig.fetch()[1] == "miss"


def test_it_keeps_no_more_bytes_than_it_may(rig: Rig) -> None:
    names = [("s3://photos/" + str(number), "etag:") for number in range(11)]
    for name in names:
        rig.fetch(name)
    answers = [rig.fetch(name)[1] for name in names[1:]]
    assert answers == ["hit"] * 10
    assert rig.fetch(names[0])[1] == "miss"


def test_an_image_larger_than_all_of_it_is_passed_on_and_not_kept(rig: Rig) -> None:
    stored, _ = rig.fetch(size_bytes=101)
    assert len(stored.body) == 101
    assert rig.fetch()[1] == "miss"


def test_a_burst_is_one_fetch(rig: Rig) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def slow() -> StoredImage:
        rig.fetched += 1
        begun.set()
        assert go_on.wait(10)
        return StoredImage(b"body")

    with ThreadPoolExecutor(8) as pool:
        leader = pool.submit(rig.cache.fetch, KEY, slow, wait_s=10)
        assert begun.wait(10)
        others = [pool.submit(rig.cache.fetch, KEY, slow, wait_s=10) for _ in range(7)]
        go_on.set()
        answers = [each.result(10) for each in (leader, *others)]
    assert rig.fetched == 1
    assert {stored.body for stored, _ in answers} == {b"body"}
    assert [answer for _, answer in answers].count("miss") == 1


def test_a_failure_is_its_own_caller_s_and_is_not_kept(rig: Rig) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def failing() -> StoredImage:
        begun.set()
        assert go_on.wait(10)
        raise StoreUnavailable("away")

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(rig.cache.fetch, KEY, failing, wait_s=10)
        assert begun.wait(10)
        other = pool.submit(rig.fetch)
        go_on.set()
        with pytest.raises(StoreUnavailable):
            leader.result(10)
        assert other.result(10)[1] == "miss"
    assert rig.fetched == 1


def test_a_caller_waits_for_another_s_fetch_no_longer_than_it_may(rig: Rig) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def stalled() -> StoredImage:
        begun.set()
        assert go_on.wait(10)
        return StoredImage(b"late")

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(rig.cache.fetch, KEY, stalled, wait_s=10)
        assert begun.wait(10)
        own, answer = rig.cache.fetch(KEY, lambda: StoredImage(b"own"), wait_s=0)
        go_on.set()
        assert (own.body, answer) == (b"own", "miss")
        assert leader.result(10)[0].body == b"late"
