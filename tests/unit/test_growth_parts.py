"""The pure parts of how cost grows: padded pictures, windows, parts of a backlog, counts."""

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.growth.backlog import by_part, flatness, harmonic
from benchmarks.growth.curve import document, merged, others_share, spread, text
from benchmarks.growth.curves import CURVES
from benchmarks.growth.others import Others
from benchmarks.growth.padded import padded, tiny_jpeg
from benchmarks.growth.replicas import Look, steady
from benchmarks.growth.soak import nothing_lost, total
from benchmarks.growth.stream import models_in
from benchmarks.growth.tables import made_by
from consumer.adapters.image_structure import refuse_costly
from consumer.bench.usage import Sample


def _pixels(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image.convert("RGB"))


# --- padded pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [4, 5, 7, 65_537, 65_538, 65_539, 65_540, 65_541, 131_074, 200_000])
def test_a_padded_jpeg_has_that_size_and_the_same_pixels(more: int) -> None:
    tiny = tiny_jpeg(3)
    larger = padded(tiny, len(tiny) + more)
    assert len(larger) == len(tiny) + more
    assert np.array_equal(_pixels(larger), _pixels(tiny))


def test_a_picture_in_a_message_of_1_mb_is_one_that_the_service_takes() -> None:
    body = padded(tiny_jpeg(), 1_000_000)
    refuse_costly(body, "JPEG")
    assert len(tiny_jpeg()) < 996


def test_two_pictures_are_two() -> None:
    assert padded(tiny_jpeg(1), 1_000, seed=1) != padded(tiny_jpeg(2), 1_000, seed=2)


def test_padding_that_does_not_fit_is_refused() -> None:
    tiny = tiny_jpeg()
    assert padded(tiny, len(tiny)) == tiny
    for size in (len(tiny) - 1, len(tiny) + 3):
        with pytest.raises(ValueError, match="at least 4"):
            padded(tiny, size)
    with pytest.raises(ValueError, match="not a JPEG"):
        padded(b"GIF89a", 1_000)


# --- replicas -------------------------------------------------------------------------------------------------------


def _look(done: int, *waiting: int) -> Look:
    return Look(done, waiting, (Sample(float(done), 0.0, 0.0, None, None, None),))


def test_replicas_are_measured_while_each_has_work() -> None:
    looks = [
        _look(0, -1, -1),
        _look(150, 850, -1),  # the second has no partitions yet
        _look(300, 350, 350),
        _look(600, 200, 200),
        _look(800, 190, 10),  # what waits for the second, it holds
        _look(1000, 0, 0),
    ]
    first, last = steady(looks, in_flight=100)
    assert (first.done, last.done) == (300, 600)


def test_a_backlog_that_is_too_short_for_all_replicas_is_said_to_be() -> None:
    with pytest.raises(ValueError, match="raise --images above 1000"):
        steady([_look(0, -1, -1), _look(500, 250, 250), _look(1000, 0, 0)], in_flight=100)


# --- backlog --------------------------------------------------------------------------------------------------------


def test_a_steady_run_has_the_same_rate_in_every_part() -> None:
    done = [0, 0, *range(0, 1001, 50)]
    at_s = [0.0, 5.0, *(5.0 + 0.1 * number for number in range(21))]
    parts = by_part(done, at_s, [2.0**20 * 100] * len(done), 1000)
    assert parts["rate_by_part"] == pytest.approx([500.0] * 9)
    assert parts["rss_mib_by_part"] == pytest.approx([100.0] * 10)


def test_a_run_that_slows_down_is_not_flat() -> None:
    point = {"rate_by_part": [100.0, 100.0, 100.0, 80.0, 70.0, 60.0, 50.0, 50.0, 50.0]}
    assert flatness(point) == pytest.approx(0.5)
    assert harmonic([1.0, 3.0]) == pytest.approx(1.5)  # two equal amounts: 1 s and 1/3 s


# --- rounds and counts ----------------------------------------------------------------------------------------------


def test_a_model_is_named_as_its_replica_names_it() -> None:
    labels = 'digest="sha256:00",name="birds",precision="bf16",runtime="openvino",version="1"'
    assert models_in([f"ouzel_model_info{{{labels}}}", "ouzel_inflight_messages"]) == {"birds in openvino bf16"}
    assert models_in(['ouzel_model_info{name="null",precision="f32",runtime="null"}']) == {"no model"}


def test_a_figure_says_its_spread() -> None:
    found = merged([{"rate": 3.0}, {"rate": 1.0}, {"rate": 2.0}])
    assert found == {"rate": {"median": 2.0, "least": 1.0, "most": 3.0}}
    assert text(found["rate"], 1) == "2.0 (1.0-3.0)"
    assert text(merged([{"rate": 1234.0}])["rate"]) == "1,234"


def test_a_metric_is_summed_over_its_labels_alone() -> None:
    metrics = {'ouzel_consumer_lag{topic="a"}': 2.0, "ouzel_consumer_lag": 1.0, "ouzel_consumer_lag_other": 5.0}
    assert total(metrics, "ouzel_consumer_lag") == 3.0


@pytest.mark.parametrize(
    "wrong", [{"events": 9}, {"events": 11}, {"dead_letters": 1}, {"unanswered": 1}, {"inputs": 11}]
)
def test_what_is_lost_doubled_or_refused_is_told(wrong: dict[str, int]) -> None:
    counted = {"inputs": 10, "events": 10, "dead_letters": 0, "unanswered": 0}
    assert nothing_lost(counted)
    assert not nothing_lost(counted | wrong)


# --- others on the machine ------------------------------------------------------------------------------------------


def _found(*points: dict[str, Any], **facts: Any) -> dict[str, Any]:
    machine = {"cores": 2, "cpu": "a CPU", "cpu_flags": [], "versions": {}}
    return {"command": "measure", "machine": machine, "facts": facts, "points": list(points)}


def test_what_others_used_is_weighed_by_the_time_and_said_with_the_table() -> None:
    # One core of two for 30 s, and none for 10 s.
    found = _found({"others_cores": spread([1.0]), "window_s": spread([30.0])}, {"others_cores": 0.0, "window_s": 10.0})
    assert others_share(found) == pytest.approx(0.375)
    assert "Others used 38 % of the cores meanwhile." in made_by(found)
    noted = document(CURVES["labels"], {"facts": found["facts"], "points": found["points"]}, [])
    assert noted["others_share"] == pytest.approx(0.75 / noted["machine"]["cores"])


def test_a_quiet_machine_and_one_that_does_not_tell_are_not_said_to_be_noisy() -> None:
    for found in (_found({"images": 1}), _found(others_cores=0.1, window_s=5.0)):
        assert "Others" not in made_by(found)
    assert others_share(_found({"images": 1})) is None


def test_a_figure_that_a_round_lacks_is_left_out() -> None:
    assert merged([{"rate": 1.0, "others_cores": 1.0}, {"rate": 1.0}]).keys() == {"rate"}


def test_beside_others_the_table_of_sizes_has_the_ratio_without_them() -> None:
    def point(others_cores: float) -> dict[str, Any]:
        figures = {name: spread([1.0]) for name in ("images_per_s", "roofline_images_per_s", "window_s")}
        parts = dict.fromkeys(("fetch", "decode", "infer", "Kafka", "service beyond", "broker"), 1.0)
        ratios = {"ratio": spread([0.45]), "ratio_less_others": spread([0.9])}
        others = {"others_cores": spread([others_cores])}
        return {"megapixels": 1.0, "image_bytes": 1, **figures, **ratios, **others, "parts_cpu_ms": parts}

    heading, row = CURVES["image-size"].table(_found(point(1.0)))
    assert row[heading.index("others taken off")] == "0.900"
    assert "others taken off" not in CURVES["image-size"].table(_found(point(0.1)))[0]


def test_this_process_and_its_children_are_not_others() -> None:
    """One child works for half a second while this process waits: whatever others do, they do it besides."""
    others = Others()
    code = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    first, last = others._first, others._sample()
    assert last.bench_s - first.bench_s >= 0.4  # counted in steps of 10 ms
