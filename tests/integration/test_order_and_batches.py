"""Order of keys, batches under load, and bounds that hold, with images whose decoding takes very different times."""

import io
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from consumer.adapters.image import PillowDecoder
from tests.answers import Answers, wait_no_lag
from tests.conftest import MakeTopics, Topics
from tests.faulty_replica import ENTRY
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, send
from tests.models import PHOTOGRAPHS
from tests.replica import Replica
from tests.runs import Input, Run, inline_image, referenced_image

pytestmark = pytest.mark.kafka

KIB = 1024
SAMPLE_EACH_S = 0.01


@pytest.fixture(scope="module")
def large_photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph at 3 megapixels: fifty times the decoding of the small ones."""
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    with Image.open(PHOTOGRAPHS / "coffee.jpg") as photograph:
        photograph.convert("RGB").resize((2000, 1500)).save(path, quality=60)
    return path


def test_the_events_of_a_key_keep_their_order_though_its_images_take_very_different_times(
    kafka: Cluster, topics: Topics, photographs: list[Path], large_photograph: Path, tmp_path: Path
) -> None:
    """Large before small, references before inline bytes, and a corrupt one between them, under six keys."""
    large, small = large_photograph.read_bytes(), photographs[0].read_bytes()
    inputs: list[Input] = []
    for number in range(150):
        image_id = f"image-{number:03d}"
        key = b"key-%d" % (number % 6)
        match (number // 6) % 5:
            case 0:
                inputs.append(Input(inline_image(image_id, large), key, image_id))
            case 1:
                inputs.append(Input(referenced_image(image_id, large_photograph), key, image_id))
            case 2:
                inputs.append(Input(small[: len(small) // 2], key))
            case _:
                inputs.append(Input(inline_image(image_id, small), key, image_id))
    settings = {
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(large_photograph.parent)]),
        "OUZEL_PIPELINE__DECODE_THREADS": "4",
        "OUZEL_BATCH__MAX_SIZE": "4",
    }
    with Run(kafka, topics, tmp_path) as run, Answers(kafka, topics) as answers:
        run.send(inputs)
        run.send([Input(message.value, None, message.image_id) for message in inputs[:24]])
        with Replica(kafka, topics, settings=settings) as replica:
            replica.start().wait_ready()
            run.healed(within_s=60)
            assert replica.terminate() == 0
        summary = run.assert_all_promises_kept(exactly_once=True)
        assert (summary.events, summary.letters) == (120 + 18, 30 + 6)
        answers.read_to_end()
    of_key: dict[bytes, list[str]] = defaultdict(list)
    partitions_of_key: dict[bytes, set[int]] = defaultdict(set)
    for answer in answers.events:
        if answer.key is None:
            continue
        of_key[answer.key].append(answer.event["image_id"])
        partitions_of_key[answer.key].add(answer.partition)
    assert sum(answer.key is None for answer in answers.events) == 18
    for key, ids in of_key.items():
        assert ids == sorted(ids), key
        assert len(partitions_of_key[key]) == 1
    # Across keys the order did change: otherwise this would have shown nothing.
    assert any(
        places != sorted(places)
        for partition in range(topics.partitions)
        if (places := [a.event["source"]["offset"] for a in answers.events if a.key and a.partition == partition])
    )


def test_images_that_wait_share_batches_and_a_corrupt_one_fails_alone(
    kafka: Cluster, topics: Topics, photographs: list[Path]
) -> None:
    records, good = [], 0
    for number in range(200):
        body = photographs[number % len(photographs)].read_bytes()
        corrupt = number % 5 == 4
        good += not corrupt
        records.append(Record(body[: len(body) // 2] if corrupt else body, key=b"%d" % number))
    settings = {"OUZEL_TEST_SLOW_MODEL_S": "0.05", "OUZEL_BATCH__MAX_SIZE": "8"}
    sent = send(kafka, topics.images, records)
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        for number, answer in enumerate(answers.to_all(sent)):
            assert answer.is_letter == (number % 5 == 4)
            if answer.is_letter:
                assert answer.error == "TruncatedImage"
        wait_no_lag(kafka, topics)
        answers.read_to_end()
        assert len(answers.all) == len(sent)
        assert replica.metric("ouzel_batch_images_sum") == good
        assert replica.metric("ouzel_batch_images_count") <= good / 4
        assert replica.metric("ouzel_batch_images_bucket", le="8.0") == replica.metric("ouzel_batch_images_count")
        assert replica.terminate() == 0


def test_a_lone_image_does_not_wait_for_others(kafka: Cluster, topics: Topics, photographs: list[Path]) -> None:
    """With five minutes to wait for company, it goes at once to an idle model."""
    with (
        Replica(kafka, topics, settings={"OUZEL_BATCH__MAX_WAIT_MS": "290000"}) as replica,
        Answers(kafka, topics) as answers,
    ):
        replica.start().wait_ready()
        for _ in range(3):
            (sent,) = send(kafka, topics.images, [Record(photographs[0].read_bytes())])
            answers.to(sent)
        assert replica.terminate() == 0


# --- bounds ---------------------------------------------------------------------------------------------------------


@contextmanager
def watched(replica: Replica) -> Iterator[dict[str, float]]:
    """The highest of /metrics' gauges of what is in flight, sampled all the while."""
    highest = {"messages": 0.0, "bytes": 0.0, "samples": 0.0}
    stopping = threading.Event()

    def sample() -> None:
        while not stopping.wait(SAMPLE_EACH_S):
            messages, held = replica.metrics("ouzel_inflight_messages", "ouzel_inflight_bytes")
            highest["messages"] = max(highest["messages"], messages)
            highest["bytes"] = max(highest["bytes"], held)
            highest["samples"] += 1

    thread = threading.Thread(target=sample, name="sampler", daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        stopping.set()
        thread.join(20)


def test_no_more_messages_are_in_flight_than_the_bound(kafka: Cluster, topics: Topics, photographs: list[Path]) -> None:
    settings = {
        "OUZEL_TEST_SLOW_MODEL_S": "0.02",
        "OUZEL_BATCH__MAX_SIZE": "4",
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "8",
    }
    sent = send(kafka, topics.images, [Record(photographs[0].read_bytes(), key=b"%d" % n) for n in range(80)])
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        with watched(replica) as highest:
            answers.to_all(sent)
        assert highest["samples"] > 5
        assert 4 < highest["messages"] <= 8
        wait_no_lag(kafka, topics)
        assert replica.metric("ouzel_inflight_messages") == 0
        assert replica.metric("ouzel_inflight_bytes") == 0
        assert replica.terminate() == 0


@pytest.mark.parametrize("by_reference", [False, True], ids=["inline", "by reference"])
def test_no_more_bytes_are_held_than_the_bound_and_one_message(
    kafka: Cluster, topics: Topics, photographs: list[Path], large_photograph: Path, tmp_path: Path, by_reference: bool
) -> None:
    """What one message may hold: itself, its image's bytes, its pixels while they are decoded, and the model's. How
    large a referenced image is shows only when it is here, so that one more for each fetch may come."""
    most = 2048 * KIB
    small = tmp_path / "small.jpg"
    with Image.open(large_photograph) as photograph:
        photograph.resize((400, 300)).save(small)
    padded = tmp_path / "padded.jpg"
    padded.write_bytes(small.read_bytes() + bytes(200 * KIB - small.stat().st_size))
    settings = {
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(tmp_path)]),
        "OUZEL_TEST_SLOW_MODEL_S": "0.02",
        "OUZEL_BATCH__MAX_SIZE": "4",
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_BYTES": str(most),
        "OUZEL_BATCH__MAX_BYTES": str(most // 2),
        "OUZEL_PIPELINE__FETCH_CONCURRENCY": "2",
    }
    form = referenced_image if by_reference else None
    values = [
        form(f"image-{number}", padded) if form else inline_image(f"image-{number}", padded.read_bytes())
        for number in range(100)
    ]
    decoding = PillowDecoder((224, 224)).measure(padded.read_bytes()).decode_bytes
    one_message = len(values[0]) + padded.stat().st_size + decoding + 224 * 224 * 3
    sent = send(kafka, topics.images, [Record(value, key=b"%d" % number) for number, value in enumerate(values)])
    with Replica(kafka, topics, entry=ENTRY, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        with watched(replica) as highest:
            answers.to_all(sent)
        assert highest["samples"] > 5
        assert most / 4 < highest["bytes"] <= most + one_message * (2 if by_reference else 1)
        wait_no_lag(kafka, topics)
        assert replica.metric("ouzel_inflight_bytes") == 0
        assert replica.terminate() == 0


def test_a_message_larger_than_the_whole_bound_goes_alone(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], large_photograph: Path
) -> None:
    topics = make_topics(partitions=1, images_config={"max.message.bytes": str(8 * 1024 * KIB)})
    huge, small = inline_image("huge", large_photograph.read_bytes()), photographs[0].read_bytes()
    assert len(huge) > 160 * KIB
    records = []
    for number in range(5):
        records += [Record(inline_image(f"small-{number}", small)), Record(huge)]
    settings = {
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_BYTES": str(160 * KIB),  # less than the pixels of two
        "OUZEL_BATCH__MAX_BYTES": str(160 * KIB),
        "OUZEL_BATCH__MAX_SIZE": "2",
        "OUZEL_PIPELINE__MAX_IN_FLIGHT_MESSAGES": "16",
    }
    sent = send(kafka, topics.images, records, message_max_bytes=16 * 1024 * KIB)
    with Replica(kafka, topics, settings=settings) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        assert all(not answer.is_letter for answer in answers.to_all(sent))
        wait_no_lag(kafka, topics)
        assert replica.terminate() == 0


def test_an_image_of_one_row_has_its_place_in_a_batch(kafka: Cluster, topics: Topics, photographs: list[Path]) -> None:
    """Extreme shapes beside ordinary photographs."""
    thin = io.BytesIO()
    Image.new("RGB", (3000, 1), "red").save(thin, "PNG")
    records = [Record(thin.getvalue()), Record(photographs[0].read_bytes()), Record(thin.getvalue())]
    with Replica(kafka, topics) as replica, Answers(kafka, topics) as answers:
        replica.start().wait_ready()
        found = [answer.event["image"] for answer in answers.to_all(send(kafka, topics.images, records))]
        assert [(image["width"], image["height"]) for image in found][::2] == [(3000, 1), (3000, 1)]
        assert replica.terminate() == 0
