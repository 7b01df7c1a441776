"""A decoder that really crashes, or never comes back: it ends one replica, once. The next owner, which knows of it only
by what the group keeps, finds the culprits in a sandbox; every other image is labelled."""

import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from consumer.adapters.kafka.committed import CommittedOffsets
from consumer.messages import Partition
from consumer.stages.start import Note
from tests.chaos.groups import membership, on_both_protocols
from tests.conftest import MakeTopics, Topics
from tests.history import SentInput, load
from tests.hostile_decoder import with_mark
from tests.hostile_replica import ENTRY
from tests.kafka_broker import Cluster
from tests.kafka_clients import Protocol
from tests.replica import Replica
from tests.runs import Input, Run, inline_image

pytestmark = pytest.mark.kafka

DECODER_STUCK = 13
MAX_UNCOMMITTED = 100


def _settings(kafka: Cluster, topics: Topics, protocol: Protocol) -> dict[str, str]:
    return membership(kafka, topics, protocol) | {
        "OUZEL_COMMIT__INTERVAL_MS": "50",
        "OUZEL_PIPELINE__MAX_UNCOMMITTED_MESSAGES": str(MAX_UNCOMMITTED),
        "OUZEL_DECODE__DEADLINE_MS": "1500",
    }


def _culprit(photographs: Sequence[Path], hole: str, number: int, partition: int) -> Input:
    body = with_mark(photographs[number % len(photographs)].read_bytes(), hole)
    image_id = f"culprit-{hole}-{number}"
    return Input(inline_image(image_id, body), key=image_id.encode(), image_id=image_id, partition=partition)


def _in_hand(kafka: Cluster, topics: Topics) -> dict[int, int]:
    """What the group keeps for the next owner of each partition."""
    asked = [Partition(topics.images, number) for number in range(topics.partitions)]
    offsets = CommittedOffsets(kafka.client_properties(isolation_level="read_committed"), topics.group)
    try:
        return {each.number: Note.load(point.metadata).in_hand for each, point in offsets.read(asked, 10).items()}
    finally:
        offsets.close()


def _letters(run: Run) -> Counter[tuple[int, int]]:
    return Counter(
        (line["source_partition"], line["source_offset"])
        for line in load(run.history_path)
        if line["kind"] == "output" and line["form"] != "event"
    )


def _places(sent: Sequence[SentInput]) -> Counter[tuple[int, int]]:
    return Counter((line.partition, line.offset) for line in sent)


@pytest.mark.parametrize(
    ("hole", "ends_with", "how"),
    [
        ("segfault", -signal.SIGSEGV, "SIGSEGV"),
        ("sleep", DECODER_STUCK, "did not come back within 1.5 s"),
        ("hold-the-lock", -signal.SIGPROF, "did not come back within 1.5 s"),
    ],
)
def test_a_decoder_that_ends_its_replica_does_so_once(
    kafka: Cluster,
    make_topics: MakeTopics,
    small_photographs: list[Path],
    tmp_path: Path,
    hole: str,
    ends_with: int,
    how: str,
) -> None:
    def scenario(protocol: Protocol) -> None:
        topics = make_topics()
        folder = tmp_path / protocol
        folder.mkdir()
        settings = _settings(kafka, topics, protocol)
        with (
            Run(kafka, topics, folder) as run,
            Replica(kafka, topics, settings=settings, entry=ENTRY) as first,
            Replica(kafka, topics, settings=settings, entry=ENTRY) as second,
        ):
            culprits = run.send([_culprit(small_photographs, hole, 0, partition=0)])  # the first message that is read
            run.send(run.photographs(150, small_photographs))
            culprits += run.send([_culprit(small_photographs, hole, number, partition=0) for number in (1, 2)])
            run.send(run.photographs(450, small_photographs))
            assert first.start().wait_exit() == ends_with
            assert _in_hand(kafka, topics)[0] > 0

            second.start()
            run.healed(within_s=60)
            assert second.exit_code is None, "it ended the next one too"
            assert second.said("the last owner ended without a word")
            assert second.metric("ouzel_decoder_crashes_total") == len(culprits)
            sandboxed = second.metric("ouzel_sandboxed_images_total")
            run.send(run.photographs(50, small_photographs))
            run.healed(within_s=30)
            assert second.metric("ouzel_sandboxed_images_total") == sandboxed, "nothing new is suspect"
            letters = [line["message"] for line in second.log_lines() if line.get("error_class") == "DecoderCrashed"]
            assert letters
            assert all(how in message for message in letters)
            assert second.terminate() == 0
            assert set(_in_hand(kafka, topics).values()) == {0}, "it ended in order"
        summary = run.assert_all_promises_kept()
        assert _letters(run) == _places(culprits)
        assert summary.inputs == 653

    on_both_protocols(scenario)
