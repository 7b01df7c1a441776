"""What OpenVINO's runtime does beside the suite of every runtime: formats, precision, its cache, and its silence."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from loguru import logger

from consumer.adapters.default_model import default_model
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.openvino_runtime import OpenVinoRuntime, properties_of, refuse_precision
from consumer.adapters.runtimes.openvino_start import import_openvino
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelPackage, ModelSpec, OutputSpec, Precision
from tests.models import save_model, temporary_folder, tiny_model

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.tensorflow


def bare(folder: Path, **described: Any) -> ModelPackage:
    return open_bare(folder, BareModel(**described))


def opened(package: ModelPackage, cache: Path, *, device: str = "cpu", threads: int = 2) -> OpenVinoRuntime:
    return OpenVinoRuntime(package, threads=threads, device=device, cache=cache)


def noise(runtime: OpenVinoRuntime, count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *runtime.input_size, 3), np.uint8)


def warned(make: Callable[[], Any]) -> list[str]:
    """The warnings that are logged while `make` runs."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING", format="{message}")
    try:
        make()
    finally:
        logger.remove(sink)
    return lines


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_image_has_the_same_scores_alone_and_among_any_number(tmp_path: Path, threads: int) -> None:
    runtime = opened(bare(tiny_model()), tmp_path, threads=threads)
    images = noise(runtime, 7)
    expected = np.concatenate([runtime.infer(image[None]) for image in images])
    for count in range(1, 8):
        assert runtime.infer(images[:count]) == pytest.approx(expected[:count], abs=1e-5)


def test_pixels_that_may_not_be_written_are_fine(tmp_path: Path) -> None:
    runtime = opened(bare(tiny_model()), tmp_path)
    images = noise(runtime, 3)
    expected = runtime.infer(images)
    images.flags.writeable = False
    assert np.array_equal(runtime.infer(images), expected)
    assert np.array_equal(runtime.infer(images[:, ::-1, ::-1]), runtime.infer(images[:, ::-1, ::-1].copy()))


def test_a_closed_runtime_says_so(tmp_path: Path) -> None:
    runtime = opened(bare(tiny_model()), tmp_path)
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.infer(np.zeros((1, 32, 32, 3), np.uint8))


# --- formats --------------------------------------------------------------------------------------------------------


def as_ir(folder: Path) -> ModelPackage:
    """The tiny model as OpenVINO's own format."""
    ov = import_openvino()
    ov.save_model(ov.Core().read_model(str(tiny_model())), folder / "model.xml", compress_to_fp16=False)
    package = bare(tiny_model())
    return replace(package, files=folder / "model.xml", spec=replace(package.spec, format="openvino"))


def as_tflite(folder: Path) -> ModelPackage:
    import tensorflow as tf

    (folder / "model.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tiny_model())).convert())
    package = bare(tiny_model())
    output = replace(package.spec.output, name="StatefulPartitionedCall_1:0")
    return replace(
        package, files=folder / "model.tflite", spec=replace(package.spec, format="tflite", signature="", output=output)
    )


def as_onnx(folder: Path) -> ModelPackage:
    import tensorflow as tf
    import tf2onnx

    loaded = tf.saved_model.load(str(tiny_model()))
    frozen = tf.function(lambda images: loaded.signatures["serving_default"](images=images)["scores"])
    spec = (tf.TensorSpec([None, 32, 32, 3], tf.float32, name="images"),)
    tf2onnx.convert.from_function(frozen, input_signature=spec, output_path=str(folder / "model.onnx"))
    package = bare(tiny_model())
    return replace(package, files=folder / "model.onnx", spec=replace(package.spec, format="onnx", signature=""))


@pytest.mark.parametrize("form", [as_ir, as_onnx, as_tflite])
@pytest.mark.filterwarnings("ignore")  # of the converters
def test_the_other_formats_give_the_same_scores(tmp_path: Path, form: Callable[[Path], ModelPackage]) -> None:
    expected = opened(bare(tiny_model()), tmp_path)
    # Of another digest, as another file has one: what is kept of one format is not taken for the other.
    found = opened(replace(form(tmp_path), digest=f"sha256:{form.__name__:0>64}"), tmp_path)
    images = noise(expected, 3)
    assert found.infer(images) == pytest.approx(expected.infer(images), abs=1e-5)


def onnx_of(folder: Path, shape: list[int | str], *, outputs: tuple[str, ...] = ("scores",)) -> ModelPackage:
    """The means of the channels, channels first."""
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("ReduceMean", ["images"], [name], axes=[2, 3], keepdims=0) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape[0], 3]) for name in outputs],
    )
    opset = [helper.make_opsetid("", 13)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "model.onnx"))
    spec = ModelSpec(
        name="means",
        version="1",
        format="onnx",
        input=InputSpec("images", "float32", "NCHW", 8, 8),
        output=OutputSpec("scores", "probabilities", 3),
    )
    return ModelPackage(spec, folder, folder / "model.onnx", None, f"sha256:{len(outputs):064x}")


@pytest.mark.parametrize("batch", [1, 4, "N"])
def test_a_graph_whose_batch_size_is_fixed_takes_any(tmp_path: Path, batch: int | str) -> None:
    runtime = opened(onnx_of(tmp_path, [batch, 3, 8, 8]), tmp_path)
    pixels = np.zeros((5, 8, 8, 3), np.uint8)
    pixels[..., 1] = 255
    assert runtime.infer(pixels) == pytest.approx(np.tile([0.0, 1.0, 0.0], (5, 1)), abs=1e-6)


def test_of_several_outputs_the_one_that_is_named_is_taken(tmp_path: Path) -> None:
    package = onnx_of(tmp_path, [1, 3, 8, 8], outputs=("other", "scores"))
    assert opened(package, tmp_path).class_count == 3
    absent = replace(package, digest="sha256:0", spec=replace(package.spec, output=OutputSpec("boxes")))
    with pytest.raises(CannotRun, match=r"no output boxes .* it has: other, scores"):
        opened(absent, tmp_path)


# --- what is refused ------------------------------------------------------------------------------------------------


def _two_signatures(folder: Path) -> Path:
    import tensorflow as tf

    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")

    def of(reduce: Any) -> Any:
        return tf.function(lambda images: {"s": tf.nn.softmax(reduce(images, (1, 2)))}, input_signature=[spec])

    save_model(folder, {"serving_default": of(tf.reduce_mean), "peak": of(tf.reduce_max)}, [])
    return folder


def test_another_signature_than_the_one_that_openvino_takes_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    folder = _two_signatures(tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    expected = tf.nn.softmax(images.mean(axis=(1, 2)) / 255).numpy()
    assert opened(bare(folder), tmp_path).infer(images) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(CannotRun, match="cannot choose signature 'peak' among peak, serving_default") as caught:
        opened(bare(folder, signature="peak"), tmp_path)
    assert "tensorflow" in caught.value.remedy


def test_a_signature_that_is_the_only_one_may_have_any_name(tmp_path: Path) -> None:
    assert opened(bare(tiny_model(signature="birds")), tmp_path).class_count == 10


def test_what_openvino_has_no_rule_for_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")
    function = tf.function(
        lambda images: {"scores": tf.numpy_function(lambda x: x.mean(axis=(1, 2)), [images], tf.float32)},
        input_signature=[spec],
    )
    save_model(tmp_path / "model", {"serving_default": function}, [])
    with pytest.raises(CannotRun, match="PyFunc") as caught:
        opened(bare(tmp_path / "model"), tmp_path)
    assert "model.runtime" in caught.value.remedy


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path, damaged: str) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "model")
    package = bare(folder)
    body = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelError, match="cannot read it") as caught:
        opened(package, tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(("device", "error"), [("gpu:7", DeviceMissing), ("tpu", ModelError), ("gpu:x", ModelError)])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str, error: type[ModelError]) -> None:
    with pytest.raises(error, match=device) as caught:
        opened(bare(tiny_model()), tmp_path, device=device)
    assert "model.device" in caught.value.remedy


def spec_in(precision: Precision, **changes: Any) -> ModelSpec:
    return replace(bare(tiny_model()).spec, precision=precision, **changes)


@pytest.mark.parametrize("flags", [{"avx512_bf16"}, {"avx2", "amx_bf16"}])
def test_bf16_is_for_cpus_that_have_it(flags: set[str]) -> None:
    refuse_precision(spec_in("bf16"), on_gpu=False, flags=flags)
    with pytest.raises(CannotRun, match="amx_bf16 or avx512_bf16"):
        refuse_precision(spec_in("bf16"), on_gpu=False, flags={"avx2", "avx512f", "avx512_vnni"})


def test_precisions_that_do_not_fit_are_refused() -> None:
    refuse_precision(spec_in("f32"), on_gpu=False, flags=())
    refuse_precision(spec_in("f16"), on_gpu=True, flags=())
    refuse_precision(spec_in("int8", format="openvino"), on_gpu=False, flags=())
    for precision, on_gpu in (("f16", False), ("bf16", True), ("int8", False)):
        with pytest.raises(CannotRun):
            refuse_precision(spec_in(precision), on_gpu=on_gpu, flags={"amx_bf16"})  # type: ignore[arg-type]


def test_the_precision_is_always_said_as_a_cpu_with_bf16_would_take_that_by_itself() -> None:
    said = {
        name: properties_of(spec_in(name), "CPU", 2)["INFERENCE_PRECISION_HINT"] for name in ("f32", "bf16", "int8")
    }
    assert said == {"f32": "f32", "bf16": "bf16", "int8": "f32"}


def test_an_option_that_is_not_known_is_refused() -> None:
    refuse_precision(spec_in("f32", options={"EXECUTION_MODE_HINT": "ACCURACY"}), on_gpu=False, flags=())
    with pytest.raises(CannotRun, match="CACHE_DIR"):
        refuse_precision(spec_in("f32", options={"CACHE_DIR": "/"}), on_gpu=False, flags=())


# --- the compiled model that is kept --------------------------------------------------------------------------------


def test_a_model_that_was_compiled_before_is_not_read_again(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(logits=True), tmp_path / "model")
    package = bare(folder)
    first = opened(package, tmp_path)
    shutil.rmtree(folder)
    assert not warned(lambda: opened(package, tmp_path))
    images = noise(first, 5)
    assert np.array_equal(opened(package, tmp_path).infer(images), first.infer(images))
    with pytest.raises(ModelError):
        opened(replace(package, digest="sha256:other"), tmp_path)


@pytest.mark.parametrize("where", [0, 1_000, -200])
def test_a_damaged_one_is_made_anew_with_one_warning(tmp_path: Path, where: int) -> None:
    package = bare(tiny_model())
    expected = opened(package, tmp_path)
    (kept,) = (tmp_path / "openvino").iterdir()
    body = bytearray(kept.read_bytes())
    body[where] ^= 1
    kept.write_bytes(body)
    (line,) = warned(lambda: opened(package, tmp_path))
    assert "damaged" in line
    assert not warned(lambda: opened(package, tmp_path))
    images = noise(expected, 3)
    assert np.array_equal(opened(package, tmp_path).infer(images), expected.infer(images))


def test_where_it_cannot_be_kept_the_model_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "openvino").touch()  # a folder cannot be made here
    runtimes: list[OpenVinoRuntime] = []
    lines = warned(lambda: runtimes.append(opened(bare(tiny_model()), tmp_path)))
    assert any("cannot be kept" in line for line in lines)
    assert runtimes[0].infer(noise(runtimes[0], 2)).shape == (2, 10)


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    from consumer.adapters.runtimes.compiled_cache import keep_compiled, read_compiled

    for number in range(20):
        keep_compiled(tmp_path, f"{number:032x}", {}, b"body")
    assert len(list(tmp_path.iterdir())) == 16
    assert read_compiled(tmp_path, f"{19:032x}") == ({}, b"body")


# --- in a process of its own ----------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"XDG_CACHE_HOME": str(cache), "HOME": str(cache)},
    )


QUIET = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event.startswith("socket.") else None)
import threading
from pathlib import Path
import numpy as np
from loguru import logger
logger.remove()
from consumer import bootstrap_model
from consumer.settings import Settings
settings = Settings()
settings = settings.model_copy(update={"model": settings.model.model_copy(update={
    "source": sys.argv[1], "labels": sys.argv[2], "runtime": "openvino", "threads": 2})})
model = bootstrap_model.load_model(settings)
model.runtime.warm_up([1, 2, 4])
scores = model.runtime.infer(np.zeros((2, *model.runtime.input_size, 3), np.uint8))
unwanted = {"tensorflow", "keras", "torch", "openvino_telemetry", "wandb", "nncf"}
heavy = sorted(name for name in unwanted if sys.modules.get(name) is not None)
print(scores.shape, heavy, asked, threading.active_count(), sorted(path.name for path in Path.home().iterdir()))
"""


@pytest.fixture(scope="module")
def built() -> Path:
    """A user's cache in which the default model is."""
    cache = temporary_folder("ouzel-built-")
    default_model(cache / "ouzel", threads=2, device="cpu")
    return cache


@pytest.mark.parametrize("source", ["default", "tiny"])
def test_a_replicas_model_on_openvino_imports_no_tensorflow_and_asks_no_network(
    built: Path, source: str, tmp_path: Path
) -> None:
    classes = 1000
    if source == "tiny":
        (tmp_path / "labels.csv").write_text("".join(f"{index},class {index}\n" for index in range(10)))
        classes = 10
    arguments = (str(tiny_model()), str(tmp_path / "labels.csv")) if source == "tiny" else ("default", "")
    done = run_python(QUIET, *arguments, cache=built)
    assert done.stdout == f"(2, {classes}) [] [] 1 ['ouzel']\n", done.stderr
    assert done.stderr == ""


def test_a_missing_openvino_is_an_error_with_the_command(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["openvino"] = None
from pathlib import Path
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.kinds import kind_of, open_kind
from consumer.errors import CannotRun
try:
    package = open_bare(Path(sys.argv[1]), BareModel())
    open_kind(kind_of("openvino"), package, threads=1, device="cpu", cache=Path("."))
except CannotRun as error:
    print(error, "|", error.remedy)
"""
    done = run_python(code, str(tiny_model()), cache=tmp_path)
    assert done.stdout == "OpenVINO is not installed | pip install '.[openvino]'\n", done.stderr


def test_what_converts_may_be_imported_later_and_still_sends_nothing(tmp_path: Path) -> None:
    code = """
from consumer.adapters.runtimes.openvino_start import import_openvino
import_openvino()
from openvino.tools.ovc import convert_model
import sys
print(sys.modules["openvino_telemetry"], convert_model.__name__)
"""
    done = run_python(code, cache=tmp_path)
    assert done.stdout == "None convert_model\n", done.stderr
