"""Reads what W&B's client wrote of a run: its transaction log (LevelDB's log format, one protobuf record each)."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_BLOCK_BYTES = 32 * 1024
_HEAD = struct.Struct("<IHB")  # checksum, length, type: full, first, middle, last
_FILE_HEAD_BYTES = 7  # ":W&B", a magic number and a version


def run_files(folder: Path) -> list[Path]:
    """The logs of all runs below a folder, the oldest first."""
    return sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)


def records(path: Path) -> Iterator[Any]:
    """Every whole record of a run's log."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    at, whole = _FILE_HEAD_BYTES, b""
    while at + _HEAD.size <= len(data):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < _HEAD.size:
            at += left
            continue
        _, size, kind = _HEAD.unpack_from(data, at)
        if kind not in (1, 2, 3, 4) or at + _HEAD.size + size > len(data):
            return
        whole += data[at + _HEAD.size : at + _HEAD.size + size]
        at += _HEAD.size + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(folder: Path) -> list[dict[str, Any]]:
    """The figures of all runs below a folder."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for path in run_files(folder)
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def config(path: Path) -> dict[str, Any]:
    """A run's config, as it was last."""
    found: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        changed = record.run.config if kind == "run" else record.config if kind == "config" else None
        for update in changed.update if changed is not None else ():
            found[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return found


def statistics(path: Path) -> set[str]:
    """Names of the system's figures that a run has."""
    return {
        item.key
        for record in records(path)
        if record.WhichOneof("record_type") == "stats"
        for item in record.stats.item
    }


def everything(folder: Path) -> bytes:
    """All bytes of all files below a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that run for runs below this folder: they have it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(
                str(folder) in value for name, value in process.environ().items() if name.startswith("WANDB_")
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
