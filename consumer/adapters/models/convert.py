"""Converts a SavedModel once for a runtime of another format, in a child process, so that the service itself never
imports TensorFlow. The result is kept in the cache, by the model's digest, with its hash; a damaged one is made anew.

What is converted is not the bare model but the whole way from uint8 pixels to probabilities, as TensorFlow serves it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from loguru import logger

from consumer.adapters.disk_full import is_full
from consumer.adapters.model_digest import file_sha256
from consumer.errors import CacheFull, CannotRun, ModelError
from consumer.extras import missing
from consumer.model_spec import ModelPackage, spec_from

if TYPE_CHECKING:
    from consumer.adapters.runtimes.tensorflow_graph import ServingGraph

Target = Literal["onnx", "tflite"]
# Raised when what is made changes.
_RECIPE = 1
_MADE = "made.json"
_DEADLINE_S = 900
_OPSET = 18
_NEEDS: Mapping[Target, tuple[tuple[str, ...], str]] = {
    "onnx": (("tensorflow", "tf2onnx", "onnx"), "pip install '.[tensorflow,optimize]'"),
    "tflite": (("tensorflow",), "pip install '.[tensorflow]'"),
}


@dataclass(frozen=True, slots=True)
class Converted:
    """A model file that takes uint8 [N, H, W, 3] pixels and gives float32 [N, C] probabilities."""

    file: Path
    classes: int
    gives: str
    """What the SavedModel itself gives."""


def converted(package: ModelPackage, target: Target, *, cache: Path, threads: int) -> Converted:
    """The SavedModel as `target`, from the cache or made now, which takes some seconds.

    Safe with several processes at once: each makes its own, and one rename makes it visible.

    Raises:
        CannotRun: it cannot be converted, or what converts it is not installed.
        CacheFull: the disk has no room for it.
        ModelError: the SavedModel is broken, or the cache cannot be written.
    """
    hexadecimal = package.digest.removeprefix("sha256:")
    folder = cache / "converted" / f"{hexadecimal}-{target}-{_RECIPE}"
    found = _whole(folder, target)
    if found is None:
        needs, remedy = _NEEDS[target]
        if absent := missing(*needs):
            raise CannotRun(
                f"{', '.join(absent)}: not installed, and a SavedModel has to be converted to {target} first",
                remedy=f"{remedy} here, or once on another machine and bring {folder} along",
            )
        try:
            found = _make(package, target, folder, threads)
        except OSError as error:
            raise (CacheFull if is_full(error) else ModelError)(
                f"the converted model cannot be written below {cache}: {error}",
                remedy="set XDG_CACHE_HOME to a folder that can be written, with room for the model",
            ) from error
    return found


def _whole(folder: Path, target: Target) -> Converted | None:
    """What lies there; None where there is nothing, or not with the bytes that were written."""
    file = folder / f"model.{target}"
    try:
        made = json.loads((folder / _MADE).read_text())
        if made["sha256"] == file_sha256(file):
            return Converted(file, int(made["classes"]), str(made["gives"]))
    except FileNotFoundError:
        if not folder.exists():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    logger.warning("the converted model in {} is damaged and is made anew", folder)
    return None


def _make(package: ModelPackage, target: Target, folder: Path, threads: int) -> Converted:
    logger.info("converting {} to {}, once, into {}", package.spec.name, target, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _in_a_child(package, target, made / f"model.{target}", threads)
        for path in made.iterdir():
            path.chmod(0o444)  # nothing has cause to write there again
        if folder.exists() and _whole(folder, target) is None:
            folder.rename(Path(scratch) / "damaged")
        try:
            made.rename(folder)
        except OSError:
            if _whole(folder, target) is None:  # else another process was faster, and its result is as good
                raise
    found = _whole(folder, target)
    if found is None:
        raise ModelError(f"{folder}: damaged as soon as it was written", remedy="check the disk")
    return found


def _in_a_child(package: ModelPackage, target: Target, output: Path, threads: int) -> None:
    asked = {
        "files": str(package.files.resolve()),
        "spec": asdict(package.spec),
        "target": target,
        "output": str(output.resolve()),
        "threads": threads,
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", __name__],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(
            f"{package.spec.name} was not converted to {target} within {_DEADLINE_S} s",
            remedy='set model.runtime = "tensorflow"',
        ) from None
    if done.returncode == ModelError.exit_code:
        said = json.loads(done.stdout.splitlines()[-1])
        if "errno" in said:
            raise OSError(said["errno"], os.strerror(said["errno"]))
        raise (CannotRun if said["cannot_run"] else ModelError)(said["message"], remedy=said["remedy"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CannotRun(
            f"{package.spec.name} cannot be converted to {target}: {last[:500]}",
            remedy='set model.runtime = "tensorflow"',
        )


# --- the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Convert what stdin asks for; on failure, say why on stdout's last line."""
    asked = json.load(sys.stdin)
    spec = spec_from(asked["spec"])
    files = Path(asked["files"])
    package = ModelPackage(spec, files, files, None, "")
    try:
        convert(package, asked["target"], Path(asked["output"]), threads=asked["threads"])
    except ModelError as error:
        _fail(message=str(error), remedy=error.remedy, cannot_run=isinstance(error, CannotRun))
    except OSError as error:
        if not is_full(error):
            raise
        _fail(errno=error.errno)


def _fail(**said: object) -> NoReturn:
    sys.stdout.write("\n" + json.dumps(said) + "\n")
    raise SystemExit(ModelError.exit_code)


def convert(package: ModelPackage, target: Target, output: Path, *, threads: int) -> None:
    """Write the model to `output`, and beside it what is known of it. Imports TensorFlow.

    Raises:
        ModelError: the SavedModel is broken.
        CannotRun: it has something that `target` has not.
    """
    from consumer.adapters.runtimes.common import one_line
    from consumer.adapters.runtimes.tensorflow_graph import frozen, serving_graph
    from consumer.adapters.runtimes.tensorflow_start import start_tensorflow

    tf, device = start_tensorflow(threads=threads, device="cpu")
    with tf.device(device):
        graph = serving_graph(tf, package)
        try:
            body = _onnx(frozen(graph)) if target == "onnx" else _tflite(tf, graph)
        except Exception as error:  # whatever converters raise
            reason = str(error) if isinstance(error, CannotRun) else one_line(error)
            raise CannotRun(
                f"{package.spec.name} cannot be converted to {target}: {reason}",
                remedy='set model.runtime = "tensorflow"',
            ) from error
    output.write_bytes(body)
    made = {"sha256": file_sha256(output), "classes": graph.classes, "gives": graph.gives}
    (output.parent / _MADE).write_text(json.dumps(made))


def _onnx(function: Any) -> bytes:
    import tf2onnx

    model, _ = tf2onnx.convert.from_graph_def(
        function.graph.as_graph_def(),
        input_names=[function.inputs[0].name],
        output_names=[function.outputs[0].name],
        opset=_OPSET,
    )
    body: bytes = model.SerializeToString()
    return body


def _tflite(tf: Any, graph: "ServingGraph") -> bytes:
    body: bytes = tf.lite.TFLiteConverter.from_concrete_functions([graph.function], graph.loaded).convert()
    return body


if __name__ == "__main__":
    main()
