"""The contract of `ports.ModelRegistry`, over every registry. A new one is listed in `HARNESSES`, with a harness."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from consumer.adapters.models.manifest import verify
from consumer.adapters.registries.file_registry import FileRegistry
from consumer.adapters.registries.s3_registry import S3Registry
from consumer.adapters.registries.wandb_registry import WandbRegistry
from consumer.adapters.stores.clouds import Endpoint, S3Access, S3Clients
from consumer.errors import ModelNotFound, ModelsUnavailable
from consumer.ports import ModelRegistry
from tests.artifacts import contents, small_artifact
from tests.fakes import FakeModelRegistry
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, FaultyProxy, running_server
from tests.wandb_server import API_KEY, ENTITY, PROJECT, WandbServer


class Harness(Protocol):
    """A registry that is empty, and the means to make it fail."""

    registry: ModelRegistry

    def break_down(self) -> None:
        """Have it fail from now on, as it would in an outage."""
        ...


class FakeHarness:
    """The fake of `tests/fakes.py`."""

    def __init__(self, _folder: Path) -> None:
        self.fake = FakeModelRegistry()
        self.registry: ModelRegistry = self.fake

    def break_down(self) -> None:
        self.fake.available = False


class FileHarness:
    """A folder; it breaks down as a share does that is no longer mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "registry" / "birds"
        self.registry: ModelRegistry = FileRegistry(self.folder)

    def break_down(self) -> None:
        """A folder that is away cannot be told from one that is not there."""


class S3Harness:
    """A real S3 server; it breaks down by a proxy before it that makes trouble."""

    def __init__(self, _folder: Path) -> None:
        server = running_server()
        self.bucket = f"models-{uuid.uuid4().hex[:12]}"
        server.make_bucket(self.bucket)
        self.proxy = FaultyProxy(server.port)
        self.proxy.fault = "error-500"
        self.broken = False
        self.registry: ModelRegistry = self.open()

    def open(self) -> S3Registry:
        whole, broken = (
            S3Clients(
                endpoint=Endpoint(url),
                region=REGION,
                path_style=True,
                access=S3Access(access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY),
            )
            for url in (running_server().url, self.proxy.url)
        )
        return S3Registry(
            lambda bucket: (broken if self.broken else whole).open(bucket),
            self.bucket,
            "team/birds",
            question_s=20,
            transfer_s=60,
        )

    def break_down(self) -> None:
        self.broken = True

    def close(self) -> None:
        self.proxy.__exit__(None, None, None)


class WandbHarness:
    """The real client of W&B, unpatched, before a server that answers as W&B's does."""

    path = f"{ENTITY}/{PROJECT}/birds"

    def __init__(self, _folder: Path) -> None:
        self.server = WandbServer().__enter__()
        self.registry: ModelRegistry = WandbRegistry(
            self.path, base_url=self.server.url, api_key=API_KEY, project=PROJECT, question_s=8, transfer_s=60
        )

    def break_down(self) -> None:
        self.server.fault = "hang"

    def close(self) -> None:
        assert isinstance(self.registry, WandbRegistry)
        self.registry.close()
        self.server.__exit__()
        assert self.server.defects == [], "the client asks what the server of the tests does not know"


class WandbLinkedHarness(WandbHarness):
    """A registry of the organisation, which holds links to artifacts of a project."""

    path = "wandb-registry-models/birds"


HARNESSES: dict[str, Callable[[Path], Harness]] = {
    "fake": FakeHarness,
    "file": FileHarness,
    "s3": S3Harness,
    "wandb": WandbHarness,
}


def _named(name: str, folder: Path) -> Harness:
    return WandbLinkedHarness(folder) if name == "wandb-registry" else HARNESSES[name](folder)


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    made = _named(request.param, tmp_path)
    yield made
    if close := getattr(made, "close", None):
        close()


def _silent(_done: int, _of: int | None) -> None:
    """Nobody looks."""


@pytest.mark.parametrize("harness", [*HARNESSES, "wandb-registry"], indirect=True)
def test_the_life_of_a_model_registered_promoted_fetched_and_rolled_back(harness: Harness, tmp_path: Path) -> None:
    registry = harness.registry
    first_digest = small_artifact(tmp_path / "first", weights=b"first" * 1000)
    second_digest = small_artifact(tmp_path / "second", weights=b"second" * 1000, gate="provisional")

    first = registry.upload(tmp_path / "first", aliases=["production"], moved=_silent)
    assert (first.digest, first.gate) == (first_digest, "original")
    assert "production" in first.aliases
    moved: list[tuple[int, int | None]] = []
    second = registry.upload(tmp_path / "second", aliases=[], moved=lambda done, of: moved.append((done, of)))
    size = sum(map(len, contents(tmp_path / "second").values()))
    assert moved[-1] == (size, size)
    assert (second.digest, second.gate, second.size_bytes) == (second_digest, "provisional", size)

    again = registry.upload(tmp_path / "first", aliases=["again"], moved=_silent)
    assert again.version == first.version, "bytes that are there already are no new version"
    assert {"production", "again"} <= set(again.aliases)
    assert [each.digest for each in registry.versions()] == [second_digest, first_digest]

    assert registry.resolve("production").version == first.version
    assert registry.resolve(second.version).digest == second_digest
    assert registry.point("production", second.version) == first.version
    assert registry.resolve("production").version == second.version
    assert "production" not in registry.resolve(first.version).aliases

    (tmp_path / "fetched").mkdir()
    registry.download(registry.resolve("production"), tmp_path / "fetched", _silent)
    assert contents(tmp_path / "fetched") == contents(tmp_path / "second")
    assert verify(tmp_path / "fetched") == second_digest

    rolled = registry.roll_back("production")
    assert (rolled.version, rolled.digest) == (first.version, first_digest)
    assert registry.resolve("production").version == first.version
    with pytest.raises(ModelNotFound, match="production"):
        registry.roll_back("production")


def test_without_an_alias_the_newest_is_meant(harness: Harness, tmp_path: Path) -> None:
    small_artifact(tmp_path / "first", weights=b"1")
    newest = small_artifact(tmp_path / "second", weights=b"2")
    for name in ("first", "second"):
        harness.registry.upload(tmp_path / name, aliases=[], moved=_silent)
    assert harness.registry.resolve("").digest == newest
    assert harness.registry.resolve("latest").digest == newest


def test_what_is_not_there_is_said_to_be(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        harness.registry.resolve("production")
    small_artifact(tmp_path / "model")
    there = harness.registry.upload(tmp_path / "model", aliases=[], moved=_silent)
    with pytest.raises(ModelNotFound, match="staging"):
        harness.registry.resolve("staging")
    with pytest.raises(ModelNotFound):
        harness.registry.roll_back("staging")
    with pytest.raises(ModelNotFound):
        harness.registry.roll_back("1")
    with pytest.raises(ModelNotFound):
        harness.registry.point("staging", "v17" if there.version.startswith("v") else "17")


@pytest.mark.parametrize("alias", ["latest", "7", "with blank", "a/b", "a:b", ""])
def test_a_name_that_means_something_else_is_no_alias(alias: str, tmp_path: Path) -> None:
    small_artifact(tmp_path / "model")
    registry = FileRegistry(tmp_path / "registry")
    with pytest.raises(ModelNotFound, match="cannot be an alias"):
        registry.upload(tmp_path / "model", aliases=[alias], moved=_silent)
    assert not (tmp_path / "registry").exists()


def test_an_outage_is_told_as_one(harness: Harness, tmp_path: Path) -> None:
    if isinstance(harness, FileHarness):
        return  # a folder that is away cannot be told from one that is not there
    small_artifact(tmp_path / "model")
    there = harness.registry.upload(tmp_path / "model", aliases=["production"], moved=_silent)
    harness.break_down()
    (tmp_path / "fetched").mkdir()
    with pytest.raises(ModelsUnavailable):
        harness.registry.resolve("production")
    if not isinstance(harness, WandbHarness):  # there by the deadline, in a test of its own
        with pytest.raises(ModelsUnavailable):
            harness.registry.download(there, tmp_path / "fetched", _silent)


# --- folders and buckets: what lies there, and who else writes -------------------------------------------------------


class _Layout(Protocol):
    registry: ModelRegistry

    def put(self, name: str, body: bytes) -> None: ...

    def names(self) -> set[str]: ...


class _FileLayout(FileHarness):
    def put(self, name: str, body: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def names(self) -> set[str]:
        return set(contents(self.folder))


class _S3Layout(S3Harness):
    def put(self, name: str, body: bytes) -> None:
        running_server().put(self.bucket, f"team/birds/{name}", body)

    def names(self) -> set[str]:
        listed = running_server().client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {each["Key"].removeprefix("team/birds/") for each in listed}


@pytest.fixture(params=[_FileLayout, _S3Layout], ids=["file", "s3"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Layout]:
    made = request.param(tmp_path)
    yield made
    if close := getattr(made, "close", None):
        close()


def test_what_others_put_there_is_read_as_it_lies(layout: _Layout, tmp_path: Path) -> None:
    layout.put("1/saved_model.pb", b"TensorFlow Serving's")
    layout.put("2/model.savedmodel/saved_model.pb", b"Triton's")
    layout.put("10/model.onnx", b"Triton's")
    layout.put("config.pbtxt", b"")
    layout.put("notes/saved_model.pb", b"of no version")
    assert [(each.version, each.digest) for each in layout.registry.versions()] == [("10", ""), ("2", ""), ("1", "")]
    assert layout.registry.resolve("").version == "10"
    assert layout.registry.point("production", "2") == ""
    (tmp_path / "fetched").mkdir()
    layout.registry.download(layout.registry.resolve("production"), tmp_path / "fetched", _silent)
    assert contents(tmp_path / "fetched") == {"model.savedmodel/saved_model.pb": b"Triton's"}


def test_a_version_that_is_not_complete_is_none(layout: _Layout, tmp_path: Path) -> None:
    digest = small_artifact(tmp_path / "model")
    for name, body in contents(tmp_path / "model").items():
        if name != "MANIFEST.sha256":
            layout.put(f"1/{name}", body)
    with pytest.raises(ModelNotFound):
        layout.registry.resolve("1")
    with pytest.raises(ModelNotFound):
        layout.registry.resolve("")
    there = layout.registry.upload(tmp_path / "model", aliases=[], moved=_silent)
    assert (there.version, there.digest) == ("2", digest), "the number that somebody began is left alone"
    assert [each.version for each in layout.registry.versions()] == ["2"]


def test_a_number_cannot_be_rolled_back_and_that_is_said(layout: _Layout) -> None:
    layout.put("1/saved_model.pb", b"graph")
    with pytest.raises(ModelNotFound, match="'1' cannot be an alias"):
        layout.registry.roll_back("1")


def test_a_version_that_others_go_on_writing_is_known_by_the_state_of_its_files(
    layout: _Layout, tmp_path: Path
) -> None:
    layout.put("1/saved_model.pb", b"graph")
    half = layout.registry.resolve("1")
    assert layout.registry.versions() == [half], "it is the same while nobody writes"
    layout.put("1/variables/variables.data", b"weights")
    whole = layout.registry.resolve("1")
    layout.put("1/variables/variables.data", b"others.")
    written_again = layout.registry.resolve("1")
    assert len({half.state, whole.state, written_again.state, ""}) == 4
    assert {half.digest, whole.digest} == {""}

    def go_on(done: int, _of: int | None) -> None:
        if done:
            layout.put("1/more", b"more")

    for into, meant, moved in (("half", half, _silent), ("changing", written_again, go_on)):
        (tmp_path / into).mkdir()
        with pytest.raises(ModelsUnavailable, match="still being written"):
            layout.registry.download(meant, tmp_path / into, moved)


def test_promotions_at_the_same_time_lose_none(layout: _Layout, tmp_path: Path) -> None:
    small_artifact(tmp_path / "model")
    layout.registry.upload(tmp_path / "model", aliases=[], moved=_silent)
    barrier = threading.Barrier(6)
    failed: list[BaseException] = []

    def promote(alias: str) -> None:
        registry = layout.open() if isinstance(layout, _S3Layout) else layout.registry
        barrier.wait()
        try:
            registry.point(alias, "1")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=promote, args=(f"alias-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert layout.registry.resolve("1").aliases == tuple(f"alias-{number}" for number in range(6))


def test_uploads_at_the_same_time_take_numbers_of_their_own(layout: _Layout, tmp_path: Path) -> None:
    digests = {small_artifact(tmp_path / str(number), weights=bytes([number])) for number in range(4)}
    barrier = threading.Barrier(4)

    def upload(number: int) -> None:
        registry = layout.open() if isinstance(layout, _S3Layout) else layout.registry
        barrier.wait()
        registry.upload(tmp_path / str(number), aliases=[], moved=_silent)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = layout.registry.versions()
    assert {each.digest for each in found} == digests
    assert [each.version for each in found] == ["4", "3", "2", "1"]


def test_an_upload_that_fails_leaves_nothing(layout: _Layout, tmp_path: Path) -> None:
    small_artifact(tmp_path / "model", weights=b"w" * 10_000)
    small_artifact(tmp_path / "first")
    layout.registry.upload(tmp_path / "first", aliases=[], moved=_silent)
    before = layout.names()

    def break_off(done: int, _of: int | None) -> None:
        if done:
            raise ConnectionResetError("broken off by the test")

    with pytest.raises((ModelsUnavailable, ConnectionResetError)):
        layout.registry.upload(tmp_path / "model", aliases=["production"], moved=break_off)
    assert layout.names() - {".lock"} == before - {".lock"}


def test_aliases_that_somebody_spoiled_are_told_and_not_overwritten(layout: _Layout, tmp_path: Path) -> None:
    small_artifact(tmp_path / "model")
    layout.registry.upload(tmp_path / "model", aliases=[], moved=_silent)
    for spoiled in (b"{", b"[]", json.dumps({"production": "1"}).encode(), json.dumps({"production": []}).encode()):
        layout.put("aliases.json", spoiled)
        with pytest.raises(ModelNotFound, match=r"aliases\.json"):
            layout.registry.resolve("production")
        with pytest.raises(ModelNotFound, match=r"aliases\.json"):
            layout.registry.point("production", "1")


def test_a_damaged_artifact_is_not_registered(layout: _Layout, tmp_path: Path) -> None:
    small_artifact(tmp_path / "model")
    (tmp_path / "model" / "labels.csv").write_text("other")
    with pytest.raises(Exception, match=r"labels\.csv has other bytes"):
        layout.registry.upload(tmp_path / "model", aliases=[], moved=_silent)
