"""ONNX Runtime: `.onnx` files as others export them, and which of its providers is taken."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumer.adapters.models.describe import describe
from consumer.adapters.runtimes.common import in_pieces, preparation, softmax
from consumer.adapters.runtimes.onnx_runtime import (
    OnnxRuntime,
    choose_providers,
    load_libraries,
    make_ready,
    refuse_fallback,
)
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime
from consumer.errors import CannotRun, DeviceMissing, ModelError
from consumer.model_spec import InputSpec, ModelPackage, ModelSpec, Precision
from tests.models import bare, tiny_file, tiny_model

pytestmark = pytest.mark.tensorflow

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHIFT: dict[str, Any] = {"range": (-1.0, 1.0), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


def package_of(file: Path, *, precision: Precision = "f32", kind: str = "auto", **image: Any) -> ModelPackage:
    from dataclasses import replace

    found = describe(file)
    spec = ModelSpec(
        name="birds",
        version="1",
        format=found.format,
        input=replace(found.input, **image),
        output=replace(found.output, kind=kind),  # type: ignore[arg-type]
        precision=precision,
    )
    return ModelPackage(spec, file, file, None, "sha256:" + "0" * 64)


def onnx_runtime(package: ModelPackage, *, device: str = "cpu") -> OnnxRuntime:
    return OnnxRuntime(package, threads=2, device=device, cache=Path("/nonexistent"))


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ({}, {}),
        ({}, SHIFT),
        ({"layout": "NCHW", "logits": True}, {}),
        ({"layout": "NCHW", "logits": True}, SHIFT),
        ({"dtype": "uint8"}, {}),
        ({"dtype": "uint8", "layout": "NCHW"}, {}),
        ({"dtype": "float16"}, {}),
        ({"batch": 1}, {}),
        ({"batch": 4, "layout": "NCHW"}, SHIFT),
    ],
    ids=str,
)
def test_a_file_gives_what_its_saved_model_gives(
    pixels: npt.NDArray[np.uint8], options: dict[str, Any], image: dict[str, Any]
) -> None:
    described = {"input_range" if key == "range" else key: value for key, value in image.items()}
    source = bare(tiny_model(**{key: value for key, value in options.items() if key != "batch"}), **described)
    expected = TensorFlowRuntime(source, threads=2, device="cpu").infer(pixels)
    runtime = onnx_runtime(package_of(tiny_file("onnx", **options), **image))
    tolerance = 1e-3 if options.get("dtype") == "float16" else 1e-5
    assert runtime.infer(pixels) == pytest.approx(expected, abs=tolerance)
    assert (runtime.input_size, runtime.class_count) == ((32, 32), 10)


def test_a_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    body = tiny_file("onnx").read_bytes()
    package = package_of(tiny_file("onnx"))
    for damaged in (b"", body[: len(body) // 2], b"x" * 1000):
        (tmp_path / "birds.onnx").write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be read"):
            describe(tmp_path / "birds.onnx")
        broken = ModelPackage(package.spec, tmp_path, tmp_path / "birds.onnx", None, package.digest)
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            onnx_runtime(broken)
        assert "\n" not in str(caught.value)


def test_a_description_that_does_not_fit_the_file_is_refused() -> None:
    with pytest.raises(ModelError, match="the model does not run"):
        onnx_runtime(package_of(tiny_file("onnx"), height=16))


def test_a_model_of_another_format_is_refused() -> None:
    with pytest.raises(CannotRun, match="this model is tflite"):
        onnx_runtime(package_of(tiny_file("tflite")))


def test_a_closed_runtime_does_not_run(pixels: npt.NDArray[np.uint8]) -> None:
    runtime = onnx_runtime(package_of(tiny_file("onnx")))
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.infer(pixels)


# --- providers: chosen, and not run, where there is no GPU ----------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "available", "precision", "expected"),
    [
        ("cpu", [CPU], "f32", [CPU]),
        ("auto", [CPU], "f32", [CPU]),
        ("cpu", [TENSORRT, CUDA, CPU], "f32", [CPU]),
        ("auto", [CPU, CUDA], "f32", [CUDA, CPU]),
        ("auto", [CPU, CUDA, TENSORRT], "f32", [TENSORRT, CUDA, CPU]),
        ("gpu:1", ["AzureExecutionProvider", CUDA, CPU], "f32", [CUDA, CPU]),
        ("gpu:0", [TENSORRT, CUDA, CPU], "f16", [TENSORRT, CUDA, CPU]),
        ("cpu", [CPU], "int8", [CPU]),
    ],
)
def test_the_fastest_provider_that_is_there_comes_first(
    tmp_path: Path, device: str, available: list[str], precision: Precision, expected: list[str]
) -> None:
    assert [name for name, _ in choose_providers(device, available, precision, engines=tmp_path)] == expected


def test_providers_are_told_the_device_and_tensorrt_where_its_engines_are(tmp_path: Path) -> None:
    chosen = dict(choose_providers("gpu:2", [TENSORRT, CUDA, CPU], "f32", engines=tmp_path))
    assert chosen[CUDA] == {"device_id": "2", "use_tf32": "0"}
    assert chosen[TENSORRT] == {
        "device_id": "2",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_fp16_enable": "False",
    }
    half = dict(choose_providers("auto", [TENSORRT, CPU], "f16", engines=tmp_path))
    assert half[TENSORRT]["trt_fp16_enable"] == "True"


def test_what_tensorrt_needs_beside_its_options_is_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    make_ready(choose_providers("auto", [CUDA, CPU], "f32", engines=tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    make_ready(choose_providers("auto", [TENSORRT, CPU], "f32", engines=tmp_path / "b" / "c"))
    assert (tmp_path / "b" / "c").is_dir()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="engines cannot be kept") as caught:
        make_ready(choose_providers("auto", [TENSORRT, CPU], "f32", engines=tmp_path / "file" / "d"))
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_cudas_libraries_are_loaded_for_a_gpu_and_what_is_said_of_them_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnnxRuntimeModule:
        loaded = 0

        def preload_dlls(self) -> None:
            self.loaded += 1
            print("Failed to load libcudart.so.13")

    module = OnnxRuntimeModule()
    load_libraries(module, choose_providers("cpu", [CUDA, CPU], "f32", engines=tmp_path))
    assert module.loaded == 0
    load_libraries(module, choose_providers("auto", [CUDA, CPU], "f32", engines=tmp_path))
    load_libraries(module, choose_providers("gpu:0", [TENSORRT, CPU], "f32", engines=tmp_path))
    assert module.loaded == 2
    assert capsys.readouterr().out == ""


def test_a_provider_that_fails_at_its_start_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    started = onnxruntime.InferenceSession

    def printing(*arguments: Any, **named: Any) -> Any:
        print("EP Error: install TensorRT")
        return started(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", printing)
    package = package_of(tiny_file("onnx"))
    capsys.readouterr()  # of what made it
    onnx_runtime(package).close()
    assert capsys.readouterr().out == ""


def test_on_a_gpu_every_batch_is_filled_up_to_the_largest_that_was_warmed(pixels: npt.NDArray[np.uint8]) -> None:
    runtime = onnx_runtime(package_of(tiny_file("onnx")))
    expected = runtime.infer(pixels)
    sizes: list[int] = []
    run = runtime._run

    def noting(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sizes.append(len(images))
        return run(images)

    runtime._run = noting  # type: ignore[method-assign]
    runtime._on_gpu = True
    runtime.warm_up([1, 2, 4])
    np.testing.assert_allclose(runtime.infer(pixels), expected, atol=1e-6)
    assert set(sizes) == {4}


@pytest.fixture
def seeming_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says that it has the providers of a GPU; it starts none of them here, and goes on with the CPU."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_each_model_has_its_own_folder_of_engines(tmp_path: Path, seeming_gpu: None) -> None:
    from dataclasses import replace

    package = package_of(tiny_file("onnx"))
    for digest in ("sha256:ab", "sha256:cd"):
        OnnxRuntime(replace(package, digest=digest), threads=1, device="auto", cache=tmp_path)
    assert sorted(path.name for path in (tmp_path / "tensorrt").iterdir()) == ["ab", "cd"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(("provider", "title"), [("cuda", "CUDA"), ("tensorrt", "TensorRT"), ("", "TensorRT")])
def test_a_variant_in_half_precision_asks_for_the_provider_that_it_was_made_for(
    tmp_path: Path, seeming_gpu: None, provider: str, title: str
) -> None:
    from dataclasses import replace

    package = package_of(tiny_file("onnx"), precision="f16")
    variant = replace(package, spec=replace(package.spec, options={"provider": provider}))
    with pytest.raises(CannotRun, match=f"cannot start {title}"):
        OnnxRuntime(variant, threads=1, device="auto", cache=tmp_path)


@pytest.mark.parametrize(
    ("made_for", "expected"), [("cuda", [CUDA, CPU]), ("tensorrt", [TENSORRT, CUDA, CPU]), ("", [TENSORRT, CUDA, CPU])]
)
def test_a_variant_runs_on_the_provider_that_it_was_gated_on(
    tmp_path: Path, made_for: str, expected: list[str]
) -> None:
    chosen = choose_providers("auto", [TENSORRT, CUDA, CPU], "f16", engines=tmp_path, made_for=made_for)
    assert [name for name, _ in chosen] == expected


def test_weights_in_half_precision_need_no_tensorrt_but_a_gpu(tmp_path: Path) -> None:
    chosen = choose_providers("auto", [CUDA, CPU], "f16", engines=tmp_path, made_for="cuda")
    assert [name for name, _ in chosen] == [CUDA, CPU]
    with pytest.raises(CannotRun, match="CUDAExecutionProvider"):
        choose_providers("auto", [CPU], "f16", engines=tmp_path, made_for="cuda")


@pytest.mark.parametrize(
    ("device", "available", "precision"),
    [
        ("cpu", [TENSORRT, CUDA, CPU], "f16"),
        ("auto", [CPU], "f16"),
        ("gpu:0", [CUDA, CPU], "f16"),
        ("auto", [TENSORRT, CUDA, CPU], "bf16"),
    ],
)
def test_a_precision_that_no_provider_computes_in_is_refused(
    tmp_path: Path, device: str, available: list[str], precision: Precision
) -> None:
    with pytest.raises(CannotRun, match=precision):
        choose_providers(device, available, precision, engines=tmp_path)


@pytest.mark.parametrize("device", ["tpu", "gpu", "gpu:first", ""])
def test_a_device_that_is_unknown_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ModelError, match="unknown"):
        choose_providers(device, [CPU], "f32", engines=tmp_path)


def test_a_gpu_that_is_asked_for_and_not_there_says_so() -> None:
    with pytest.raises(DeviceMissing, match="gpu:0") as caught:
        onnx_runtime(package_of(tiny_file("onnx")), device="gpu:0")
    assert "onnxruntime-gpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("providers", "device", "precision", "error"),
    [
        ([CPU], "gpu:0", "f32", DeviceMissing),
        ([CUDA, CPU], "gpu:0", "f16", CannotRun),
        ([CPU], "auto", "f16", CannotRun),
    ],
)
def test_a_provider_that_did_not_start_is_noticed(
    providers: list[str], device: str, precision: Precision, error: type[ModelError]
) -> None:
    with pytest.raises(error) as caught:
        refuse_fallback(providers, device, precision)
    assert caught.value.remedy


def test_what_started_is_taken() -> None:
    refuse_fallback([CPU], "auto", "f32")
    refuse_fallback([CUDA, CPU], "gpu:0", "f32")
    refuse_fallback([TENSORRT, CUDA, CPU], "gpu:0", "f16")
    refuse_fallback([CUDA, CPU], "gpu:0", "f16", made_for="cuda")


def test_a_variant_made_for_cuda_does_not_run_where_cuda_did_not_start() -> None:
    with pytest.raises(CannotRun, match="cannot start CUDA"):
        refuse_fallback([CPU], "auto", "f16", made_for="cuda")


# --- what this and LiteRT's do in NumPy -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_are_prepared_as_they_are_said_to_be(layout: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    image = InputSpec("x", "float32", layout, 4, 6, (-1.0, 1.0), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    expected = (pixels / 255.0 * 2 - 1 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    found = preparation(image)(pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found == pytest.approx(expected if layout == "NHWC" else expected.transpose(0, 3, 1, 2), abs=1e-5)


def test_a_type_that_numpy_has_not_is_refused() -> None:
    with pytest.raises(CannotRun, match="bfloat16"):
        preparation(InputSpec("x", "bfloat16", "NHWC", 4, 6))


def test_pieces_are_filled_up_and_the_filling_is_cut_off() -> None:
    asked: list[list[int]] = []

    def run(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        asked.append(images.tolist())
        return images * 10

    assert in_pieces(run, np.arange(5), 2).tolist() == [0, 10, 20, 30, 40]
    assert asked == [[0, 1], [2, 3], [4, 4]]


def test_a_softmax_of_large_logits_is_no_overflow() -> None:
    scores = softmax(np.array([[1000.0, 1000.0, -1000.0], [0.0, 0.0, 0.0]], np.float32))
    assert scores == pytest.approx(np.array([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
