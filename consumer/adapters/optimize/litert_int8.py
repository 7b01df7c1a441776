"""LiteRT int8: TensorFlow's own converter, all operations in whole numbers, float32 at both ends."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from consumer.adapters.optimize.making import Made, Task, versions
from consumer.adapters.runtimes.common import one_line, preparation
from consumer.adapters.runtimes.native_stderr import without_lines
from consumer.adapters.runtimes.tensorflow_graph import serving_graph
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun


def make(task: Task) -> Iterator[Made]:
    """Of a SavedModel."""
    spec = task.package.spec
    tf, _ = start_tensorflow(threads=task.threads, device="cpu")
    graph = serving_graph(tf, task.package)
    prepare = preparation(spec.input)

    def prepared() -> Iterator[list[Any]]:
        for pixels in task.calibration:
            task.tell(1)
            yield [prepare(pixels[None])]

    converter = tf.lite.TFLiteConverter.from_saved_model(str(task.package.files), signature_keys=[spec.signature])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = prepared
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with without_lines(b"fully_quantize: "):
            body: bytes = converter.convert()
    except Exception as error:  # ConverterError, ValueError, RuntimeError
        raise CannotRun(
            f"TensorFlow cannot convert this model to LiteRT in int8: {one_line(error)}", remedy="use another kind"
        ) from error
    file = task.folder / "model.tflite"
    file.write_bytes(body)
    yield Made(
        name="litert-int8",
        format="tflite",
        files=file,
        input=spec.input,
        output=replace(spec.output, kind=graph.gives, classes=graph.classes),
        precision="int8",
        runtime="litert",
        tools=versions("tensorflow", "tensorflow-cpu"),
    )
