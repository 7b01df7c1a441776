"""Models on this disk: whole or not at all, verified before each use, and there when the registry is not."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from loguru import logger

from consumer.adapters.registries.file_registry import FileRegistry
from consumer.adapters.registries.model_cache import ModelCache, ModelFolder
from consumer.errors import CacheFull, CannotRun, ModelCorrupt, ModelSourceUnreachable, ModelsUnavailable
from tests.artifacts import contents, small_artifact
from tests.fakes import FakeModelRegistry
from tests.processes import wait_until

SOURCE = "s3://models/birds"


def _silent(_done: int, _of: int | None) -> None:
    """Nobody looks."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


@pytest.fixture
def cache(folder: Path) -> Iterator[ModelCache]:
    with closing(ModelCache(folder, 2)) as opened:
        yield opened


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    found: list[str] = []
    sink = logger.add(lambda message: found.append(str(message)), level="WARNING", format="{message}")
    yield found
    logger.remove(sink)


class _Registry(FakeModelRegistry):
    """With two versions, the first of them in production."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__()
        self.digests = []
        for number in (1, 2):
            made = tmp_path / f"model-{number}"
            self.digests.append(small_artifact(made, weights=bytes([number]) * 1000))
            self.upload(made, aliases=["production"] if number == 1 else [], moved=_silent)


@pytest.fixture
def registry(tmp_path: Path) -> _Registry:
    return _Registry(tmp_path)


def _obtain(cache: ModelCache, registry: FakeModelRegistry, alias: str = "production", pin: str = "") -> ModelFolder:
    return cache.obtain(SOURCE, registry, alias=alias, pin=pin)


def _nothing_is_under_way(folder: Path) -> bool:
    return not (folder / "tmp").exists() or list((folder / "tmp").iterdir()) == []


def test_a_model_is_fetched_once_and_read_only(cache: ModelCache, registry: _Registry, tmp_path: Path) -> None:
    first = _obtain(cache, registry)
    assert (first.version, first.digest, first.from_cache) == ("1", registry.digests[0], False)
    assert contents(first.path) == contents(tmp_path / "model-1")
    assert all(path.stat().st_mode & 0o222 == 0 for path in [first.path, *first.path.rglob("*")])
    again = _obtain(cache, registry)
    assert (again.path, again.from_cache) == (first.path, True)
    assert registry.asked["download"] == 1


def test_a_damaged_model_in_the_cache_is_fetched_anew(
    cache: ModelCache, registry: _Registry, warnings: list[str]
) -> None:
    first = _obtain(cache, registry)
    for damage in ("change", "cut", "remove", "add"):
        path = first.path / "labels.csv"
        for each in (first.path, path):
            each.chmod(0o755)
        if damage == "change":
            path.write_bytes(bytes(path.stat().st_size))
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "remove":
            path.unlink()
        else:
            (first.path / "more").touch()
        warnings.clear()
        anew = _obtain(cache, registry)
        assert anew.from_cache is False, damage
        assert len(warnings) == 1
        assert "damaged" in warnings[0]


@pytest.mark.parametrize("what", ["labels.csv", "model.toml", "MANIFEST.sha256"])
def test_what_is_not_as_registered_is_refused_and_not_kept(
    what: str, cache: ModelCache, registry: _Registry, folder: Path
) -> None:
    registry.spoil = lambda name, body: body[:-1] if name == what else body
    with pytest.raises(ModelCorrupt):
        _obtain(cache, registry)
    assert _nothing_is_under_way(folder)
    registry.spoil = lambda _name, body: body
    assert _obtain(cache, registry).digest == registry.digests[0]


def test_another_whole_model_than_the_registry_said_is_refused(
    cache: ModelCache, registry: _Registry, tmp_path: Path
) -> None:
    other = contents(tmp_path / "model-2")
    registry.spoil = lambda name, _body: other[name]
    with pytest.raises(ModelCorrupt, match=registry.digests[0]):
        _obtain(cache, registry)


def test_a_pin_refuses_every_other_model(cache: ModelCache, registry: _Registry) -> None:
    with pytest.raises(ModelCorrupt, match="is wanted"):
        _obtain(cache, registry, pin=registry.digests[1])
    assert registry.asked["download"] == 0, "the registry's own word is enough to refuse it"
    assert _obtain(cache, registry, pin=registry.digests[0]).digest == registry.digests[0]


def test_a_pinned_model_in_the_cache_needs_no_network(cache: ModelCache, registry: _Registry) -> None:
    _obtain(cache, registry)
    registry.asked.clear()
    registry.available = False
    found = _obtain(cache, registry, pin=registry.digests[0])
    assert (found.version, found.from_cache) == ("1", True)
    assert registry.asked == {}


def test_without_the_registry_an_alias_is_what_it_was_last_with_one_warning(
    cache: ModelCache, registry: _Registry, warnings: list[str]
) -> None:
    _obtain(cache, registry)
    registry.point("production", "2")
    _obtain(cache, registry)
    registry.available = False
    found = _obtain(cache, registry)
    assert (found.version, found.digest, found.from_cache) == ("2", registry.digests[1], True)
    assert len(warnings) == 1
    assert registry.digests[1] in warnings[0]


def test_a_download_that_breaks_off_leaves_what_was_there(cache: ModelCache, registry: _Registry, folder: Path) -> None:
    _obtain(cache, registry)
    registry.point("production", "2")

    def break_off(_written: Path) -> None:
        raise ModelsUnavailable("broken off")

    registry.while_downloading = break_off
    assert _obtain(cache, registry).digest == registry.digests[0]
    assert _nothing_is_under_way(folder)
    with pytest.raises(ModelsUnavailable):  # who asks for a version gets that, or nothing
        cache.obtain(SOURCE, registry, version=registry.resolve("2"))


def test_with_nothing_in_the_cache_the_start_fails_and_says_what_to_do(cache: ModelCache, registry: _Registry) -> None:
    _obtain(cache, registry)
    registry.available = False
    for alias, source in (("staging", SOURCE), ("production", "s3://models/others")):
        with pytest.raises(ModelSourceUnreachable) as told:
            cache.obtain(source, registry, alias=alias)
        assert told.value.exit_code == 5
        assert "ouzel model pull" in told.value.remedy
    with pytest.raises(ModelSourceUnreachable):
        _obtain(cache, registry, pin=registry.digests[1])


def test_bare_models_have_a_digest_too_and_tritons_lies_one_deeper(cache: ModelCache) -> None:
    registry = FakeModelRegistry()
    registry.put({"saved_model.pb": b"graph", "variables/variables.data": b"w"})
    registry.put({"model.savedmodel/saved_model.pb": b"graph", "model.savedmodel/variables/variables.data": b"w"})
    registry.put({"model.onnx": b"onnx"})
    first = _obtain(cache, registry, "1")
    second = _obtain(cache, registry, "2")
    assert contents(second.path) == {"saved_model.pb": b"graph", "variables/variables.data": b"w"}
    assert first.digest == second.digest, "the same model, however it lay"
    registry.available = False
    assert _obtain(cache, registry, "1", pin=first.digest).from_cache
    registry.available = True
    with pytest.raises(CannotRun) as refused:
        _obtain(cache, registry, "3")
    assert "ouzel model init" in refused.value.remedy


def test_a_bare_version_that_was_met_half_copied_is_fetched_anew_when_it_is_whole(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "registry" / "1"
    place.mkdir(parents=True)
    (place / "saved_model.pb").write_bytes(b"graph")
    registry = FileRegistry(place.parent)
    with closing(ModelCache(folder, 1)) as cache:
        half = cache.obtain(SOURCE, registry)
        assert cache.obtain(SOURCE, registry).from_cache
        (place / "variables").mkdir()
        (place / "variables" / "variables.data").write_bytes(b"weights")
        whole = cache.obtain(SOURCE, registry)
        assert (whole.version, whole.from_cache) == ("1", False)
        assert contents(whole.path) == contents(place)
        assert cache.obtain(SOURCE, registry) == ModelFolder(whole.path, "1", whole.digest, from_cache=True)
        assert cache.obtain(SOURCE, registry, pin=whole.digest).version == "1"
        cache.release(half.digest)
        cache.obtain(SOURCE, registry)
    assert _kept(folder) == {whole.digest}, "the half is not kept for ever"


def test_a_damaged_model_of_another_source_gives_way_to_the_same_model_fetched_whole(
    cache: ModelCache, warnings: list[str]
) -> None:
    registry = FakeModelRegistry()
    registry.put({"saved_model.pb": b"graph"})
    first = cache.obtain(SOURCE, registry)
    path = first.path / "saved_model.pb"
    path.chmod(0o644)
    path.write_bytes(b"other")
    again = cache.obtain("s3://models/others", registry)
    assert (again.digest, contents(again.path)) == (first.digest, {"saved_model.pb": b"graph"})
    assert "damaged" in warnings[0]


# --- the disk -------------------------------------------------------------------------------------------------------


@contextmanager
def _files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond, as a full disk does (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_disk_that_takes_no_more_is_told_and_the_cache_stays_of_use(
    cache: ModelCache, tmp_path: Path, folder: Path
) -> None:
    registry = FakeModelRegistry()
    small_artifact(tmp_path / "small")
    small_artifact(tmp_path / "large", weights=bytes(200_000))
    registry.upload(tmp_path / "small", aliases=["production"], moved=_silent)
    registry.upload(tmp_path / "large", aliases=["staging"], moved=_silent)
    there = _obtain(cache, registry)
    with _files_of_at_most(100_000), pytest.raises(CacheFull, match="the disk is full") as told:
        _obtain(cache, registry, "staging")
    assert str(folder) in str(told.value)
    assert "model.cache_versions" in told.value.remedy
    assert _nothing_is_under_way(folder)
    assert _obtain(cache, registry) == ModelFolder(there.path, "1", there.digest, from_cache=True)
    assert _obtain(cache, registry, "staging").version == "2"


def test_a_disk_that_is_full_when_all_is_written_is_told_too(
    cache: ModelCache, registry: _Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:  # with delayed allocation fsync is the first to know
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CacheFull, match="the disk is full"):
            _obtain(cache, registry)
    assert _nothing_is_under_way(folder)
    assert not (folder / "sha256").exists()
    assert _obtain(cache, registry).digest == registry.digests[0]


_KILLED = """
import os, signal, sys
from pathlib import Path
from consumer.adapters.registries.file_registry import FileRegistry
from consumer.adapters.registries.model_cache import ModelCache

def killed(done, of):
    if done >= of // 2:
        os.kill(os.getpid(), signal.SIGKILL)

ModelCache(Path(sys.argv[1]), 2).obtain("s3://models/birds", FileRegistry(Path(sys.argv[2])), progress=killed)
"""


def test_a_process_that_is_killed_in_the_midst_leaves_nothing_that_is_loaded(
    cache: ModelCache, folder: Path, tmp_path: Path
) -> None:
    small_artifact(tmp_path / "model", weights=bytes(1_000_000))
    registry = FileRegistry(tmp_path / "registry")
    registry.upload(tmp_path / "model", aliases=[], moved=_silent)
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), str(tmp_path / "registry")], timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert not _nothing_is_under_way(folder)
    assert not (folder / "sha256").exists()
    found = cache.obtain(SOURCE, registry)
    assert contents(found.path) == contents(tmp_path / "model")
    assert _nothing_is_under_way(folder), "what the killed one left is swept"


# --- garbage, and others --------------------------------------------------------------------------------------------


def _kept(folder: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (folder / "sha256").iterdir()}


def _filled(registry: FakeModelRegistry, tmp_path: Path, count: int) -> list[str]:
    found = []
    for number in range(count):
        made = tmp_path / f"many-{number}"
        found.append(small_artifact(made, weights=f"many {number}".encode()))
        registry.upload(made, aliases=[], moved=_silent)
    return found


def _obtain_and_end(
    folder: Path, registry: FakeModelRegistry, alias: str, *, keep: int = 1, source: str = SOURCE
) -> None:
    """As a process that has ended since."""
    with closing(ModelCache(folder, keep)) as cache:
        cache.obtain(source, registry, alias=alias)


def test_the_last_versions_by_use_are_kept(folder: Path, tmp_path: Path) -> None:
    registry = FakeModelRegistry()
    digests = _filled(registry, tmp_path, 5)
    for number in ("1", "2", "3", "1", "4", "5"):
        _obtain_and_end(folder, registry, number, keep=2)
    assert _kept(folder) == {digests[3], digests[4]}
    registry.available = False
    with pytest.raises(ModelSourceUnreachable):
        _obtain_and_end(folder, registry, "1", keep=2)


def test_what_is_in_use_is_kept_here_and_in_other_processes(folder: Path, tmp_path: Path) -> None:
    registry = FakeModelRegistry()
    digests = _filled(registry, tmp_path, 4)
    mine = ModelCache(folder, 1)
    mine.obtain(SOURCE, registry, alias="1")
    others = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(folder), digests[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert others.stdin is not None
    assert others.stdout is not None
    with others:
        assert others.stdout.readline() == b"held\n"
        mine.release(digests[0])
        for number in ("2", "3"):
            mine.obtain(SOURCE, registry, alias=number)
        assert _kept(folder) == set(digests[:3]), "the first another process's, the others mine"
        others.stdin.close()
    mine.release(digests[1])
    mine.obtain(SOURCE, registry, alias="4")
    assert _kept(folder) == {digests[2], digests[3]}
    mine.close()


_HOLDS = """
import sys
from pathlib import Path
from consumer.adapters.registries.model_cache import ModelCache
from tests.fakes import FakeModelRegistry

cache = ModelCache(Path(sys.argv[1]), 1)
cache.obtain("s3://models/birds", FakeModelRegistry(), pin=sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_versions_of_other_sources_are_not_counted(folder: Path, tmp_path: Path) -> None:
    registry = FakeModelRegistry()
    digests = _filled(registry, tmp_path, 3)
    _obtain_and_end(folder, registry, "1", source="s3://models/others")
    for number in ("2", "3"):
        _obtain_and_end(folder, registry, number)
    assert _kept(folder) == {digests[0], digests[2]}


_FETCHES = """
import sys
from pathlib import Path
from consumer.adapters.registries.file_registry import FileRegistry
from consumer.adapters.registries.model_cache import ModelCache

sys.stdin.read()
found = ModelCache(Path(sys.argv[1]), 2).obtain("s3://models/birds", FileRegistry(Path(sys.argv[2])))
print(found.digest, found.path)
"""


def test_several_processes_fetch_at_once_and_all_have_it_whole(folder: Path, tmp_path: Path) -> None:
    digest = small_artifact(tmp_path / "model", weights=bytes(2_000_000))
    FileRegistry(tmp_path / "registry").upload(tmp_path / "model", aliases=[], moved=_silent)
    command = [sys.executable, "-c", _FETCHES, str(folder), str(tmp_path / "registry")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # go
    for process in processes:
        assert process.stdout is not None
        with process:
            assert process.stdout.read().decode().split() == [digest, str(folder / "sha256" / digest[7:])]
    wait_until(lambda: _nothing_is_under_way(folder), timeout_s=5, what="all to be done")
