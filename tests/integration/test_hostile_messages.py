"""Hostile messages among good ones, through the real broker and the real service; `make hostile` sends many more."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from tests.answers import Group
from tests.conftest import MakeTopics, Topics
from tests.fuzz.hostile import Message, Messages, Places
from tests.fuzz.pipeline import (
    IMAGES_CONFIG,
    LETTERS_CONFIG,
    MAX_PIXELS,
    Ledger,
    Outputs,
    run,
    send,
    set_places,
    settings_for,
)
from tests.kafka_broker import Cluster
from tests.replica import Replica
from tests.s3_server import running_server

pytestmark = pytest.mark.kafka

COUNT = 300


@dataclass(frozen=True)
class Stage:
    """Topics, and places that references lead to."""

    topics: Topics
    places: Places
    settings: dict[str, str]

    def messages(self, good: int, bad: int, *, seed: int = 7) -> Iterator[Message]:
        return Messages(seed, self.places, max_pixels=MAX_PIXELS).dealt(good, bad)


@pytest.fixture
def stage(make_topics: MakeTopics, tmp_path: Path) -> Stage:
    topics = make_topics(images_config=IMAGES_CONFIG, dead_letters_config=LETTERS_CONFIG)
    folder = tmp_path / "photographs"
    folder.mkdir()
    places = set_places(folder, running_server())
    return Stage(topics, places, settings_for(places, running_server()))


def test_every_good_message_is_labelled_and_every_hostile_one_a_letter(kafka: Cluster, stage: Stage) -> None:
    ledger = Ledger()
    send(kafka, stage.topics.images, stage.messages(COUNT, COUNT), ledger)
    report = run(kafka, stage.topics, ledger, stage.settings)
    assert report.faults == []
    good = [sent for sent in ledger.sent.values() if sent.message.is_good and sent.message.image_id]
    bad = [sent for sent in ledger.sent.values() if sent.message.letters]
    assert (len(good), len(bad)) == (COUNT, COUNT)
    # All ways of being bad were met, where a message can be bad.
    errors = {error for row in ledger.became().values() for error in row}
    assert errors >= {"MalformedMessage", "ReferenceRefused", "NotAnImage", "TruncatedImage", "CorruptImage"}
    assert errors >= {"TooManyPixels", "DecompressionBomb", "ChecksumMismatch", "ImageNotFound"}


def test_a_flood_of_hostile_messages_holds_the_replica_by_default_and_costs_nobody_a_label(
    kafka: Cluster, stage: Stage
) -> None:
    ledger = Ledger()
    flood = [message for message in islice(stage.messages(0, 2 * COUNT), 4 * COUNT) if not message.events]
    with (
        Replica(kafka, stage.topics, settings=stage.settings) as replica,
        Outputs(kafka, stage.topics, ledger) as outputs,
        Group(kafka, stage.topics.group, stage.topics.images) as group,
    ):
        send(kafka, stage.topics.images, flood, ledger)
        of_the_flood = ledger.expected
        replica.start().wait_ready()
        replica.wait_for(lambda: replica.metric("ouzel_dead_letter_limit_reached") == 1, 30, "the limit")
        status, body = replica.probe("readyz")
        assert (status, json.loads(body)["status"]) == (503, "holding at the dead-letter limit")
        assert replica.probe("livez")[0] == 200
        send(kafka, stage.topics.images, stage.messages(COUNT // 3, 0, seed=8), ledger)
        outputs.read_to_end()
        assert ledger.answers < of_the_flood
        assert replica.metric("ouzel_inflight_messages") > 0  # the letters after the trip, withheld
        assert not any(came.events for came in ledger.came.values())
        assert group.lag()

        # A person says go on, as often as it holds: each time the count begins anew.
        resumed = 0

        def all_answered() -> bool:
            nonlocal resumed
            if replica.metric("ouzel_dead_letter_limit_reached") == 1:
                replica.signal(signal.SIGUSR1)
                resumed += 1
            outputs.read(0.1)
            return ledger.answers >= ledger.expected and not group.lag()

        replica.wait_for(all_answered, 60, "all to be answered")
        assert resumed >= 1
        assert (replica.probe("readyz")[0], replica.metric("ouzel_dead_letter_limit_reached")) == (200, 0)
        assert replica.terminate() == 0
        outputs.read_to_end()
    assert ledger.faults() == []
