"""MANIFEST.sha256: what is listed, what is refused, and that `sha256sum` reads it too."""

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.adapters.models import manifest
from consumer.adapters.models.manifest import (
    MANIFEST,
    hash_files,
    manifest_digest,
    read_manifest,
    verify,
    write_manifest,
)
from consumer.errors import ModelCorrupt, ModelSourceUnreachable


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "birds"
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "model" / "saved_model.pb").write_bytes(b"graph")
    (folder / "model" / "variables" / "data").write_bytes(b"weights" * 100)
    (folder / "labels.csv").write_text("id,name\n0,heron\n")
    write_manifest(folder)
    return folder


def refused(folder: Path, *, pin: str = "") -> str:
    with pytest.raises(ModelCorrupt) as caught:
        verify(folder, pin=pin)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_artifact_has_the_digest_of_its_manifest(artifact: Path) -> None:
    digest = verify(artifact)
    assert digest == "sha256:" + hashlib.sha256((artifact / MANIFEST).read_bytes()).hexdigest()
    assert verify(artifact, pin=digest) == digest


def test_sha256sum_verifies_it_too(artifact: Path) -> None:
    sha256sum = shutil.which("sha256sum")
    assert sha256sum
    command = [sha256sum, "--check", "--strict", MANIFEST]
    assert subprocess.run(command, cwd=artifact, capture_output=True, check=False).returncode == 0
    (artifact / "labels.csv").write_text("id,name\n0,egret\n")
    assert subprocess.run(command, cwd=artifact, capture_output=True, check=False).returncode != 0


def test_writing_it_again_changes_nothing_and_where_it_lies_does_not_matter(artifact: Path, tmp_path: Path) -> None:
    digest = verify(artifact)
    assert write_manifest(artifact) == digest
    assert verify(shutil.copytree(artifact, tmp_path / "elsewhere")) == digest


def _truncate(folder: Path) -> None:
    os.truncate(folder / "model" / "variables" / "data", 350)


def _one_bit(folder: Path) -> None:
    path = folder / "model" / "variables" / "data"
    body = bytearray(path.read_bytes())
    body[10] ^= 1
    path.write_bytes(body)


def _swap(folder: Path) -> None:
    one, other = folder / "labels.csv", folder / "model" / "saved_model.pb"
    bodies = one.read_bytes(), other.read_bytes()
    one.write_bytes(bodies[1])
    other.write_bytes(bodies[0])


def _add(folder: Path) -> None:
    (folder / "model" / "more").write_text("more")


def _hide(folder: Path) -> None:
    (folder / "model" / ".hidden").write_text("more")


def _remove(folder: Path) -> None:
    (folder / "labels.csv").unlink()


def _rename(folder: Path) -> None:
    (folder / "labels.csv").rename(folder / "Labels.csv")


def _link(folder: Path) -> None:
    path = folder / "labels.csv"
    path.rename(folder.parent / "labels.csv")
    path.symlink_to(folder.parent / "labels.csv")


def _link_a_folder(folder: Path) -> None:
    path = folder / "model" / "variables"
    path.rename(folder.parent / "variables")
    path.symlink_to(folder.parent / "variables")


def _dangle(folder: Path) -> None:
    (folder / "model" / "dangling").symlink_to("nowhere")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "model" / "pipe")


def _no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _folder_for_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


def _in_the_place_of_a_folder(folder: Path) -> None:
    shutil.rmtree(folder / "model" / "variables")
    (folder / "model" / "variables").write_text("a file")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "model/variables/data has other bytes"),
        (_one_bit, "model/variables/data has other bytes"),
        (_swap, "labels.csv has other bytes"),
        (_add, "model/more is not in the manifest"),
        (_hide, "model/.hidden is not in the manifest"),
        (_remove, "labels.csv is missing"),
        (_rename, "Labels.csv is not in the manifest"),
        (_link, "labels.csv: a link, or no plain file"),
        (_link_a_folder, "variables: a link, or no plain file"),
        (_dangle, "dangling: a link, or no plain file"),
        (_pipe, "pipe: a link, or no plain file"),
        (_no_manifest, "cannot be read"),
        (_folder_for_manifest, "cannot be read"),
        (_in_the_place_of_a_folder, "model/variables is not in the manifest"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_first_thing_that_is_wrong_is_named(artifact: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(artifact)
    assert words in refused(artifact)


def test_another_digest_than_the_pinned_one_is_refused_before_files_are_read(artifact: Path) -> None:
    _remove(artifact)
    wanted = "sha256:" + "0" * 64
    message = refused(artifact, pin=wanted)
    assert wanted in message
    assert manifest_digest((artifact / MANIFEST).read_text()) in message


def _with(line: str) -> Callable[[bytes], bytes]:
    """One more line, where it belongs by its path."""

    def change(body: bytes) -> bytes:
        lines = [*body.decode().splitlines(keepends=True), line + "\n"]
        return "".join(sorted(lines, key=lambda each: each[66:])).encode()

    return change


HEX = "a" * 64


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: body.removesuffix(b"\n"),
        lambda body: body + b"\n",
        lambda body: b"",
        lambda body: b"\xff" + body,
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: b"\n".join(reversed(body.splitlines())) + b"\n",
        lambda body: body + body.splitlines(keepends=True)[0],
        lambda body: body.replace(b"  ", b" *"),
        lambda body: body.upper(),
        lambda body: body + b"x" * (5 * 1024 * 1024),
        _with("# note"),
        _with(f"{HEX}  ../outside"),
        _with(f"{HEX}  model/../../outside"),
        _with(f"{HEX}  /etc/passwd"),
        _with(f"{HEX}  ./labels"),
        _with(f"{HEX}  z/./labels"),
        _with(f"{HEX}  .."),
        _with(f"{HEX}  {MANIFEST}"),
        _with(f"{HEX}  z\\n"),
        _with(f"{HEX}  z\u2028{HEX}  zz"),
        _with(f"{HEX}  z\x0b{HEX}  zz"),
        _with(f"{HEX[1:]}  z"),
    ],
)
def test_a_manifest_that_is_not_as_we_write_it_is_refused(artifact: Path, change: Callable[[bytes], bytes]) -> None:
    path = artifact / MANIFEST
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelCorrupt) as caught:
        read_manifest(artifact)
    assert "\n" not in str(caught.value)
    assert MANIFEST in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\rb", "a\x1bb", " a", "a\u2028b", os.fsdecode(b"a\xff")])
def test_a_name_that_no_manifest_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ModelCorrupt, match="no manifest can hold") as caught:
        hash_files(tmp_path)
    assert str(caught.value).isprintable()


def test_plain_names_of_all_languages_are_held(tmp_path: Path) -> None:
    for name in ("zß 水.bin", "with  two", "*star", "#hash", "a b"):
        (tmp_path / name).write_text(name)
    digest = write_manifest(tmp_path)
    assert verify(tmp_path) == digest
    assert len(read_manifest(tmp_path)) == 5


def test_a_manifest_further_down_is_a_file_like_others(artifact: Path) -> None:
    (artifact / "model" / MANIFEST).write_text("")
    assert f"model/{MANIFEST} is not in the manifest" in refused(artifact)
    write_manifest(artifact)
    verify(artifact)


def test_a_file_that_cannot_be_read_for_now_is_not_taken_for_a_damaged_one(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(manifest, "file_sha256", fail)
    with pytest.raises(ModelSourceUnreachable, match="cannot be read: Input/output error") as told:
        verify(artifact)
    assert told.value.remedy
