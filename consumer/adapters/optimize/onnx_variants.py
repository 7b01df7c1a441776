"""ONNX variants: float32 as it is, and float16 for GPUs, by CUDA or by TensorRT.

What is written takes uint8 pixels and gives probabilities, as ONNX Runtime has SavedModels converted for itself.
"""

from collections.abc import Iterator
from dataclasses import replace

from consumer.adapters.models.convert import converted
from consumer.adapters.optimize.making import Made, Task, versions
from consumer.adapters.runtimes.common import one_line
from consumer.errors import CannotRun
from consumer.model_spec import InputSpec

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def make_onnx(task: Task) -> Iterator[Made]:
    """For a service on ONNX Runtime that has no TensorFlow to convert the SavedModel itself."""
    yield _converted(task)


def make_fp16(task: Task) -> Iterator[Made]:
    """The weights and what is computed with them are float16; pixels and probabilities are not."""
    yield _halved(task, "fp16")


def make_tensorrt(task: Task) -> Iterator[Made]:
    """The same file, for TensorRT: from version 11 on it takes a model's own types and has no switch for float16."""
    yield _halved(task, "tensorrt")


def refuse_without(provider: str) -> None:
    """Raises CannotRun where ONNX Runtime has no such provider here: the gate compares labels on the device that the
    variant is for."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CannotRun(f"ONNX Runtime cannot be imported: {error}", remedy=_GPU_REMEDY) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise CannotRun(
            f"this variant is for {provider} on a GPU, and ONNX Runtime has {', '.join(available)} here: "
            "its labels cannot be compared with the original's",
            remedy=_GPU_REMEDY,
        )


def _converted(task: Task) -> Made:
    spec = task.package.spec
    made = converted(task.package, "onnx", cache=task.folder / "cache", threads=task.threads)
    file = task.folder / "model.onnx"
    made.file.rename(file)
    return Made(
        name="onnx",
        format="onnx",
        files=file,
        input=InputSpec(
            "pixels",
            "uint8",
            "NHWC",
            spec.input.height,
            spec.input.width,
            resize=spec.input.resize,
            crop=spec.input.crop,
        ),
        output=replace(spec.output, name="probabilities", kind="probabilities", classes=made.classes),
        precision="f32",
        runtime="onnxruntime",
        tools=versions("tensorflow", "tensorflow-cpu", "tf2onnx", "onnx"),
    )


def _halved(task: Task, name: str) -> Made:
    import onnx

    made = _converted(task)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(onnx.load(str(made.files)), keep_io_types=True)
        onnx.checker.check_model(half)
    except Exception as error:  # of onnx, of its checker, of the converter
        raise CannotRun(f"this model cannot be made float16: {one_line(error)}", remedy="use another kind") from error
    onnx.save(half, str(made.files))
    return replace(
        made,
        name=name,
        precision="f16",
        options={"provider": "tensorrt" if name == "tensorrt" else "cuda"},
        tools={**made.tools, **versions("onnxruntime", "onnxruntime-gpu")},
    )


_GPU_REMEDY = "run this on the machine with the GPU, with `pip install '.[onnxruntime-gpu,optimize]'`"
