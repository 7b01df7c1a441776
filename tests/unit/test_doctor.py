"""What `ouzel doctor` looks at on this machine, and as whom it asks the broker."""

import importlib.util
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from consumer import bootstrap_model
from consumer.bootstrap_model import cache_folder, load_model
from consumer.bootstrap_tuning import Tuned, keep
from consumer.commands import doctor, topics
from consumer.settings import (
    FileStoreSettings,
    HttpStoreSettings,
    KafkaSettings,
    ModelSettings,
    S3StoreSettings,
    Settings,
    StoresSettings,
)
from tests.models import tiny_labels, tiny_model
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, running_server
from tests.schema_registry import RegistryServer


def test_room_is_looked_for_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_folder().mkdir()
    (finding,) = doctor._disk(Settings())
    assert str(cache_folder()) in finding.said


def test_each_file_root_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    roots = [str(tmp_path / name) for name in ("there", "file", "absent")]
    findings = list(doctor._stores(Settings(stores=StoresSettings(file=FileStoreSettings(roots=roots)))))
    assert [finding.result for finding in findings] == ["pass", "fail", "fail"]
    assert all(root in finding.said for root, finding in zip(roots, findings, strict=True))
    assert all(finding.fix for finding in findings if finding.result == "fail")


def test_a_file_root_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_args: False)  # root may read everything
    stores = StoresSettings(file=FileStoreSettings(roots=[str(tmp_path)]))
    (finding,) = doctor._stores(Settings(stores=stores))
    assert (finding.result, "may not be read" in finding.said) == ("fail", True)


def test_rights_are_asked_as_the_service_and_not_as_the_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[KafkaSettings] = []
    monkeypatch.setattr(topics, "open_admin", lambda settings: seen.append(settings.kafka))
    kafka = KafkaSettings(client={"sasl.username": "ouzel"}, admin={"sasl.username": "root"})
    doctor._as_the_service(Settings(kafka=kafka))
    assert [(each.client, each.admin) for each in seen] == [({"sasl.username": "ouzel"}, {})]


def test_each_bucket_has_its_line() -> None:
    server = running_server()
    server.make_bucket("doctors", versions=False)
    s3 = S3StoreSettings(
        buckets=["doctors", "doctors/2026", "absent", "photos-*"],
        endpoint_url=server.url,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SecretStr(SECRET_KEY),
    )
    findings = list(doctor._stores(Settings(stores=StoresSettings(s3=s3))))
    assert [finding.result for finding in findings] == ["pass", "pass", "fail", "skip"]
    assert "NoSuchBucket" in findings[2].said
    assert SECRET_KEY not in str(findings)


def test_a_store_whose_extra_is_not_installed_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    (finding,) = doctor._stores(Settings(stores=StoresSettings(s3=S3StoreSettings(buckets=["photos"]))))
    assert (finding.result, ".[s3]" in finding.fix) == ("fail", True)


def test_hosts_are_named_though_nothing_can_be_asked_of_them() -> None:
    stores = StoresSettings(http=HttpStoreSettings(hosts=["images.example.org", "*.example.net"]))
    (finding,) = doctor._stores(Settings(stores=stores))
    assert (finding.result, "images.example.org, *.example.net" in finding.said) == ("skip", True)


def _registry(**changes: object) -> list[doctor.Finding]:
    settings = Settings.model_validate(changes)
    return list(doctor._guarded("registry", lambda: doctor._registry(settings)))


def test_a_registry_is_asked_what_the_service_will_ask() -> None:
    assert _registry() == []
    with RegistryServer() as server:
        at = {"schema_registry": {"url": server.url}}
        assert [finding.result for finding in _registry(**at)] == ["pass"]
        (finding,) = _registry(**at, output={"format": "avro"})
        assert (finding.result, "ouzel schemas register" in finding.fix) == ("fail", True)
        server.failing = (503, b"")
        (finding,) = _registry(**at)
        assert (finding.result, "schema_registry.url" in finding.fix) == ("fail", True)


def test_a_sandbox_that_cannot_be_started_is_told_before_it_is_needed() -> None:
    def findings(factory: str) -> list[doctor.Finding]:
        sandbox = bootstrap_model.sandboxed(Settings(), factory, {"input_size": (32, 32)})
        return list(doctor._guarded("sandbox", lambda: doctor._sandbox(sandbox)))

    assert [finding.result for finding in findings("consumer.adapters.image:PillowDecoder")] == ["pass"]
    (finding,) = findings("consumer.adapters.image:NoDecoder")
    assert (finding.result, "process and memory limits" in finding.fix) == ("fail", True)


def test_the_cpu_and_what_pays_on_it_have_a_line() -> None:
    finding = doctor._cpu()
    assert finding.check == "cpu"
    assert "f32 always" in finding.said
    assert "bf16" in finding.said


@pytest.mark.tensorflow
def test_why_auto_takes_its_runtime_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.adapters.runtimes.kinds.is_installed", lambda kind: kind.name == "openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    labels = tiny_labels(tmp_path)
    model = Settings().model.model_copy(update={"source": str(tiny_model()), "labels": str(labels)})
    findings = {finding.check: finding for finding in doctor._model(Settings().model_copy(update={"model": model}))}
    why = "the only one installed for saved_model, neither compared nor timed"
    assert findings["runtime"].said == f"openvino: OpenVINO: {why}"
    assert findings["inference"].result == "pass"


def test_what_was_tuned_is_named_and_that_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = Settings(model=ModelSettings(runtime="null", autotune=True))
    (finding,) = [each for each in doctor._model(settings) if each.check == "tuning"]
    assert "measures for up to 5 s" in finding.said
    model = load_model(settings)
    values = {"batch.max_size": 8, "model.threads": 2, "model.streams": 0, "pipeline.decode_threads": 3}
    keep(settings, model.runtime.info.digest, "null", Tuned(values, "as was measured"), knows=True)
    (finding,) = [each for each in doctor._model(settings) if each.check == "tuning"]
    assert "batch.max_size 8" in finding.said
    assert "as was measured" in finding.said
    off = Settings(model=ModelSettings(runtime="null"))
    assert not [each for each in doctor._model(off) if each.check == "tuning"]
