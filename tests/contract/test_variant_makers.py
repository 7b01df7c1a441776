"""What each maker of variants must do: a model that its runtime runs, and that says nearly what the original says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumer.adapters.image import PillowDecoder
from consumer.adapters.optimize import kinds
from consumer.adapters.optimize.making import Made, Task
from consumer.adapters.optimize.pruned import is_kernel, pruned
from consumer.adapters.runtimes.kinds import kind_of, open_kind
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import CannotRun
from consumer.model_spec import ModelPackage
from tests.models import bare, save_model, tiny_model
from tests.photographs import write_crops

pytestmark = pytest.mark.tensorflow

SHIFTED: dict[str, Any] = {"input_range": (-1.0, 1.0), "mean": (0.1, 0.0, -0.1), "std": (1.2, 1.0, 0.9)}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    """Crops of the photographs, uint8 [16, 32, 32, 3]."""
    decoder = PillowDecoder((32, 32))
    folder = write_crops(tmp_path_factory.mktemp("crops"), each=4)
    return np.stack([decoder.decode(path.read_bytes()).pixels for path in sorted(folder.glob("*.jpg"))])


def task(package: ModelPackage, folder: Path, pixels: npt.NDArray[np.uint8], **more: Any) -> Task:
    return Task(package, folder, list(pixels), threads=2, **more)


def scores_of(package: ModelPackage, made: Made, pixels: npt.NDArray[np.uint8], cache: Path) -> npt.NDArray[np.float32]:
    spec = replace(
        package.spec,
        format=made.format,
        input=made.input,
        output=made.output,
        precision=made.precision,
        signature=made.signature,
    )
    variant = ModelPackage(spec, made.files.parent, made.files, None, "sha256:" + "5" * 64)
    kind = kind_of(made.runtime or "tensorflow")
    runtime = open_kind(kind, variant, threads=2, device="cpu", cache=cache)
    try:
        return runtime.infer(pixels)
    finally:
        runtime.close()


def original_scores(package: ModelPackage, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return TensorFlowRuntime(package, threads=2, device="cpu").infer(pixels)


@pytest.mark.parametrize(
    ("kind", "model", "described"),
    [
        ("openvino-int8", {}, {}),
        ("openvino-int8", {"layout": "NCHW", "logits": True}, SHIFTED),
        ("litert-int8", {"logits": True}, SHIFTED),
    ],
)
def test_a_variant_says_nearly_what_its_original_says(
    tmp_path: Path, pixels: npt.NDArray[np.uint8], kind: str, model: dict[str, Any], described: dict[str, Any]
) -> None:
    package = bare(tiny_model(**model), **described)
    told: list[int] = []
    work = tmp_path / "work"
    work.mkdir()
    (made,) = kinds.KINDS[kind].make(task(package, work, pixels, tell=told.append))
    assert made.files.is_relative_to(work)
    assert (made.name, made.output.classes) == (kind, 10)
    assert made.output.kind == ("logits" if "logits" in model else "probabilities")
    assert made.precision == "int8"
    assert made.tools
    assert sum(told) >= len(pixels)
    expected = original_scores(package, pixels)
    found = scores_of(package, made, pixels, tmp_path)
    assert np.abs(found - expected).mean() < 0.02
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.8
    assert not np.array_equal(found, expected)  # it does compute in whole numbers


def test_a_bf16_variant_for_openvino_keeps_its_weights(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    package = bare(tiny_model())
    (made,) = kinds.KINDS["openvino-bf16"].make(task(package, tmp_path, pixels))
    assert (made.precision, made.runtime, made.format) == ("bf16", "openvino", "openvino")
    # In float32, as no CPU here is known to have bf16.
    found = scores_of(package, replace(made, precision="f32"), pixels, tmp_path)
    assert found == pytest.approx(original_scores(package, pixels), abs=1e-4)


def test_a_bf16_variant_for_tensorflow_is_the_same_model(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    package = bare(tiny_model())
    (made,) = kinds.KINDS["tf-bf16"].make(task(package, tmp_path, pixels))
    assert (made.precision, made.runtime, made.format) == ("bf16", "tensorflow", "saved_model")
    found = scores_of(package, replace(made, precision="f32"), pixels, tmp_path)
    assert np.array_equal(found, original_scores(package, pixels))


def test_float16_weights_take_half_the_room_and_say_nearly_the_same(
    tmp_path: Path, pixels: npt.NDArray[np.uint8]
) -> None:
    import onnxruntime

    package = bare(tiny_model())
    (made,) = kinds.KINDS["fp16"].make(task(package, tmp_path, pixels))
    assert (made.precision, made.runtime, dict(made.options)) == ("f16", "onnxruntime", {"provider": "cuda"})
    # ONNX Runtime's CPU provider runs such a file, in float32 where it has no float16; its gate is a GPU's.
    session = onnxruntime.InferenceSession(str(made.files), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    assert found.dtype == np.float32
    assert found == pytest.approx(original_scores(package, pixels), abs=0.02)


def test_pruning_zeroes_the_smallest_weights_at_each_level(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    package = bare(tiny_model())
    made = list(kinds.KINDS["pruned"].make(task(package, tmp_path, pixels, levels=[0.1, 0.9])))
    assert [each.name for each in made] == ["pruned-10", "pruned-90"]
    assert made[0].notes["zeros_in_all"] < 0.2 < 0.7 < made[1].notes["zeros_in_all"]
    expected = original_scores(package, pixels)
    shifts = [np.abs(scores_of(package, each, pixels, tmp_path) - expected).max() for each in made]
    assert 0 < shifts[0] < shifts[1]
    assert (made[0].files / "saved_model.pb").read_bytes() == (package.files / "saved_model.pb").read_bytes()


def test_a_model_whose_weights_are_constants_cannot_be_pruned(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    import tensorflow as tf

    image = tf.TensorSpec([None, 32, 32, 3], tf.float32, name="images")

    @tf.function(input_signature=[image], autograph=False)  # type: ignore[untyped-decorator]
    def classify(images: Any) -> dict[str, Any]:
        return {"scores": tf.nn.softmax(tf.reduce_mean(images, axis=(1, 2)) @ tf.ones((3, 10)))}

    save_model(tmp_path / "frozen", {"serving_default": classify}, [])
    with pytest.raises(CannotRun, match="constants of its graph"):
        list(kinds.KINDS["pruned"].make(task(bare(tmp_path / "frozen"), tmp_path / "made", pixels, levels=[0.5])))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 8, 16), True),
        ((384, 1, 1, 64), True),  # [out, kh, kw, in]
        ((1, 1, 64, 384), True),  # [kh, kw, in, out]
        ((1280, 965), True),
        ((3, 3, 384, 1), False),  # depthwise, TensorFlow's
        ((1, 3, 3, 384), False),  # depthwise, TensorFlow Lite's
        ((3, 3, 3, 32), False),  # the first layer
        ((384,), False),
        ((1, 384), False),
    ],
)
def test_kernels_are_told_from_depthwise_ones_in_every_layout(shape: tuple[int, ...], *, expected: bool) -> None:
    assert is_kernel(np.zeros(shape, np.float32)) is expected
    assert not is_kernel(np.zeros(shape, np.int64))


def test_the_smallest_by_magnitude_become_zero() -> None:
    kernel = np.array([[-3.0, 0.5], [0.1, -2.0]], np.float32)
    assert pruned(kernel, 0.5).tolist() == [[-3.0, 0.0], [0.0, -2.0]]
    assert pruned(kernel, 0.1).tolist() == kernel.tolist()


# --- what cannot be made --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return bare(tiny_model())


@pytest.mark.parametrize("kind", ["openvino-bf16", "tf-bf16"])
def test_bf16_is_refused_where_the_cpu_has_it_not(package: ModelPackage, kind: str) -> None:
    with pytest.raises(CannotRun, match="amx_bf16 or avx512_bf16"):
        kinds.refuse(kind, package, cpu_flags={"avx2", "avx512f"})
    kinds.refuse(kind, package, cpu_flags={"avx512_bf16"})


@pytest.mark.parametrize(("kind", "provider"), [("fp16", "CUDA"), ("tensorrt", "Tensorrt")])
def test_variants_for_a_gpu_are_refused_where_there_is_none(package: ModelPackage, kind: str, provider: str) -> None:
    import onnxruntime

    assert f"{provider}ExecutionProvider" not in onnxruntime.get_available_providers()
    with pytest.raises(CannotRun, match=f"{provider}ExecutionProvider on a GPU") as raised:
        kinds.refuse(kind, package, cpu_flags=set())
    assert "onnxruntime-gpu" in raised.value.remedy


def test_a_variant_is_not_made_of_a_variant(package: ModelPackage) -> None:
    spec = replace(package.spec, precision="int8", gate="accepted", parent="sha256:1234")
    with pytest.raises(CannotRun, match="a variant itself") as raised:
        kinds.refuse("onnx", replace(package, spec=spec), cpu_flags=set())
    assert "sha256:1234" in raised.value.remedy


def test_what_is_made_of_savedmodels_is_not_made_of_another_format(package: ModelPackage) -> None:
    spec = replace(package.spec, format="onnx")
    with pytest.raises(CannotRun, match="litert-int8 is made of saved_model"):
        kinds.refuse("litert-int8", replace(package, spec=spec), cpu_flags=set())
    kinds.refuse("openvino-int8", replace(package, spec=spec), cpu_flags=set())


def test_what_is_not_installed_is_named_with_its_extra(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "missing", lambda *modules: [each for each in modules if each == "nncf"])
    with pytest.raises(CannotRun, match="nncf: not installed") as raised:
        kinds.refuse("openvino-int8", package, cpu_flags=set())
    assert raised.value.remedy == "pip install '.[optimize]'"


def test_every_kind_of_the_command_has_a_maker() -> None:
    from consumer.commands.model.optimize import Kind

    assert {kind.value for kind in Kind} == set(kinds.KINDS)
