"""What stands between the settings and a schema registry's client."""

import importlib.util
import subprocess
import sys

import pytest

from consumer import bootstrap
from consumer.errors import SettingsError
from consumer.settings import Settings
from consumer.stages.events import JsonEncoder
from tests.replica import ROOT


def _settings(**registry: str) -> Settings:
    return Settings.model_validate({"schema_registry": registry})


def test_without_a_registry_nothing_of_it_is_imported() -> None:
    check = (
        "import sys; from consumer import bootstrap, cli; from consumer.settings import Settings;"
        "bootstrap.build_records(Settings()); bootstrap.build_encoder(Settings());"
        "vendors = ('fastavro', 'google.protobuf', 'confluent_kafka.schema_registry');"
        "print([name for name in vendors if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert bootstrap.build_records(Settings()) is None
    assert isinstance(bootstrap.build_encoder(Settings()), JsonEncoder)


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastavro" else object())
    with pytest.raises(SettingsError, match="fastavro") as caught:
        bootstrap.build_records(_settings(url="http://registry"))
    assert ".[registry]" in caught.value.remedy


def test_an_absent_ca_file_is_told_before_anything_is_asked() -> None:
    with pytest.raises(SettingsError, match="'/absent' is no file"):
        bootstrap.build_records(_settings(url="https://registry", ca_file="/absent"))


def test_a_command_without_a_registry_is_told_to_set_one() -> None:
    with pytest.raises(SettingsError) as caught:
        bootstrap.open_registry(Settings())
    assert "schema_registry.url" in caught.value.remedy
