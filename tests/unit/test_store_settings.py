"""Which stores the settings turn on."""

from pathlib import Path

import pytest

from consumer.bootstrap import build_stores
from consumer.errors import ReferenceRefused, SettingsError
from consumer.settings import HttpStoreSettings, Settings, StoresSettings
from consumer.stages.fetch import choose_store


def _schemes(settings: Settings) -> set[str]:
    return {scheme for store in build_stores(settings) for scheme in store.schemes}


def test_nothing_that_asks_anybody_is_on_until_the_settings_say_so(tmp_path: Path) -> None:
    assert _schemes(Settings()) == {"data"}
    http = Settings(stores=StoresSettings(http=HttpStoreSettings(hosts=["images.example.org"])))
    assert _schemes(http) == {"data", "http", "https"}


def test_a_data_uri_is_read_with_no_setting_at_all() -> None:
    uri = "data:image/png;base64,aW1hZ2U="
    store = choose_store(build_stores(Settings()), uri)
    assert store.fetch(uri, max_bytes=5, deadline_s=0).body == b"image"


def test_settings_reach_the_http_store() -> None:
    settings = Settings(stores=StoresSettings(http=HttpStoreSettings(hosts=["127.0.0.1"], schemes=["http"])))
    (store,) = [each for each in build_stores(settings) if "https" in each.schemes]
    for uri, said in (
        ("https://127.0.0.1/a", "stores.http.schemes"),
        ("http://127.0.0.2/a", "stores.http.hosts"),
        ("http://127.0.0.1/a", "stores.http.allow_networks"),
    ):
        with pytest.raises(ReferenceRefused, match=said.replace(".", r"\.")):
            store.fetch(uri, max_bytes=1, deadline_s=1)


def test_a_file_of_authorities_that_holds_none_is_an_error_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    http = HttpStoreSettings(hosts=["images.example.org"], ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=r"stores\.http\.ca_file"):
        build_stores(Settings(stores=StoresSettings(http=http)))
