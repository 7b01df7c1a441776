"""Every runtime side by side, on one machine in one run: `python -m benchmarks.runtimes`.

Each runtime holds its model in a process of its own. All of them are started, one after the other, for the cold start;
then they take turns, round by round, so that what else the machine does meets each of them. Agreement is with
TensorFlow, over photographs and cuts of them.

The table goes to stdout as Markdown; with `--json` one line for each row. The CPU's flags are in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.figures import machine
from benchmarks.harness import BirdModel

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "consumer" / "data" / "photographs"
BATCHES = (1, 8, 32)
RUNTIMES = ("tensorflow", "openvino", "onnxruntime", "litert")
CUTS = 12
"""Of each photograph: the whole, mirrored, and cut from its corners and centre."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    model: str
    runtime: str
    settings: Mapping[str, str]
    """The environment's variables that choose the model and its runtime."""


@dataclass(slots=True)
class Measured:
    """What came of a row."""

    cold_s: float = 0.0
    warm_s: float = 0.0
    resident_mib: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in BATCHES})
    scores: npt.NDArray[np.float32] | None = None
    failed: str = ""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each row gets at each batch size")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of a turn")
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--artifact", type=Path, nargs="*", default=[], help="artifacts (variants) to measure as well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        serve()
        return
    with tempfile.TemporaryDirectory(prefix="ouzel-runtimes-") as cache:
        rows = list(_rows(options.runtimes, options.artifact))
        found = measure(rows, rounds=options.rounds, seconds=options.seconds, cache=Path(cache))
    _print(rows, found, as_json=options.json, rounds=options.rounds, seconds=options.seconds)


def _rows(runtimes: Sequence[str], artifacts: Sequence[Path]) -> Iterator[Row]:
    birds = BirdModel.find()
    models = {"default": {"OUZEL_MODEL__SOURCE": "default"}} | ({"birds": birds.environment} if birds else {})
    for model, settings in models.items():
        for runtime in runtimes:
            yield Row(model, runtime, {**settings, "OUZEL_MODEL__RUNTIME": runtime})
    for folder in artifacts:
        settings = {"OUZEL_MODEL__SOURCE": str(folder.resolve()), "OUZEL_MODEL__ALLOW_PROVISIONAL": "true"}
        yield Row(folder.name, "auto", {**settings, "OUZEL_MODEL__RUNTIME": "auto"})


# --- the measured process -------------------------------------------------------------------------------------------


def serve() -> None:
    """Load, warm, then answer one question a line on stdin, each with a line on stdout."""
    from consumer import bootstrap_model
    from consumer.settings import load

    settings = load()
    model = bootstrap_model.load_model(settings)
    runtime = model.runtime
    runtime.warm_up(BATCHES)
    _answer({"ready": True, "resident_mib": _resident_mib(), "runtime": runtime.info.runtime})
    for line in sys.stdin:
        asked = json.loads(line)
        if "pixels" in asked:
            pixels = np.stack([model.decoder.decode(Path(path).read_bytes()).pixels for path in asked["pixels"]])
            _answer({"scores": [runtime.infer(image[None])[0].tolist() for image in pixels]})
            continue
        batch = np.random.default_rng(0).integers(0, 256, (asked["batch"], *runtime.input_size, 3), np.uint8)
        images, began_s = 0, time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < asked["seconds"]:
            runtime.infer(batch)
            images += asked["batch"]
        _answer({"images_per_s": images / took_s, "resident_mib": _resident_mib()})


def _answer(said: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Child:
    """A runtime in a process of its own."""

    def __init__(self, row: Row, cache: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
        began_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.runtimes", "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, **row.settings, "XDG_CACHE_HOME": str(cache)},
        )
        self.first = self._read()
        self.started_s = time.perf_counter() - began_s

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One question, one answer."""
        _pipe(self._process.stdin).write(json.dumps(question).encode() + b"\n")
        _pipe(self._process.stdin).flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(_pipe(self._process.stderr).read().decode().strip().splitlines()[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Let go of it."""
        _pipe(self._process.stdin).close()
        self._process.wait(timeout=30)
        _pipe(self._process.stdout).close()
        _pipe(self._process.stderr).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(rows: Sequence[Row], *, rounds: int, seconds: float, cache: Path) -> list[Measured]:
    """Start each row twice (with empty caches, then with what the first start left), then let them take turns."""
    found = [Measured() for _ in rows]
    children: dict[int, Child] = {}
    photographs = _cuts(cache)
    # The default model is built once by whoever starts first, which is no row's cold start.
    Child(Row("default", "tensorflow", {"OUZEL_MODEL__RUNTIME": "tensorflow"}), cache).end()
    for number, (row, measured) in enumerate(zip(rows, found, strict=True)):
        _say(f"starting {row.model} on {row.runtime}")
        try:
            first = Child(row, cache)
            measured.cold_s = first.started_s
            first.end()
            again = Child(row, cache)
        except RuntimeError as error:
            measured.failed = str(error)
            continue
        measured.warm_s = again.started_s
        measured.scores = np.array(again.ask({"pixels": photographs})["scores"], np.float32)
        children[number] = again
    for turn in range(rounds):
        _say(f"round {turn + 1} of {rounds}")
        for size in BATCHES:
            for number, child in children.items():
                answer = child.ask({"batch": size, "seconds": seconds})
                found[number].rates[size].append(answer["images_per_s"])
                found[number].resident_mib = answer["resident_mib"]
    for child in children.values():
        child.end()
    return found


def _cuts(folder: Path) -> list[str]:
    """Photographs, and cuts of them, as files."""
    birds = BirdModel.find()
    paths = [*sorted(PHOTOGRAPHS.glob("*.jpg")), *(birds.photographs if birds else [])]
    made = []
    for path in paths:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        for cut in range(CUTS):
            share = 1 - 0.05 * (cut // 2)
            width, height = int(whole.width * share), int(whole.height * share)
            left, top = (whole.width - width) * (cut % 3) // 2, (whole.height - height) * (cut % 2)
            picture = whole.crop((left, top, left + width, top + height))
            if cut % 2:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            made.append(str(folder / f"{path.stem}-{cut}.png"))
            picture.save(made[-1])
    return made


# --- the table ------------------------------------------------------------------------------------------------------


def _print(rows: Sequence[Row], found: Sequence[Measured], *, as_json: bool, rounds: int, seconds: float) -> None:
    references = {row.model: each.scores for row, each in zip(rows, found, strict=True) if row.runtime == "tensorflow"}
    lines = [_line(row, each, references.get(row.model)) for row, each in zip(rows, found, strict=True)]
    if as_json:
        for line in lines:
            sys.stdout.write(json.dumps({**line, "machine": machine()}) + "\n")
        return
    facts = machine()
    flags = ", ".join(facts["cpu_flags"])
    print(f"{facts['cores']} cores, {flags}; median (least to most) of {rounds} turns of {seconds:g} s each\n")
    columns = list(lines[0])
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for line in lines:
        print(f"| {' | '.join(str(line[column]) for column in columns)} |")


def _line(row: Row, found: Measured, reference: npt.NDArray[np.float32] | None) -> dict[str, str]:
    line = {"model": row.model, "runtime": row.runtime}
    if found.failed:
        return (
            line
            | dict.fromkeys(["images/s at 1", "at 8", "at 32", "first label kept", "largest shift"], "-")
            | {
                "resident MiB": "-",
                "start, s": "-",
                "again, s": found.failed,
            }
        )
    for size in BATCHES:
        rates = found.rates[size]
        name = "images/s at 1" if size == 1 else f"at {size}"
        line[name] = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
    kept, shift = "-", "-"
    if reference is not None and found.scores is not None and reference.shape == found.scores.shape:
        same = int((reference.argmax(axis=1) == found.scores.argmax(axis=1)).sum())
        kept = f"{same} of {len(reference)}"
        shift = f"{np.abs(reference - found.scores).max():.1e}"
    return line | {
        "first label kept": kept,
        "largest shift": shift,
        "resident MiB": f"{found.resident_mib:.0f}",
        "start, s": f"{found.cold_s:.1f}",
        "again, s": f"{found.warm_s:.1f}",
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
