"""MANIFEST.sha256: every file of an artifact with its SHA-256. The hash of the manifest is the model's digest.

The format is that of `sha256sum`, so that `sha256sum --check MANIFEST.sha256` verifies an artifact without Ouzel.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from consumer.adapters.model_digest import file_sha256
from consumer.errors import ModelCorrupt, ModelSourceUnreachable

MANIFEST = "MANIFEST.sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MAX_BYTES = 4 * 1024 * 1024


def manifest_text(hashes: Mapping[str, str]) -> str:
    """The manifest of files by their path inside the artifact, with `/`."""
    return "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes))


def manifest_digest(text: str) -> str:
    """`sha256:` and hex of a manifest: the artifact's digest."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by its path inside it.

    Raises:
        ModelCorrupt: a link or something else that is no file, or a name that no manifest can hold.
        ModelSourceUnreachable: the system does not let it be read, which may be better later.
    """
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        try:
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ModelCorrupt(
                    f"{path}: a link, or no plain file", remedy="an artifact holds plain files only: copy it"
                )
            if path.is_file() and inside != MANIFEST:
                if not _can_be_listed(inside):
                    raise ModelCorrupt(
                        f"{str(path)!r}: a name that no manifest can hold", remedy="give the file a plain name"
                    )
                hashes[inside] = file_sha256(path)
        except OSError as error:
            raise _unreadable(path, error) from error
    return hashes


def write_manifest(folder: Path) -> str:
    """Write the manifest of what lies in `folder`; returns the digest. Raises: see `hash_files`."""
    text = manifest_text(hash_files(folder))
    (folder / MANIFEST).write_bytes(text.encode())
    return manifest_digest(text)


def read_manifest(folder: Path) -> dict[str, str]:
    """What the manifest lists; reads no other file.

    Raises:
        ModelCorrupt: absent, or none.
        ModelSourceUnreachable: see `hash_files`.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelCorrupt(f"{path}: too long for a manifest", remedy=_ANEW)
        text = path.read_bytes().decode()  # as it is: line ends count
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}", remedy=_ANEW) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        found = _LINE.fullmatch(line)
        if found is None or not (_stays_inside(found[2]) and _can_be_listed(found[2])) or found[2] in hashes:
            raise ModelCorrupt(f"{path}, line {number}: not a line of a manifest", remedy=_ANEW)
        hashes[found[2]] = found[1]
    if text != manifest_text(hashes) or not hashes:
        raise ModelCorrupt(f"{path}: not as `ouzel model` writes it", remedy=_ANEW)
    return hashes


def verify(folder: Path, *, pin: str = "") -> str:
    """Every file is there, none has other bytes, none is too many; returns the digest.

    Args:
        folder: the artifact's.
        pin: the digest that it must have; empty for any.

    Raises:
        ModelCorrupt: says the first file that is wrong, and how.
        ModelSourceUnreachable: see `hash_files`.
    """
    listed = read_manifest(folder)
    digest = manifest_digest(manifest_text(listed))
    if pin and digest != pin:
        raise ModelCorrupt(
            f"{folder} is {digest}, and {pin} is wanted", remedy="it is another model: correct the pin or the source"
        )
    found = hash_files(folder)
    for path in sorted(listed.keys() | found.keys()):
        if path not in found:
            raise ModelCorrupt(f"{folder}: {path} is missing", remedy=_ANEW)
        if path not in listed:
            raise ModelCorrupt(f"{folder}: {path} is not in the manifest", remedy=_ANEW)
        if found[path] != listed[path]:
            raise ModelCorrupt(f"{folder}: {path} has other bytes than the manifest says", remedy=_ANEW)
    return digest


def _unreadable(path: Path, error: OSError) -> ModelSourceUnreachable:
    """A share that hangs, a disk that fails: that says nothing of the model's bytes."""
    return ModelSourceUnreachable(
        f"{path} cannot be read: {error.strerror or error}",
        remedy="see that its disk, or share, can be read by this user, then try again",
    )


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and ".." not in parts
        and "." not in path.split("/")
        and path != MANIFEST
    )


def _can_be_listed(path: str) -> bool:
    """`sha256sum` writes names with a backslash or a line end in another way; control characters help nobody."""
    return path.isprintable() and "\\" not in path and not path.startswith(" ")


_ANEW = "get the artifact anew: `ouzel model pull`, or copy it whole; `ouzel model verify` checks it"
