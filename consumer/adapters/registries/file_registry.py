"""A model's versions in a folder: this machine's, or one that machines share."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from consumer.adapters.models.manifest import MANIFEST, manifest_digest, verify
from consumer.adapters.models.model_file import MODEL_FILE, read_model_file
from consumer.adapters.registries.layout import (
    ALIASES_FILE,
    Aliases,
    check_alias,
    find_version,
    is_bare,
    is_number,
    listing_state,
)
from consumer.errors import ModelCorrupt, ModelNotFound, ModelsUnavailable, NotAuthorized
from consumer.ports import BytesMoved, ModelVersion

_PIECE_BYTES = 4 * 1024 * 1024
_LOCK = ".lock"
_UPLOAD = ".upload-"


@dataclass(frozen=True, slots=True)
class FileRegistry:
    """Fulfils `ports.ModelRegistry` for `folder/1/`, `folder/2/`, ... and `folder/aliases.json`.

    A version is written beside the others under another name, and renamed when it is whole on the disk. What two
    writers may not do at once is behind a lock of the file system.
    """

    folder: Path

    def versions(self) -> Sequence[ModelVersion]:
        """See `ports.ModelRegistry`."""
        with _understood(self.folder):
            aliases = self._aliases()
            return [self._version(number, aliases) for number in sorted(self._numbers(), key=int, reverse=True)]

    def resolve(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        with _understood(self.folder):
            aliases = self._aliases()
            return self._version(find_version(alias, self._numbers(), aliases, str(self.folder)), aliases)

    def folder_of(self, version: ModelVersion) -> Path:
        """Where a version lies."""
        return self.folder / version.version

    def download(self, version: ModelVersion, into: Path, moved: BytesMoved) -> None:
        """See `ports.ModelRegistry`."""
        _copy(self._existing(version.version), into, moved)
        if not version.digest and _files_in(self.folder_of(version))[1] != version.state:
            raise ModelsUnavailable(f"{self.folder_of(version)} is still being written: it changed while it was read")

    def upload(self, folder: Path, *, aliases: Sequence[str], moved: BytesMoved) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        for alias in aliases:
            check_alias(alias)
        with _understood(self.folder):
            digest = verify(folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            number = self._of_digest(digest)
            if not number:
                fresh = self.folder / f"{_UPLOAD}{uuid.uuid4().hex}"
                try:
                    fresh.mkdir()
                    _copy(folder, fresh, moved)
                    verify(fresh, pin=digest)  # what was copied is what was verified
                    sync_tree(fresh)
                    with self._locked():
                        number = self._of_digest(digest) or self._take_number(fresh)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
            for alias in aliases:
                self.point(alias, number)
            return self._version(number, self._aliases())

    def point(self, alias: str, version: str) -> str:
        """See `ports.ModelRegistry`."""
        check_alias(alias)
        with _understood(self.folder):
            self._existing(version)
            with self._locked():
                before = self._aliases()
                self._write_aliases(before.pointed(alias, version))
            return before.stands_for(alias)

    def roll_back(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        check_alias(alias)
        with _understood(self.folder):
            if not self.folder.is_dir():
                raise ModelNotFound(f"{self.folder}: no such folder", remedy="correct the reference")
            with self._locked():
                rolled = self._aliases().rolled_back(alias)
                self._existing(rolled.stands_for(alias))
                self._write_aliases(rolled)
            return self._version(rolled.stands_for(alias), rolled)

    def _numbers(self) -> list[str]:
        if not self.folder.is_dir():
            raise ModelNotFound(f"{self.folder}: no such folder", remedy="correct model.source")
        return [path.name for path in self.folder.iterdir() if is_number(path.name) and _is_version(path)]

    def _existing(self, version: str) -> Path:
        folder = self.folder / version
        if not is_number(version) or not folder.is_dir():
            raise ModelNotFound(f"{self.folder} has no version {version!r}", remedy="ouzel model list shows them")
        return folder

    def _version(self, number: str, aliases: Aliases) -> ModelVersion:
        folder = self.folder / number
        changed = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        size_bytes, state = _files_in(folder)
        found = ModelVersion(
            number,
            state=state,
            aliases=aliases.of(number),
            created_at=changed.isoformat(timespec="seconds").replace("+00:00", "Z"),
            size_bytes=size_bytes,
            gate="original",
        )
        if not (folder / MODEL_FILE).is_file():
            return found
        try:
            return replace(found, digest=_digest_of(folder), gate=read_model_file(folder).gate.status)
        except (OSError, UnicodeDecodeError, ModelCorrupt):
            return replace(found, gate="")  # it is listed; whoever uses it is told what is wrong

    def _of_digest(self, digest: str) -> str:
        for number in self._numbers():
            if (self.folder / number / MANIFEST).is_file() and _digest_of(self.folder / number) == digest:
                return number
        return ""

    def _take_number(self, whole: Path) -> str:
        while True:
            # Names that are no version, such as an empty folder, are passed over.
            number = 1 + max((int(path.name) for path in self.folder.iterdir() if is_number(path.name)), default=0)
            try:
                whole.rename(self.folder / str(number))
            except OSError:
                if not (self.folder / str(number)).exists():
                    raise
                continue  # somebody was faster, whose file system has no locks
            sync_folder(self.folder)
            return str(number)

    def _aliases(self) -> Aliases:
        path = self.folder / ALIASES_FILE
        try:
            return Aliases.read(path.read_text(), str(path))
        except FileNotFoundError:
            return Aliases({})

    def _write_aliases(self, aliases: Aliases) -> None:
        fresh = self.folder / f".{ALIASES_FILE}-{uuid.uuid4().hex}"
        try:
            with fresh.open("w") as file:
                file.write(aliases.text())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.folder / ALIASES_FILE)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _is_version(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or is_bare(path.name for path in folder.iterdir()))


def _digest_of(folder: Path) -> str:
    return manifest_digest((folder / MANIFEST).read_text())


def _files_in(folder: Path) -> tuple[int, str]:
    """Bytes in all, and the state that the files are in."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    state = listing_state(
        (path.relative_to(folder).as_posix(), stat.st_size, str(stat.st_mtime_ns)) for path, stat in found
    )
    return sum(stat.st_size for _, stat in found), state


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """The file system's errors as ours; a full disk stays what it is."""
    try:
        yield
    except PermissionError as error:
        raise NotAuthorized(f"{folder}: {error.strerror}", remedy="let this user read, or write, the folder") from error
    except (TimeoutError, InterruptedError, ConnectionError, FileNotFoundError) as error:
        raise ModelsUnavailable(f"{folder}: {error}") from error


def _copy(source: Path, into: Path, moved: BytesMoved) -> None:
    """Every plain file; links are left out, so that what they lead to is missing and is told."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink()]
    total = sum(path.stat().st_size for path in files)
    done = 0
    moved(done, total)
    for path in files:
        target = into / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as read, target.open("wb") as written:
            while piece := read.read(_PIECE_BYTES):
                written.write(piece)
                done += len(piece)
                moved(done, total)


def sync_tree(folder: Path) -> None:
    """Have every file below `folder`, and the folders, on the disk when this returns."""
    for path in (folder, *folder.rglob("*")):
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """One of them, file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
