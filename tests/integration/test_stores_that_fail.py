"""A store that is away makes nobody a dead letter; an image that alone keeps failing becomes one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.answers import Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.faulty_replica import ENTRY
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, Sent, send
from tests.replica import Replica

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Served:
    """A replica whose stores do as they are told."""

    cluster: Cluster
    topics: Topics
    replica: Replica
    answers: Answers
    folder: Path

    def send(self, host: str, *names: str) -> list[Sent]:
        """References to images of this host."""
        documents = [{"image_id": f"{host}/{name}", "uri": f"test://{host}/{name}"} for name in names]
        return send(
            self.cluster, self.topics.images, [Record(json.dumps(each).encode(), key=b"a key") for each in documents]
        )

    def tries(self, name: str) -> int:
        """How often an image was asked for so far."""
        path = self.folder / "tries"
        return path.read_text().splitlines().count(name) if path.exists() else 0

    def is_down(self, host: str) -> bool:
        return self.replica.metric("ouzel_store_down", store=f"test://{host}") == 1


@pytest.fixture
def served(kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path) -> Iterator[Served]:
    topics = make_topics()
    for number, photograph in enumerate(photographs):
        (tmp_path / f"{number}.jpg").write_bytes(photograph.read_bytes())
    settings = {
        "OUZEL_TEST_STORE": str(tmp_path),
        "OUZEL_RETRY__MAX_ATTEMPTS": "3",
        "OUZEL_RETRY__INITIAL_BACKOFF_MS": "20",
        "OUZEL_RETRY__MAX_BACKOFF_MS": "100",
        "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "5",  # an outage that made letters would trip it at once
    }
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        yield Served(kafka, topics, replica, answers, tmp_path)
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert replica.terminate() == 0


NAMES = [f"{number}.jpg" for number in range(12)]


def test_an_outage_makes_no_letters_and_holds_up_nobody_else(served: Served) -> None:
    replica, answers = served.replica, served.answers
    answers.to_all(served.send("a", *NAMES[:3]))
    rebalances = replica.metric("ouzel_rebalances_total")
    down = served.folder / "a.down"
    down.touch()
    waiting = served.send("a", *NAMES)
    replica.wait_for(lambda: served.is_down("a"), 20, "the store to be presumed down")
    # Another store, and images that need none, go their way.
    others = served.send("b", *NAMES)
    photograph = (served.folder / "0.jpg").read_bytes()
    others += send(served.cluster, served.topics.images, [Record(photograph) for _ in range(5)])
    # Under one key the later ones wait for the earlier: so these have none or their own.
    answers.to_all(others[len(NAMES) :])
    status, body = replica.probe("readyz")
    assert status == 200
    assert json.loads(body)["stores_down"] == ["test://a"]
    assert replica.probe("livez")[0] == 200
    tried = sum(served.tries(f"a/{name}") for name in NAMES)
    replica.wait_for(lambda: sum(served.tries(f"a/{name}") for name in NAMES) > tried + 10, 20, "ten more probes")
    assert sum(served.tries(f"a/{name}") > 3 + 1 for name in NAMES) <= 4  # the others wait without asking
    answers.read_to_end()
    assert answers.letters == []
    assert not any(answers.count(sent) for sent in waiting)
    down.unlink()
    assert [answer.event["image_id"] for answer in answers.to_all(waiting)] == [f"a/{name}" for name in NAMES]
    answers.to_all(others)
    replica.wait_for(lambda: not served.is_down("a"), 10, "the store to be back")
    assert replica.said("store presumed down")
    assert replica.said("store is back")
    assert answers.letters == []
    assert replica.metric("ouzel_retries_total", stage="fetch") > 10
    assert replica.metric("ouzel_rebalances_total") == rebalances


def test_an_image_that_alone_keeps_failing_becomes_a_letter(served: Served) -> None:
    (served.folder / "poison.jpg.failing").touch()
    poison: list[Sent] = []
    others: list[Sent] = []
    poison = served.send("a", "poison.jpg")

    def keep_others_coming() -> bool:
        # While it is tried, the store serves others.
        nonlocal others
        others += served.send("a", NAMES[len(others) % 12])
        served.answers.wait(lambda: True, "")
        return bool(served.answers.letters)

    served.answers.wait(keep_others_coming, "the letter")
    letter = served.answers.to(poison[0])
    assert letter.error == "StoreFailed"
    assert letter.text("__connect.errors.stage") == "fetch"
    assert letter.value == json.dumps({"image_id": "a/poison.jpg", "uri": "test://a/poison.jpg"}).encode()
    assert not any(answer.is_letter for answer in served.answers.to_all(others))
    assert len(served.answers.letters) == 1


def test_an_image_that_came_first_and_keeps_failing_does_not_keep_the_store_down(served: Served) -> None:
    """Nothing was served before it: the store is presumed down, with this image as the one that asks again."""
    (served.folder / "poison.jpg.failing").touch()
    (poison,) = served.send("a", "poison.jpg")
    served.replica.wait_for(lambda: served.is_down("a"), 20, "the store to be presumed down")
    others: list[Sent] = []
    for name in NAMES:
        others += send(
            served.cluster,
            served.topics.images,
            [Record(json.dumps({"image_id": name, "uri": f"test://a/{name}"}).encode())],
        )
        assert not served.answers.to(others[-1], timeout_s=10).is_letter
    assert served.answers.to(poison).error == "StoreFailed"
