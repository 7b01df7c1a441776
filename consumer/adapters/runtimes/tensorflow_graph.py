"""A SavedModel's signature, wrapped in a graph of our own that takes uint8 pixels and gives probabilities: scale, mean
and std in front; softmax behind where the model gives logits. TensorFlow runs this graph, and other runtimes get it
converted, so that all of them compute the same.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from consumer.adapters.runtimes.common import affine, checked_probe, detect_output, one_line, probe_images
from consumer.errors import CannotRun, ModelError
from consumer.model_spec import InputSpec, ModelPackage, Precision

# What TensorFlow's graph optimiser calls each precision (tensorflow/core/protobuf/rewriter_config.proto), and the type
# of its tensors (types.proto).
_REWRITES: dict[Precision, tuple[str, int]] = {
    "bf16": ("auto_mixed_precision_onednn_bfloat16", 14),
    "f16": ("auto_mixed_precision", 19),
}


@dataclass(frozen=True, slots=True)
class ServingGraph:
    """Pixels to probabilities."""

    function: Any
    """Concrete function: `pixels` uint8 [N, H, W, 3] -> float32 [N, C] probabilities, N free."""
    loaded: Any
    """The SavedModel, which must live as long as the function does."""
    classes: int
    gives: Literal["probabilities", "logits"]
    """What the signature itself gives."""


def serving_graph(tf: Any, package: ModelPackage) -> ServingGraph:
    """Load the SavedModel, see what it gives for test images, and wrap it. On TensorFlow's current device.

    Raises:
        ModelError: unreadable, or its answer is no row of scores an image.
    """
    spec = package.spec
    scale = affine(spec.input)
    loaded, function = _load(tf, package)
    probe = _probe(tf, function, package, scale)
    gives = detect_output(probe) if spec.output.kind == "auto" else spec.output.kind
    pixels = tf.TensorSpec([None, *spec.input.size, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[pixels], autograph=False, jit_compile=False)  # type: ignore[untyped-decorator]
    def serve(pixels: Any) -> Any:
        images = _model_input(tf, pixels, spec.input, scale)
        scores = tf.cast(function(**{spec.input.name: images})[spec.output.name], tf.float32)
        return tf.nn.softmax(scores) if gives == "logits" else scores

    return ServingGraph(serve.get_concrete_function(), loaded, int(probe.shape[1]), gives)


def frozen(graph: ServingGraph) -> Any:
    """The concrete function with its variables as constants, which nothing can retrace.

    Raises:
        CannotRun: it holds tables or other resources that are no variables.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        function = convert_variables_to_constants_v2(graph.function)
    except Exception as error:
        raise CannotRun(f"its variables cannot be made constants: {one_line(error)}") from error
    if len(function.inputs) != 1:
        raise CannotRun("it holds tables or other resources that are no variables")
    return function


def in_precision(tf: Any, function: Any, precision: Precision) -> Any:
    """A frozen function, computing in half precision where TensorFlow's graph optimiser holds it to be safe.

    The graph itself is rewritten: the option for the whole process would change other models that run in it.

    Raises:
        CannotRun: the optimiser left the graph as it was.
    """
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer
    from tensorflow.python.training.saver import export_meta_graph

    option, dtype = _REWRITES[precision]
    source, target = function.inputs[0].name, function.outputs[0].name
    meta_graph = export_meta_graph(graph_def=function.graph.as_graph_def(), graph=function.graph)
    meta_graph.collection_def["train_op"].node_list.value.append(target)  # what must be kept
    config = config_pb2.ConfigProto()
    setattr(config.graph_options.rewrite_options, option, rewriter_config_pb2.RewriterConfig.ON)
    rewritten = tf_optimizer.OptimizeGraph(config, meta_graph)
    if not any(node.attr["T"].type == dtype for node in rewritten.node):
        raise CannotRun(
            f"TensorFlow computes none of this model in {precision} here",
            remedy="use the model in float32; if TF_ENABLE_ONEDNN_OPTS is 0, unset it",
        )
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(rewritten, name=""), [])
    return wrapped.prune([source], [target])


def _load(tf: Any, package: ModelPackage) -> tuple[Any, Any]:
    """The SavedModel, and its signature's function."""
    try:
        loaded = tf.saved_model.load(str(package.files))
        return loaded, loaded.signatures[package.spec.signature]
    except Exception as error:  # OSError, DecodeError, OpError, ValueError, ...: it is broken in one way or another
        raise ModelError(
            f"{package.files}: the SavedModel cannot be loaded: {one_line(error)}", remedy="export or copy it anew"
        ) from error


def _model_input(tf: Any, pixels: Any, image: InputSpec, scale: tuple[Any, Any]) -> Any:
    """Graph or eager: uint8 [N, H, W, 3] to what the signature takes."""
    if image.dtype == "uint8":
        images = pixels
    else:
        factor, offset = scale
        images = tf.cast(pixels, tf.float32) * factor
        if np.any(offset):
            images += offset
        images = tf.cast(images, image.dtype)
    return tf.transpose(images, (0, 3, 1, 2)) if image.layout == "NCHW" else images


def _probe(tf: Any, function: Any, package: ModelPackage, scale: tuple[Any, Any]) -> npt.NDArray[np.float32]:
    """What the model gives, untouched, for three test images: float32 [3, C]."""
    spec = package.spec
    images = _model_input(tf, tf.constant(probe_images(*spec.input.size)), spec.input, scale)
    what = f"signature {spec.signature!r} -> {spec.output.name}"
    try:
        result = function(**{spec.input.name: images})[spec.output.name].numpy()
    except Exception as error:
        raise ModelError(f"{what}: the model does not run: {one_line(error)}", remedy="export it anew") from error
    return checked_probe(what, result)
