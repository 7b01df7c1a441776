"""Models of registries, kept on this disk: whole or not at all, verified before each use, and there when the network
is not.

    models/sha256/HEX/        a model, read-only; HEX is its manifest's digest
    models/sources/HEX.json   of one source: which version has which digest, and what each alias stood for last
    models/use/HEX            touched at each use; its lock is held by every process that uses the model
    models/tmp/HEX/           being fetched; its lock (models/tmp/HEX.lock) is held by who fetches
    models/lock               held for the moment in which the above is changed

Safe for several processes at once, and for their ends at any moment.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from consumer.adapters.disk_full import is_full
from consumer.adapters.registries.file_registry import sync_folder, sync_tree
from consumer.adapters.registries.layout import folder_digest, model_inside
from consumer.errors import CacheFull, ModelCorrupt, ModelError, ModelSourceUnreachable, ModelsUnavailable
from consumer.ports import BytesMoved, ModelRegistry, ModelVersion

_REGISTER_ANEW = "it was damaged, or changed, where it lies: register it anew, or roll the alias back"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this disk, verified."""

    path: Path
    """To be read only."""
    version: str
    """In its registry; empty where only its digest is known."""
    digest: str
    """Of its manifest; of a bare model, of the manifest that it would have."""
    from_cache: bool
    """Whether nothing was fetched for it."""


@dataclass(slots=True)
class _Source:
    """What is remembered of one source."""

    digests: dict[str, str] = field(default_factory=dict)
    """By version; where no manifest says what belongs to it, by version and state: it may have been met half-way."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Digest by alias: what it stood for when the registry answered last."""


class ModelCache:
    """Models below `folder`.

    Args:
        folder: the cache's; made when it is needed.
        keep_versions: of one source, the versions that are kept; what is in use is kept beside them.
    """

    def __init__(self, folder: Path, keep_versions: int) -> None:
        self._folder = folder
        self._keep = keep_versions
        self._held: dict[str, int] = {}
        """Locked descriptors, by digest without its head. Plain ones: nothing but us, or our end, closes them."""

    def obtain(
        self,
        source: str,
        registry: ModelRegistry,
        *,
        alias: str = "",
        pin: str = "",
        version: ModelVersion | None = None,
        progress: BytesMoved = lambda _done, _of: None,
    ) -> ModelFolder:
        """The model that an alias stands for now, or the version asked for.

        Args:
            source: the model's place, as in `model.source` without alias and pin.
            registry: where it is fetched from. Not asked where the pinned model is here.
            alias: an alias or a version's name; empty for the newest.
            pin: the digest that alone will do; empty for any.
            version: what the registry said before; then nothing else will do, whether it answers or not.
            progress: told the bytes while a model is fetched.

        Raises:
            ModelSourceUnreachable: the registry does not answer, and nothing of this alias is here.
            ModelsUnavailable: the same, where a version was asked for.
            ModelCorrupt: what was fetched is not what its manifest, the registry or the pin says. Nothing is kept of
            it. ModelNotFound, NotAuthorized: see `ports.ModelRegistry`.
            CacheFull: the disk is full. What is in the cache stays usable.
            ModelError: the cache cannot be written.
        """
        with self._disk():
            if pin and (here := self._here(pin)) is not None:
                return ModelFolder(here, self._version_of(source, pin), pin, from_cache=True)
            try:
                meant = version or registry.resolve(alias)
                return self._of_version(source, registry, meant, alias=alias, pin=pin, progress=progress)
            except ModelsUnavailable as error:
                if version is not None:
                    raise
                return self._last_known_good(source, alias, pin, error)

    def _of_version(
        self,
        source: str,
        registry: ModelRegistry,
        meant: ModelVersion,
        *,
        alias: str,
        pin: str,
        progress: BytesMoved,
    ) -> ModelFolder:
        known = meant.digest or self._read(source).digests.get(_name_of(meant), "")
        if pin and known and known != pin:
            raise ModelCorrupt(
                f"{source}, version {meant.version}, is {known}, and {pin} is wanted",
                remedy="it is another model: correct the pin or the source",
            )
        digest, here = known, self._here(known) if known else None
        from_cache = here is not None
        if here is None:
            digest, here = self._fetch(source, registry, meant, pin or known, progress)
        with _unless_read_only(from_cache):
            self._remember(source, _name_of(meant), digest, {alias, *meant.aliases})
            self._collect(source)
        return ModelFolder(here, meant.version, digest, from_cache)

    def _last_known_good(self, source: str, alias: str, pin: str, error: ModelsUnavailable) -> ModelFolder:
        digest = "" if pin else self._read(source).aliases.get(alias, "")
        here = self._here(digest) if digest else None
        if here is None:
            raise ModelSourceUnreachable(
                f"{error}; and the cache ({self._folder}) has nothing of {source}{':' if alias else ''}{alias}",
                remedy="see that the registry can be reached, or put the model on this disk and name its folder in"
                " model.source; `ouzel model pull` fills the cache while there is a network",
            ) from error
        version = self._version_of(source, digest)
        logger.warning("{}: going on with version {} ({}), what it was last, from the cache", error, version, digest)
        return ModelFolder(here, version, digest, from_cache=True)

    def release(self, digest: str) -> None:
        """This process uses the model no more."""
        held = self._held.pop(digest.removeprefix("sha256:"), None)
        if held is not None:
            os.close(held)

    def close(self) -> None:
        """This process uses none of them any more. Idempotent."""
        for digest in list(self._held):
            self.release(digest)

    # --- what is here -----------------------------------------------------------------------------------------------

    def _here(self, digest: str) -> Path | None:
        """The model of this digest, verified anew and held from now on; None where it is not here, or damaged (then it
        is taken away)."""
        entry = self._entry(digest)
        if not entry.is_dir():
            return None
        self._hold(digest)
        try:
            folder_digest(entry, pin=digest)
            return model_inside(entry)
        except (OSError, ModelError, ModelSourceUnreachable) as error:
            logger.warning("{}: damaged in the cache, fetched anew: {}", entry, error)
        with self._locked():
            self._discard(entry)
        return None

    def _entry(self, digest: str) -> Path:
        return self._folder / "sha256" / digest.removeprefix("sha256:")

    def _hold(self, digest: str) -> None:
        """Until it is released, or this process ends: nobody collects it."""
        name = digest.removeprefix("sha256:")
        path = self._folder / "use" / name
        with _unless_read_only(True):  # then nobody collects
            if name not in self._held:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._held[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                fcntl.flock(self._held[name], fcntl.LOCK_SH)
            os.utime(path)

    # --- fetching ---------------------------------------------------------------------------------------------------

    def _fetch(
        self, source: str, registry: ModelRegistry, meant: ModelVersion, wanted: str, progress: BytesMoved
    ) -> tuple[str, Path]:
        with self._fresh() as fresh:
            registry.download(meant, fresh, progress)
            model = model_inside(fresh)
            try:
                digest = folder_digest(model)
            except ModelCorrupt as error:
                said = str(error).replace(str(model), f"{source}, version {meant.version}")
                raise ModelCorrupt(said, remedy=_REGISTER_ANEW) from error
            if wanted and digest != wanted:
                raise ModelCorrupt(
                    f"{source}, version {meant.version}: what was fetched is {digest}, and not {wanted}",
                    remedy="it is another model than was registered, or pinned: correct the pin, or ask who changed it",
                )
            here = self._here(digest)  # that of another source or version; a damaged one gives way
            if here is None:
                self._take_in(model, digest)
        here = here or self._here(digest)
        if here is None:
            raise ModelCorrupt(f"{self._entry(digest)}: damaged as soon as it was written", remedy="look at this disk")
        return digest, here

    def _take_in(self, model: Path, digest: str) -> None:
        sync_tree(model)
        _make_read_only(model)
        entry = self._entry(digest)
        with self._locked():
            self._hold(digest)
            entry.parent.mkdir(parents=True, exist_ok=True)
            if not entry.exists():  # another process may have been faster
                _rename(model, entry)
                sync_folder(entry.parent)

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[Path]:
        """An empty folder in the cache's own file system, gone at the end."""
        temporary = self._folder / "tmp"
        name = uuid.uuid4().hex
        with self._locked():
            temporary.mkdir(parents=True, exist_ok=True)
            self._sweep(temporary)
            lock = (temporary / f"{name}.lock").open("a")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            (temporary / name).mkdir()
            yield temporary / name
        finally:
            _remove(temporary / name)
            (temporary / f"{name}.lock").unlink(missing_ok=True)
            lock.close()

    def _sweep(self, temporary: Path) -> None:
        """What killed processes left."""
        for path in temporary.glob("*.lock"):
            with path.open("a") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path.with_suffix(""))
                path.unlink(missing_ok=True)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def _record(self, source: str) -> Path:
        return self._folder / "sources" / f"{hashlib.sha256(source.encode()).hexdigest()}.json"

    def _read(self, source: str) -> _Source:
        return _read_record(self._record(source))

    def _version_of(self, source: str, digest: str) -> str:
        found = self._read(source).digests.items()
        return next((name.partition(" ")[0] for name, known in found if known == digest), "")

    def _remember(self, source: str, name: str, digest: str, aliases: set[str]) -> None:
        path = self._record(source)
        with self._locked():
            found = self._read(source)
            found.digests[name] = digest
            found.aliases.update(dict.fromkeys(aliases, digest))
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{uuid.uuid4().hex}")
            try:
                with fresh.open("w") as file:
                    json.dump({"source": source, "versions": found.digests, "aliases": found.aliases}, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)

    # --- garbage ----------------------------------------------------------------------------------------------------

    def _collect(self, source: str) -> None:
        """Take away the versions of a source beyond those kept, the longest unused first; never one in use."""
        with self._locked():
            mine = set(self._read(source).digests.values())
            others: set[str] = set()
            for path in (self._folder / "sources").glob("*.json"):
                if path != self._record(source):
                    others.update(_read_record(path).digests.values())
            here = sorted(filter(lambda digest: self._entry(digest).is_dir(), mine), key=self._used_at, reverse=True)
            for digest in here[self._keep :]:
                if digest not in others and not self._is_held(digest):
                    self._discard(self._entry(digest))

    def _used_at(self, digest: str) -> float:
        try:
            return (self._folder / "use" / digest.removeprefix("sha256:")).stat().st_mtime_ns
        except OSError:
            return 0

    def _is_held(self, digest: str) -> bool:
        name = digest.removeprefix("sha256:")
        if name in self._held:
            return True
        with (self._folder / "use" / name).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _discard(self, entry: Path) -> None:
        """Gone for others in one step, whatever happens to this process on the way."""
        if entry.is_dir():
            temporary = self._folder / "tmp"
            temporary.mkdir(parents=True, exist_ok=True)
            name = uuid.uuid4().hex
            (temporary / f"{name}.lock").touch()
            _rename(entry, temporary / name)
            _remove(temporary / name)
            (temporary / f"{name}.lock").unlink()

    # --- the disk ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """For moments only: nothing is fetched meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise CacheFull(
                    f"{self._folder}: the disk is full; nothing half-written is left",
                    remedy="free some space, lower model.cache_versions, or have XDG_CACHE_HOME name a larger disk",
                ) from error
            raise ModelError(
                f"{self._folder}: the cache of models cannot be used: {error.strerror or error}",
                remedy="let this user write there, or have XDG_CACHE_HOME name a folder that it may write to",
            ) from error


@contextlib.contextmanager
def _unless_read_only(usable: bool) -> Iterator[None]:
    """A cache that was filled beforehand, in a read-only file system, is of use as it is."""
    try:
        yield
    except OSError as error:
        if not usable or error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise


def _name_of(version: ModelVersion) -> str:
    """What its digest is remembered under."""
    return version.version if version.digest else f"{version.version} {version.state}".rstrip()


def _read_record(path: Path) -> _Source:
    """Empty where there is none, or none that can be read: it is found out again from the registry."""
    try:
        found = json.loads(path.read_text())
        return _Source(dict(found["versions"]), dict(found["aliases"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _Source()


def _rename(folder: Path, to: Path) -> None:
    """A folder that is read-only, which its owner alone may make otherwise for the moment."""
    folder.chmod(0o755)  # its `..` changes
    folder.rename(to)
    to.chmod(0o555)


def _make_read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)
