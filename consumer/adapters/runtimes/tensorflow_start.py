"""Starting TensorFlow: imported without its banner, with its threads and devices set, which it takes once a process."""

import os
import sys
from typing import Any

from loguru import logger

from consumer.adapters.runtimes.native_stderr import without_lines
from consumer.errors import DeviceMissing, ModelError

# What its C++ side writes to stderr while it loads, whatever TF_CPP_MIN_LOG_LEVEL says.
_BANNER = (b"WARNING: All log messages before absl", b"I0000 ")


def start_tensorflow(*, threads: int, device: str) -> tuple[Any, str]:
    """The `tensorflow` module and TensorFlow's name of the device to use.

    The import takes 1.5 s when its files are cached, 4 s and more when they are not. Threads and devices are the
    process's: the first call settles them.

    Args:
        threads: cores that it may use.
        device: `auto` (a GPU if there is one), `cpu`, `gpu:0`, ...

    Raises:
        ModelError: TensorFlow is not installed, or broken.
        DeviceMissing: a GPU that is asked for and is not there.
    """
    tf = _import()
    # On by default on NVIDIA's GPUs, with 10 bits of a float32's 23: scores would not be those of other runtimes.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    _set_threads(tf, threads)
    return tf, _choose_device(tf, device)


def _import() -> Any:
    if sys.modules.get("tensorflow") is not None:
        return sys.modules["tensorflow"]
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors and worse
    try:
        with without_lines(*_BANNER):
            import tensorflow as tf
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "tensorflow"
        raise ModelError(
            "TensorFlow is not installed" if missing else f"TensorFlow cannot be imported: {error}",
            remedy="pip install '.[tensorflow]'",
        ) from error
    tf.get_logger().setLevel("ERROR")
    return tf


def _set_threads(tf: Any, threads: int) -> None:
    """All cores on one operation, one operation at a time: the graphs of image models are chains."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for builds whose oneDNN runs on OpenMP
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # it runs already
        running = tf.config.threading.get_intra_op_parallelism_threads()
        if running != threads:
            logger.warning("TensorFlow runs with {} threads already; {} were asked for", running, threads)


def _choose_device(tf: Any, device: str) -> str:
    """TensorFlow's name of the device; GPUs that are not used stay untouched."""
    if device == "cpu":
        _hide(tf, keep=[])
        return "/CPU:0"
    if device != "auto" and not (device.startswith("gpu:") and device.removeprefix("gpu:").isdecimal()):
        raise ModelError(f"model.device {device!r} is unknown", remedy="set model.device to auto, cpu or gpu:0")
    gpus = tf.config.list_physical_devices("GPU")
    if device == "auto" and not gpus:
        return "/CPU:0"
    number = 0 if device == "auto" else int(device.removeprefix("gpu:"))
    if number >= len(gpus):
        raise DeviceMissing(
            f"model.device is {device!r} and TensorFlow sees {len(gpus)} GPU(s)",
            remedy="pip install '.[gpu]' on a machine with an NVIDIA GPU and driver, or set model.device to cpu",
        )
    _hide(tf, keep=[gpus[number]])
    return "/GPU:0"


def _hide(tf: Any, *, keep: list[Any]) -> None:
    try:
        for gpu in keep:
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.set_visible_devices(keep, "GPU")
    except RuntimeError:  # the process runs a model already, with the devices that it chose then
        logger.debug("TensorFlow has chosen its devices already")
