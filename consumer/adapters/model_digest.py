"""The model's digest (I7): what a label depends on, as one SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

# TensorFlow writes a new random id into this one at every save.
_NOT_THE_MODEL = frozenset({"fingerprint.pb"})


def file_sha256(path: Path) -> str:
    """Lower-case hex of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`, by its path inside it with `/`, in order of name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _NOT_THE_MODEL)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def model_digest(
    *, weights: Mapping[str, str], labels: str, preprocessing: Mapping[str, object], precision: str
) -> str:
    """`sha256:` and the hex of a canonical manifest.

    Args:
        weights: SHA-256 by file name (`folder_sha256`): weights and graph.
        labels: SHA-256 of the label file; empty where there is none.
        preprocessing: everything that is done to the pixels: resize, crop, range, mean, std, ...
        precision: f32, bf16, ...
    """
    manifest = {
        "manifest": 1,
        "weights": dict(weights),
        "labels": labels,
        "preprocessing": dict(preprocessing),
        "precision": precision,
    }
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
