"""What tuning measures by, for real: streams of OpenVINO, the flow fed from memory, and a model that is opened anew."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumer import bootstrap_model, bootstrap_tuning
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.choose import agreeing_runtimes, choose_runtime
from consumer.adapters.runtimes.kinds import KINDS, kind_of, open_kind
from consumer.adapters.runtimes.openvino_runtime import OpenVinoRuntime
from consumer.bootstrap_tuning import Tuning, workload
from consumer.errors import CannotRun, Fatal
from consumer.settings import Settings, load_with_sources
from consumer.tuning import Point
from consumer.tuning_rig import Rig, _rate
from consumer.tuning_settings import present
from tests.models import tiny_model

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ouzel"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {number}\n" for number in range(10)))
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[model]\nsource = "{tiny_model()}"\nlabels = "{labels}"\nruntime = "openvino"\nautotune = true\n'
        "autotune_budget_ms = 1_000\nthreads = 2\n"
    )
    return load_with_sources(path, {})[0]


# --- streams --------------------------------------------------------------------------------------------------------


def opened(cache: Path, *, streams: int, threads: int = 2) -> OpenVinoRuntime:
    package = open_bare(tiny_model(), BareModel())
    return OpenVinoRuntime(package, threads=threads, device="cpu", cache=cache, streams=streams)


def streams_of(runtime: OpenVinoRuntime) -> int:
    assert runtime._loaded is not None
    return int(runtime._loaded.together._compiled.get_property("NUM_STREAMS"))


def test_there_are_as_many_streams_as_are_asked_for_from_the_cache_too(cache: Path) -> None:
    for _ in range(2):  # compiled, then from the cache
        assert [streams_of(opened(cache, streams=number)) for number in (1, 2)] == [1, 2]
    assert len(list((cache / "openvino").iterdir())) == 1  # what is kept is the graph for one image


def test_more_than_threads_are_as_many_as_threads(cache: Path) -> None:
    assert streams_of(opened(cache, streams=8)) == 2


def test_streams_change_neither_scores_nor_the_models_digest(cache: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    runtimes = [opened(cache, streams=number) for number in (0, 1, 2)]
    for other in runtimes[1:]:
        assert other.infer(images) == pytest.approx(runtimes[0].infer(images), abs=1e-5)
        assert other.info == runtimes[0].info


@pytest.mark.parametrize("name", [kind.name for kind in KINDS if not kind.has_streams])
def test_a_runtime_without_streams_refuses_them_with_a_remedy(cache: Path, name: str) -> None:
    package = open_bare(tiny_model(), BareModel())
    with pytest.raises(CannotRun, match=r"has no streams") as caught:
        open_kind(kind_of(name), package, threads=1, device="cpu", cache=cache, streams=2)
    assert "model.streams = 0" in caught.value.remedy


def test_auto_passes_over_what_has_no_streams_where_some_are_asked_for(cache: Path) -> None:
    package = open_bare(tiny_model(), BareModel())
    choice = choose_runtime(package, threads=2, device="cpu", batch_size=4, cache=cache, streams=2)
    assert choice.runtime == "openvino"
    assert "not TensorFlow: model.streams is 2" in choice.why


def test_all_that_agree_are_there_to_be_tuned(cache: Path) -> None:
    names, passed_over = agreeing_runtimes(
        open_bare(tiny_model(), BareModel()), threads=1, device="cpu", batch_size=4, cache=cache
    )
    assert {"openvino", "tensorflow"} <= set(names)
    assert passed_over == []


# --- looks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(settings: Settings) -> Iterator[Rig]:
    model = bootstrap_model.load_model(settings)
    rig = Rig(settings, model, workload())
    yield rig
    rig.close()
    model.runtime.close()


@pytest.mark.parametrize("point", [(2, 1, 0, 1), (16, 2, 2, 3), (4, 2, 1, 2)])
def test_a_look_is_images_a_second(rig: Rig, point: Point) -> None:
    rate = rig.look(point, 0.1, most_s=5.0)
    assert rate is not None
    assert 1 < rate < 100_000


def test_more_streams_than_threads_are_no_point_of_their_own(rig: Rig) -> None:
    assert rig.look((4, 1, 2, 1), 0.1, most_s=5.0) is None


def test_only_those_that_are_kept_stay_open_and_the_others_can_be_looked_at_again(rig: Rig) -> None:
    points: list[Point] = [(4, 2, 0, 2), (4, 1, 0, 2), (4, 2, 1, 2), (4, 2, 2, 2)]  # the first is the rig's own
    rig.holds(2, 0)
    for point in points:
        rig.look(point, 0.05, most_s=5.0)
    opened = [rig._opened[threads, streams].inner for _, threads, streams, _ in points]
    rig.keep_open([points[2]])
    assert [is_open(each) for each in opened] == [True, False, True, False]
    assert rig.look(points[3], 0.05, most_s=5.0)


def is_open(runtime: Any) -> bool:
    return runtime._loaded is not None


def test_a_workload_that_cannot_be_labelled_is_an_error(settings: Settings) -> None:
    model = bootstrap_model.load_model(settings)
    with pytest.raises(Fatal, match="was not labelled"):
        Rig(settings, model, [b"no image"]).look(present(settings), 0.1, most_s=5.0)
    assert model.runtime.infer(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)  # it is still open
    model.runtime.close()


def test_what_is_searched_for_is_what_labels_from_then_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a point that is another number of streams: the model is opened with them, and the first one closed."""
    chosen: Point = (4, 2, 1, 1)
    monkeypatch.setattr(Tuning, "run", lambda _self, _look, **_: (chosen, "told so", True))
    loaded = bootstrap_tuning.load_model(settings)
    runtime: Any = loaded.model.runtime
    assert streams_of(runtime) == 1
    assert loaded.tuned == {"batch.max_size": 4, "model.streams": 1, "pipeline.decode_threads": 1}
    again = bootstrap_tuning.load_model(settings)
    other: Any = again.model.runtime
    assert streams_of(other) == 1
    assert again.settings == loaded.settings
    assert other.info == runtime.info
    for each in (runtime, other):
        each.close()


@pytest.mark.parametrize(
    ("batches", "lead", "expected"),
    [
        ([(0.0, 4), (1.0, 8), (2.0, 8), (3.0, 8)], 8, 8.0),  # the first two are the begin
        ([(0.0, 8), (0.5, 8)], 8, 16.0),
        ([(0.0, 4), (1.0, 3)], 16, 3.0),  # no time for a steady flow: what there is
        ([(0.0, 8)], 8, None),
        ([], 8, None),
    ],
)
def test_the_rate_is_from_one_batchs_end_to_anothers(
    batches: list[tuple[float, int]], lead: int, expected: float | None
) -> None:
    assert _rate(batches, lead=lead) == expected
