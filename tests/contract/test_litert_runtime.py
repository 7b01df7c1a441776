"""LiteRT: `.tflite` files as others convert them, in float32 and quantised."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumer.adapters.models.describe import describe
from consumer.adapters.runtimes.litert_runtime import LiteRtRuntime, Quantisation, quantisation_of, quantised
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelPackage
from tests.contract.test_onnx_runtime import SHIFT, package_of
from tests.models import bare, tiny_file, tiny_model

pytestmark = pytest.mark.tensorflow


def litert_runtime(package: ModelPackage, *, device: str = "cpu") -> LiteRtRuntime:
    return LiteRtRuntime(package, threads=2, device=device, cache=Path("/nonexistent"))


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ({}, {}),
        ({}, SHIFT),
        ({"layout": "NCHW", "logits": True}, SHIFT),
        ({"dtype": "uint8"}, {}),
        ({"batch": 1}, {}),
        ({"batch": 4}, {}),
    ],
    ids=str,
)
def test_a_file_gives_what_its_saved_model_gives(
    pixels: npt.NDArray[np.uint8], options: dict[str, Any], image: dict[str, Any]
) -> None:
    described = {"input_range" if key == "range" else key: value for key, value in image.items()}
    source = bare(tiny_model(**{key: value for key, value in options.items() if key != "batch"}), **described)
    expected = TensorFlowRuntime(source, threads=2, device="cpu").infer(pixels)
    runtime = litert_runtime(package_of(tiny_file("tflite", **options), **image))
    assert runtime.infer(pixels) == pytest.approx(expected, abs=1e-5)
    assert (runtime.input_size, runtime.class_count) == ((32, 32), 10)


@pytest.mark.parametrize("logits", [False, True])
def test_whole_numbers_go_in_and_come_out_by_their_scales(pixels: npt.NDArray[np.uint8], logits: bool) -> None:
    expected = TensorFlowRuntime(bare(tiny_model(logits=logits)), threads=2, device="cpu").infer(pixels)
    found = []
    for dtype in ("int8", "uint8"):
        package = package_of(tiny_file("tflite", quantised=dtype, logits=logits))
        assert package.spec.input.dtype == dtype
        found.append(litert_runtime(package).infer(pixels))
        assert found[-1].dtype == np.float32
    # Eight bits move the scores of this random model by 0.07; a wrong scale, zero point or range by far more.
    assert np.abs(found[0] - expected).max() < 0.1
    assert (found[0].argmax(axis=1) == expected.argmax(axis=1)).all()
    assert found[1] == pytest.approx(found[0], abs=0.01)


def test_pixels_of_an_int8_model_are_shifted_by_128_where_its_range_is_that_of_its_numbers() -> None:
    by = Quantisation(2 / 255, -1)
    low, high = ((value - by.zero_point) * by.scale for value in (-128, 127))
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = quantised(InputSpec("x", "int8", "NHWC", 16, 16, (low, high)), by)(pixels)
    assert np.array_equal(found.astype(int), pixels.astype(int) - 128)


def test_another_range_is_rounded_and_cut_to_what_int8_holds() -> None:
    prepare = quantised(
        InputSpec("x", "int8", "NCHW", 1, 1, (0.0, 255.0), mean=(0.0, 127.0, 1000.0)), Quantisation(1.0, 0)
    )
    assert prepare(np.full((1, 1, 1, 3), 100, np.uint8)).ravel().tolist() == [100, -27, -128]


@pytest.mark.parametrize(
    ("dtype", "scales", "expected"),
    [
        (np.float32, [], None),
        (np.int8, [0.5], Quantisation(0.5, 3)),
        (np.uint8, [0.5], Quantisation(0.5, 3)),
    ],
)
def test_the_scale_of_a_tensor_is_read(dtype: Any, scales: list[float], expected: Quantisation | None) -> None:
    tensor = {
        "name": "x",
        "dtype": dtype,
        "quantization_parameters": {"scales": np.array(scales), "zero_points": np.full(len(scales), 3)},
    }
    assert quantisation_of(tensor) == expected


@pytest.mark.parametrize("scales", [[], [0.5, 0.25], [0.0]])
def test_whole_numbers_that_do_not_say_what_they_stand_for_are_refused(scales: list[float]) -> None:
    tensor = {
        "name": "scores",
        "dtype": np.int8,
        "quantization_parameters": {"scales": np.array(scales), "zero_points": np.zeros(len(scales))},
    }
    with pytest.raises(CannotRun, match="scores is int8 with"):
        quantisation_of(tensor)
    with pytest.raises(CannotRun, match="without a scale"):
        quantised(InputSpec("x", "int8", "NHWC", 1, 1), None)


def test_a_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    body = tiny_file("tflite").read_bytes()
    package = package_of(tiny_file("tflite"))
    for damaged in (b"", body[: len(body) // 4], b"x" * 1000):
        (tmp_path / "birds.tflite").write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be loaded"):
            describe(tmp_path / "birds.tflite")
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            litert_runtime(ModelPackage(package.spec, tmp_path, tmp_path / "birds.tflite", None, package.digest))
        assert "\n" not in str(caught.value)


def test_a_description_that_does_not_fit_the_file_is_refused() -> None:
    with pytest.raises(ModelError, match="the model does not run"):
        litert_runtime(package_of(tiny_file("tflite"), height=16))


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_half_precision_is_refused(precision: Any) -> None:
    with pytest.raises(CannotRun, match=precision):
        litert_runtime(package_of(tiny_file("tflite"), precision=precision))


def test_a_model_of_another_format_is_refused() -> None:
    with pytest.raises(CannotRun, match="this model is onnx"):
        litert_runtime(package_of(tiny_file("onnx")))


def test_a_gpu_is_not_its_device() -> None:
    with pytest.raises(DeviceMissing, match="gpu:0"):
        litert_runtime(package_of(tiny_file("tflite")), device="gpu:0")


def test_it_starts_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    litert_runtime(package_of(tiny_file("tflite", seed=9)))
    assert capfd.readouterr().err == ""


def test_a_closed_runtime_does_not_run(pixels: npt.NDArray[np.uint8]) -> None:
    runtime = litert_runtime(package_of(tiny_file("tflite")))
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.infer(pixels)
