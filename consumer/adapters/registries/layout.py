"""How versions of a model lie in a folder or a bucket: one layout, which TensorFlow Serving and Triton read too.

birds/1/  birds/2/      each an artifact, or bare: `saved_model.pb`, or Triton's `model.savedmodel/`
birds/aliases.json      {"production": ["2", "1"]}: what an alias stands for, then what it stood for before
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from consumer.adapters.models.manifest import hash_files, manifest_digest, manifest_text, verify
from consumer.adapters.models.model_file import MODEL_FILE
from consumer.errors import CannotRun, ModelCorrupt, ModelNotFound

ALIASES_FILE = "aliases.json"
NEWEST = "latest"
"""Always the newest version; no alias of anybody's making."""
SAVED_MODEL = "saved_model.pb"
TRITON_SAVED_MODEL = "model.savedmodel"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_ALIAS = re.compile(r"[^\s/:@?#%\\\x00-\x1f\x7f]{1,128}")
_KEPT_HISTORY = 50


def is_number(name: str) -> bool:
    """Whether a folder of this name is a version."""
    return _NUMBER.fullmatch(name) is not None


def is_bare(names: Iterable[str]) -> bool:
    """Whether a version whose files (and folders) at the top have these names is one without `model.toml`."""
    at_the_top = set(names)
    return MODEL_FILE not in at_the_top and bool(
        at_the_top & {SAVED_MODEL, TRITON_SAVED_MODEL, "model.onnx", "model.graphdef", "model.plan", "model.pt"}
    )


def listing_state(files: Iterable[tuple[str, int, str]]) -> str:
    """See `ports.ModelVersion.state`, of files by name, size in bytes, and what changes when they are written."""
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()


def model_inside(folder: Path) -> Path:
    """The folder to open of a version's: itself, or what Triton has the SavedModel in.

    Raises:
        CannotRun: a bare model of a format that says too little of itself.
        ModelNotFound: no model lies there.
    """
    if (folder / MODEL_FILE).is_file() or (folder / SAVED_MODEL).is_file():
        return folder
    if (folder / TRITON_SAVED_MODEL / SAVED_MODEL).is_file():
        return folder / TRITON_SAVED_MODEL
    if bare := sorted(path.name for path in folder.glob("model.*")):
        raise CannotRun(
            f"{folder} has a bare {bare[0]}, which does not say how images are prepared for it",
            remedy=f"make it an artifact: ouzel model init {folder / bare[0]}",
        )
    raise ModelNotFound(
        f"{folder}: no model lies there: neither {MODEL_FILE} nor {SAVED_MODEL}", remedy="correct model.source"
    )


def folder_digest(folder: Path, *, pin: str = "") -> str:
    """Verify what lies in a folder; its digest. That of a bare model is the digest of the manifest it would have.

    Raises:
        ModelCorrupt: an artifact that is not as its manifest says, or not what is pinned.
    """
    if (folder / MODEL_FILE).is_file():
        return verify(folder, pin=pin)
    digest = manifest_digest(manifest_text(hash_files(folder)))
    if pin and digest != pin:
        raise ModelCorrupt(
            f"{folder} is {digest}, and {pin} is wanted", remedy="it is another model: correct the pin or the source"
        )
    return digest


# --- aliases --------------------------------------------------------------------------------------------------------


def check_alias(alias: str) -> None:
    """Raises ModelNotFound for what cannot be pointed at a version."""
    if alias == NEWEST or is_number(alias) or not _ALIAS.fullmatch(alias):
        raise ModelNotFound(
            f"{alias!r} cannot be an alias: {NEWEST!r} and numbers stand for versions by themselves, and blanks and"
            " slashes are not allowed",
            remedy="choose another name, such as production",
        )


@dataclass(frozen=True, slots=True)
class Aliases:
    """What `aliases.json` says. Changes give a new one."""

    history: Mapping[str, tuple[str, ...]]
    """By alias: the version that it stands for, then those that it stood for, the last first."""

    @classmethod
    def read(cls, text: str, where: str) -> "Aliases":
        """Raises ModelNotFound where it is none."""
        try:
            found = json.loads(text)
            history = {alias: tuple(versions) for alias, versions in found.items()}
            right = all(
                isinstance(versions, list) and versions and all(map(is_number, versions)) for versions in found.values()
            )
        except (ValueError, TypeError, AttributeError):
            right = False
        if not right:
            raise ModelNotFound(
                f"{where}: not aliases with their versions",
                remedy='mend it: {"ALIAS": ["VERSION", "the one before", ...]}',
            )
        return cls(history)

    def text(self) -> str:
        """As the file has it."""
        return json.dumps({alias: list(versions) for alias, versions in sorted(self.history.items())}, indent=2) + "\n"

    def of(self, version: str) -> tuple[str, ...]:
        """The aliases that stand for a version."""
        return tuple(sorted(alias for alias, versions in self.history.items() if versions[0] == version))

    def stands_for(self, alias: str) -> str:
        """Empty for nothing."""
        return self.history[alias][0] if alias in self.history else ""

    def pointed(self, alias: str, version: str) -> "Aliases":
        """With the alias at this version; what it stood for is kept."""
        before = self.history.get(alias, ())
        if before[:1] == (version,):
            return self
        return Aliases({**self.history, alias: (version, *before)[:_KEPT_HISTORY]})

    def rolled_back(self, alias: str) -> "Aliases":
        """With the alias at what it stood for before. Raises ModelNotFound."""
        if len(self.history.get(alias, ())) < 2:
            raise ModelNotFound(
                f"{alias!r} stood for no version before", remedy="point it at one: ouzel model promote REFERENCE ALIAS"
            )
        return Aliases({**self.history, alias: self.history[alias][1:]})


def find_version(alias: str, versions: Iterable[str], aliases: Aliases, where: str) -> str:
    """The version that an alias, or a number, or nothing (the newest) stands for. Raises ModelNotFound."""
    numbers = sorted(versions, key=int)
    if not numbers:
        raise ModelNotFound(f"{where} has no version of a model", remedy="ouzel model register puts one there")
    if alias in {"", NEWEST}:
        return numbers[-1]
    meant = alias if is_number(alias) else aliases.stands_for(alias)
    if meant not in numbers:
        named = ", ".join(sorted(aliases.history)) or "none"
        gone = f" any more (it was {meant})" if meant and meant != alias else ""
        raise ModelNotFound(
            f"{where} has no version {alias!r}{gone}; aliases: {named}; newest version: {numbers[-1]}",
            remedy="correct the alias, or set it: ouzel model promote REFERENCE ALIAS",
        )
    return meant
