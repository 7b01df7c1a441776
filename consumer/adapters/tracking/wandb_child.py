"""The child's side of `wandb_tracker`: `python -m consumer.adapters.tracking.wandb_child`. W&B's client lives here.

Requests are JSON lines, each with the bytes that its `bytes` announces behind it; answers are JSON lines. The first
request says what to do: `begin` a run, which goes on until the requests end, or `probe` the server, which is one
answer. What W&B's client, or the process that it starts, does here has no effect on the service.
"""

import io
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson

from consumer.adapters.child_start import die_with_parent, take_pipes, tie_grandchildren

SERVER_REFUSED = 3
"""Exit code: the server does not answer, or not to us. The run may be begun offline."""

STOPPED = 4
"""Exit code: somebody stopped the run at the server, and it is to stay so."""

_SHARE_OF_FINISH = 0.8  # the rest is for what comes after sending: to close files, and to end
_IMAGE_MOST_PX = 512
_FULL_BYTES = 1024 * 1024
_ARTIFACT = "wandb-artifact://"


def main() -> NoReturn:
    """Until the parent closes its end."""
    die_with_parent()
    tie_grandchildren()
    requests_fd, answers_fd = take_pipes()
    requests, answers = os.fdopen(requests_fd, "rb"), os.fdopen(answers_fd, "wb", buffering=0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how W&B's client says that somebody stopped the run
    head = _receive(requests)
    if head is None:
        os._exit(0)
    if head["do"] == "probe":
        _answer(answers, _probe(head))
        os._exit(0)
    code = _track(head, requests, answers)
    sys.stderr.flush()
    os._exit(code)  # its client would wait here for a server that hangs


def _track(head: Mapping[str, Any], requests: BinaryIO, answers: BinaryIO) -> int:
    """The exit code."""
    folder = Path(head["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:  # its client would go elsewhere without a word
        probe.write(b"?")
        probe.flush()
    os.chdir(folder)
    try:
        run = _Run(head)
    except Exception as error:
        if head["mode"] != "online":
            raise
        why = str(error).partition("\n")[0]
        sys.stderr.write(f"{type(error).__name__}: {why}\n")
        return SERVER_REFUSED
    _answer(answers, {"began": run.folder, "url": run.url})
    try:
        while (request := _receive(requests)) is not None:
            if request["do"] == "figures" and _disk_is_full(folder):
                _answer(answers, {"lost": "the disk is full"})
            run.take(request)
    except KeyboardInterrupt:
        return STOPPED
    finally:
        if not run.finish():
            _answer(answers, {"unsent": run.folder})
    return 0


def _disk_is_full(folder: Path) -> bool:
    """W&B's client loses what it cannot write without a word."""
    return shutil.disk_usage(folder).free < _FULL_BYTES


# --- one run --------------------------------------------------------------------------------------------------------


class _Run:
    """A run of W&B's, from its begin on."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        """Raises whatever its client does."""
        import wandb

        self._wandb = wandb
        self._online = head["mode"] == "online"
        self._rows: list[tuple[Any, ...]] = []
        self._columns: list[str] = []
        self._models = 0
        wanted = _settings(head)
        known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
        self._run: Any = wandb.init(config=_plain(head["config"]), settings=wandb.Settings(**known))
        self.folder = str(self._run.settings.sync_dir)
        self.url = str(self._run.url or "")
        if "model" in head:
            self._model(head["model"])

    def take(self, request: Mapping[str, Any]) -> None:
        """One request of the parent's."""
        if request["do"] == "figures":
            self._figures(request["values"])
        elif request["do"] == "image":
            self._image(request["row"], request["body"])
        else:
            self._model(request)

    def _figures(self, values: dict[str, float]) -> None:
        rows, self._rows = self._rows, []
        table = (
            {"images": self._wandb.Table(columns=list(self._columns), data=[list(row) for row in rows])} if rows else {}
        )
        self._run.log(values | table)

    def _image(self, row: Mapping[str, Any], body: bytes) -> None:
        """Shown with the next figures. Anew, small and in another format: what a camera noted of where the picture was
        taken stays here."""
        from PIL import Image

        from consumer.adapters.thumbnails import thumbnail

        small = thumbnail(body, max_px=_IMAGE_MOST_PX)
        if small is None:
            return
        with Image.open(io.BytesIO(small), formats=("WEBP",)) as image:
            shown = self._wandb.Image(image.convert("RGB"), file_type="jpg")
        self._columns = ["image", *row]
        self._rows.append((shown, *row.values()))

    def _model(self, model: Mapping[str, Any]) -> None:
        source, info = model["source"], model["info"]
        lineage: dict[str, str] = {}
        if source.startswith(_ARTIFACT) and not self._online:
            lineage = {"lineage": "not noted: the run was begun offline"}
        self._run.config.update(_plain({"model": {**info, "source": source, **lineage}}), allow_val_change=True)
        self._models += 1
        if self._models > 1:
            self._run.log({"model_changes": self._models - 1})
        if source.startswith(_ARTIFACT) and self._online:
            name = source.removeprefix(_ARTIFACT).partition("@")[0]
            # The server may take its time, and figures go on.
            threading.Thread(target=self._use, args=(name,), daemon=True).start()

    def _use(self, name: str) -> None:
        try:
            self._run.use_artifact(name)
        except Exception as error:
            self._run.config.update({"model_lineage": f"not noted: {type(error).__name__}"}, allow_val_change=True)

    def finish(self) -> bool:
        """Send what is left, within the settings' time; whether all is sent. What is not is on the disk."""
        try:
            self._run.finish()
            sent = True
        except TimeoutError:
            sent = False
        self._wandb.teardown()  # waits for its process, which closes the run's files only now
        return sent


def _plain(value: Any) -> Any:
    """Without the scheme that W&B's client would take for an order to fetch an artifact, wherever in a config it is."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.removeprefix(_ARTIFACT) if isinstance(value, str) else value


def _settings(head: Mapping[str, Any]) -> dict[str, Any]:
    """Of W&B's client. What it would find out by itself about this machine and program is left out."""
    wanted = {
        "mode": head["mode"],
        "project": head["project"],
        "entity": head["entity"] or None,
        "run_group": head["group"],
        "run_name": head["name"],
        "run_job_type": "serve",
        "root_dir": head["folder"],
        "program": "ouzel",
        "host": head["name"],
        "init_timeout": head["timeout_s"],
        "login_timeout": head["timeout_s"],
        "x_service_wait": head["start_s"],
        "finish_timeout": max(0.1, head["finish_s"] * _SHARE_OF_FINISH),
        "finish_timeout_raises": True,
        "console": "off",
        "silent": True,
        "quiet": True,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "save_code": False,
        "symlink": False,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "x_stats_pid": os.getppid(),
        "x_stats_sampling_interval": head["interval_s"],
        "x_stats_coreweave_metadata_base_url": "http://127.0.0.1:9",  # asks nobody who this machine belongs to
        "x_transaction_log_flush_interval": 2.0,
    }
    if head["base_url"]:
        wanted["base_url"] = head["base_url"]
    return wanted


# --- one question ---------------------------------------------------------------------------------------------------


def _probe(head: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the server knows us: `user`, or `refused` with the reason."""
    try:
        import wandb

        overrides = {"base_url": head["base_url"]} if head["base_url"] else {}
        viewer = wandb.Api(overrides=overrides, timeout=max(1, round(head["timeout_s"]))).viewer
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"user": str(viewer.username)}


# --- the pipes ------------------------------------------------------------------------------------------------------


def _receive(requests: BinaryIO) -> dict[str, Any] | None:
    """The next request, with the bytes behind it as `body`; None where there is none any more."""
    line = requests.readline()
    if not line.endswith(b"\n"):
        return None
    request: dict[str, Any] = orjson.loads(line)
    if size := request.get("bytes", 0):
        request["body"] = requests.read(size)
        if len(request["body"]) < size:
            return None
    return request


def _answer(answers: BinaryIO, what: Mapping[str, Any]) -> None:
    answers.write(orjson.dumps(what) + b"\n")


if __name__ == "__main__":
    main()
