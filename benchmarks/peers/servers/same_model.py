"""What every peer does with an image: the same decode, the same model, in the same precision as Ouzel's.

It runs in the peers' own environments and imports nothing of the project. The decode is that of
`consumer/adapters/image.py` for an upright RGB JPEG: all of it by Pillow, shrunk by the same filter from the same
box. The graphs are those of `consumer/adapters/runtimes`: uint8 pixels in, scaled inside the graph, probabilities out,
float32 unless bf16 is asked for, softmax where the model gives logits. `python -m benchmarks.peers check` holds all
servers to the same first label before anything is timed.

The settings come as JSON in the variable PEER; `benchmarks/peers/settings.py` writes them.
"""

import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
SETTINGS: dict[str, Any] = json.loads(os.environ.get("PEER", "{}"))
TOP = 5
"""Labels in an answer, as many as Ouzel gives by default."""


def decode(body: bytes) -> Any:
    """uint8 [height, width, 3] as the model takes it."""
    height, width = SETTINGS["size"]
    with Image.open(io.BytesIO(body)) as image:
        image_width, image_height = image.size
        # A centred box of the input's aspect; all of the image where the crop is 1.
        box = (0.0, 0.0, float(image_width), float(image_height))
        if SETTINGS["crop"] < 1:
            scale = SETTINGS["crop"] * min(image_width / width, image_height / height)
            left, top = (image_width - scale * width) / 2, (image_height - scale * height) / 2
            box = (left, top, image_width - left, image_height - top)
        small = image.convert("RGB").resize((width, height), Image.Resampling[SETTINGS["resize"]], box=box)
        return np.asarray(small, dtype=np.uint8)


class Model:
    """The model, warm. `label` may be called from several threads at once."""

    def __init__(self) -> None:
        self._threads = int(SETTINGS["threads"])
        self._pool = ThreadPoolExecutor(self._threads * int(SETTINGS["lanes"])) if self._threads > 1 else None
        make = _openvino if SETTINGS["runtime"] == "openvino" else _tensorflow
        # `lanes`: calls of `label` side by side, each with `threads` of its own.
        self._infer = make(SETTINGS, self._threads * int(SETTINGS["lanes"]))
        self._names: list[str] = SETTINGS["labels"]
        blank = np.zeros((*SETTINGS["size"], 3), np.uint8)
        for size in range(1, int(SETTINGS["batch"]) + 1):
            self._infer([blank] * size, self._each)

    def label(self, bodies: Sequence[bytes]) -> list[list[dict[str, Any]]]:
        """The first labels of each image, best first. Decodes in as many threads as the model may use cores."""
        scores = self._infer(self._each(decode, bodies), self._each)
        return [self._top(row) for row in scores]

    def _each(self, call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list((self._pool.map if self._pool and len(items) > 1 else map)(call, items))

    def _top(self, row: Any) -> list[dict[str, Any]]:
        best = np.argpartition(row, -TOP)[-TOP:]
        best = best[np.argsort(-row[best])]
        return [
            {"index": int(index), "label": self._names[index], "score": round(float(row[index]), 6)} for index in best
        ]


def _openvino(settings: dict[str, Any], threads: int) -> Callable[..., Any]:
    """`streams`: the images of a batch side by side, one a stream; `batch`: all of them in one call."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    core = ov.Core()
    graph = core.read_model(settings["model"])
    height, width = settings["size"]
    streams = settings["infer"] == "streams"
    graph.reshape([1 if streams else -1, height, width, 3])
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(ov.Type.u8)
    steps.input().preprocess().convert_element_type(ov.Type.f32)
    if settings["mean"]:
        steps.input().preprocess().mean(float(settings["mean"]))
    steps.input().preprocess().scale(float(settings["scale"]))
    graph = steps.build()
    if settings["logits"]:
        graph = ov.Model([ov.opset13.softmax(graph.output(0), axis=1)], graph.get_parameters())
    compiled = core.compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": settings["precision"],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            "PERFORMANCE_HINT": "THROUGHPUT" if streams and threads > 1 else "LATENCY",
        },
    )
    own = threading.local()

    def request() -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request

    def run(pixels: Any) -> Any:
        asked = request()
        asked.infer([pixels], share_inputs=True)
        return asked.get_output_tensor().data.copy()

    if streams:
        return lambda images, each: [row[0] for row in each(lambda pixels: run(pixels[None]), images)]
    return lambda images, _: run(np.stack(images))


def _tensorflow(settings: dict[str, Any], threads: int) -> Callable[..., Any]:
    """`frozen`: the signature as one graph with its variables as constants; `signature`: as it was saved."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(settings["model"])
    signature = next(iter(loaded.signatures.values()))
    name = next(iter(signature.structured_input_signature[1]))
    height, width = settings["size"]

    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.uint8)], autograph=False)
    def serve(pixels: Any) -> Any:
        images = (tf.cast(pixels, tf.float32) - settings["mean"]) / settings["scale"]
        scores = next(iter(signature(**{name: images}).values()))
        return tf.nn.softmax(scores) if settings["logits"] else scores

    wrapped = serve.get_concrete_function()
    if settings["infer"] == "frozen":
        frozen = convert_variables_to_constants_v2(wrapped)
        return lambda images, _: frozen(tf.constant(np.stack(images)))[0].numpy()

    def signed(images: Any, _: Any) -> Any:  # `loaded` must live as long
        return wrapped(tf.constant(np.stack(images))).numpy() if loaded else None

    return signed
