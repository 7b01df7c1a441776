"""ONNX Runtime: `.onnx` as they are, and SavedModels, which are converted once. On CPU, or on NVIDIA GPUs by TensorRT
and CUDA.

Threads do not spin while they wait: decoding runs on the same cores, and with spinning on, a batch of 1 or 8 took a
quarter to a half longer on 2 busy cores.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.models.convert import converted
from consumer.adapters.runtimes.common import (
    LoadedRuntime,
    check_scores,
    checked_probe,
    detect_output,
    in_pieces,
    one_line,
    one_of_each,
    preparation,
    probe_images,
    run_once_each,
    softmax,
    warn_of_unused_scale,
)
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelPackage, Precision

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_ON_GPU = {"cuda": (_CUDA,)}
_INSTALL = "pip install '.[onnxruntime]'"


@dataclass(frozen=True, slots=True)
class _Graph:
    """What is loaded: the model's own file, or what a SavedModel was converted to."""

    file: Path
    image: InputSpec
    kind: str
    """`probabilities`, `logits`, or `auto` to look."""
    gives: str = ""
    """What the model itself gives; empty: as `kind` says or as is found."""


class OnnxRuntime(LoadedRuntime):
    """Fulfils `ports.ModelRuntime` with an `.onnx` file."""

    def __init__(self, package: ModelPackage, *, threads: int, device: str, cache: Path) -> None:
        """Load the model; convert it first where it is a SavedModel.

        Args:
            package: an `.onnx` or a SavedModel.
            threads: cores that it may use.
            device: `auto` (a GPU if this build and machine have one), `cpu`, `gpu:0`, ...
            cache: where converted models and TensorRT's engines are kept.

        Raises:
            ModelError: unreadable, or not a model that we can run.
            CannotRun: ONNX Runtime is not installed, or does not run this model, or not in its precision here.
            DeviceMissing: a GPU that is asked for and is not there.
        """
        ort = import_onnxruntime()
        made_for = package.spec.options.get("provider", "")
        providers = choose_providers(
            device,
            ort.get_available_providers(),
            package.spec.precision,
            engines=cache / "tensorrt" / package.digest.removeprefix("sha256:"),
            made_for=made_for,
        )
        make_ready(providers)
        load_libraries(ort, providers)
        graph = _graph(package, cache=cache, threads=threads)
        warn_of_unused_scale(package.spec.input)
        self._prepare = preparation(graph.image)
        self._session: Any = _session(ort, graph.file, providers, threads)
        refuse_fallback(self._session.get_providers(), device, package.spec.precision, made_for=made_for)
        self._names = one_of_each(
            graph.file,
            [each.name for each in self._session.get_inputs()],
            [each.name for each in self._session.get_outputs()],
        )
        self._fixed = _fixed_batch(self._session)
        self._on_gpu = self._session.get_providers()[0] != _CPU
        self._batch = self._fixed
        probe = checked_probe(f"{package.spec.output.name}: the model gives", self._raw_probe(graph))
        found = detect_output(probe) if graph.kind == "auto" else graph.kind
        self._softmax = found == "logits"
        self._hold(
            package,
            runtime="onnxruntime",
            classes=int(probe.shape[1]),
            gives=graph.gives or found,
            device=self._session.get_providers()[0].removesuffix("ExecutionProvider"),
            threads=threads,
        )

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run every batch size once. Raises ModelError.

        On a GPU all batches are then filled up to the largest of these: ONNX Runtime has cuDNN plan each convolution
        anew whenever a batch is of another size than the last one, which takes seconds, and a full batch milliseconds.
        """
        if self._on_gpu:
            self._batch = self._fixed or max(batch_sizes, default=0)
        run_once_each(self, batch_sizes)

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] RGB in, float32 [N, C] probabilities out.

        Raises what ONNX Runtime raises, and FloatingPointError where a score is not a number.
        """
        scores = check_scores(np.asarray(self._raw(pixels), np.float32))
        return softmax(scores) if self._softmax else scores

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._session = None

    def _raw(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        images = self._prepare(pixels)
        return in_pieces(self._run, images, self._batch) if self._batch else self._run(images)

    def _run(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._session is None:
            raise RuntimeError("the runtime is closed")
        source, target = self._names
        (scores,) = self._session.run([target], {source: images})
        answer: npt.NDArray[Any] = scores
        return answer

    def _raw_probe(self, graph: _Graph) -> npt.NDArray[Any]:
        """What the model gives, untouched, for three test images."""
        try:
            return self._raw(probe_images(*graph.image.size))
        except Exception as error:
            raise ModelError(
                f"{graph.file}: the model does not run: {one_line(error)}", remedy="export it anew"
            ) from error


def choose_providers(
    device: str, available: Sequence[str], precision: Precision, *, engines: Path, made_for: str = ""
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers, best first, with their options. Not run on a GPU yet.

    `made_for` is what a variant says that it was gated on: `cuda`, of which the weights are float16 themselves, or
    `tensorrt`; empty for any. `engines` is this model's own folder for what TensorRT compiles: an engine's name has
    nothing of the weights in it, so that another model's of the same graph would be taken for this one's.

    Raises:
        DeviceMissing: a GPU is asked for, and this build of ONNX Runtime has no provider for one.
        CannotRun: the precision is not one that these providers compute in.
        ModelError: no such device.
    """
    if device not in {"auto", "cpu"} and not (device.startswith("gpu:") and device.removeprefix("gpu:").isdecimal()):
        raise ModelError(f"model.device {device!r} is unknown", remedy="set model.device to auto, cpu or gpu:0")
    usable = available if device != "cpu" else ()
    on_gpu = [name for name in _ON_GPU.get(made_for, (_TENSORRT, _CUDA)) if name in usable]
    if device.startswith("gpu:") and not on_gpu:
        raise DeviceMissing(
            f"model.device is {device!r} and this ONNX Runtime has providers for {', '.join(available)} only",
            remedy="pip install '.[onnxruntime-gpu]' in the place of onnxruntime, or set model.device to cpu",
        )
    halves = _halves(made_for)
    if precision == "bf16" or (precision == "f16" and halves not in on_gpu):
        needs = f"{halves}, on a GPU" if precision == "f16" else "another runtime"
        raise CannotRun(
            f"ONNX Runtime does not compute in {precision} here: it needs {needs}",
            remedy="use the model that this variant was made from",
        )
    number = device.removeprefix("gpu:") if device.startswith("gpu:") else "0"
    options = {
        _TENSORRT: {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(engines),
            "trt_fp16_enable": str(precision == "f16"),
        },
        _CUDA: {"use_tf32": "0"},  # which has 10 bits of a float32's 23
    }
    return [*((name, {"device_id": number, **options[name]}) for name in on_gpu), (_CPU, {})]


def _halves(made_for: str) -> str:
    """The provider that computes in half precision: CUDA where the weights are float16 themselves."""
    return _CUDA if made_for == "cuda" else _TENSORRT


def make_ready(providers: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """What TensorRT needs beside its options: the folder of its engines, and TF32 off, which it takes from the
    environment alone. Raises ModelError."""
    chosen = dict(providers)
    if _TENSORRT not in chosen:
        return
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    folder = Path(chosen[_TENSORRT]["trt_engine_cache_path"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"TensorRT's engines cannot be kept in {folder}: {error}",
            remedy="set XDG_CACHE_HOME to a folder that can be written",
        ) from error


def load_libraries(ort: Any, providers: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """CUDA's and cuDNN's, where a GPU is wanted. As pip installs them no loader finds them, and ONNX Runtime would go
    on without the GPU; it brings a function that loads them, which prints what it misses."""
    if {_CUDA, _TENSORRT} & dict(providers).keys():
        with _prints_into_log():
            ort.preload_dlls()


@contextmanager
def _prints_into_log() -> Iterator[None]:
    """ONNX Runtime prints that libraries are missing to stdout, where child processes give their answers."""
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            logger.debug("ONNX Runtime: {}", line)


def import_onnxruntime() -> Any:
    """The `onnxruntime` module. Raises CannotRun."""
    try:
        import onnxruntime
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        raise CannotRun(
            "ONNX Runtime is not installed" if absent else f"ONNX Runtime cannot be imported: {error}", remedy=_INSTALL
        ) from error
    onnxruntime.set_default_logger_severity(3)  # errors and worse
    return onnxruntime


def _graph(package: ModelPackage, *, cache: Path, threads: int) -> _Graph:
    spec = package.spec
    if spec.format == "onnx":
        return _Graph(package.files, spec.input, spec.output.kind)
    if spec.format != "saved_model":
        raise CannotRun(
            f"ONNX Runtime runs .onnx and SavedModels, and this model is {spec.format}",
            remedy='set model.runtime = "auto"',
        )
    if spec.precision == "int8":
        raise CannotRun("ONNX Runtime runs no SavedModel in int8", remedy='set model.runtime = "auto"')
    made = converted(package, "onnx", cache=cache, threads=threads)
    pixels = InputSpec("pixels", "uint8", "NHWC", spec.input.height, spec.input.width)
    return _Graph(made.file, pixels, "probabilities", made.gives)


def _session(ort: Any, file: Path, providers: list[tuple[str, dict[str, str]]], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with _prints_into_log():  # of TensorRT, where only CUDA is installed
            return ort.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # of its own classes, which share no base
        raise ModelError(f"{file}: cannot be loaded: {one_line(error)}", remedy="export or copy it anew") from error


def refuse_fallback(providers: Sequence[str], device: str, precision: Precision, *, made_for: str = "") -> None:
    """A provider that fails at its start is left out by ONNX Runtime, with no more than a line of its log.

    Raises:
        DeviceMissing: none for a GPU is left, and one was asked for.
        CannotRun: the one that computes in half precision is not left.
    """
    halves = _halves(made_for)
    if precision == "f16" and providers[0] != halves:
        title = "CUDA" if halves == _CUDA else "TensorRT"
        raise CannotRun(
            f"ONNX Runtime cannot start {title}, which this variant in f16 needs",
            remedy=f"install the libraries of {title}, or use the model that this variant was made from",
        )
    if device.startswith("gpu:") and providers[0] == _CPU:
        raise DeviceMissing(
            f"model.device is {device!r}, and ONNX Runtime finds no such GPU or not the libraries for it",
            remedy="pip install '.[onnxruntime-gpu]' on a machine with an NVIDIA GPU and driver,"
            " or set model.device to cpu",
        )


def _fixed_batch(session: Any) -> int:
    """The batch size that the graph is fixed at; 0 where it is free."""
    first = session.get_inputs()[0].shape[0]
    return first if isinstance(first, int) else 0
