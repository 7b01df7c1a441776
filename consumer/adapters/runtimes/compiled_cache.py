"""Compiled models in the cache, each one file: a line of JSON with what is known of it and the rest's hash, then the
rest. OpenVINO's own cache has no hash: with damaged weights it gave other labels and no error."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

_KEEP = 16
"""Files; the oldest beyond go."""


def key_of(parts: Mapping[str, Any]) -> str:
    """Hex; what a compiled model depends on."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def read_compiled(folder: Path, key: str) -> tuple[dict[str, Any], bytes] | None:
    """What is known, and the compiled model; None where it is not there, or damaged, which is said once."""
    path = folder / key
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the compiled model cannot be read and is made anew: {}", error)
        return None
    try:
        known = json.loads(head)
        if known.pop("sha256") == hashlib.sha256(body).hexdigest():
            return known, body
    except (ValueError, AttributeError, KeyError):
        pass
    logger.warning("the compiled model {} is damaged and is made anew", path)
    return None


def keep_compiled(folder: Path, key: str, known: Mapping[str, Any], body: bytes) -> None:
    """Write it, in one step. Where that fails the next start compiles again, which is said."""
    head = json.dumps({**known, "sha256": hashlib.sha256(body).hexdigest()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", delete=False) as file:
            try:
                file.write(head.encode() + b"\n")
                file.write(body)
                file.close()
                os.replace(file.name, folder / key)  # noqa: PTH105 - a name, not a Path
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
        _forget_oldest(folder)
    except OSError as error:
        logger.warning("the compiled model cannot be kept below {}: {}; the next start compiles again", folder, error)


def _forget_oldest(folder: Path) -> None:
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    for path in files[:-_KEEP]:
        path.unlink(missing_ok=True)
