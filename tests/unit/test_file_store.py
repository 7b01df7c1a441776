"""`file://` in its corners: names, hosts, rights, races and faults of the file system."""

import errno
import os
import socket
from pathlib import Path

import pytest

from consumer.adapters.stores.file_store import FileStore
from consumer.errors import ImageNotFound, ImageTooLarge, ReferenceRefused, StoreUnavailable


def _fetch(store: FileStore, uri: str, *, max_bytes: int = 1024, deadline_s: float = 30) -> bytes:
    return store.fetch(uri, max_bytes=max_bytes, deadline_s=deadline_s).body


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "2026").mkdir(parents=True)
    (folder / "2026" / "a b%é.jpg").write_bytes(b"image")
    return folder


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "FILE://{}", "file://localhost{}", "file://LOCALHOST{}"])
@pytest.mark.parametrize("name", ["2026/a%20b%25%C3%A9.jpg", "2026/a b%25é.jpg", "/2026/./a%20b%25%C3%A9.jpg"])
def test_a_path_is_percent_decoded_in_every_form_of_uri(root: Path, form: str, name: str) -> None:
    assert _fetch(FileStore([root]), form.format(f"{root}/{name}")) == b"image"


@pytest.mark.parametrize(
    "uri",
    [
        *("file://elsewhere{root}/x", "file://user:pw@localhost{root}/x", "file:x", "file://", "http://{root}/x"),
        *("file://{root}/x?y", "file://{root}/x#y", "file://{root}/x%00y", "file://{root}/..", "file://{root}\\x"),
        *("file://{root}", "file://{root}/", "file://{root}-beside/x", "file:///etc/passwd", "file://{root}/2026"),
        *("file://{root}/2026/%2e%2E/x", "file://{root}/2026%2F..%2Fx", "file://{root}/" + "x" * 300, "x", ""),
        "file://{root}/\ud800",
    ],
)
def test_what_is_no_file_below_a_root_is_refused(root: Path, uri: str) -> None:
    with pytest.raises(ReferenceRefused) as caught:
        _fetch(FileStore([root]), uri.replace("{root}", str(root)))
    assert "pw" not in str(caught.value)


def test_without_roots_every_uri_is_refused_and_the_setting_is_named(root: Path) -> None:
    with pytest.raises(ReferenceRefused, match=r"stores\.file\.roots"):
        _fetch(FileStore([]), f"file://{root}/2026/a%20b%25%C3%A9.jpg")


def test_no_link_is_followed_not_even_inside_a_root_but_a_root_may_be_one(root: Path) -> None:
    (root / "link.jpg").symlink_to(root / "2026" / "a b%é.jpg")
    (root / "years").symlink_to(root / "2026")
    for name in ("link.jpg", "years/a%20b%25%C3%A9.jpg"):
        with pytest.raises(ReferenceRefused, match="link"):
            _fetch(FileStore([root]), f"file://{root}/{name}")
    mount = root.parent / "mount"
    mount.symlink_to(root)
    for spelling in (mount, root):
        assert _fetch(FileStore([mount]), f"file://{spelling}/2026/a%20b%25%C3%A9.jpg") == b"image"


def test_a_file_exchanged_for_a_link_after_the_look_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    target = root / "image.jpg"
    target.write_bytes(b"image")
    look = os.stat

    def look_then_exchange(path: bytes, **options: object) -> os.stat_result:
        found = look(path, **options)  # type: ignore[arg-type]
        target.unlink()
        target.symlink_to(root.parent / "secret")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", look_then_exchange)
        with pytest.raises((ReferenceRefused, StoreUnavailable)):
            _fetch(FileStore([root]), f"file://{target}")


def test_pipes_sockets_and_devices_are_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        for name in ("pipe", "socket"):
            with pytest.raises(ReferenceRefused, match="regular"):
                _fetch(FileStore([root]), f"file://{root}/{name}")
    with pytest.raises(ReferenceRefused, match="regular"):
        _fetch(FileStore(["/dev"]), "file:///dev/zero")


def test_a_file_in_a_directorys_place_is_not_found(root: Path) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(ImageNotFound):
        _fetch(FileStore([root]), f"file://{root}/file/inner.jpg")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, ImageNotFound),
        (errno.EACCES, ImageNotFound),
        (errno.EPERM, ImageNotFound),
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ETIMEDOUT, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
        (errno.EAGAIN, StoreUnavailable),
    ],
)
def test_faults_of_the_file_system_are_what_they_mean(
    root: Path, number: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: int, _size: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(kind):
        _fetch(FileStore([root]), f"file://{root}/2026/a%20b%25%C3%A9.jpg")


def test_a_file_that_grows_while_it_is_read_is_too_large_and_not_cut_short(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = root / "growing"
    target.write_bytes(b"x" * 8)
    read = os.read

    def read_while_it_grows(file: int, size: int) -> bytes:
        with target.open("ab") as end:
            end.write(b"x" * 8)
        return read(file, size)

    monkeypatch.setattr(os, "read", read_while_it_grows)
    with pytest.raises(ImageTooLarge):
        _fetch(FileStore([root]), f"file://{target}", max_bytes=10)


def test_the_deadline_holds_between_reads(root: Path) -> None:
    (root / "large").write_bytes(bytes(3 * 1024 * 1024))
    moments = iter([0.0, 0.5, 0.9, 1.1])
    store = FileStore([root], monotonic_s=lambda: next(moments))
    with pytest.raises(StoreUnavailable, match="deadline"):
        _fetch(store, f"file://{root}/large", max_bytes=4 * 1024 * 1024, deadline_s=1.0)


def test_no_descriptor_is_left_open(root: Path) -> None:
    store = FileStore([root])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("2026/a%20b%25%C3%A9.jpg", "2026/absent", "absent/absent", "2026", "../x"):
        try:
            _fetch(store, f"file://{root}/{name}")
        except (ImageNotFound, ReferenceRefused):
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
