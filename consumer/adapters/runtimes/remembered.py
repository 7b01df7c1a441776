"""Small findings about this machine that are kept in the cache: which runtime is the fastest, which settings are."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

_KEEP = 64


def read_remembered(path: Path) -> dict[str, Any]:
    """What is remembered there, by key; nothing where it cannot be read, which is said."""
    try:
        found = json.loads(path.read_text())
        return dict(found["choices"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("{} cannot be read, and what it says is found out anew: {}", path, error)
        return {}


def remember(path: Path, key: str, found: Mapping[str, Any]) -> None:
    """In one step. Two processes at once may forget each other's: it is then found anew. Of 64 the oldest goes."""
    choices = read_remembered(path)
    choices.pop(key, None)
    choices[key] = dict(found)
    body = json.dumps({"choices": dict(list(choices.items())[-_KEEP:])}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, body)
    except OSError as error:
        logger.warning("what was found cannot be remembered in {}: {}; the next start finds it anew", path, error)


def _write(path: Path, body: str) -> None:
    """Whole or not at all; nothing is left beside it. Raises OSError."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".writing-", delete=False) as file:
        written = Path(file.name)
        try:
            file.write(body)
            file.close()
            written.replace(path)
        finally:
            written.unlink(missing_ok=True)
