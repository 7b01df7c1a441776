"""What every `ports.ModelRuntime` must do; then what TensorFlow's does besides, and what the real models say.

What OpenVINO's does besides is in `test_openvino_runtime.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from loguru import logger

from consumer.adapters.default_model import DefaultModel, default_model
from consumer.adapters.image import PillowDecoder
from consumer.adapters.labels import load_labels
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.models.saved_model import read_signature
from consumer.adapters.runtimes.litert_runtime import LiteRtRuntime
from consumer.adapters.runtimes.null_runtime import NullRuntime
from consumer.adapters.runtimes.onnx_runtime import OnnxRuntime
from consumer.adapters.runtimes.openvino_runtime import OpenVinoRuntime
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import DeviceMissing, ModelError
from consumer.ports import ModelRuntime
from consumer.stages.rank import top_labels
from tests.models import (
    PHOTOGRAPHS,
    bare,
    converting_here,
    model_cache,
    save_model,
    temporary_folder,
    tiny_model,
    tiny_saved_model,
)

ROOT = Path(__file__).resolve().parents[2]
BIRD = Path(os.environ.get("OUZEL_TEST_BIRD", ROOT.parent / "shared" / "bird"))

pytestmark = pytest.mark.tensorflow


def tensorflow_runtime(folder: Path, *, device: str = "cpu", **described: Any) -> TensorFlowRuntime:
    """Of a bare SavedModel, described by `BareModel`'s fields; `decode` are settings of decoding."""
    decode = described.pop("decode", {})
    return TensorFlowRuntime(open_bare(folder, BareModel(**described), decode=decode), threads=2, device=device)


def openvino_runtime(folder: Path, *, device: str = "cpu", **described: Any) -> OpenVinoRuntime:
    """The same with OpenVINO."""
    return OpenVinoRuntime(
        open_bare(folder, BareModel(**described)), threads=2, device=device, cache=temporary_folder("ouzel-runtimes-")
    )


def onnx_runtime(folder: Path, **described: Any) -> OnnxRuntime:
    """The same with ONNX Runtime."""
    with converting_here():
        return OnnxRuntime(bare(folder, **described), threads=2, device="cpu", cache=model_cache())


def litert_runtime(folder: Path, **described: Any) -> LiteRtRuntime:
    """The same with LiteRT."""
    with converting_here():
        return LiteRtRuntime(bare(folder, **described), threads=2, device="cpu", cache=model_cache())


MAKERS: dict[str, Callable[..., ModelRuntime]] = {
    "tensorflow": tensorflow_runtime,
    "openvino": openvino_runtime,
    "onnxruntime": onnx_runtime,
    "litert": litert_runtime,
}
"""Of a bare SavedModel. A runtime is listed here to be held to this suite."""

FORMS: dict[str, dict[str, Any]] = {
    "probabilities": {},
    "logits": {"logits": True},
    "channels first": {"layout": "NCHW"},
    "uint8": {"dtype": "uint8"},
    "half precision": {"dtype": "float16"},
}
"""Of `tests.models.tiny_model`."""


def _tiny(maker: str, form: str) -> Callable[[], ModelRuntime]:
    return lambda: MAKERS[maker](tiny_model(**FORMS[form]))


RUNTIMES: dict[str, Callable[[], ModelRuntime]] = {
    "null": lambda: NullRuntime(input_size=(40, 24)),
    **{f"{maker}, {form}": _tiny(maker, form) for maker in MAKERS for form in FORMS},
}


@pytest.fixture(scope="session")
def the_default_model(tmp_path_factory: pytest.TempPathFactory) -> DefaultModel:
    return default_model(tmp_path_factory.mktemp("xdg-cache") / "ouzel", threads=2, device="cpu")


def described(model: DefaultModel) -> dict[str, Any]:
    """What the settings say of the default model."""
    return {
        "input_range": model.input_range,
        "mean": model.mean,
        "std": model.std,
        "name": model.name,
        "version": model.version,
        "weights": model.weights,
    }


@pytest.fixture(scope="session")
def default_runtimes(the_default_model: DefaultModel) -> dict[str, ModelRuntime]:
    model = the_default_model
    return {name: make(model.folder, **described(model)) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def default_runtime(default_runtimes: dict[str, ModelRuntime]) -> ModelRuntime:
    return default_runtimes["tensorflow"]


@pytest.fixture(scope="module", params=[*RUNTIMES, *(f"{maker}, default model" for maker in MAKERS)])
def runtime(request: pytest.FixtureRequest) -> Iterator[ModelRuntime]:
    if request.param.endswith("default model"):
        yield request.getfixturevalue("default_runtimes")[request.param.partition(",")[0]]
        return
    made = RUNTIMES[request.param]()
    made.warm_up([1, 2, 4, 8])
    yield made
    made.close()


def photographs(runtime: ModelRuntime) -> npt.NDArray[np.uint8]:
    """uint8 [4, H, W, 3]"""
    decoder = PillowDecoder(runtime.input_size)
    return np.stack([decoder.decode(path.read_bytes()).pixels for path in sorted(PHOTOGRAPHS.glob("*.jpg"))])


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_image_gets_a_row_of_probabilities(runtime: ModelRuntime, size: int) -> None:
    scores = runtime.infer(np.resize(photographs(runtime), (size, *runtime.input_size, 3)))
    assert scores.shape == (size, runtime.class_count)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    assert scores.sum(axis=1) == pytest.approx(1.0, abs=1e-3)


def test_padding_does_not_change_a_score(runtime: ModelRuntime) -> None:
    images = photographs(runtime)[:3]
    alone = np.concatenate([runtime.infer(image[None]) for image in images])
    for filling in (0, 255):
        padded = np.full((8, *images.shape[1:]), filling, np.uint8)
        padded[:3] = images
        assert runtime.infer(padded)[:3] == pytest.approx(alone, abs=1e-4)


def test_the_place_in_a_batch_does_not_change_a_score(runtime: ModelRuntime) -> None:
    images = photographs(runtime)
    assert runtime.infer(images[::-1].copy())[::-1] == pytest.approx(runtime.infer(images), abs=1e-4)


def test_the_same_batch_gives_the_same_scores(runtime: ModelRuntime) -> None:
    images = photographs(runtime)
    assert np.array_equal(runtime.infer(images), runtime.infer(images.copy()))


def test_scores_outlive_the_next_call(runtime: ModelRuntime) -> None:
    images = photographs(runtime)
    first = runtime.infer(images)
    kept = first.copy()
    runtime.infer(np.zeros_like(images))
    assert np.array_equal(first, kept)


def test_the_pixels_are_left_as_they_were(runtime: ModelRuntime) -> None:
    images = photographs(runtime)
    before = images.copy()
    runtime.infer(images)
    assert np.array_equal(images, before)


def test_a_model_says_which_it_is(runtime: ModelRuntime) -> None:
    info = runtime.info
    assert info.name
    assert info.version
    assert info.runtime in {"null", *MAKERS}
    assert info.precision == "f32"
    assert info.digest.startswith("sha256:")
    assert len(info.digest) == len("sha256:") + 64


@pytest.mark.parametrize("name", RUNTIMES)
def test_closing_twice_is_fine(name: str) -> None:
    made = RUNTIMES[name]()
    made.close()
    made.close()


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_model_loaded_twice_has_one_digest(name: str) -> None:
    assert RUNTIMES[name]().info == RUNTIMES[name]().info


# --- every runtime against TensorFlow -------------------------------------------------------------------------------


def assert_agrees(other: ModelRuntime, reference: ModelRuntime) -> None:
    """Model, digest, first labels, and every score within 0.001."""
    images = photographs(reference)
    expected, found = reference.infer(images), other.infer(images)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert np.concatenate([other.infer(image[None]) for image in images]) == pytest.approx(expected, abs=1e-3)
    assert other.info == replace(reference.info, runtime=other.info.runtime), "one digest, whatever runs it"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "tensorflow"])
def test_a_runtime_gives_the_labels_and_the_digest_of_tensorflow(maker: str, form: str) -> None:
    assert_agrees(_tiny(maker, form)(), _tiny("tensorflow", form)())


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "tensorflow"])
def test_a_runtime_gives_the_default_models_labels(maker: str, default_runtimes: dict[str, ModelRuntime]) -> None:
    assert_agrees(default_runtimes[maker], default_runtimes["tensorflow"])


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "tensorflow"])
def test_a_runtime_gives_the_bird_models_labels(maker: str, bird_runtime: ModelRuntime) -> None:
    assert_agrees(MAKERS[maker](BIRD / "model", labels=BIRD / "labelmap.csv"), bird_runtime)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_range_mean_and_std_are_applied_to_each_channel(tmp_path: Path, layout: str, maker: str) -> None:
    shape = [None, 8, 8, 3] if layout == "NHWC" else [None, 3, 8, 8]
    axes = (1, 2) if layout == "NHWC" else (2, 3)
    folder = hand_made(tmp_path, lambda tf, images: {"scores": tf.reduce_mean(images, axes)}, shape=shape)
    runtime = MAKERS[maker](
        folder, input_range=(-1, 1), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0), output="probabilities"
    )
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 255, 0, 51
    # 255 -> 1, 0 -> -1, 51 -> -0.6
    assert runtime.infer(pixels)[0] == pytest.approx([(1 - 0.5) / 0.5, (-1 - 0.25) / 1, -0.6 / 2], abs=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_score_that_is_no_number_fails_the_batch_and_not_the_next(tmp_path: Path, maker: str) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"scores": tf.math.log(tf.reduce_mean(images, (1, 2)) - 0.2)})
    runtime = MAKERS[maker](folder, output="probabilities")
    with pytest.raises(FloatingPointError):
        runtime.infer(np.zeros((2, 8, 8, 3), np.uint8))
    assert np.isfinite(runtime.infer(np.full((2, 8, 8, 3), 200, np.uint8))).all()


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_no_row_of_scores_is_refused(tmp_path: Path, maker: str) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"same": images * 1.0})
    with pytest.raises(ModelError, match=r", classes\] is needed"):
        MAKERS[maker](folder)


# --- TensorFlow: what is read and detected --------------------------------------------------------------------------


def said(make: Callable[[], Any]) -> str:
    """What is logged from INFO up while `make` runs."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{level} {message}")
    try:
        make()
    finally:
        logger.remove(sink)
    return "".join(lines)


def test_the_same_weights_give_the_same_scores_in_every_form() -> None:
    runtimes = [_tiny("tensorflow", form)() for form in ("probabilities", "logits", "channels first", "uint8")]
    images = photographs(runtimes[0])
    expected = runtimes[0].infer(images)
    assert np.ptp(expected, axis=0).max() > 0.01, "the tiny model tells photographs apart"
    for other in runtimes[1:]:
        assert other.infer(images) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {},
            ("serving_default", "images float32 [N, H, W, 3]", "H 32, W 32", "10 classes", "probabilities (detected)"),
        ),
        ({"logits": True, "layout": "NCHW"}, ("[N, 3, H, W]", "gives logits (detected)")),
        ({"dtype": "uint8"}, ("images uint8",)),
    ],
)
def test_what_was_found_is_said_at_info(options: dict[str, Any], words: tuple[str, ...]) -> None:
    line = said(lambda: tensorflow_runtime(tiny_model(**options)))
    for word in ("INFO", "/CPU:0", "2 threads", *words):
        assert word in line


def test_an_output_that_is_set_is_not_detected() -> None:
    assert "gives logits (as it says)" in said(lambda: tensorflow_runtime(tiny_model(), output="logits"))


def test_one_probability_for_each_class_is_kept_and_said(tmp_path: Path) -> None:
    def sigmoid(tf: Any, images: Any) -> Any:
        means = tf.reduce_mean(images, axis=(1, 2))
        return {"scores": tf.sigmoid(tf.concat([means, means], 1))}

    folder = hand_made(tmp_path, sigmoid)
    assert "do not sum to 1" in said(lambda: tensorflow_runtime(folder))
    scores = tensorflow_runtime(folder).infer(np.zeros((1, 8, 8, 3), np.uint8))
    assert scores[0] == pytest.approx([0.5] * 6)


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (255, 1.0), (51, 0.2)])
def test_pixels_become_0_to_1_by_default(tmp_path: Path, value: int, expected: float) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"scores": tf.reduce_mean(images, (1, 2))})
    scores = tensorflow_runtime(folder, output="probabilities").infer(np.full((1, 8, 8, 3), value, np.uint8))
    assert scores[0] == pytest.approx([expected] * 3, abs=1e-6)


def test_the_signature_is_the_only_one_where_there_is_no_default() -> None:
    assert read_signature(tiny_model(signature="birds")).name == "birds"


def test_a_model_with_a_table_keeps_it(tmp_path: Path) -> None:
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1], [0.25, 0.75]), -1.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])  # type: ignore[untyped-decorator]
    def classify(images: Any) -> Any:
        row = table.lookup(tf.constant([0, 1]))
        return {"scores": tf.tile(row[None], [tf.shape(images)[0], 1])}

    save_model(tmp_path, {"serving_default": classify}, [table])
    runtime = tensorflow_runtime(tmp_path)
    assert runtime.infer(np.zeros((2, 8, 8, 3), np.uint8)).tolist() == [[0.25, 0.75]] * 2


# --- TensorFlow: what is refused ------------------------------------------------------------------------------------


def hand_made(
    folder: Path, graph: Callable[[Any, Any], Any], *, shape: list[int | None] | None = None, dtype: str = "float32"
) -> Path:
    """A SavedModel without weights."""
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    spec = tf.TensorSpec(shape or [None, 8, 8, 3], dtype, name="images")
    function = tf.function(lambda images: graph(tf, images), input_signature=[spec], autograph=False)
    save_model(folder, {"serving_default": function}, [])
    return folder


def refused(folder: Path, **options: Any) -> str:
    """Message and remedy."""
    with pytest.raises(ModelError) as caught:
        tensorflow_runtime(folder, **options)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return f"{caught.value} {caught.value.remedy}"


def test_a_folder_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "absent")
    assert "model.source" in refused(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "not a folder" in refused(tmp_path / "file")
    assert "no saved_model.pb" in refused(tmp_path)


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_a_damaged_model_is_refused(tmp_path: Path, damaged: str) -> None:
    folder = tiny_saved_model(tmp_path / "model")
    body = bytearray((folder / damaged).read_bytes())
    body[: len(body) // 2] = bytes(len(body) // 2)
    (folder / damaged).write_bytes(body)
    assert "cannot be loaded" in refused(folder)


def test_a_model_without_its_variables_is_refused(tmp_path: Path) -> None:
    folder = tiny_saved_model(tmp_path / "model")
    (folder / "variables" / "variables.index").unlink()
    assert "cannot be loaded" in refused(folder)


def test_a_signature_that_is_not_there_is_refused_with_those_that_are() -> None:
    message = refused(tiny_model(), signature="classify")
    assert "no signature 'classify'; it has: serving_default" in message
    assert "model.signature" in message


def test_several_signatures_without_a_default_ask_for_the_setting(tmp_path: Path) -> None:
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")
    makers = [tf.function(lambda images: {"s": tf.reduce_mean(images, (1, 2))}, input_signature=[spec]) for _ in "ab"]
    save_model(tmp_path, {"first": makers[0], "second": makers[1]}, [])
    message = refused(tmp_path)
    assert "which signature? It has: first, second" in message
    assert "model.signature" in message
    assert read_signature(tmp_path, "second").name == "second"


def test_several_outputs_are_refused_by_name(tmp_path: Path) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"boxes": images, "scores": tf.reduce_mean(images, (1, 2))})
    message = refused(folder)
    assert "2 outputs (boxes, scores)" in message
    assert "model.signature" in message


def test_several_inputs_are_refused_by_name(tmp_path: Path) -> None:
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, _ = start_tensorflow(threads=2, device="cpu")
    specs = [tf.TensorSpec([None, 8, 8, 3], tf.float32, name=name) for name in ("left", "right")]
    function = tf.function(lambda left, right: {"s": tf.reduce_mean(left + right, (1, 2))}, input_signature=specs)
    save_model(tmp_path, {"serving_default": function}, [])
    assert "2 inputs (left, right)" in refused(tmp_path)


@pytest.mark.parametrize(
    "shape", [[1, 8, 8, 3], [None, None, None, 3], [None, 8, 8, 1], [None, 8, 8], [None, 8, 8, 3, 1]], ids=str
)
def test_a_shape_that_is_no_batch_of_rgb_images_is_refused(tmp_path: Path, shape: list[int | None]) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"scores": tf.reshape(images, [-1, 3])}, shape=shape)
    message = refused(folder)
    assert "input images has shape" in message
    assert "model.signature" in message


def test_a_model_that_takes_encoded_images_is_refused(tmp_path: Path) -> None:
    folder = hand_made(tmp_path, lambda tf, images: {"n": tf.strings.length(images)}, shape=[None], dtype="string")
    assert "is string; uint8 or float32" in refused(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.1, 0.2)}, "model.mean has 2 values"),
        ({"std": (0.1, 0.2, 0.3, 0.4)}, "model.std has 4 values"),
        ({"std": (1.0, 0.0, 1.0)}, "model.std holds a 0"),
        ({"device": "tpu"}, "model.device 'tpu' is unknown"),
        ({"device": "gpu:first"}, "unknown"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    assert words in refused(tiny_model(), **options)


def test_a_gpu_that_is_asked_for_and_not_there_says_so() -> None:
    with pytest.raises(DeviceMissing, match="'gpu:7'") as caught:
        tensorflow_runtime(tiny_model(), device="gpu:7")
    assert ".[gpu]" in caught.value.remedy
    assert "model.device" in caught.value.remedy


def test_a_batch_that_the_model_cannot_run_fails_the_warm_up(tmp_path: Path) -> None:
    def only_small(tf: Any, images: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(tf.shape(images)[0], 5)]):
            return {"scores": tf.nn.softmax(tf.reduce_mean(images, (1, 2)))}

    runtime = tensorflow_runtime(hand_made(tmp_path, only_small))
    runtime.warm_up([1, 4])
    with pytest.raises(ModelError, match="batch of 8") as caught:
        runtime.warm_up([1, 8])
    assert "batch.max_size" in caught.value.remedy


# --- the digest (I7) ------------------------------------------------------------------------------------------------


def labels_file(folder: Path) -> Path:
    (folder / "labels.csv").write_text("".join(f"{index},class {index}\n" for index in range(10)))
    return folder / "labels.csv"


def test_the_digest_covers_weights_labels_and_preprocessing(tmp_path: Path) -> None:
    variants: list[tuple[Path, dict[str, Any]]] = [
        (tiny_model(), {}),
        (tiny_model(seed=8), {}),
        (tiny_model(), {"labels": labels_file(tmp_path)}),
        (tiny_model(), {"resize": "bicubic"}),
        (tiny_model(), {"decode": {"icc": "srgb"}}),
        (tiny_model(), {"input_range": (-1, 1)}),
        (tiny_model(), {"mean": (0.5,)}),
        (tiny_model(), {"std": (0.5,)}),
        (tiny_model(), {"output": "logits"}),
    ]
    digests = {tensorflow_runtime(folder, **options).info.digest for folder, options in variants}
    assert len(digests) == len(variants)


def test_the_digest_does_not_depend_on_the_folder_or_the_name(tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_model(), tmp_path / "copy")
    (copy / "fingerprint.pb").unlink()  # holds a random id
    one, other = tensorflow_runtime(tiny_model(), name="a").info, tensorflow_runtime(copy, name="b").info
    assert (one.digest, one.version) == (other.digest, other.version)
    assert (one.name, other.name) == ("a", "b")


# --- the process around it ------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_tensorflow_starts_in_silence_with_the_threads_of_the_quota() -> None:
    code = """
import sys
from pathlib import Path
from loguru import logger
logger.remove()
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
package = open_bare(Path(sys.argv[1]), BareModel())
assert "tensorflow" not in sys.modules
runtime = TensorFlowRuntime(package, threads=1, device="cpu")
runtime.warm_up([1, 2])
import tensorflow as tf
threading = tf.config.threading
print(threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())
"""
    done = run_python(code, str(tiny_model()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 1\n", "")


def test_a_missing_tensorflow_is_an_error_with_the_command() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["tensorflow"] = None
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import ModelError
try:
    TensorFlowRuntime(open_bare(Path(sys.argv[1]), BareModel()), threads=1)
except ModelError as error:
    print(error, "|", error.remedy)
"""
    done = run_python(code, str(tiny_model()))
    assert done.stdout == "TensorFlow is not installed | pip install '.[tensorflow]'\n", done.stderr


def test_the_null_runtime_does_not_import_tensorflow() -> None:
    code = """
import sys
from consumer.adapters.runtimes.null_runtime import NullRuntime
from consumer.adapters.runtimes.openvino_runtime import OpenVinoRuntime
NullRuntime().warm_up([1])
print("tensorflow" in sys.modules)
"""
    assert run_python(code).stdout == "False\n"


# --- the real models ------------------------------------------------------------------------------------------------


def best(runtime: ModelRuntime, decoder: PillowDecoder, labels: Path, image: Path, count: int = 3) -> list[Any]:
    names = load_labels(labels, runtime.class_count)
    return list(top_labels(runtime.infer(decoder.decode(image.read_bytes()).pixels[None]), names, count)[0])


@pytest.mark.parametrize(
    ("name", "label", "score"),
    [("chelsea", "cat", 0.38), ("coffee", "espresso", 0.95), ("camera", "tripod", 0.93), ("rocket", "missile", 0.28)],
)
def test_the_default_model_knows_what_the_photographs_show(
    the_default_model: DefaultModel, default_runtime: ModelRuntime, name: str, label: str, score: float
) -> None:
    model = the_default_model
    decoder = PillowDecoder(default_runtime.input_size, resize=model.resize, crop=model.crop)
    first = best(default_runtime, decoder, model.labels, PHOTOGRAPHS / f"{name}.jpg")[0]
    assert label in first.label
    assert first.score == pytest.approx(score, abs=0.03)


@pytest.fixture(scope="module")
def bird_runtime() -> ModelRuntime:
    if not BIRD.is_dir():
        pytest.skip(f"bird data is not at {BIRD}; OUZEL_TEST_BIRD says where it is")
    return tensorflow_runtime(BIRD / "model", labels=BIRD / "labelmap.csv")


def test_the_bird_model_gives_its_expected_labels(bird_runtime: ModelRuntime) -> None:
    expected = json.loads((BIRD / "expected_top3.json").read_text())
    decoder = PillowDecoder(bird_runtime.input_size)
    assert len(expected) == 5
    for name, rows in expected.items():
        found = best(bird_runtime, decoder, BIRD / "labelmap.csv", BIRD / "images" / name)
        assert [(label.index, label.label) for label in found] == [(row["index"], row["label"]) for row in rows]
        assert [label.score for label in found] == pytest.approx([row["score"] for row in rows], abs=0.002)
