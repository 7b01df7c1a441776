"""`auto` for real: every runtime that is installed tried with a small model."""

import sys
from pathlib import Path

import pytest

from consumer.adapters.models.package import BareModel, open_bare
from consumer.adapters.runtimes.choose import choose_runtime
from consumer.adapters.runtimes.kinds import candidates
from tests.models import tiny_model

pytestmark = pytest.mark.tensorflow


def test_all_that_are_installed_are_tried_and_agree(tmp_path: Path) -> None:
    package = open_bare(tiny_model(), BareModel())
    names = {kind.title for kind in candidates(package)}
    assert {"OpenVINO", "TensorFlow"} <= names
    modules = set(sys.modules)
    choice = choose_runtime(package, threads=1, device="cpu", batch_size=4, cache=tmp_path)
    for name in names:
        assert f"{name}: " in choice.why
        assert f"not {name}" not in choice.why, choice.why
    assert not {name for name in set(sys.modules) - modules if name.startswith(("openvino", "onnxruntime"))}
    again = choose_runtime(package, threads=1, device="cpu", batch_size=4, cache=tmp_path)
    assert (again.runtime, again.why) == (choice.runtime, f"{choice.why} (remembered)")
