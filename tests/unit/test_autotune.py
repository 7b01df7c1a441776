"""`model.autotune`: what is tuned and what is left, what is decided, and what is remembered. No model is measured."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from consumer import bootstrap_tuning, cpu
from consumer.bootstrap_tuning import Tuned, Tuning, decide, keep, remembered
from consumer.errors import Fatal, SettingsError
from consumer.messages import ModelInfo
from consumer.settings import Settings, load_with_sources
from consumer.tuning import Found, Gain, Point, Tried, search
from consumer.tuning_settings import NAMES, applied, axes_around, by_name, held, present, with_values

DIGEST = "sha256:ab"
TUNED = {"batch.max_size": 8, "model.threads": 2, "model.streams": 0, "pipeline.decode_threads": 3}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ouzel" / "tuned-settings.json"


def read(tmp_path: Path, text: str = "", **overrides: Any) -> Settings:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return load_with_sources(path, overrides)[0]


# --- what is tuned --------------------------------------------------------------------------------------------------


def test_what_the_user_set_is_held_wherever_it_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUZEL_MODEL__THREADS", "3")
    settings = read(tmp_path, "[batch]\nmax_size = 16\n")
    assert held(settings) == {"batch.max_size": 16, "model.threads": 3}


def test_a_zero_says_as_you_think_best_and_is_free(tmp_path: Path) -> None:
    text = "[model]\nthreads = 0\nstreams = 0\n[pipeline]\ndecode_threads = 0\n"
    assert held(read(tmp_path, text)) == {}


def test_what_others_set_beside_it_holds_nothing(tmp_path: Path) -> None:
    text = '[batch]\nmax_wait_ms = 5\n[model]\nruntime = "null"\n[pipeline]\nfetch_concurrency = 4\n'
    assert held(read(tmp_path, text)) == {}


def test_the_point_of_the_settings_has_cores_in_place_of_zeros() -> None:
    cores = cpu.quota_cores()
    assert present(Settings()) == (16, cores, 0, cores)


def test_a_point_becomes_settings_but_for_what_is_left() -> None:
    point = (8, 2, 1, 3)
    assert present(applied(Settings(), point)) == point
    assert applied(Settings(), point, leaving={"batch.max_size": 16}).batch.max_size == 16


def test_the_axes_have_the_start_and_what_is_held_alone() -> None:
    axes = axes_around(
        (5, 8, 0, 8),
        cores=8,
        on_gpu=False,
        threads_stay=False,
        has_streams=True,
        held={"pipeline.decode_threads": 8},
        most_batch=16,
    )
    assert {axis.name: axis.values for axis in axes} == {
        "batch.max_size": (2, 4, 5, 8, 16),
        "model.threads": (1, 2, 4, 6, 8),
        "model.streams": (0, 1, 2, 4, 6, 8),
        "pipeline.decode_threads": (8,),
    }


def test_what_was_tuned_does_not_count_as_set_by_the_user(tmp_path: Path) -> None:
    settings = read(tmp_path, "[batch]\nmax_size = 16\n")
    tuned = applied(settings, (8, 2, 1, 3), leaving=held(settings))
    assert tuned.model.streams == 1
    assert held(tuned) == {"batch.max_size": 16}


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
def test_on_any_machine_each_value_can_be_set(cores: int) -> None:
    axes = axes_around(
        (16, cores, 0, cores),
        cores=cores,
        on_gpu=False,
        threads_stay=False,
        has_streams=True,
        held={},
        most_batch=128,
    )
    assert [axis.name for axis in axes] == list(NAMES)
    for axis in axes:
        assert axis.values == tuple(sorted(set(axis.values)))
        assert axis.values[0] >= (0 if axis.name == "model.streams" else 1)


def test_a_runtime_without_streams_whose_threads_stay_has_neither_axis() -> None:
    axes = axes_around(
        (16, 2, 0, 2), cores=2, on_gpu=False, threads_stay=True, has_streams=False, held={}, most_batch=128
    )
    assert [len(axis.values) for axis in axes[1:3]] == [1, 1]


@pytest.mark.parametrize("runtime", ["tensorflow", "onnxruntime", "litert", "null"])
def test_streams_with_a_runtime_that_has_none_is_an_error_with_a_remedy(tmp_path: Path, runtime: str) -> None:
    with pytest.raises(SettingsError, match=r"model\.streams = 0"):
        read(tmp_path, f'[model]\nruntime = "{runtime}"\nstreams = 2\n')


# --- the search and its verdict -------------------------------------------------------------------------------------


class Model:
    """As much of a model as a search asks for."""

    package = None

    class runtime:  # noqa: N801 - an attribute
        info = ModelInfo("null", "1", DIGEST, "null", "f32")


def tuning(settings: Settings, look: Callable[[Point], float], *, budget_s: float, look_s: float) -> Any:
    now_s = 0.0

    def timed(point: Point, seconds: float, *, most_s: float) -> float:
        nonlocal now_s
        assert 0 < seconds <= most_s
        now_s += look_s
        return look(point)

    search = Tuning(settings, Model(), budget_s=budget_s, now_s=lambda: now_s, cores=4)  # type: ignore[arg-type]
    return search.run(timed), now_s


def small_is_fast(point: Point) -> float:
    return 1_000.0 / point[0]


def test_what_is_faster_each_time_is_taken() -> None:
    (point, why, knows), _ = tuning(Settings(), small_is_fast, budget_s=5.0, look_s=0.05)
    assert by_name(point)["batch.max_size"] == 2
    assert "8.00 times (8.00 to 8.00)" in why
    assert knows


def test_the_budget_is_kept_to_one_look() -> None:
    _, took_s = tuning(Settings(), small_is_fast, budget_s=2.0, look_s=0.3)
    assert took_s <= 2.0 + 2 * 0.3  # a pair that has begun is ended


def test_without_time_for_one_round_the_settings_stay_and_it_says_what_to_raise() -> None:
    (point, why, knows), _ = tuning(Settings(), small_is_fast, budget_s=1.0, look_s=0.5)
    assert point == present(Settings())
    assert "model.autotune_budget_ms" in why
    assert not knows


def found(point: Point, start: Point, *, finished: bool = True) -> Found:
    return Found(point, [Tried(start, [100.0]), Tried(point, [120.0])], 2, finished)


START: Point = (16, 2, 0, 2)


def test_as_fast_with_less_is_taken_too() -> None:
    point, why = decide(START, found((8, 2, 0, 2), START), Gain((0.99, 1.02, 0.98)))
    assert point == (8, 2, 0, 2)
    assert "as fast with less" in why


@pytest.mark.parametrize(
    ("point", "ratios"),
    [
        ((32, 2, 0, 2), (1.05, 0.99, 1.1)),
        ((8, 2, 0, 2), (0.9, 0.95, 1.0)),
        ((8, 2, 0, 3), (1.0,) * 3),
    ],
)
def test_a_gain_within_the_spread_leaves_the_settings(point: Point, ratios: tuple[float, ...]) -> None:
    used, why = decide(START, found(point, START), Gain(ratios))
    assert used == START
    assert "no gain" in why


@pytest.mark.parametrize("ratios", [(), (1.3, 1.4)])
def test_with_too_few_rounds_the_settings_stay_and_it_says_what_to_raise(ratios: tuple[float, ...]) -> None:
    used, why = decide(START, found((8, 2, 0, 2), START), Gain(ratios))
    assert used == START
    assert "model.autotune_budget_ms" in why


@pytest.mark.parametrize(("times", "is_free"), [(5.0, False), (6.5, True)])
def test_threads_and_streams_are_free_where_the_model_fits_as_often_as_it_is_open_at_once(
    monkeypatch: pytest.MonkeyPatch, times: float, is_free: bool
) -> None:
    """On eight cores six numbers of streams are compared, and five of threads; 100 bytes a model."""
    monkeypatch.setattr(bootstrap_tuning, "needed_bytes", lambda _package, _batch: 100)
    monkeypatch.setattr(bootstrap_tuning, "available_bytes", lambda: int(100 * times))

    class OnDisk:
        package = object()

        class runtime:  # noqa: N801 - an attribute
            info = ModelInfo("birds", "1", DIGEST, "openvino", "f32")

    looked: list[Point] = []

    def look(point: Point, _seconds: float, *, most_s: float) -> float:
        looked.append(point)
        return 100.0

    Tuning(Settings(), OnDisk(), budget_s=60.0, cores=8).run(look)  # type: ignore[arg-type]
    assert (len({point[1:3] for point in looked}) > 1) is is_free


def test_no_more_are_open_at_once_than_a_race_compares() -> None:
    """Counted as the rig does it: one that is looked at is open until another race has ended."""
    opened, most = {START[1:3]}, 0
    axes = axes_around(START, cores=8, on_gpu=False, threads_stay=False, has_streams=True, held={}, most_batch=128)

    def look(point: Point) -> float:
        nonlocal most
        opened.add(point[1:3])
        most = max(most, len(opened - {START[1:3]}))
        return 1.0 + point[1] + point[2]

    def settled(best: Point) -> None:
        opened.intersection_update({START[1:3], best[1:3]})

    assert search(axes, START, look, settled=settled).point != START
    assert 1 < most <= bootstrap_tuning._at_once(axes)


# --- remembered -----------------------------------------------------------------------------------------------------


def test_what_was_found_is_remembered() -> None:
    settings = Settings()
    assert remembered(settings, DIGEST, "openvino") is None
    keep(settings, DIGEST, "openvino", Tuned(TUNED, "the figures"), knows=True)
    assert remembered(settings, DIGEST, "openvino") == Tuned(TUNED, "the figures")


def _other_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_tuning, "quota_cores", lambda: 64)


def _other_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.adapters.cpu_flags.cpu_name", lambda: "another")


def _other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.adapters.runtimes.choose.version_of", lambda _kind: "openvino 1.0")


@pytest.mark.parametrize("change", [_other_cores, _other_cpu, _other_version])
def test_on_another_machine_it_is_found_anew(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    keep(Settings(), DIGEST, "openvino", Tuned(TUNED, ""), knows=True)
    change(monkeypatch)
    assert remembered(Settings(), DIGEST, "openvino") is None


def test_for_another_model_runtime_or_held_setting_it_is_found_anew(tmp_path: Path) -> None:
    keep(Settings(), DIGEST, "openvino", Tuned(TUNED, ""), knows=True)
    assert remembered(Settings(), "sha256:cd", "openvino") is None
    assert remembered(Settings(), DIGEST, "litert") is None
    assert remembered(read(tmp_path, "[batch]\nmax_size = 4\n"), DIGEST, "openvino") is None
    assert remembered(read(tmp_path, "[batch]\nmax_wait_ms = 4\n"), DIGEST, "openvino") is None


def test_what_the_bench_found_serves_those_who_hold_nothing(tmp_path: Path) -> None:
    keep(read(tmp_path, "[batch]\nmax_size = 4\n"), DIGEST, "openvino", Tuned(TUNED, ""), knows=True, nothing_held=True)
    assert remembered(Settings(), DIGEST, "openvino") == Tuned(TUNED, "")


def test_what_the_bench_found_serves_those_who_hold_the_same_values_and_no_others(tmp_path: Path) -> None:
    keep(Settings(), DIGEST, "openvino", Tuned(TUNED, "why"), knows=True, nothing_held=True)
    same = read(tmp_path, "[batch]\nmax_size = 8\n")
    rest = {name: value for name, value in TUNED.items() if name != "batch.max_size"}
    assert remembered(same, DIGEST, "openvino") == Tuned(rest, "why")
    assert remembered(read(tmp_path, "[batch]\nmax_size = 8\n[model]\nthreads = 1\n"), DIGEST, "openvino") is None
    keep(same, DIGEST, "openvino", Tuned({**rest, "model.threads": 1}, "own"), knows=True)
    own = remembered(same, DIGEST, "openvino")
    assert own is not None
    assert own.why == "own"


def test_what_had_too_little_time_is_tried_again_with_more_only() -> None:
    keep(Settings(), DIGEST, "null", Tuned(TUNED, ""), knows=False)
    assert remembered(Settings(), DIGEST, "null") is not None
    more = with_values(Settings(), {"model.autotune_budget_ms": 9_000})
    assert remembered(more, DIGEST, "null") is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"batch.max_size": 8},
        {**TUNED, "batch.max_size": 0},
        {**TUNED, "batch.max_size": "8"},
        {**TUNED, "batch.max_size": 1_000_000},
        {**TUNED, "kafka.group_id": 3},
        {**TUNED, "model.threads": True},
    ],
)
def test_what_somebody_else_wrote_there_is_not_used(cache: Path, values: dict[str, Any]) -> None:
    keep(Settings(), DIGEST, "null", Tuned(TUNED, ""), knows=True)
    body = json.loads(cache.read_text())
    (key,) = body["choices"]
    body["choices"][key]["values"] = values
    cache.write_text(json.dumps(body))
    assert remembered(Settings(), DIGEST, "null") is None


def test_settings_that_are_read_again_keep_what_was_tuned() -> None:
    """Or a running replica would say that they have changed."""
    loaded = bootstrap_tuning.Loaded(Settings(), Model(), {"batch.max_size": 4})  # type: ignore[arg-type]
    assert loaded.read(Settings()).batch.max_size == 4


def test_what_the_user_sets_later_is_seen_in_settings_that_are_read_again(tmp_path: Path) -> None:
    loaded = bootstrap_tuning.Loaded(Settings(), Model(), {"batch.max_size": 4, "model.threads": 1})  # type: ignore[arg-type]
    now = loaded.read(read(tmp_path, "[model]\nthreads = 2\n"))
    assert (now.batch.max_size, now.model.threads) == (4, 2)


# --- the null runtime, for real -------------------------------------------------------------------------------------


def test_with_the_null_runtime_it_is_measured_once_and_then_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[model]\nruntime = "null"\nautotune = true\nautotune_budget_ms = 1_000\n[pipeline]\ndecode_threads = 2\n'
    settings = read(tmp_path, text)
    first = bootstrap_tuning.load_model(settings)
    assert set(first.tuned) == set(NAMES) - {"pipeline.decode_threads"}
    assert first.settings.batch.max_size == first.tuned["batch.max_size"]
    assert first.settings.pipeline.decode_threads == 2
    monkeypatch.setattr(bootstrap_tuning, "Rig", None)  # nothing is measured again
    again = bootstrap_tuning.load_model(settings)
    assert (again.settings, again.tuned) == (first.settings, first.tuned)


NULL = '[model]\nruntime = "null"\nautotune = true\nautotune_budget_ms = 1_000\n'


@pytest.mark.parametrize(
    ("refuses", "cause"),
    [
        ('[input]\nformats = ["PNG"]\n', "input.formats"),
        ("[input]\nmax_pixels = 200_000\n", "input.max_pixels"),
        ("[stores]\nmax_image_bytes = 10_000\n", "stores.max_image_bytes"),
    ],
)
def test_settings_that_refuse_what_it_measures_by_start_as_they_are(
    cache: Path, tmp_path: Path, refuses: str, cause: str
) -> None:
    settings = read(tmp_path, NULL + refuses)
    with warnings_of() as said:
        loaded = bootstrap_tuning.load_model(settings)
    loaded.model.runtime.infer(np.zeros((1, *loaded.model.runtime.input_size, 3), np.uint8))
    assert (loaded.settings, loaded.tuned) == (settings, {})
    assert not cache.exists()
    (line,) = said
    assert "model.autotune" in line
    assert cause in line


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("the runtime's own"), Fatal("stuck", remedy="look")])
def test_whatever_befalls_the_search_the_replica_starts(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(_self: Tuning, _look: object, **_: object) -> None:
        raise error

    monkeypatch.setattr(Tuning, "run", fails)
    settings = read(tmp_path, NULL)
    with warnings_of() as said:
        assert bootstrap_tuning.load_model(settings).settings is settings
    assert not cache.exists()
    (line,) = said
    assert (str(error) or "MemoryError") in line


@contextmanager
def warnings_of() -> Iterator[list[str]]:
    said: list[str] = []
    number = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    yield said
    logger.remove(number)


def test_without_it_nothing_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_tuning, "Rig", None)
    settings = read(tmp_path, '[model]\nruntime = "null"\n')
    loaded = bootstrap_tuning.load_model(settings)
    assert loaded.settings is settings
    assert loaded.tuned == {}
