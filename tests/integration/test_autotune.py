"""`model.autotune` in a replica: the first start measures, the next one knows, and images are labelled with it."""

from pathlib import Path

import pytest

from tests.conftest import MakeTopics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, read_to_end, send
from tests.replica import Replica

pytestmark = pytest.mark.kafka


def test_the_first_start_measures_and_the_second_one_knows(
    kafka: Cluster, make_topics: MakeTopics, photographs: list[Path], tmp_path: Path
) -> None:
    topics = make_topics()
    settings = {
        "OUZEL_MODEL__AUTOTUNE": "true",
        "OUZEL_MODEL__AUTOTUNE_BUDGET_MS": "1000",
        "OUZEL_PIPELINE__DECODE_THREADS": "2",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    bare = tmp_path / "settings.toml"  # ours holds batch.max_size
    bare.write_text("")
    with Replica(kafka, topics, settings=settings, arguments=("--settings", str(bare))) as replica:
        replica.start().wait_ready()
        assert replica.said("tuning for this machine, once")
        assert replica.said("left as set: pipeline.decode_threads")
        send(kafka, topics.images, [Record(path.read_bytes()) for path in photographs])
        replica.wait_for(
            lambda: replica.metric("ouzel_images_total", outcome="labelled") == len(photographs), 60, "the labels"
        )
        assert replica.terminate() == 0
        first = [line["message"] for line in replica.log_lines() if line["message"].startswith("tuned: ")]
        replica.log_file.write_text("")
        replica.start().wait_ready()
        assert not replica.said("tuning for this machine")
        again = [line["message"] for line in replica.log_lines() if line["message"].startswith("tuned: ")]
        assert again == [f"{line} (remembered)" for line in first]
        assert "batch.max_size" in first[0].partition(": ")[2].partition(";")[0]
        assert replica.terminate() == 0
    assert len(read_to_end(kafka, topics.predictions)) == len(photographs)
