"""A model's versions in Weights & Biases: an artifact's collection in a project, or in a registry of the organisation.

Questions are asked by a child process (`wandb_child`) that is killed with all it started at a deadline: the client has
requests without a time-out, and can hang at its exit. The key goes to the child through a pipe: neither the command
line nor the environment of a process shows it. Of our own environment the child has what it needs, and no secret of
others.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from consumer.adapters.child_start import wandb_environment
from consumer.adapters.models.manifest import verify
from consumer.adapters.models.model_file import read_model_file
from consumer.adapters.registries.layout import check_alias
from consumer.errors import ModelNotFound, ModelsUnavailable, NotAuthorized
from consumer.ports import BytesMoved, ModelVersion

_START_S = 60.0
"""To load the client and before it asks anybody: what this machine takes, not the server."""
_LOOK_S = 0.2
_REAP_S = 5.0
_LINE_MOST_BYTES = 16 * 1024 * 1024
_REGISTRY = "wandb-registry-"
_PROGRAM = (sys.executable, "-P", "-m", "consumer.adapters.registries.wandb_child")
# The user's own, beside those of every child that speaks to W&B.
_HEARD_TOO = ("WANDB_MODE", "WANDB_ENTITY")


class WandbRegistry:
    """Fulfils `ports.ModelRegistry`.

    Aliases are W&B's own, and move in its pages too. What an alias stood for before is kept by `point` in the metadata
    of the
    version that it stands for, as W&B keeps none: a roll-back knows of what was promoted here, not of what was moved
    there.

    Args:
        path: `entity/project/name`, or of a registry `[organisation/]wandb-registry-NAME/COLLECTION`.
        base_url, api_key: empty for what the environment or the files of W&B's client say. A key of the environment is
            handed on only where `api_key` is empty.
        project: where a version is logged that is for a registry: a registry holds links to artifacts of projects.
        question_s: seconds that the server may take for a question.
        transfer_s: seconds that moving a version may take.
    """

    def __init__(
        self, path: str, *, base_url: str, api_key: str, project: str, question_s: float, transfer_s: float
    ) -> None:
        self._path = path
        self._server = {
            "path": path,
            "base_url": base_url,
            "api_key": api_key,
            "timeout_s": max(1, round(question_s)),
        }
        self._child: _Child | None = None
        self._project = project
        self._question_s = question_s
        self._transfer_s = transfer_s

    def versions(self) -> Sequence[ModelVersion]:
        """See `ports.ModelRegistry`."""
        found = self._ask("versions", {}, self._question_s)
        return sorted(map(_version, found), key=lambda each: int(each.version.lstrip("v") or 0), reverse=True)

    def resolve(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`. The first question costs about two seconds of CPU, for the client's start."""
        return _version(self._ask("resolve", {"alias": alias or "latest"}, self._question_s))

    def download(self, version: ModelVersion, into: Path, moved: BytesMoved) -> None:
        """See `ports.ModelRegistry`."""

        def look() -> None:
            moved(_bytes_below(into), version.size_bytes)

        asked = {"version": version.version, "into": str(into)}
        self._ask("download", asked, self._transfer_s, look)
        look()

    def upload(self, folder: Path, *, aliases: Sequence[str], moved: BytesMoved) -> ModelVersion:
        """See `ports.ModelRegistry`. W&B's client does not say how far an upload is: the end alone is told."""
        for alias in aliases:
            check_alias(alias)
        digest, gate = verify(folder), read_model_file(folder).gate.status
        total = _bytes_below(folder)
        moved(0, total)
        if (there := self._of_digest(digest)) is None:
            target = self._target()
            asked = {"folder": str(folder), "digest": digest, "gate": gate, "aliases": [], "target": target}
            there = _version(self._ask("upload", asked, self._transfer_s))
        for alias in aliases:
            self.point(alias, there.version)
        moved(total, total)
        return self.resolve(there.version)

    def point(self, alias: str, version: str) -> str:
        """See `ports.ModelRegistry`."""
        check_alias(alias)
        return str(self._ask("point", {"alias": alias, "version": version}, self._question_s))

    def roll_back(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        check_alias(alias)
        return _version(self._ask("roll_back", {"alias": alias}, self._question_s))

    def _of_digest(self, digest: str) -> ModelVersion | None:
        try:
            return next((each for each in self.versions() if each.digest == digest), None)
        except ModelNotFound:  # the first one
            return None

    def _target(self) -> Mapping[str, str]:
        """Where a version is logged, and the registry's path that it is linked to."""
        *before, project, name = self._path.split("/")
        if project.startswith(_REGISTRY):
            return {"entity": "", "project": self._project, "name": name, "registry": self._path}
        return {"entity": before[0] if before else "", "project": project, "name": name, "registry": ""}

    def _ask(
        self,
        what: str,
        arguments: Mapping[str, object],
        deadline_s: float,
        look: Callable[[], None] = lambda: None,
    ) -> Any:
        where = f"W&B, {self._path}"
        kept = self._child
        child = self._ready_child()
        try:
            child.say({"do": what, "with": arguments})
            answer = child.line(deadline_s, look)
        except TimeoutError:
            self.close()
            raise ModelsUnavailable(f"{where}: no answer within {deadline_s:g} s") from None
        except EOFError:
            said = child.complaint()
            self.close()
            if child is kept:  # it ended between two questions; a new one is asked the same, once
                return self._ask(what, arguments, deadline_s, look)
            raise ModelsUnavailable(f"{where}: the client ended without an answer{said}") from None
        except BaseException:
            self.close()
            raise
        if "answer" in answer:
            return answer["answer"]
        said = f"{where}: {answer.get('message', '')}"
        kind = answer.get("error")
        if kind == "disk":
            number = int(answer.get("errno", 0))
            raise OSError(number, os.strerror(number))
        if kind == "not-found":
            raise ModelNotFound(said, remedy="correct the reference; `ouzel model list` shows what is there")
        if kind == "denied":
            raise NotAuthorized(
                said, remedy="set wandb.api_key (OUZEL_WANDB__API_KEY, or WANDB_API_KEY) to a key with this right"
            )
        raise ModelsUnavailable(said)

    def _ready_child(self) -> "_Child":
        """One that was started for an earlier question, or a new one."""
        if self._child is None or self._child.ended:
            self.close()
            self._child = _Child(self._server)
            try:
                self._child.line(_START_S)
            except (TimeoutError, EOFError) as error:
                said = self._child.complaint()
                self.close()
                raise ModelsUnavailable(f"W&B's client does not start: {said or type(error).__name__}") from None
        return self._child

    def close(self) -> None:
        """End the client. It also ends with this object, and with this process. Idempotent."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _version(told: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        version=str(told["version"]),
        digest=str(told["digest"]),
        aliases=tuple(map(str, told["aliases"])),
        created_at=str(told["created_at"]),
        size_bytes=told["size_bytes"],
        gate=str(told["gate"]),
    )


def _bytes_below(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed in this moment
            found += path.stat().st_size if path.is_file() else 0
    return found


class _Child:
    """One process, and all that it started, ended by `close`, or with this object."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        files = contextlib.ExitStack()
        self._complaints: BinaryIO = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - it is one
        scratch = files.enter_context(tempfile.TemporaryDirectory(prefix="ouzel-wandb-", ignore_cleanup_errors=True))
        self._process = subprocess.Popen(  # noqa: S603 - a program of ours
            _PROGRAM,
            env=wandb_environment(keys=not settings["api_key"], more=_HEARD_TOO),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            start_new_session=True,  # a group of its own, which is killed as one; a Ctrl-C is not its
        )
        self.close = weakref.finalize(self, _end, self._process, files)
        self._held = b""
        self.say({**settings, "scratch": scratch})

    @property
    def ended(self) -> bool:
        """Whether it can be asked nothing more."""
        return self._process.poll() is not None

    def say(self, line: Mapping[str, object]) -> None:
        """A line to it. One that is gone is found out by its silence."""
        assert self._process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")

    def line(self, deadline_s: float, look: Callable[[], None] = lambda: None) -> Mapping[str, Any]:
        """The next line. Raises TimeoutError and EOFError."""
        assert self._process.stdout is not None  # noqa: S101
        pipe = self._process.stdout.fileno()
        until_s = time.monotonic() + deadline_s
        while b"\n" not in self._held:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or len(self._held) > _LINE_MOST_BYTES:
                raise TimeoutError
            if select.select([pipe], [], [], min(left_s, _LOOK_S))[0]:
                if not (part := os.read(pipe, 65536)):
                    raise EOFError
                self._held += part
            look()
        line, _, self._held = self._held.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}

    def complaint(self) -> str:
        """What it wrote to stderr, its end."""
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f": {said[-1][:500]}" if said else ""


def _end(process: "subprocess.Popen[bytes]", files: contextlib.ExitStack) -> None:
    # With what it started: see `child_start.tie_grandchildren`.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    files.close()
