"""The child's side of `wandb_registry`: questions about one model.

W&B's client starts a process of its own, has calls without a time-out, and can hang at its exit. All of that is below
this process, which the parent kills with all it started at a deadline. A line of JSON is a question, the first one the
settings; a line of JSON is an answer: `ready` once the client is loaded and before it asks anybody, then `answer` or
`error`.
"""

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from consumer.adapters.child_start import die_with_parent, take_pipes, tie_grandchildren

HISTORY = "ouzel_alias_history"
"""In a version's metadata, by collection and alias: the versions that the alias stood for before this one."""
_KEPT_HISTORY = 20
_TYPE = "model"
_TELL_MOST = 1_000
_FAILED = 400
_DENIED = re.compile(r"\bHTTP 40[13]\b|\bpermission denied\b|\bnot have permission\b|\bnot logged in\b", re.IGNORECASE)


def main() -> NoReturn:
    """Answer the questions on stdin, until it ends or the parent does."""
    die_with_parent()
    tie_grandchildren()
    asked, told = take_pipes()
    questions, answers = os.fdopen(asked), os.fdopen(told, "w")

    def say(**line: object) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    settings = json.loads(questions.readline())
    _prepare(settings)
    import wandb

    say(ready=wandb.__version__)
    asking = _Asking(wandb, settings)
    for line in questions:
        try:
            say(answer=asking.answer(json.loads(line)))
        except Exception as error:
            say(error=_kind(error), message=_said(error), errno=_disk_errno(error))
    os._exit(0)  # and not by the client's own exit, which waits for a server that may be gone


def _prepare(settings: Mapping[str, Any]) -> None:
    """What the client takes from the environment alone. What the user has set there stands."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_CONSOLE"] = "off"
    # Copies of what is uploaded, caches and logs: of no use after these questions.
    scratch = settings["scratch"]
    os.environ["TMPDIR"] = os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_DIR"] = scratch
    os.environ["WANDB_CACHE_DIR"] = str(Path(scratch) / "cache")
    if settings["base_url"]:
        os.environ["WANDB_BASE_URL"] = settings["base_url"]


class _Asking:
    """Questions about one model."""

    def __init__(self, wandb: Any, settings: Mapping[str, Any]) -> None:
        self._wandb = wandb
        self._scratch: str = settings["scratch"]
        self._api_key: str | None = settings["api_key"] or None
        self._timeout_s: int = settings["timeout_s"]
        self._path: str = settings["path"]
        """`entity/project/name`, or of a registry `[organisation/]wandb-registry-NAME/name`."""
        self._opened: Any = None

    @property
    def _api(self) -> Any:
        """Asks the server who we are when it is opened."""
        if self._opened is None:
            self._opened = self._wandb.Api(timeout=self._timeout_s, api_key=self._api_key)
        return self._opened

    def answer(self, question: Mapping[str, Any]) -> Any:
        """What the parent asks for, as JSON."""
        ask = getattr(self, f"_{question['do']}")
        return ask(**question["with"])

    def _resolve(self, alias: str) -> Any:
        return _told(self._version(alias))

    def _versions(self) -> Any:
        # A collection has one type, and listing needs it.
        kind = self._version("latest").type
        return [_told(each, each.name.rpartition(":")[2]) for each in self._api.artifacts(kind, self._path)]

    def _download(self, version: str, into: str) -> Any:
        self._version(version).download(root=into, skip_cache=True)
        return None

    def _upload(self, folder: str, digest: str, gate: str, aliases: Sequence[str], target: Mapping[str, str]) -> Any:
        wandb = self._wandb
        if (mode := wandb.setup().settings.mode) not in {"online", "shared"}:
            raise RuntimeError(f"nothing can be registered with WANDB_MODE={mode}")
        artifact = wandb.Artifact(target["name"], type=_TYPE, metadata={"ouzel_digest": digest, "gate": gate})
        artifact.add_dir(folder, policy="immutable", skip_cache=True)
        run = wandb.init(
            entity=target["entity"] or None,
            project=target["project"],
            job_type="register",
            dir=self._scratch,
            settings=wandb.Settings(
                api_key=self._api_key,
                silent=True,
                console="off",
                # Nothing of this machine or of what is installed on it belongs to a model.
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                program="ouzel model register",
                host="ouzel",
            ),
        )
        registry = target["registry"]
        logged = run.log_artifact(artifact, aliases=[] if registry else list(aliases)).wait()
        if registry:
            logged = logged.link(registry, aliases=list(aliases))
        told = _told(logged)
        run.finish()
        return told

    def _point(self, alias: str, version: str) -> Any:
        """The history travels with the version that the alias stands for: W&B keeps none."""
        target = self._version(version)
        before = self._version_or_none(alias)
        if before is not None and before.version == target.version:
            return before.version
        history = [] if before is None else [before.version, *self._history_of(before, alias)]
        self._move(alias, target, history)
        return "" if before is None else before.version

    def _roll_back(self, alias: str) -> Any:
        history = self._history_of(self._version(alias), alias)
        if not history:
            raise LookupError(f"artifact: {alias!r} stood for no version before, as far as W&B was told by ouzel")
        target = self._version(history[0])
        self._move(alias, target, history[1:])
        return _told(self._version(alias))

    def _version(self, alias: str) -> Any:
        return self._api.artifact(f"{self._path}:{alias}")

    def _version_or_none(self, alias: str) -> Any:
        try:
            return self._version(alias)
        except Exception as error:
            if _kind(error) != "not-found":
                raise
            return None

    def _history_of(self, artifact: Any, alias: str) -> list[str]:
        kept = artifact.metadata.get(HISTORY, {})
        found = kept.get(f"{self._path}:{alias}", []) if isinstance(kept, dict) else []
        return [str(version) for version in found] if isinstance(found, list) else []

    def _move(self, alias: str, artifact: Any, history: Sequence[str]) -> None:
        kept = artifact.metadata.get(HISTORY, {})
        artifact.metadata[HISTORY] = {**kept, f"{self._path}:{alias}": list(history)[:_KEPT_HISTORY]}
        artifact.aliases.append(alias)
        artifact.save()


def _told(artifact: Any, version: str = "") -> dict[str, Any]:
    metadata = artifact.metadata
    return {
        "version": version or artifact.version,
        "digest": str(metadata.get("ouzel_digest", "")),
        "gate": str(metadata.get("gate", "")),
        "aliases": sorted(artifact.aliases),
        "created_at": artifact.created_at,
        "size_bytes": artifact.size,
    }


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in found:
        found.append(seen)
        seen = getattr(seen, "exc", None) or seen.__cause__ or seen.__context__
    return found


def _kind(error: Exception) -> str:
    """`not-found`, `denied`, `disk` or `unavailable`. The client gives most of it as text."""
    if _disk_errno(error):
        return "disk"
    chain = _chain(error)
    text = " ".join(map(str, chain))
    if _is_denied(chain, text):
        return "denied"
    if "not found" in text and ("project" in text or "artifact" in text):
        return "not-found"
    if isinstance(error, LookupError):
        return "not-found"
    return "unavailable"


def _is_denied(chain: Sequence[BaseException], text: str) -> bool:
    """By the server's status where there is one. Digits alone say nothing: digests, sizes and names have them too."""
    responses = [response for each in chain if (response := getattr(each, "response", None)) is not None]
    statuses = [getattr(each, "http_status", 0) or getattr(each, "status_code", 0) for each in responses]
    if failed := [status for status in statuses if status >= _FAILED]:
        return bool({401, 403}.intersection(failed))
    if any(isinstance(each, TimeoutError) for each in chain):  # the client takes it for a key that is wrong
        return False
    refused = any(type(each).__name__ in {"AuthenticationError", "UsageError"} for each in chain)
    return refused or _DENIED.search(text) is not None


def _disk_errno(error: BaseException) -> int:
    on_disk = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
    return next((each.errno for each in _chain(error) if isinstance(each, OSError) and each.errno in on_disk), 0)


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_TELL_MOST]


if __name__ == "__main__":
    main()
