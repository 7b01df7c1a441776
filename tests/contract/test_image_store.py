"""The contract of `ports.ImageStore`, over every store. A new store is listed in `HARNESSES`, with a harness."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

from consumer.adapters.stores.clouds import Endpoint, S3Access, s3_store
from consumer.adapters.stores.file_store import FileStore
from consumer.adapters.stores.http_store import HttpStore
from consumer.errors import ImageNotFound, ImageTooLarge, ReferenceRefused, StoreUnavailable
from consumer.ports import ImageStore
from tests.fakes import FakeImageStore
from tests.http_server import HttpServer, answer
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, running_proxy, running_server

BODY = bytes(range(256)) * 16


class Harness(Protocol):
    """A store with something in it, and the means to make it fail."""

    store: ImageStore

    def put(self, name: str, body: bytes) -> str:
        """Have an image; its URI."""
        ...

    def absent(self) -> str:
        """A URI that is allowed and leads nowhere."""
        ...

    def refused(self) -> list[str]:
        """URIs that the store's settings do not allow, of things that are there."""
        ...

    def break_down(self) -> None:
        """Have the store fail from now on, as it would in an outage."""
        ...

    def bytes_read(self) -> int | None:
        """How many bytes of bodies were read so far; None where it cannot be told."""
        ...


class FakeHarness:
    """The fake of `tests/fakes.py`."""

    def __init__(self, _folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = FakeImageStore()
        self.store: ImageStore = self.fake

    def put(self, name: str, body: bytes) -> str:
        self.fake.images[f"fake://images/{name}"] = body
        return f"fake://images/{name}"

    def absent(self) -> str:
        return "fake://images/absent"

    def refused(self) -> list[str]:
        return ["fake://elsewhere/a"]

    def break_down(self) -> None:
        self.fake.available = False

    def bytes_read(self) -> int | None:
        return None


class FileHarness:
    """A folder of files, one allowed root in it, and secrets beside the root."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        (folder / "secret").write_bytes(BODY)
        (self.root / "link").symlink_to(folder / "secret")
        (self.root / "linked").symlink_to(folder)
        os.mkfifo(self.root / "pipe")
        self.store: ImageStore = FileStore([self.root])
        self._read = 0
        read = os.read

        def counted(file: int, size: int) -> bytes:
            body = read(file, size)
            self._read += len(body)
            return body

        monkeypatch.setattr(os, "read", counted)

    def put(self, name: str, body: bytes) -> str:
        (self.root / name).write_bytes(body)
        return f"file://{self.root}/{name}"

    def absent(self) -> str:
        return f"file://{self.root}/absent"

    def refused(self) -> list[str]:
        outside = self.root.parent / "secret"
        return [
            f"file://{outside}",
            f"file://{self.root}/../secret",
            f"file://{self.root}/%2e%2e/secret",
            f"file://{self.root}/link",
            f"file://{self.root}/linked/secret",
            f"file://{self.root}/pipe",
            f"file://{self.root}",
            "file:///dev/zero",
        ]

    def break_down(self) -> None:
        shutil.rmtree(self.root)  # as a mount that went away

    def bytes_read(self) -> int | None:
        return self._read


class HttpHarness:
    """A server on loopback, which the settings allow by its port, and another that they do not."""

    def __init__(self, _folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = HttpServer().__enter__()
        self.other = HttpServer().__enter__()
        self.other.routes["/a"] = answer(BODY)
        self.store: ImageStore = HttpStore(
            [f"127.0.0.1:{self.server.port}"], schemes=["http"], allow_networks=["127.0.0.0/8"]
        )

    def put(self, name: str, body: bytes) -> str:
        self.server.routes[f"/{name}"] = answer(body)
        return f"{self.server.origin}/{name}"

    def absent(self) -> str:
        return f"{self.server.origin}/absent"

    def refused(self) -> list[str]:
        port = self.server.port
        return [
            f"{self.other.origin}/a",
            f"https://127.0.0.1:{port}/a",
            f"http://localhost:{port}/a",
            f"http://user:secret@127.0.0.1:{port}/a",
            f"http://127.1:{port}/a?secret",
        ]

    def break_down(self) -> None:
        self.server.close()

    def bytes_read(self) -> int | None:
        return None

    def close(self) -> None:
        self.server.close()
        self.other.close()


class S3Harness:
    """A bucket on a real S3 server, behind a proxy that can be told to fail; and one that is not allowed."""

    def __init__(self, _folder: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
        self._proxy = running_proxy()
        self._proxy.fault = "none"
        self._bucket = f"photos-{uuid.uuid4().hex[:12]}"
        running_server().make_bucket(self._bucket)
        running_server().put(self._bucket, "secret/a", BODY)
        self.store: ImageStore = s3_store(
            [f"{self._bucket}/images/"],
            endpoint=Endpoint(self._proxy.url),
            region=REGION,
            path_style=True,
            access=S3Access(access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY),
            max_concurrency=4,
        )

    def put(self, name: str, body: bytes) -> str:
        running_server().put(self._bucket, f"images/{name}", body)
        return f"s3://{self._bucket}/images/{name}"

    def absent(self) -> str:
        return f"s3://{self._bucket}/images/absent"

    def refused(self) -> list[str]:
        return [
            f"s3://{self._bucket}/secret/a",
            f"s3://{self._bucket}/images/../secret/a",
            f"s3://{self._bucket}/images/%2e%2e/secret/a",
            f"s3://{self._bucket}/images//a",
            f"s3://{self._bucket}/images/a/",
            f"s3://{self._bucket}/images/a?X-Amz-Signature=secret",
            "s3://secret/images/a",
            "s3://user:secret@host/images/a",
            "s3:///images/a",
        ]

    def break_down(self) -> None:
        self._proxy.fault = "reset"

    def bytes_read(self) -> int | None:
        return None  # not to be told from here: tests/unit/test_s3_store.py has a large object

    def close(self) -> None:
        self._proxy.fault = "none"


HARNESSES: list[Callable[[Path, pytest.MonkeyPatch], Harness]] = [
    FakeHarness,
    FileHarness,
    HttpHarness,
    S3Harness,
]


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    made: Harness = request.param(tmp_path, monkeypatch)
    yield made
    close: Callable[[], None] = getattr(made, "close", lambda: None)
    close()


def test_the_schemes_are_lower_case_and_those_of_its_uris(harness: Harness) -> None:
    assert harness.store.schemes
    assert all(scheme == scheme.lower() for scheme in harness.store.schemes)
    assert harness.put("a", BODY).split(":", 1)[0] in harness.store.schemes


def test_an_image_comes_out_as_it_is(harness: Harness) -> None:
    for name, body in (("full", BODY), ("large", BODY * 1024), ("empty", b"")):
        uri = harness.put(name, body)
        assert harness.store.fetch(uri, max_bytes=8 * 1024 * 1024, deadline_s=30).body == body


def test_an_absent_image_is_not_found_and_not_an_outage(harness: Harness) -> None:
    with pytest.raises(ImageNotFound):
        harness.store.fetch(harness.absent(), max_bytes=len(BODY), deadline_s=30)


def test_the_cap_is_inclusive_and_no_more_than_it_is_read(harness: Harness) -> None:
    uri = harness.put("a", BODY)
    assert harness.store.fetch(uri, max_bytes=len(BODY), deadline_s=30).body == BODY
    before = harness.bytes_read()
    with pytest.raises(ImageTooLarge):
        harness.store.fetch(uri, max_bytes=len(BODY) - 1, deadline_s=30)
    after = harness.bytes_read()
    if before is not None and after is not None:
        assert after - before <= len(BODY) - 1


def test_what_the_settings_do_not_allow_is_refused_and_nothing_of_it_is_read(harness: Harness) -> None:
    before = harness.bytes_read()
    for uri in harness.refused():
        with pytest.raises(ReferenceRefused):
            harness.store.fetch(uri, max_bytes=len(BODY), deadline_s=30)
    assert harness.bytes_read() == before


def test_an_outage_is_unavailable_for_images_that_are_there_and_that_are_not(harness: Harness) -> None:
    uri = harness.put("a", BODY)
    harness.break_down()
    for each in (uri, harness.absent()):
        with pytest.raises(StoreUnavailable):
            harness.store.fetch(each, max_bytes=len(BODY), deadline_s=30)


def test_past_its_deadline_a_fetch_is_unavailable(harness: Harness) -> None:
    uri = harness.put("a", BODY)
    with pytest.raises(StoreUnavailable):
        harness.store.fetch(uri, max_bytes=len(BODY), deadline_s=0)


def test_many_threads_fetch_at_once_and_each_gets_its_own(harness: Harness) -> None:
    bodies = {harness.put(f"image-{number}", BODY + bytes([number])): BODY + bytes([number]) for number in range(16)}
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            found = pool.map(lambda uri: harness.store.fetch(uri, max_bytes=len(BODY) + 1, deadline_s=30), bodies)
            assert [stored.body for stored in found] == list(bodies.values())


def test_the_health_key_is_one_for_a_place_and_says_no_secret(harness: Harness) -> None:
    keys = {harness.store.health_key(harness.put(name, BODY)) for name in ("a", "b")}
    assert len(keys) == 1
    for uri in harness.refused():
        assert "secret" not in harness.store.health_key(uri)
    assert "pw" not in harness.store.health_key("file://user:pw@host/a?pw")
