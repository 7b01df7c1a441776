"""`ouzel model register` to `rollback`, and what `model.source` becomes, as a person and as `ouzel run` use them."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumer import bootstrap_model
from consumer.bootstrap_registries import model_cache
from consumer.cli import app
from consumer.errors import (
    CommandRefused,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
    ModelRefused,
    ModelSourceUnreachable,
    OuzelError,
)
from consumer.settings import Settings, load
from tests.artifacts import contents, small_artifact
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, running_proxy, running_server
from tests.wandb_server import API_KEY, ENTITY, PROJECT, WandbServer


@pytest.fixture(autouse=True)
def _a_users_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model_cache.cache_clear()


def _ouzel(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of `ouzel model ...`. Raises what it ends with."""
    done = CliRunner().invoke(app, ["model", *arguments])
    if isinstance(done.exception, OuzelError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def _settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"OUZEL_{name}", value)
    return load()


def test_a_version_is_registered_promoted_shown_pulled_and_rolled_back(tmp_path: Path) -> None:
    first = small_artifact(tmp_path / "first", weights=b"1")
    second = small_artifact(tmp_path / "second", weights=b"2")
    place = str(tmp_path / "registry" / "birds")
    (made,) = _ouzel("register", "first", place, "--alias", "production")
    assert (made["version"], made["digest"], made["aliases"]) == ("1", first, ["production"])
    _ouzel("register", "second", place)
    (promoted,) = _ouzel("promote", f"{place}:2", "production")
    assert (promoted["before"], promoted["version"], promoted["digest"]) == ("1", "2", second)
    assert [(row["version"], row["aliases"]) for row in _ouzel("list", place)] == [("2", ["production"]), ("1", [])]

    (shown,) = _ouzel("show", f"{place}:production")
    assert (shown["version"], shown["digest"], shown["aliases"]) == ("2", second, ["production"])
    assert shown["model"]["metrics"] == {"top_1": 0.75}
    assert shown["model"]["gate"]["status"] == "original"
    assert set(shown["files"]) == set(contents(tmp_path / "second")) - {"MANIFEST.sha256"}

    (pulled,) = _ouzel("pull", f"{place}:production@{second}", "--output", "here")
    assert pulled["digest"] == second
    assert contents(tmp_path / "here") == contents(tmp_path / "second")
    with pytest.raises(CommandRefused, match="there already"):
        _ouzel("pull", f"{place}:production", "--output", "here")
    with pytest.raises(ModelCorrupt):
        _ouzel("pull", f"{place}:production@{first}")

    (rolled,) = _ouzel("rollback", f"{place}:production")
    assert rolled["version"] == "1"
    with pytest.raises(ModelNotFound, match="production"):
        _ouzel("rollback", f"{place}:production")


def test_a_rejected_variant_may_be_kept_and_gets_no_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_artifact(tmp_path / "rejected", weights=b"1", gate="rejected")
    small_artifact(tmp_path / "provisional", weights=b"2", gate="provisional")
    place = str(tmp_path / "registry")
    with pytest.raises(ModelRefused, match="rejected"):
        _ouzel("register", "rejected", place, "--alias", "production")
    assert _ouzel("register", "rejected", place)[0]["gate"] == "rejected"
    assert _ouzel("register", "provisional", place)[0]["gate"] == "provisional"
    for version in ("1", "2"):
        with pytest.raises(ModelRefused):
            _ouzel("promote", f"{place}:{version}", "production")
    _settings(monkeypatch, MODEL__ALLOW_PROVISIONAL="true")
    with pytest.raises(ModelRefused):
        _ouzel("promote", f"{place}:1", "production")
    assert _ouzel("promote", f"{place}:2", "production")[0]["version"] == "2"


def test_commands_say_what_they_need(tmp_path: Path) -> None:
    small_artifact(tmp_path / "model")
    with pytest.raises(CommandRefused, match=r"model\.source"):
        _ouzel("list")
    with pytest.raises(CommandRefused, match="gets its name"):
        _ouzel("register", "model", "registry:production")
    with pytest.raises(CommandRefused, match="which alias"):
        _ouzel("rollback", "registry")
    (tmp_path / "model" / "labels.csv").write_text("other")
    with pytest.raises(ModelCorrupt, match=r"labels\.csv"):
        _ouzel("register", "model", "registry")
    with pytest.raises(ModelNotFound):
        _ouzel("list", "registry")


def test_what_is_not_there_or_is_no_registry_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="nope: no such model"):
        bootstrap_model.open_to_look_at(load(), "nope")
    with pytest.raises(ModelNotFound, match="nope: no such model"):
        bootstrap_model.obtain_package(_settings(monkeypatch, MODEL__SOURCE="nope"))
    with pytest.raises(ModelCorrupt, match="nope: no artifact"):
        _ouzel("register", "nope", "registry")
    small_artifact(tmp_path / "birds")
    with pytest.raises(ModelNotFound, match="no versions of a model lie there"):
        _ouzel("list", "birds")
    _ouzel("register", "birds", "registry")
    with pytest.raises(ModelNotFound, match="'1' cannot be an alias"):
        _ouzel("rollback", "registry:1")


def test_a_bucket_serves_a_start_and_the_cache_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"models-{uuid.uuid4().hex[:12]}"
    running_server().make_bucket(bucket)
    settings = _settings(
        monkeypatch,
        MODEL__SOURCE=f"s3://{bucket}/birds:production",
        STORES__S3__ENDPOINT_URL=running_server().url,
        STORES__S3__REGION=REGION,
        STORES__S3__ACCESS_KEY_ID=ACCESS_KEY,
        STORES__S3__SECRET_ACCESS_KEY=SECRET_KEY,
    )
    first = small_artifact(tmp_path / "first", weights=b"1")
    second = small_artifact(tmp_path / "second", weights=b"2")
    _ouzel("register", "first", "--alias", "production")
    told: list[str] = []
    package = bootstrap_model.obtain_package(settings, progress=lambda _share, what: told.append(what))
    assert (package.digest, package.spec.name, package.is_artifact) == (first, "birds", True)
    assert told[-1].startswith("fetching the model")
    watched = bootstrap_model.resolve_source(settings)
    assert watched is not None
    assert watched.digest == first

    _ouzel("register", "second")
    _ouzel("promote", f"s3://{bucket}/birds:2", "production")
    watched = bootstrap_model.resolve_source(settings)
    assert watched is not None
    assert bootstrap_model.obtain_package(settings, version=watched).digest == second

    proxy = running_proxy()
    away = _settings(monkeypatch, STORES__S3__ENDPOINT_URL=proxy.url)
    proxy.fault = "error-500"
    try:
        assert bootstrap_model.obtain_package(away).digest == second
        with pytest.raises(ModelSourceUnreachable):
            _ouzel("list")
    finally:
        proxy.fault = "none"


def test_a_start_with_a_hung_wandb_server_goes_on_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = small_artifact(tmp_path / "model")
    with WandbServer() as server:
        settings = _settings(
            monkeypatch,
            MODEL__SOURCE=f"wandb-artifact://{ENTITY}/{PROJECT}/birds:production",
            WANDB__BASE_URL=server.url,
            WANDB__API_KEY=API_KEY,
            WANDB__TIMEOUT_MS="10000",
        )
        _ouzel("register", "model", "--alias", "production")
        assert bootstrap_model.obtain_package(settings).digest == digest
        server.fault = "hang"
        hasty = settings.model_copy(update={"wandb": settings.wandb.model_copy(update={"timeout_ms": 1_000})})
        assert bootstrap_model.obtain_package(hasty).digest == digest
        pinned = hasty.model_copy(
            update={"model": settings.model.model_copy(update={"source": f"{settings.model.source}@{digest}"})}
        )
        server.asked.clear()
        assert bootstrap_model.obtain_package(pinned).digest == digest
        assert server.asked == [], "a pinned model that is here needs nobody"
        assert bootstrap_model.resolve_source(pinned) is None
        assert server.defects == []


def test_folders_are_used_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = small_artifact(tmp_path / "first", weights=b"1")
    other = small_artifact(tmp_path / "second", weights=b"2")
    settings = _settings(monkeypatch, MODEL__SOURCE=str(tmp_path / "first"))
    assert bootstrap_model.obtain_package(settings).folder == tmp_path / "first"
    assert bootstrap_model.resolve_source(settings) is None
    assert _ouzel("show")[0]["digest"] == digest

    settings = _settings(monkeypatch, MODEL__SOURCE=f"{tmp_path / 'first'}@{other}")
    with pytest.raises(ModelCorrupt):
        bootstrap_model.obtain_package(settings)

    place = tmp_path / "registry"
    for name in ("first", "second"):
        _ouzel("register", name, str(place))
    settings = _settings(monkeypatch, MODEL__SOURCE=f"file://{place}")
    assert bootstrap_model.obtain_package(settings).folder == place / "2"
    assert not (tmp_path / "cache").exists(), "nothing is copied"
    _ouzel("promote", f"{place}:1", "production")
    settings = _settings(monkeypatch, MODEL__SOURCE=f"file://{place}:production")
    watched = bootstrap_model.resolve_source(settings)
    assert watched is not None
    assert watched.digest == digest
    assert bootstrap_model.obtain_package(settings, version=watched).digest == digest


@pytest.mark.tensorflow
def test_bare_models_in_numbered_folders_are_opened_as_tensorflow_serving_and_triton_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shutil import copytree

    from tests.models import tiny_labels, tiny_model

    copytree(tiny_model(), tmp_path / "birds" / "1")
    copytree(tiny_model(), tmp_path / "birds" / "2" / "model.savedmodel")
    (tmp_path / "birds" / "3").mkdir()
    (tmp_path / "birds" / "3" / "model.onnx").write_bytes(b"onnx")
    labels = str(tiny_labels(tmp_path))
    for version, inside in (("1", "1"), ("2", "2/model.savedmodel")):
        settings = _settings(monkeypatch, MODEL__SOURCE=f"birds:{version}", MODEL__LABELS=labels)
        package = bootstrap_model.obtain_package(settings)
        assert package.folder == Path("birds") / inside
        assert (package.spec.name, package.spec.version, package.spec.input.size) == ("birds", version, (32, 32))
    settings = _settings(monkeypatch, MODEL__SOURCE="birds", MODEL__LABELS=labels)
    with pytest.raises(ModelError) as refused:
        bootstrap_model.obtain_package(settings)
    assert "ouzel model init" in refused.value.remedy
