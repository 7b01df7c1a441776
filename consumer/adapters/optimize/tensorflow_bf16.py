"""TensorFlow bf16: the SavedModel as it is, computed in bf16 by the runtime."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

from consumer.adapters.optimize.making import Made, Task, versions
from consumer.adapters.runtimes.tensorflow_graph import serving_graph
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow


def make(task: Task) -> Iterator[Made]:
    """Of a SavedModel."""
    spec = task.package.spec
    tf, _ = start_tensorflow(threads=task.threads, device="cpu")
    graph = serving_graph(tf, task.package)
    files = task.folder / "model"
    shutil.copytree(task.package.files, files)
    yield Made(
        name="tf-bf16",
        format="saved_model",
        files=files,
        input=spec.input,
        output=replace(spec.output, kind=graph.gives, classes=graph.classes),
        precision="bf16",
        runtime="tensorflow",
        signature=spec.signature,
        tools=versions("tensorflow", "tensorflow-cpu"),
    )
