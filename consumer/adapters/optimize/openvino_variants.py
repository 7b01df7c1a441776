"""OpenVINO variants: bf16, and int8 by NNCF's post-training quantisation.

What is written takes what the original takes, in its layout and range; the runtime puts the way from uint8 pixels
before it. So the first convolution's input is quantised, and the scaling of pixels is not.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from consumer.adapters.optimize.making import Made, Task, versions
from consumer.adapters.runtimes.common import checked_probe, detect_output, one_line, preparation, probe_images
from consumer.adapters.runtimes.openvino_graph import read_graph
from consumer.adapters.runtimes.openvino_start import import_openvino
from consumer.errors import CannotRun
from consumer.model_spec import ModelPackage, OutputSpec, Precision

_ERRORS_ONLY = 40  # logging.ERROR


def make_bf16(task: Task) -> Iterator[Made]:
    """The weights stay float32: OpenVINO rounds them as it compiles, for the CPU at hand."""
    ov = import_openvino()
    graph, output = _read(ov, task.package)
    yield _saved(ov, graph, _made(task, "openvino-bf16", "bf16", output))


def make_int8(task: Task) -> Iterator[Made]:
    """Weights by channel, activations by what the calibration images make of them."""
    ov = import_openvino()  # before NNCF, which would tell its makers of each use
    graph, output = _read(ov, task.package)
    prepare = preparation(task.package.spec.input)

    def prepared(pixels: Any) -> Any:
        task.tell(1)
        return prepare(pixels[None])

    try:
        # Its own bars go to stdout, which is for data; ours is told of each image.
        with contextlib.redirect_stdout(io.StringIO()):
            import nncf

            nncf.set_log_level(_ERRORS_ONLY)
            dataset = nncf.Dataset(task.calibration, prepared)
            quantised = nncf.quantize(graph, dataset, subset_size=len(task.calibration))
    except Exception as error:  # nncf's classes are many
        raise CannotRun(f"NNCF cannot quantise this model: {one_line(error)}", remedy="use another kind") from error
    yield _saved(ov, quantised, _made(task, "openvino-int8", "int8", output, "nncf"))


def _read(ov: Any, package: ModelPackage) -> tuple[Any, OutputSpec]:
    """The graph as it is written, and what it gives for test images. Raises ModelError and CannotRun."""
    core = ov.Core()
    graph = read_graph(core, package)
    output = package.spec.output
    images = preparation(package.spec.input)(probe_images(*package.spec.input.size))
    try:
        answers = core.compile_model(graph.clone(), "CPU")(images)
    except RuntimeError as error:
        raise CannotRun(f"OpenVINO does not run this model: {one_line(error)}", remedy="use another kind") from error
    named = [number for number, each in enumerate(graph.outputs) if output.name in each.get_names()]
    scores = checked_probe(f"{output.name}: the model gives", answers[named[0] if named else 0])
    kind = detect_output(scores) if output.kind == "auto" else output.kind
    return graph, replace(output, kind=kind, classes=int(scores.shape[1]))


def _saved(ov: Any, graph: Any, made: Made) -> Made:
    ov.save_model(graph, str(made.files), compress_to_fp16=False)
    return made


def _made(task: Task, name: str, precision: Precision, output: OutputSpec, *tools: str) -> Made:
    return Made(
        name=name,
        format="openvino",
        files=task.folder / "model.xml",
        input=task.package.spec.input,
        output=output,
        precision=precision,
        runtime="openvino",
        tools=versions("openvino", *tools),
    )
