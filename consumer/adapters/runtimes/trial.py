"""One runtime tried in a process of its own: `python -m consumer.adapters.runtimes.trial`.

A runtime that crashes or hangs then ends a trial and not the service, and TensorFlow's memory is gone with it. Child
and parent speak JSON, a line each way; the parent is `choose`.

    {"runtime": "openvino", "package": {...}, "threads": 2, ...}   -> {"scores": [[...], ...]}, or {"error": ...}
    {"seconds": 0.3}                                               -> {"images_per_s": 201.4}
    end of input                                                   -> it ends
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from consumer.errors import ModelError
from consumer.model_spec import ModelPackage, spec_from
from consumer.ports import ModelRuntime

_ROOT = Path(__file__).resolve().parents[3]
_PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "data" / "photographs"
# Below the service that runs beside it, where a new model is tried while another one is live.
_NICE = 5


class TrialFailed(Exception):
    """It could not be loaded or run, crashed, or did not come back; the text says which.

    `error` is the class's name of an error of ours, else empty; `remedy` is that error's.
    """

    def __init__(self, message: str, *, error: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.error, self.remedy = error, remedy


class Trial:
    """The parent's end. Ended by leaving the `with` block, whatever state the child is in."""

    def __init__(
        self,
        runtime: str,
        package: ModelPackage,
        *,
        threads: int,
        device: str,
        batch_size: int,
        cache: Path,
        deadline_s: float,
        streams: int = 0,
        child: str = f"{__name__}:main",
    ) -> None:
        """Start it; returns at once.

        `deadline_s` is what each answer may take. `child` is for tests: what is run in it, as `module:function`.
        """
        self._deadline_s = deadline_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        module, _, function = child.partition(":")
        start = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from {module} import {function} as run; run()"
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is not its; and what it starts ends with it
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("asked for pipes, and there are none")
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._asked = {
            "runtime": runtime,
            "package": _as_json(package),
            "threads": threads,
            "device": device,
            "batch_size": batch_size,
            "cache": str(cache),
            "streams": streams,
        }

    @property
    def pid(self) -> int:
        """The child's."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._questions, self._answers, self._said):
            with suppress(OSError):  # what was not written is not missed
                pipe.close()

    def load(self) -> npt.NDArray[np.float32]:
        """Load and warm the model; its scores for `sample_images`, float32 [N, C], in batches and then one by one.

        Raises:
            TrialFailed: see there.
        """
        return np.array(self._ask(self._asked)["scores"], np.float32)

    def measure(self, seconds: float) -> float:
        """Images/s in batches of the largest size, over about so many seconds. Raises TrialFailed."""
        return float(self._ask({"seconds": seconds})["images_per_s"])

    def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        late = threading.Event()
        with _after(self._deadline_s, late, self._kill):
            try:
                self._questions.write(json.dumps(question).encode() + b"\n")
                self._questions.flush()
                line = self._answers.readline()
            except OSError:
                line = b""
        if late.is_set():
            raise TrialFailed(f"no answer within {self._deadline_s:.0f} s")
        try:
            answer: Mapping[str, Any] = json.loads(line)
        except ValueError:
            raise TrialFailed(self._end()) from None
        if "error" in answer:
            raise TrialFailed(answer["said"], error=answer["error"], remedy=answer["remedy"])
        return answer

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> str:
        """How it ended, with the last line that it wrote."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {lines[-1][:300]}" if lines else how


@contextmanager
def _after(seconds: float, late: threading.Event, act: Any) -> Iterator[None]:
    def expire() -> None:
        late.set()
        act()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _as_json(package: ModelPackage) -> dict[str, Any]:
    return {
        "spec": asdict(package.spec),
        "folder": str(package.folder.resolve()),
        "files": str(package.files.resolve()),
        "digest": package.digest,
        "is_artifact": package.is_artifact,
    }


# --- the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer what stdin asks, on what was stdout: what libraries print there goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.nice(_NICE)
    serve(sys.stdin.buffer, answers)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """The child's loop."""
    from loguru import logger

    from consumer.adapters.runtimes.common import one_line

    def answer(said: Mapping[str, Any]) -> None:
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()

    logger.remove()  # the runtime says it again when it is chosen
    asked = json.loads(questions.readline())
    size: int = asked["batch_size"]
    try:
        runtime = _open(asked)
        runtime.warm_up([1, size])
        images = sample_images(*runtime.input_size)
        batches = [runtime.infer(_filled(images[at : at + size], size)) for at in range(0, len(images), size)]
        alone = [runtime.infer(image[None]) for image in images]
    except ModelError as error:
        answer({"error": type(error).__name__, "said": str(error), "remedy": error.remedy})
        return
    except Exception as error:  # whatever the runtime raises
        answer({"error": "", "said": one_line(error), "remedy": ""})
        return
    answer({"scores": np.concatenate([np.concatenate(batches)[: len(images)], *alone]).tolist()})
    batch = _filled(images, size)
    for line in questions:
        seconds, done, began_s = json.loads(line)["seconds"], 0, time.monotonic()
        while (took_s := time.monotonic() - began_s) < seconds or not done:
            runtime.infer(batch)
            done += size
        answer({"images_per_s": done / took_s})


def _open(asked: Mapping[str, Any]) -> ModelRuntime:
    from consumer.adapters.runtimes.kinds import kind_of, open_kind

    raw = asked["package"]
    package = ModelPackage(
        spec_from(raw["spec"]),
        Path(raw["folder"]),
        Path(raw["files"]),
        None,
        raw["digest"],
        is_artifact=raw["is_artifact"],
    )
    return open_kind(
        kind_of(asked["runtime"]),
        package,
        threads=asked["threads"],
        device=asked["device"],
        cache=Path(asked["cache"]),
        streams=asked["streams"],
    )


def sample_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Real photographs, and three test images: uint8 [N, height, width, 3]."""
    from consumer.adapters.image import PillowDecoder
    from consumer.adapters.runtimes.common import probe_images

    decoder = PillowDecoder((height, width))
    pictures = [decoder.decode(path.read_bytes()).pixels for path in sorted(_PHOTOGRAPHS.glob("*.jpg"))]
    return np.concatenate([np.stack(pictures), probe_images(height, width)])


def _filled(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """A batch of `size`: repeated or cut."""
    return np.resize(images, (size, *images.shape[1:]))


if __name__ == "__main__":
    main()
