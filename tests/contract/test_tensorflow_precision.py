"""TensorFlow in half precision: where it is refused, and that the graph is rewritten where it is not.

The machine that these were written on has no bf16 and no GPU: that the rewritten graph is fast, or even runs where it
should, has not been seen.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from consumer.adapters.cpu_flags import cpu_flags
from consumer.adapters.runtimes.tensorflow_runtime import TensorFlowRuntime, refuse_precision
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun
from consumer.model_spec import Precision
from tests.models import bare, tiny_model

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
PLAIN = frozenset({"avx2", "avx512f", "avx512_vnni"})


@pytest.mark.parametrize(
    ("precision", "on_gpu", "flags"),
    [
        ("f32", False, PLAIN),
        ("f32", True, PLAIN),
        ("bf16", False, PLAIN | {"avx512_bf16"}),
        ("bf16", False, PLAIN | {"amx_bf16"}),
        ("f16", True, PLAIN),
    ],
)
def test_what_it_computes_in_well_is_allowed(precision: Precision, on_gpu: bool, flags: frozenset[str]) -> None:
    refuse_precision(precision, on_gpu=on_gpu, flags=flags)


def test_float32_is_float32_also_where_a_gpu_would_take_tf32() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(True)
    start_tensorflow(threads=2, device="cpu")
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(
    ("precision", "on_gpu", "words"),
    [
        ("bf16", False, "bf16 needs a CPU with amx_bf16 or avx512_bf16"),
        ("bf16", True, "on CPUs only"),
        ("f16", False, "on GPUs only"),
        ("int8", False, "does not run models in int8"),
        ("int8", True, "does not run models in int8"),
    ],
)
def test_what_it_does_not_compute_in_or_slowly_is_refused(precision: Precision, on_gpu: bool, words: str) -> None:
    with pytest.raises(CannotRun, match=words) as caught:
        refuse_precision(precision, on_gpu=on_gpu, flags=PLAIN)
    assert caught.value.remedy


def test_a_runtime_refuses_before_it_loads() -> None:
    package = bare(tiny_model())
    with pytest.raises(CannotRun, match="int8"):
        TensorFlowRuntime(replace(package, spec=replace(package.spec, precision="int8")), threads=2, device="cpu")


def test_a_graph_that_was_left_as_it_was_is_no_variant() -> None:
    # No GPU: the rewriting to f16 finds nothing that it may touch.
    code = """
import sys
from pathlib import Path
from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.tensorflow_graph import frozen, in_precision, serving_graph
from consumer.adapters.runtimes.tensorflow_start import start_tensorflow
from consumer.errors import CannotRun
tf, _ = start_tensorflow(threads=2, device="cpu")
function = frozen(serving_graph(tf, open_bare(Path(sys.argv[1]), BareModel())))
try:
    in_precision(tf, function, "f16")
except CannotRun as error:
    print(error)
rewritten = in_precision(tf, function, "bf16")
kinds = {node.name: node.attr["T"].type for node in rewritten.graph.as_graph_def().node if node.op == "Conv2D"}
print(sorted(kinds.values()), rewritten.inputs[0].dtype.name, rewritten.outputs[0].dtype.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model())],
        cwd=ROOT,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"},  # as TensorFlow has it by itself on CPUs with bf16
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == ("TensorFlow computes none of this model in f16 here\n[14, 14] uint8 float32\n"), done.stderr


def test_flags_are_read_as_linux_writes_them() -> None:
    assert cpu_flags("processor\t: 0\nflags\t\t: fpu avx2\nbugs\t\t: x\nflags\t\t: other\n") == {"fpu", "avx2"}
    assert cpu_flags("Features\t: asimd bf16\n") == {"asimd", "bf16"}
    assert cpu_flags("") == frozenset()
    assert cpu_flags() == cpu_flags(Path("/proc/cpuinfo").read_text())
