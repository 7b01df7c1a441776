"""What an image costs to decode, in CPU-ms, by size and format: `python -m benchmarks.decoding [--against FOLDER]`.

Of the whole, as the flow asks for it (the header measured, room reserved, then decoded), it says what is the format's
own library (`Image.load`), what is resizing, and what is the rest: opening, structure, SHA-256, facts, the array.
`--against` a checkout of another version has that one decode the same bytes, in a process of its own, taking turns
within each round, and gives the ratio; and says whether both made the same pixels and facts.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SIZES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "1 kB JPEG": ("JPEG", (32, 32), {"quality": 75}),
    "2 kB JPEG": ("JPEG", (64, 64), {"quality": 75}),
    "0.1 MP JPEG": ("JPEG", (400, 250), {"quality": 85}),
    "0.3 MP JPEG": ("JPEG", (640, 480), {"quality": 85}),
    "0.3 MP JPEG, progressive": ("JPEG", (640, 480), {"quality": 85, "progressive": True}),
    "2 MP JPEG": ("JPEG", (1600, 1200), {"quality": 85}),
    "12 MP JPEG": ("JPEG", (4000, 3000), {"quality": 85}),
    "0.3 MP PNG": ("PNG", (640, 480), {}),
}
TURN_MS = 60
"""CPU of one turn, at least; never fewer than two images."""


def main() -> None:
    """Print a Markdown table, or one JSON line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--input", type=int, default=224, help="the model's side")
    parser.add_argument("--only", default="", help="sizes whose name has this")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.input)
        return
    sides = {"here": ROOT} | ({"other": options.against.resolve()} if options.against else {})
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_Worker.of(tree, options.input)) for name, tree in sides.items()}
        if not options.json:
            print(
                "| image | bytes | library | resize | rest | whole |"
                + " other | whole/other | same |" * ("other" in sides)
            )
            print("| --- | --- | --- | --- | --- | --- |" + " --- | --- | --- |" * ("other" in sides))
        for name in SIZES:
            if options.only in name:
                found = _measured(name, workers, options.rounds)
                print(json.dumps(found) if options.json else _row(found))
                sys.stdout.flush()


def _measured(name: str, workers: dict[str, "_Worker"], rounds: int) -> dict[str, Any]:
    """Medians over the rounds in CPU-ms an image; the ratio with the quartiles of its rounds."""
    prepared = {side: worker.ask(f"prepare {name}") for side, worker in workers.items()}
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        turns = [*workers.items()]
        for side, worker in turns if number % 2 else reversed(turns):
            times.setdefault(side, []).append(worker.ask("whole"))
        for part in ("library", "resize"):
            times.setdefault(part, []).append(workers["here"].ask(part))
    middle = {part: statistics.median(each) for part, each in times.items()}
    found = {
        "image": name,
        "bytes": prepared["here"]["bytes"],
        "library_ms": middle["library"],
        "resize_ms": middle["resize"],
        "rest_ms": middle["here"] - middle["library"] - middle["resize"],
        "whole_ms": middle["here"],
    }
    if "other" in workers:
        ratios = [here / other for here, other in zip(times["here"], times["other"], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        found |= {"other_ms": middle["other"], "ratio": ratio, "quartiles": [low, high]}
        found |= {"same": prepared["here"]["made"] == prepared["other"]["made"]}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


def _row(found: dict[str, Any]) -> str:
    cells = [found["image"], found["bytes"]]
    cells += [f"{found[key]:.3f}" for key in ("library_ms", "resize_ms", "rest_ms", "whole_ms")]
    if "other_ms" in found:
        low, high = found["quartiles"]
        cells += [f"{found['other_ms']:.3f}", f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})"]
        cells += ["yes" if found["same"] else "NO"]
    return "| " + " | ".join(map(str, cells)) + " |"


class _Worker:
    """This file, run in a process of its own over the `consumer` of a checkout."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin
        assert process.stdout
        self._questions: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout

    @classmethod
    @contextmanager
    def of(cls, tree: Path, side: int) -> Iterator["_Worker"]:
        """Ends with the block."""
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--worker", "--input", str(side)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"},
        )
        with process:
            yield cls(process)

    def ask(self, question: str) -> Any:
        """Its answer, from JSON."""
        self._questions.write(question + "\n")
        self._questions.flush()
        return json.loads(self._answers.readline())


# --- in the worker ----------------------------------------------------------------------------------------------------


def _work(side: int) -> None:
    from PIL import Image

    from consumer.adapters.image import PillowDecoder

    decoder: Any = PillowDecoder((side, side))
    photograph = Image.open(ROOT / "consumer" / "data" / "photographs" / "coffee.jpg").convert("RGB")
    parts: dict[str, Callable[[], object]] = {}
    turns: dict[str, int] = {}
    for line in sys.stdin:
        question, _, name = line.strip().partition(" ")
        if question == "prepare":
            kind, size, saved = SIZES[name]
            file = io.BytesIO()
            photograph.resize(size).save(file, kind, **saved)
            body = file.getvalue()
            parts = _parts(decoder, body, kind, side)
            turns = {part: max(2, int(TURN_MS / max(_cpu_ms(work, 3), 0.001))) for part, work in parts.items()}
            decoded = decoder.decode(body)
            made = hashlib.sha256(decoded.pixels.tobytes() + repr(decoded.facts).encode()).hexdigest()
            answer: object = {"bytes": len(body), "made": made}
        elif question == "library":
            answer = _cpu_ms(parts["loaded"], turns["loaded"]) - _cpu_ms(parts["opened"], turns["opened"])
        else:
            answer = _cpu_ms(parts[question], turns[question])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _parts(decoder: Any, body: bytes, kind: str, side: int) -> dict[str, Callable[[], object]]:
    from PIL import Image

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(body), formats=(kind,))

    def loaded() -> Image.Image:
        image = opened()
        image.load()
        return image

    def whole() -> object:
        if hasattr(decoder, "open"):
            return decoder.open(body).decode()
        decoder.measure(body)
        return decoder.decode(body)

    full = loaded()
    box = (0, 0, *full.size)
    return {
        "opened": opened,
        "loaded": loaded,
        "resize": lambda: full.resize((side, side), Image.Resampling.BILINEAR, box=box),
        "whole": whole,
    }


def _cpu_ms(work: Callable[[], object], count: int) -> float:
    """CPU milliseconds of this thread a call."""
    began_ns = time.thread_time_ns()
    for _ in range(count):
        work()
    return (time.thread_time_ns() - began_ns) / count / 1e6


if __name__ == "__main__":
    main()
