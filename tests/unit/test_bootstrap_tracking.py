"""What is told of a replica in its run, and when tracking can begin."""

import json
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from consumer import bootstrap_tracking
from consumer.bootstrap_tracking import check_tracking, open_notebook, run_facts, runs_folder, told_settings
from consumer.commands import doctor
from consumer.errors import SettingsError
from consumer.metrics import Metrics
from consumer.redact import MASK
from consumer.settings import (
    HttpStoreSettings,
    KafkaSettings,
    S3StoreSettings,
    Settings,
    StoresSettings,
    TrackingSettings,
    WandbSettings,
)
from tests.wandb_runs_server import RunsServer

ENABLED = TrackingSettings(enabled=True)


def _secretive() -> Settings:
    return Settings(
        kafka=KafkaSettings(client={"sasl.username": "ouzel", "sasl.password": "canary-1"}),
        wandb=WandbSettings(api_key=SecretStr("canary-2")),
        tracking=ENABLED,
        stores=StoresSettings(
            http=HttpStoreSettings(
                headers={"images.example.org": {"X-Api-Key": SecretStr("canary-3"), "X-Odd": SecretStr("canary-4")}},
                proxy=SecretStr("http://me:canary-5@proxy:3128"),
            ),
            s3=S3StoreSettings(proxy_url="http://me:canary-6@proxy:3128", secret_access_key=SecretStr("canary-7")),
        ),
    )


def test_a_run_is_told_every_setting_and_no_secret() -> None:
    settings = _secretive()
    told = told_settings(settings, {"kafka.group_id": "secret file /run/secrets/ouzel_kafka__group_id"})
    assert "canary" not in json.dumps(told)
    assert told["kafka.client.sasl.username"] == "ouzel"
    assert told["kafka.client.sasl.password"] == MASK
    assert told["kafka.group_id"] == MASK
    assert told["batch.max_size"] == settings.batch.max_size
    assert told["stores.s3.session_token"] in {"", MASK}


def test_a_run_is_named_after_the_replica_and_grouped_by_the_consumer_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "replica-7")
    facts = run_facts(Settings(kafka=KafkaSettings(group_id="birds"), tracking=ENABLED), {})
    assert (facts.name, facts.group) == ("replica-7", "birds")
    assert {"versions", "cpu", "settings"} <= facts.config.keys()
    assert "canary" not in repr(run_facts(_secretive(), {}))


def test_runs_lie_in_the_users_state_folder_unless_a_setting_says_where(tmp_path: Path) -> None:
    assert runs_folder(Settings()).name == "tracking"
    assert runs_folder(Settings(tracking=TrackingSettings(folder=str(tmp_path)))) == tmp_path


def test_without_the_extra_tracking_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_tracking, "missing", lambda *modules: list(modules))
    check_tracking(Settings())  # off: nothing is needed
    with pytest.raises(SettingsError) as refused:
        check_tracking(Settings(tracking=ENABLED))
    assert ".[wandb]" in refused.value.remedy


def test_without_tracking_there_is_no_notebook() -> None:
    with open_notebook(Settings(), Metrics(), {}) as notebook:
        assert notebook is None


def test_the_doctor_says_nothing_of_what_is_off_and_asks_no_server_for_runs_on_disk() -> None:
    assert list(doctor._tracking(Settings())) == []
    [finding] = doctor._tracking(Settings(tracking=TrackingSettings(enabled=True, mode="offline")))
    assert finding.result == "pass"


def test_the_doctor_asks_the_server(tmp_path: Path) -> None:
    with RunsServer() as server:
        settings = Settings(
            tracking=TrackingSettings(enabled=True, folder=str(tmp_path)),
            wandb=WandbSettings(base_url=server.url, api_key=SecretStr("0123456789" * 4)),
        )
        [finding] = doctor._tracking(settings)
        assert finding.result == "pass"
        server.mood = "refuses"
        [finding] = doctor._tracking(settings)
        assert (finding.result, "0123456789" * 4 in finding.said) == ("warn", False)
