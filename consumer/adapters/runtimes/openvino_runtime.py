"""OpenVINO: SavedModels, `.xml`, `.onnx` and `.tflite`, without TensorFlow; on CPU, or on Intel's GPUs.

The graph takes one image as uint8 pixels and gives its probabilities. A batch is not given to it whole: its images run
side by side, one a stream, with as many streams as OpenVINO thinks fit. A single image, or so few that streams would
stand idle, has all threads to itself, in a graph compiled for that. Any batch size runs, and none has to be compiled.
`model.streams` sets their number; OpenVINO makes no more of them than it has threads.

Measured on 2 cores (AMD EPYC Zen 3: `avx2` without AVX-512; OpenVINO 2026.4, MobileNetV2, float32, uint8 in; 90th
percentile of 38 interleaved rounds on a machine with other work), images/s for 8 and for 32 images:

    side by side, one a stream             201 / 196
    one after the other, all threads       169 / 174
    in batches of 8, all threads           163 / 164
    a free batch size, all threads         about 130: fixed shapes ran 1.3 times as fast
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.cpu_flags import BF16, cpu_flags, cpu_name
from consumer.adapters.runtimes.common import (
    LoadedRuntime,
    check_scores,
    checked_probe,
    detect_output,
    one_line,
    probe_images,
    run_once_each,
    warn_of_unused_scale,
)
from consumer.adapters.runtimes.compiled_cache import keep_compiled, key_of, read_compiled
from consumer.adapters.runtimes.openvino_graph import read_graph, serving_graph, with_softmax
from consumer.adapters.runtimes.openvino_start import choose_device, import_openvino
from consumer.errors import CannotRun, ModelError
from consumer.model_spec import ModelPackage, ModelSpec

# Raised when the graph that is made around a model changes.
_RECIPE = 1
_MOST_REQUESTS = 64
"""Images that OpenVINO is given at once; what they need beside their scores is each stream's."""
_OPTIONS = frozenset({"DYNAMIC_QUANTIZATION_GROUP_SIZE", "EXECUTION_MODE_HINT"})
"""OpenVINO's properties that a variant may ask for by `options`, as it was gated with them."""
_IN_FLOAT32 = "use the model that this variant was made from"
_NEWER = "use a newer Ouzel, or the model that this variant was made from"


class OpenVinoRuntime(LoadedRuntime):
    """Fulfils `ports.ModelRuntime` in any format that OpenVINO reads."""

    def __init__(self, package: ModelPackage, *, threads: int, device: str, cache: Path, streams: int = 0) -> None:
        """Load the model: some 0.3 s, half of that where it was compiled before.

        Args:
            package: in any format.
            threads: cores that it may use.
            device: `auto` (an Intel GPU if there is one), `cpu`, `gpu:0`, ...
            cache: where compiled models are kept, below `openvino/`.
            streams: images side by side, at most one a thread; 0 is as many as OpenVINO thinks fit.

        Raises:
            ModelError: unreadable, or not a model that we can run.
            CannotRun: OpenVINO is not installed, or does not run this model, or not in its precision here.
            DeviceMissing: a GPU that is asked for and is not there.
        """
        spec = package.spec
        ov = import_openvino()
        core = ov.Core()
        target = choose_device(core, device)
        refuse_precision(spec, on_gpu=target != "CPU", flags=cpu_flags())
        warn_of_unused_scale(spec.input)
        compiler = _Compiler(ov, core, target, properties_of(spec, target, threads), package, streams)
        self._loaded: _Loaded | None = compiler.load(cache / "openvino")
        self._hold(
            package,
            runtime="openvino",
            classes=self._loaded.alone.classes,
            gives=self._loaded.gives,
            device=target,
            threads=threads,
        )

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run what there is to be warmed, which is no batch size but each stream and request. Raises ModelError."""
        if self._loaded is not None:
            run_once_each(self, sorted({1, max(batch_sizes)}))

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] RGB in, float32 [N, C] probabilities out; any N.

        Raises what OpenVINO raises, and FloatingPointError where a score is not a number.
        """
        if self._loaded is None:
            raise RuntimeError("the runtime is closed")
        together = self._loaded.together
        few = 2 * len(pixels) <= together.count
        return check_scores((self._loaded.alone if few else together).run(pixels))

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._loaded = None


def refuse_precision(spec: ModelSpec, *, on_gpu: bool, flags: Collection[str]) -> None:
    """Raises CannotRun where OpenVINO cannot compute as `spec` says, or far slower than in float32.

    `flags` are the CPU's.
    """
    if unknown := sorted(spec.options.keys() - _OPTIONS):
        raise CannotRun(f"{spec.name} wants of OpenVINO what is not known here: {', '.join(unknown)}", remedy=_NEWER)
    match spec.precision:
        case "int8" if spec.format == "saved_model":
            raise CannotRun("OpenVINO runs no SavedModel in int8", remedy=_IN_FLOAT32)
        case "f16" if not on_gpu:
            raise CannotRun("OpenVINO computes in f16 on GPUs only", remedy=_IN_FLOAT32)
        case "bf16" if on_gpu:
            raise CannotRun("OpenVINO computes in bf16 on CPUs only", remedy='set model.device = "cpu"')
        case "bf16" if not BF16 & set(flags):
            raise CannotRun(
                f"bf16 needs a CPU with {' or '.join(sorted(BF16))}, and this one has neither", remedy=_IN_FLOAT32
            )


def properties_of(spec: ModelSpec, target: str, threads: int) -> dict[str, Any]:
    """OpenVINO's. Without a hint it would compute in bf16 where the CPU has it, whatever the model is."""
    properties: dict[str, Any] = {
        **spec.options,
        "INFERENCE_PRECISION_HINT": "f32" if spec.precision == "int8" else spec.precision,
    }
    if target == "CPU":
        # Not pinned: processes that share a machine would all be pinned to its first cores.
        properties |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return properties


class _Streams:
    """A compiled model, and the requests that it runs side by side.

    There are more requests than streams: OpenVINO itself goes on with the next image. A stream that waited for this
    thread to hand it one would wait for the interpreter's lock, which decoders and publisher have meanwhile: 14 % of
    two cores idled so, and 4 to 8 % do with a request for each image of a batch (int8, 0.3 MP through Kafka).
    """

    def __init__(self, compiled: Any) -> None:
        self.classes = int(compiled.output().shape[1])
        self.count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._compiled = compiled
        self._requests = [compiled.create_infer_request() for _ in range(self.count)]

    def run(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] in, float32 [N, C] out. The pixels are not copied, the scores are."""
        pixels = np.ascontiguousarray(pixels)
        scores = np.empty((len(pixels), self.classes), np.float32)
        while len(self._requests) < min(len(pixels), _MOST_REQUESTS):
            self._requests.append(self._compiled.create_infer_request())
        requests = self._requests[: len(pixels)]
        lanes = len(requests)
        try:
            for number in range(len(pixels)):
                if number >= lanes:
                    self._collect(number - lanes, requests, scores)
                requests[number % lanes].start_async(pixels[number : number + 1], share_inputs=True)
            for number in range(max(0, len(pixels) - lanes), len(pixels)):
                self._collect(number, requests, scores)
        except Exception:
            for request in self._requests:  # none may read the pixels any more when this returns
                with suppress(Exception):
                    request.wait()
            raise
        return scores

    def export(self) -> bytes:
        """The compiled model; `import_model` takes it."""
        body: bytes = self._compiled.export_model().getvalue()
        return body

    def _collect(self, number: int, requests: Sequence[Any], scores: npt.NDArray[np.float32]) -> None:
        request = requests[number % len(requests)]
        request.wait()
        scores[number] = request.get_output_tensor().data[0]


@dataclass(frozen=True, slots=True)
class _Loaded:
    alone: _Streams
    """All threads on one image."""
    together: _Streams
    """Several images side by side."""
    gives: str
    """What the model itself gives: `probabilities` or `logits`."""


@dataclass(frozen=True, slots=True)
class _Compiler:
    ov: Any
    core: Any
    target: str
    properties: dict[str, Any]
    package: ModelPackage
    streams: int

    def load(self, folder: Path) -> _Loaded:
        """From `folder` if it was compiled before; else it is compiled and kept there."""
        key = self._key()
        kept = read_compiled(folder, key)
        if kept is not None:
            known, body = kept
            try:
                return self._pair(lambda hint: self.core.import_model(body, self.target, hint), str(known["gives"]))
            except (RuntimeError, KeyError) as error:
                logger.warning("OpenVINO does not take its compiled model, which is made anew: {}", one_line(error))
        loaded = self._compile()
        try:
            body = loaded.alone.export()
        except RuntimeError as error:  # a device's plugin may not
            logger.warning("{} gives no compiled model to keep: {}", self.target, one_line(error))
        else:
            keep_compiled(folder, key, {"gives": loaded.gives}, body)
        return loaded

    def _key(self) -> str:
        """Without the number of streams: what is kept is the graph for one image, and an import makes any number."""
        return key_of(
            {
                "recipe": _RECIPE,
                "digest": self.package.digest,
                "openvino": self.ov.__version__,
                "device": [self.target, self.core.get_property(self.target, "FULL_DEVICE_NAME")],
                "cpu": [cpu_name(), *sorted(cpu_flags())],
                "properties": {name: str(value) for name, value in self.properties.items()},
            }
        )

    def _compile(self) -> _Loaded:
        spec = self.package.spec
        graph = serving_graph(self.ov, read_graph(self.core, self.package), spec)
        try:
            raw = _Streams(self.core.compile_model(graph, self.target, self._alone()))
            answer = raw.run(probe_images(*spec.input.size))
        except RuntimeError as error:
            raise ModelError(
                f"{spec.name}: the model does not run on OpenVINO: {one_line(error)}", remedy="export it anew"
            ) from error
        probe = checked_probe(f"{spec.output.name}: the model gives", answer)
        gives = detect_output(probe) if spec.output.kind == "auto" else spec.output.kind
        if gives == "logits":
            graph = with_softmax(self.ov, graph)
        return self._pair(lambda hint: self.core.compile_model(graph, self.target, hint), gives)

    def _pair(self, compiled: Callable[[dict[str, Any]], Any], gives: str) -> _Loaded:
        alone = _Streams(compiled(self._alone()))
        if self.properties.get("INFERENCE_NUM_THREADS") == 1:
            return _Loaded(alone, alone, gives)
        hint: dict[str, Any] = {**self.properties, "PERFORMANCE_HINT": "THROUGHPUT"}
        if self.streams:
            hint["NUM_STREAMS"] = self.streams
        return _Loaded(alone, _Streams(compiled(hint)), gives)

    def _alone(self) -> dict[str, Any]:
        return {**self.properties, "PERFORMANCE_HINT": "LATENCY"}
