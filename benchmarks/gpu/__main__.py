"""`python -m benchmarks.gpu parts`, `runtime`, `service`: what a GPU brings. JSON on stdout, words on stderr; `note`
puts them into docs/figures, and `python -m benchmarks.growth tables` makes the docs' tables of that.

`parts` needs PyTorch and torchvision with CUDA, which are no packages of this project; `runtime` and `service` need
`onnxruntime-gpu`, and the latter Java and Kafka's jars. What does not work is left out, and named in `failed`. The
model is the settings' (`OUZEL_MODEL__SOURCE`, ...), of 224 x 224 pixels. `runtime` is a process of its own as it turns
TF32 off for all of the process.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.gpu import decoding, inference, service
from benchmarks.gpu.rounds import Turns, say
from benchmarks.gpu.tables import FIGURES, noted
from benchmarks.growth.curve import machine, short
from benchmarks.harness import ROOT
from consumer import bootstrap_model
from consumer.bench.workload import make_workload
from consumer.ports import ModelRuntime
from consumer.settings import Settings, load_with_sources

_MEGAPIXELS = 0.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    if options.do == "note":
        return _note(options)
    measure = {"parts": _parts, "runtime": _runtimes, "service": _service}[options.do]
    found = measure(options)
    about = {"command": shlex.join(["python", "-m", "benchmarks.gpu", *words]), "machine": machine() | gpu()}
    sys.stdout.write(json.dumps(about | found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whats = parser.add_subparsers(dest="do", required=True, metavar="WHAT")
    parts = whats.add_parser("parts", help="decoding, copying and inference, each alone, on cores and on the GPU")
    runtime = whats.add_parser("runtime", help="the service's own runtime on the GPU and on the cores, and its scores")
    for one in (parts, runtime):
        one.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
        one.add_argument("--batches", type=int, nargs="+", default=inference.BATCHES, help="images of a batch")
    whole = whats.add_parser("service", help="the service with its model on the GPU, by number of replicas")
    whole.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="that share GPU and cores")
    whole.add_argument("--images", type=int, default=16_000, help="of a backlog")
    whole.add_argument("--alone", action="store_true", help="on the cores alone as well")
    parts.add_argument("--only", nargs="+", choices=["decode", "torch", "whole"], help="of the parts; else all")
    for one in (parts, runtime, whole):
        one.add_argument("--rounds", type=int, default=3)
    for one in (runtime, whole):
        one.add_argument("--half", default="", help="an artifact of the same model in float16, made for CUDA")
    note = whats.add_parser("note", help="docs/figures/gpu.json from what the others wrote")
    for name in ("parts", "runtime", "service"):
        note.add_argument(f"--{name}", type=Path, required=True, help="a file")
    note.add_argument("--date", required=True, help="when it was measured")
    note.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / FIGURES)
    return parser


def _note(options: argparse.Namespace) -> int:
    documents = {name: json.loads(getattr(options, name).read_text()) for name in ("parts", "runtime", "service")}
    options.out.write_text(json.dumps(noted(documents, options.date), indent=1) + "\n")
    return 0


def gpu() -> dict[str, Any]:
    """What the driver says of the first GPU, and the versions of what runs on it."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id=0"]
    try:
        says = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        says = ""
    return {"gpu": says, "kernel": platform.release()}


# --- parts ----------------------------------------------------------------------------------------------------------


def _parts(options: argparse.Namespace) -> dict[str, Any]:
    turns, bodies = Turns(), _bodies()
    only = options.only or ("decode", "torch", "whole")
    if "decode" in only:
        decoding.add_on_cores(turns, bodies, options.seconds)
        decoding.add_on_gpu(turns, bodies, options.seconds)
    if "torch" in only:
        inference.add_torch(turns, options.seconds, options.batches)
    if "whole" in only:
        inference.add_whole(turns, bodies, options.seconds, decoding.BATCHES)
    turns.run(options.rounds)
    pixels = attempt(turns, "pixels", lambda: decoding.differences(bodies))
    return _facts(options, bodies) | {"points": turns.points(), "pixels": pixels, "failed": turns.failed}


def _runtimes(options: argparse.Namespace) -> dict[str, Any]:
    turns, bodies = Turns(), _bodies()
    runtimes: dict[str, ModelRuntime] = {}
    for device, half in (("gpu:0", ""), *((("gpu:0", options.half),) if options.half else ()), ("cpu", "")):
        name = f"runtime {'f16' if half else 'f32'}, {'cores' if device == 'cpu' else 'GPU'}"
        opened = attempt(turns, name, partial(_runtime, device, half))
        runtimes |= {name: opened} if opened is not None else {}
    for name, runtime in runtimes.items():
        inference.add_runtime(turns, name, runtime, options.seconds, options.batches)
    turns.run(options.rounds)
    scores = attempt(turns, "scores", lambda: _scores(turns, runtimes, bodies))
    return _facts(options, bodies) | {"points": turns.points(), "scores": scores, "failed": turns.failed}


def _bodies() -> list[bytes]:
    """Cuts of the demo's photographs, as `ouzel bench` has them."""
    with TemporaryDirectory(prefix="ouzel-gpu-") as scratch:
        return list(make_workload(None, Path(scratch) / "images", megapixels=_MEGAPIXELS, sizes=()).bodies)


def _facts(options: argparse.Namespace, bodies: Sequence[bytes]) -> dict[str, Any]:
    image_bytes = short(sum(map(len, bodies)) / len(bodies))
    about = {"megapixels": _MEGAPIXELS, "image_bytes": image_bytes, "distinct_images": len(bodies)}
    return {"facts": about | {"rounds": options.rounds, "seconds": options.seconds}}


def _runtime(device: str, half: str) -> ModelRuntime:
    """The service's own, on the settings' model, or on this artifact in float16."""
    changed: dict[str, Any] = {"model.device": device, "model.runtime": "onnxruntime"}
    if half:
        changed |= {"model.source": half, "model.labels": "", "model.name": "", "model.allow_provisional": True}
    settings: Settings = load_with_sources(None, changed)[0]
    return bootstrap_model.load_model(settings).runtime


def _scores(turns: Turns, runtimes: dict[str, ModelRuntime], bodies: Sequence[bytes]) -> dict[str, Any]:
    """First labels kept and the largest shift of any score, against f32 on the CPU with the service's own decoder."""
    pixels = decoding.on_cores(bodies)
    reference = runtimes["runtime f32, cores"].infer(pixels)
    found = {name: _apart(reference, each.infer(pixels)) for name, each in runtimes.items()}
    others = attempt(turns, "pixels of nvJPEG", lambda: decoding.on_gpu(bodies))
    if others is not None:
        found["pixels of nvJPEG, runtime f32, cores"] = _apart(reference, runtimes["runtime f32, cores"].infer(others))
    return found


def _apart(reference: Any, scores: Any) -> dict[str, Any]:
    kept = int((reference.argmax(axis=1) == scores.argmax(axis=1)).sum())
    return {"images": len(reference), "first_label_kept": kept, "shift": short(float(np.abs(reference - scores).max()))}


def attempt(turns: Turns, name: str, what: Callable[[], Any]) -> Any:
    """None where it does not work here, noted."""
    try:
        return what()
    except Exception as error:
        turns.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        say(f"left out: {name}: {turns.failed[name]}")
        return None


# --- the service ----------------------------------------------------------------------------------------------------


def _service(options: argparse.Namespace) -> dict[str, Any]:
    wanted = service.cases(options.replicas, half=options.half, alone=options.alone)
    return service.measure(wanted, rounds=options.rounds, images=options.images)


if __name__ == "__main__":
    sys.exit(main())
