"""`ouzel bench --tune`: which runtimes it goes on with, what it makes of a gain, and the lines that it prints."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from consumer import bootstrap_tuning
from consumer.bench import tune, tune_report
from consumer.bench.results import QUICK
from consumer.bench.session import Told
from consumer.bench.tune import Outcome, Setup, verdict
from consumer.bench.tune_report import summarize
from consumer.commands import bench
from consumer.errors import Fatal, SettingsError
from consumer.settings import Settings, load
from consumer.tuning import Gain

PRESENT = Setup("tensorflow", (16, 2, 0, 2))
BEST = Setup("openvino", (8, 2, 1, 3))


class Children:
    """Runtimes whose images/s are known."""

    def __init__(self, rate: Callable[[Setup], float | None]) -> None:
        self._rate = rate
        self.asked: list[Setup] = []
        self.kept: list[Setup] = []

    def look(self, setup: Setup, seconds: float, most_s: float) -> float | None:
        assert 0 < seconds < most_s
        self.asked.append(setup)
        return self._rate(setup)

    def keep_open(self, setup: Setup) -> None:
        self.kept.append(setup)


SPEED = {"openvino": 300.0, "onnxruntime": 250.0, "litert": 100.0, "tensorflow": 240.0}


def rate(setup: Setup) -> float:
    """Each is at its best with batches of 8; OpenVINO with one stream, too."""
    batch, _threads, streams, _decoders = setup.point
    return SPEED[setup.runtime] / (1 + 0.1 * abs(batch - 8)) * (1.1 if streams == 1 else 1.0)


def search(
    rate: Callable[[Setup], float | None], present: Setup = PRESENT, settings: Settings | None = None
) -> tuple[tune._Search, Children]:
    children = Children(rate)
    asked = settings or Settings()
    found = tune._Search(children, list(SPEED), present, QUICK, Told(), settings=asked)  # type: ignore[arg-type]
    return found, children


def test_the_best_of_the_best_runtime_is_found() -> None:
    found, _ = search(rate)
    best = found.best()
    assert (best.runtime, best.point[0], best.point[2]) == ("openvino", 8, 1)
    assert found.against_present(best).is_one


def test_of_a_slow_runtime_nothing_more_is_looked_at() -> None:
    found, children = search(rate)
    found.best()
    assert {setup.point for setup in children.asked if setup.runtime == "litert"} == {(16, 2, 0, 2)}
    assert len({setup.point for setup in children.asked if setup.runtime == "tensorflow"}) > 3


def test_after_each_race_along_an_axis_a_process_frees_what_lost() -> None:
    found, children = search(rate)
    best = found.best()
    of_openvino = [setup for setup in children.kept if setup.runtime == "openvino"]
    assert len(of_openvino) > len(best.point)
    assert of_openvino[-1] == best
    assert not [setup for setup in children.kept if setup.runtime == "tensorflow"]  # a process for each of its points


def test_on_a_gpu_larger_batches_are_looked_at_and_neither_threads_nor_streams() -> None:
    found, children = search(
        lambda setup: float(setup.point[0]), settings=Settings.model_validate({"model": {"device": "gpu:0"}})
    )
    assert found.best().point[0] == 128  # of 256 images in flight
    assert {setup.point[1:3] for setup in children.asked} == {PRESENT.point[1:3]}


def test_a_runtime_whose_process_ends_is_passed_over() -> None:
    def breaks(setup: Setup) -> float:
        if setup.runtime == "openvino":
            raise Fatal("it ended")
        return rate(setup)

    found, children = search(breaks)
    assert found.best().runtime == "onnxruntime"
    assert [setup.runtime for setup in children.asked].count("openvino") == 1


def test_that_the_present_runtime_ends_is_an_error() -> None:
    def breaks(setup: Setup) -> float:
        raise Fatal("it ended")

    with pytest.raises(Fatal, match="it ended"):
        search(breaks)[0].best()


def test_where_the_present_settings_are_the_best_nothing_is_compared() -> None:
    present = Setup("openvino", (8, 2, 1, 1))
    found, _ = search(rate, present)
    best = found.best()
    assert best.runtime == "openvino"
    assert found.against_present(present) == Gain(())


# --- what is said ---------------------------------------------------------------------------------------------------


def outcome(gain: Gain, service_gain: Gain | None = None, best: Setup = BEST) -> Outcome:
    looks = [tune.Look(PRESENT, (100.0, 90.0, 110.0)), tune.Look(BEST, (150.0, 160.0))]
    return Outcome(
        "birds 1", "cuts", 0.3, PRESENT, best, looks, ["not LiteRT: it crashed"], gain, service_gain, "", 9.0
    )


SURE = Gain((1.5, 1.4, 1.6))
UNSURE = Gain((1.5, 0.9, 1.6))


@pytest.mark.parametrize(
    ("gain", "service_gain", "is_gain"),
    [(SURE, None, True), (SURE, SURE, True), (SURE, UNSURE, False), (UNSURE, None, False)],
)
def test_a_gain_must_be_there_each_time_wherever_it_was_asked(
    gain: Gain, service_gain: Gain | None, is_gain: bool
) -> None:
    found = outcome(gain, service_gain)
    assert found.is_gain is is_gain
    assert ("keep the present settings" in verdict(found)) is not is_gain
    assert bool(summarize(found)["settings"]) is is_gain


def test_the_lines_to_paste_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(summarize(outcome(SURE))["settings"])
    settings = load(path)
    assert settings.model.runtime == "openvino"
    assert (settings.batch.max_size, settings.model.threads, settings.model.streams) == (8, 2, 1)
    assert settings.pipeline.decode_threads == 3


def test_the_file_that_is_written_is_settings_and_says_where_they_are_from(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(tune_report.as_file(summarize(replace(outcome(SURE), not_confirmed="it ended:\nits log"))))
    assert tomllib.loads(path.read_text()) == {
        "batch": {"max_size": 8},
        "model": {"runtime": "openvino", "threads": 2, "streams": 1},
        "pipeline": {"decode_threads": 3},
    }
    assert load(path).batch.max_size == 8
    assert "# not confirmed on the service: it ended:\n\n" in path.read_text()


def test_a_gain_is_written_and_what_is_none_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench._write(tmp_path / "none.toml", summarize(outcome(UNSURE)))
    assert not (tmp_path / "none.toml").exists()
    assert "is not written: " in capsys.readouterr().err
    bench._write(tmp_path / "gain.toml", summarize(outcome(SURE)))
    assert load(tmp_path / "gain.toml").model.runtime == "openvino"


def test_what_is_there_is_not_written_over_and_said_before_the_search(tmp_path: Path) -> None:
    there = tmp_path / "settings.toml"
    there.write_text("[batch]\nmax_size = 4\n")
    for path, is_tune in ((there, True), (tmp_path / "absent" / "s.toml", True), (tmp_path / "new.toml", False)):
        with pytest.raises(SettingsError) as caught:
            bench._check_new(path, tune=is_tune)
        assert "--write" in caught.value.remedy
    with pytest.raises(SettingsError, match="cannot write"):
        bench._write(there, summarize(outcome(SURE)))  # it came meanwhile
    assert there.read_text() == "[batch]\nmax_size = 4\n"
    bench._check_new(tmp_path / "new.toml", tune=True)


def test_of_a_runtime_without_streams_no_line_speaks_of_them() -> None:
    assert tomllib.loads(PRESENT.toml) == {
        "batch": {"max_size": 16},
        "model": {"runtime": "tensorflow", "threads": 2},
        "pipeline": {"decode_threads": 2},
    }


def test_all_that_was_tried_is_in_the_json_the_best_first() -> None:
    summary = json.loads(json.dumps(summarize(outcome(SURE))))
    assert [each["images_per_s"] for each in summary["tried"]] == [155.0, 100.0]
    assert summary["tried"][1]["least"] == 90.0
    assert summary["gain"] == {"median": 1.5, "least": 1.4, "most": 1.6, "rounds": 3}
    assert summary["passed_over"] == ["not LiteRT: it crashed"]


def test_the_terminal_shows_what_was_tried_and_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tune_report.show(summarize(outcome(SURE)), Console(width=120))
    shown = capsys.readouterr().out
    assert "1.50 times the present images/s (1.40 to 1.60" in shown
    assert "[batch]\nmax_size = 8" in shown
    assert "not LiteRT: it crashed" in shown


def test_what_is_used_is_remembered_for_a_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tune._remember(Settings(), "sha256:ab", outcome(SURE))
    found = bootstrap_tuning.remembered(Settings(), "sha256:ab", "openvino")
    assert found is not None
    assert found.values["batch.max_size"] == 8
    tune._remember(Settings(), "sha256:ab", outcome(UNSURE))
    kept = bootstrap_tuning.remembered(Settings(), "sha256:ab", "tensorflow")
    assert kept is not None
    assert kept.values["batch.max_size"] == 16
