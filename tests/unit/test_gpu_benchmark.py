"""The benchmark of a GPU, where there is none: what cannot be measured is left out and named, the rest is measured."""

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.rounds import Figures, Turns, in_turn, timed
from benchmarks.gpu.service import cases


def test_what_does_not_work_is_left_out_and_named() -> None:
    turns, seen = Turns(), []

    def measure(name: str) -> Figures:
        seen.append(name)
        if name == "breaks":
            raise RuntimeError("no GPU")
        return {"images_per_s": float(len(seen))}

    def absent() -> None:
        raise ImportError("no torch")

    turns.add("absent", absent)  # type: ignore[arg-type]
    turns.add("first", lambda: lambda: measure("first"))
    turns.add("breaks", lambda: lambda: measure("breaks"))
    turns.add("last", lambda: lambda: measure("last"))
    turns.run(2)
    assert seen == ["first", "breaks", "last", "last", "first"]
    assert turns.failed == {"absent": "ImportError: no torch", "breaks": "RuntimeError: no GPU"}
    assert [(each["what"], each["images_per_s"]["most"]) for each in turns.points()] == [("first", 5), ("last", 4)]


def test_work_is_counted_once_the_gpu_is_done() -> None:
    told: list[str] = []
    found = timed(lambda: told.append("work"), images=8, seconds=0, settle=lambda: told.append("done"))
    assert told == ["work", "done"] * 3  # warm, to choose how many calls a look, and measured
    assert found["images_per_s"] == pytest.approx(8000 / found["call_ms"])


def test_inputs_take_turns() -> None:
    following = in_turn(["a", "b"])
    assert [following() for _ in range(5)] == ["a", "b", "a", "b", "a"]


def test_the_service_is_measured_by_replicas_and_where_asked_in_f16_and_on_the_cores_alone() -> None:
    plain = [case.name for case in cases([1, 4])]
    assert plain == ["GPU, 1 replica", "GPU, 4 replicas", "GPU, 4 replicas, simd"]
    *_, half, alone = cases([1, 4], half="birds-f16", alone=True)
    assert half.settings["model.source"] == "birds-f16"
    assert alone.settings == {"model.device": "cpu"}


def test_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "onnxruntime-gpu" in capsys.readouterr().out
