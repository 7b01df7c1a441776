"""LiteRT (TensorFlow Lite): `.tflite` as they are, quantised ones too, and SavedModels, which are converted once.

Images go through one by one: its kernels gain nothing by a batch (54 images/s at batch 1, 51 at 8 and 47 at 32 with an
interpreter of each size, against 53, 58 and 54 one by one; MobileNetV2 on 2 busy cores, AMD EPYC Zen 3: `avx2`
without AVX-512), and one interpreter takes the memory of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.adapters.models.convert import converted
from consumer.adapters.runtimes.common import (
    LoadedRuntime,
    affine,
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
from consumer.adapters.runtimes.native_stderr import without_lines
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelPackage

_BANNER = b"INFO: Created TensorFlow Lite"


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A whole number `q` stands for `(q - zero_point) * scale`."""

    scale: float
    zero_point: int


class LiteRtRuntime(LoadedRuntime):
    """Fulfils `ports.ModelRuntime` with a `.tflite` file, on the CPU."""

    def __init__(self, package: ModelPackage, *, threads: int, device: str, cache: Path) -> None:
        """Load the model; convert it first where it is a SavedModel.

        Args:
            package: a `.tflite` or a SavedModel.
            threads: cores that it may use.
            device: `auto` or `cpu`.
            cache: where converted models are kept.

        Raises:
            ModelError: unreadable, or not a model that we can run.
            CannotRun: LiteRT is not installed, or does not run this model, or not in its precision.
            DeviceMissing: a GPU is asked for.
        """
        spec = package.spec
        if device not in {"auto", "cpu"}:
            raise DeviceMissing(
                f"model.device is {device!r}, and LiteRT runs on the CPU", remedy='set model.runtime = "auto"'
            )
        interpreter_class = import_interpreter()
        file, image, kind, gives = _graph(package, cache=cache, threads=threads)
        warn_of_unused_scale(spec.input)
        self._interpreter: Any = open_interpreter(interpreter_class, file, threads=threads)
        source, target = _tensors(self._interpreter, file)
        self._source, self._target = int(source["index"]), int(target["index"])
        self._output = quantisation_of(target)
        self._batch = int(source["shape"][0])
        self._prepare = quantised(image, quantisation_of(source)) if image.dtype == "int8" else preparation(image)
        try:
            raw = self._raw(probe_images(*spec.input.size))
        except Exception as error:
            raise ModelError(f"{file}: the model does not run: {one_line(error)}", remedy="export it anew") from error
        probe = checked_probe(f"{spec.output.name}: the model gives", raw)
        found = detect_output(probe) if kind == "auto" else kind
        self._softmax = found == "logits"
        self._hold(
            package,
            runtime="litert",
            classes=int(probe.shape[1]),
            gives=gives or found,
            device="CPU",
            threads=threads,
        )

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Run every batch size once. Raises ModelError."""
        run_once_each(self, batch_sizes)

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] RGB in, float32 [N, C] probabilities out.

        Raises what LiteRT raises, and FloatingPointError where a score is not a number.
        """
        scores = check_scores(self._raw(pixels))
        return softmax(scores) if self._softmax else scores

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._interpreter = None

    def _raw(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores = in_pieces(self._run, self._prepare(pixels), self._batch)
        if self._output is not None:
            scores = (scores.astype(np.float32) - self._output.zero_point) * np.float32(self._output.scale)
        return scores.astype(np.float32, copy=False)

    def _run(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._interpreter is None:
            raise RuntimeError("the runtime is closed")
        self._interpreter.set_tensor(self._source, images)
        self._interpreter.invoke()
        answer: npt.NDArray[Any] = self._interpreter.get_tensor(self._target)
        return answer


def quantisation_of(tensor: Any) -> Quantisation | None:
    """Of a tensor's details, as the interpreter gives them; None where its numbers are what they say.

    Raises:
        CannotRun: whole numbers without a scale, or with one for each channel.
    """
    if np.issubdtype(tensor["dtype"], np.floating):
        return None
    scales, zero_points = tensor["quantization_parameters"]["scales"], tensor["quantization_parameters"]["zero_points"]
    if len(scales) != 1 or scales[0] <= 0:
        raise CannotRun(
            f"tensor {tensor['name']} is {np.dtype(tensor['dtype']).name} with {len(scales)} scales; one is needed",
            remedy="convert the model anew, with float32 or uint8 input and float32 output",
        )
    return Quantisation(float(scales[0]), int(zero_points[0]))


def quantised(image: InputSpec, by: Quantisation | None) -> Any:
    """What makes of uint8 [N, H, W, 3] pixels the int8 array that a quantised model takes: by a table of all 256 values
    of each channel. Raises CannotRun where the model does not say what its numbers stand for."""
    if by is None:
        raise CannotRun(f"{image.name} is int8 without a scale", remedy="convert the model anew")
    factor, offset = affine(image)
    values = np.arange(256, dtype=np.float64)[:, None] * factor + offset
    table = np.clip(np.rint(values / by.scale) + by.zero_point, -128, 127).astype(np.int8)

    def prepare(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
        images = np.empty(pixels.shape, np.int8)
        for channel in range(3):
            images[..., channel] = table[:, channel][pixels[..., channel]]
        return images if image.layout == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    return prepare


def import_interpreter() -> Any:
    """LiteRT's `Interpreter`. Raises CannotRun."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("ai_edge_litert")
        raise CannotRun(
            "LiteRT is not installed" if absent else f"LiteRT cannot be imported: {error}",
            remedy="pip install '.[litert]'",
        ) from error
    return Interpreter


def _graph(package: ModelPackage, *, cache: Path, threads: int) -> tuple[Path, InputSpec, str, str]:
    """The file to load, what it takes, what it gives (`auto` to look), and what the model itself gives where that is
    known."""
    spec = package.spec
    if spec.precision in {"bf16", "f16"}:
        raise CannotRun(
            f"LiteRT does not compute in {spec.precision} here", remedy="use the model that this variant was made from"
        )
    if spec.format == "tflite":
        return package.files, spec.input, spec.output.kind, ""
    if spec.format != "saved_model" or spec.precision != "f32":
        raise CannotRun(
            f"LiteRT runs .tflite and float32 SavedModels, and this model is {spec.format} in {spec.precision}",
            remedy='set model.runtime = "auto"',
        )
    made = converted(package, "tflite", cache=cache, threads=threads)
    pixels = InputSpec("pixels", "uint8", "NHWC", spec.input.height, spec.input.width)
    return made.file, pixels, "probabilities", made.gives


def open_interpreter(interpreter_class: Any, file: Path, *, threads: int) -> Any:
    """An interpreter with its tensors allocated. Raises ModelError."""
    try:
        with without_lines(_BANNER):
            interpreter = interpreter_class(model_path=str(file), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{file}: cannot be loaded: {one_line(error)}", remedy="export or copy it anew") from error
    return interpreter


def _tensors(interpreter: Any, file: Path) -> tuple[Any, Any]:
    """Details of the input and of the output. Raises ModelError."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    one_of_each(file, [each["name"] for each in inputs], [each["name"] for each in outputs])
    return inputs[0], outputs[0]
