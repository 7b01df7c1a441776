"""W&B's client behind its deadline: whatever the server does, an answer comes, and no process is left."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from consumer.adapters.registries.wandb_child import _kind
from consumer.adapters.registries.wandb_registry import WandbRegistry
from consumer.errors import ModelsUnavailable, NotAuthorized
from tests.artifacts import contents, small_artifact
from tests.processes import wait_until
from tests.wandb_server import API_KEY, ENTITY, PROJECT, WandbServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WandbServer]:
    small_artifact(tmp_path / "model", weights=b"w" * 100_000)
    with WandbServer() as running:
        running.add("birds", contents(tmp_path / "model"))
        yield running


@pytest.fixture
def registry(server: WandbServer) -> Iterator[WandbRegistry]:
    opened = WandbRegistry(
        f"{ENTITY}/{PROJECT}/birds",
        base_url=server.url,
        api_key=API_KEY,
        project=PROJECT,
        question_s=20,
        transfer_s=2,
    )
    yield opened
    opened.close()


def _silent(_done: int, _of: int | None) -> None:
    """Nobody looks."""


def _below_us() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_files_that_never_come_end_at_the_deadline_and_no_process_is_left(
    server: WandbServer, registry: WandbRegistry, tmp_path: Path
) -> None:
    before = set(_below_us())
    version = registry.resolve("latest")
    started = set(_below_us()) - before
    assert len(started) >= 2, "the client, and the client's own process"
    server.fault = "hang-files"
    (tmp_path / "into").mkdir()
    with pytest.raises(ModelsUnavailable, match="no answer within 2 s"):
        registry.download(version, tmp_path / "into", _silent)
    # The client's own process is nobody's child any more, and dead; who reaps it is init's affair.
    wait_until(lambda: not any(map(_runs, started)), timeout_s=10, what="the client's processes to be gone")


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_cut_files_are_told_and_other_bytes_are_the_callers_to_find(
    server: WandbServer, registry: WandbRegistry, tmp_path: Path
) -> None:
    version = registry.resolve("latest")
    server.fault = "wrong-files"
    (tmp_path / "wrong").mkdir()
    registry.download(version, tmp_path / "wrong", _silent)
    assert contents(tmp_path / "wrong") != contents(tmp_path / "model")
    server.fault = "cut-files"
    (tmp_path / "cut").mkdir()
    with pytest.raises(ModelsUnavailable):
        registry.download(version, tmp_path / "cut", _silent)


def test_the_key_is_shown_to_the_server_alone(server: WandbServer, registry: WandbRegistry, tmp_path: Path) -> None:
    before = set(_below_us())
    registry.resolve("latest")
    assert server.keys == {API_KEY}
    for process in set(_below_us()) - before:
        assert API_KEY not in " ".join([*process.cmdline(), *process.environ().values()])
    server.fault = "refuse-key"
    registry.close()
    with pytest.raises(NotAuthorized) as refused:
        registry.resolve("latest")
    assert API_KEY not in str(refused.value)
    assert "wandb.api_key" in refused.value.remedy


def test_the_client_has_no_secret_of_others(
    server: WandbServer, registry: WandbRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("OUZEL_KAFKA__CLIENT__SASL_PASSWORD", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
    for name in others:
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    before = set(_below_us())
    registry.resolve("latest")
    started = set(_below_us()) - before
    assert len(started) >= 2
    for process in started:
        assert "canary" not in process.environ().values()
        assert "HTTPS_PROXY" in process.environ()
    assert server.keys == {API_KEY}, "that of the settings, and not the environment's"


def test_without_a_key_in_the_settings_the_environments_is_taken(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    opened = WandbRegistry(
        f"{ENTITY}/{PROJECT}/birds", base_url=server.url, api_key="", project=PROJECT, question_s=20, transfer_s=2
    )
    with closing(opened) as registry:
        assert registry.resolve("latest").version == "v0"
    assert server.keys == {API_KEY}


class _Answered(Exception):
    """As what a client raises that has an answer of the server."""

    def __init__(self, said: str, **response: int) -> None:
        super().__init__(said)
        self.response = SimpleNamespace(**response)


class AuthenticationError(Exception):
    """Of this name is W&B's own."""


def _after(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_Answered("user is not logged in", http_status=401), "denied"),
        (_Answered("Forbidden", status_code=403), "denied"),
        (RuntimeError("HTTP 403: Forbidden"), "denied"),
        (RuntimeError("permission denied"), "denied"),
        (AuthenticationError("no key"), "denied"),
        (_after(AuthenticationError("Failed to verify credentials"), TimeoutError()), "unavailable"),
        (_after(AuthenticationError("Failed to verify credentials"), _Answered("", http_status=500)), "unavailable"),
        (RuntimeError("digest 9401403f of 401 bytes at port 40311"), "unavailable"),
        (RuntimeError("birders/permission-classifier: reset"), "unavailable"),
        (_Answered("HTTP 401 was before; now no gateway", http_status=502), "unavailable"),
        (ValueError("artifact 'permission-403' not found in 'birders/models'"), "not-found"),
    ],
)
def test_what_was_refused_is_told_from_what_failed(error: Exception, kind: str) -> None:
    assert _kind(error) == kind


def test_a_client_that_was_killed_is_started_anew(registry: WandbRegistry) -> None:
    before = set(_below_us())
    registry.resolve("latest")
    for process in set(_below_us()) - before:
        process.kill()
    wait_until(lambda: not any(map(_runs, set(_below_us()) - before)), timeout_s=10, what="them to be gone")
    assert registry.resolve("latest").version == "v0"


def test_offline_nothing_is_registered_and_that_is_said(
    server: WandbServer, registry: WandbRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # the user's own: the child inherits it
    small_artifact(tmp_path / "other", weights=b"other")
    with pytest.raises(ModelsUnavailable, match="WANDB_MODE=offline"):
        registry.upload(tmp_path / "other", aliases=[], moved=_silent)
    assert len(server.artifacts) == 1
