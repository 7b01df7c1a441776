"""The arithmetic of the comparison with peers."""

import math

import pytest

from benchmarks.peers.measure import first_label
from benchmarks.peers.peers import PEERS
from benchmarks.peers.ratios import judged, percentile, ratios, short, spread
from benchmarks.peers.report import Report
from benchmarks.peers.work import Pair, PeerError, as_offset
from consumer.model_spec import InputSpec


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile([7.0], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_ratios_are_taken_within_a_round() -> None:
    # Both of the second round were slowed down alike.
    found = ratios([200.0, 20.0, 210.0], [100.0, 10.0, 100.0])
    assert (found.median, found.least, found.most, found.rounds) == (2.0, 2.0, 2.1, 3)


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_a_target_is_judged_by_the_median() -> None:
    found = spread([1.4, 1.5, 9.0])
    assert judged(found, 1.5, at_least=True) == "met"
    assert judged(found, 1.51, at_least=True) == "missed"
    assert judged(found, 1.5, at_least=False) == "met"
    assert judged(found, 1.49, at_least=False) == "missed"


@pytest.mark.parametrize(
    ("value", "text"), [(0.4567, "0.457"), (1.2345, "1.23"), (12.345, "12.3"), (345.6, "346"), (math.nan, "-")]
)
def test_three_digits_say_enough(value: float, text: str) -> None:
    assert short(value) == text


def test_a_table_for_the_documents_has_every_cell() -> None:
    report = Report(title="T", columns=["", "a"], rows=[["x", "1"]], notes=["n"])
    assert report.markdown() == "**T**\n\n|  | a |\n| --- | ---: |\n| x | 1 |\n\n- n\n"


@pytest.mark.parametrize(
    ("image", "offset"),
    [
        # [0, 1]: the pixel over 255.
        (InputSpec("x", "float32", "NHWC", 224, 224), (0.0, 255.0)),
        # As the default model wants it: (pixel - 127) / 128.
        (InputSpec("x", "float32", "NHWC", 224, 224, (0.0, 255.0), (127.0,), (128.0,)), (127.0, 128.0)),
        (InputSpec("x", "float32", "NHWC", 224, 224, (-1.0, 1.0)), (127.5, 127.5)),
    ],
)
def test_peers_scale_pixels_as_the_model_says(image: InputSpec, offset: tuple[float, float]) -> None:
    assert as_offset(image) == offset


def test_a_model_with_a_mean_for_each_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="channels"):
        as_offset(InputSpec("x", "float32", "NHWC", 224, 224, mean=(0.1, 0.2, 0.3)))


@pytest.mark.parametrize(
    "answer",
    [
        b'{"labels": [{"index": 12, "label": "finch", "score": 0.93}, {"index": 3, "label": "wren", "score": 0.01}]}',
        r'{"outputs":[{"name":"labels","data":["[{\"index\": 12, \"label\": \"finch\", \"score\": 0.93}]"]}]}',
    ],
)
def test_the_first_label_is_found_in_any_answer(answer: bytes | str) -> None:
    assert first_label(answer) == (12, 0.93)


def test_an_answer_without_labels_is_said() -> None:
    with pytest.raises(PeerError, match="without labels"):
        first_label(b'{"error": "no"}')


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("runtime", ["openvino", "tensorflow"])
def test_a_search_tries_where_it_begins(name: str, runtime: str) -> None:
    peer, pair = PEERS[name], Pair(runtime)
    start = peer.start(pair)
    for stage in peer.stages(pair):
        assert start in [{**start, **each} for each in stage]
