"""docker-compose.yml and Dockerfile agree with the Compose Specification, with each other and with the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from consumer.cli import app
from consumer.settings import Settings
from tests.kafka_broker import KAFKA_VERSION

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCHEMA = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
LOADER_VARIABLES = {"OUZEL_SETTINGS", "OUZEL_SECRETS_DIR"}


def problems(document: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(document)]


def is_a_setting(variable: str) -> bool:
    model: type[BaseModel] | None = Settings
    for part in variable.removeprefix("OUZEL_").lower().split("__"):
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return model is None


def test_it_runs_the_kafka_that_the_tests_run() -> None:
    assert COMPOSE["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_the_file_is_what_the_compose_specification_says() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert problems(COMPOSE) == []


def test_the_schema_would_have_caught_a_misspelt_key() -> None:
    assert problems({**COMPOSE, "services": {"ouzel": {"image": "ouzel:local", "read_onyl": True}}}) != []


@pytest.mark.parametrize("name", OURS)
def test_the_build_target_is_a_stage_of_the_dockerfile(name: str) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert OURS[name]["build"]["target"] in stages


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    assert [variable for variable in OURS[name]["environment"] if not is_a_setting(variable)] == []


def test_every_variable_of_the_image_is_a_setting() -> None:
    variables = set(re.findall(r"\bOUZEL_\w+", DOCKERFILE))
    assert "OUZEL_HEALTH__HOST" in variables
    assert {variable for variable in variables - LOADER_VARIABLES if not is_a_setting(variable)} == set()


@pytest.mark.parametrize("variable", ["OUZEL_KAFKA__BOOTSTRAP_SERVER", "OUZEL_KAFKA", "OUZEL_BATCH__MAX_SIZE__X"])
def test_a_variable_that_is_no_setting_is_found_out(variable: str) -> None:
    assert not is_a_setting(variable)


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_the_program_takes(name: str) -> None:
    command: Any = typer.main.get_command(app)
    words = list(OURS[name]["command"])
    while words and (found := getattr(command, "commands", {}).get(words[0])):
        command = found
        words.pop(0)
    assert not hasattr(command, "commands"), f"no command: {OURS[name]['command']}"
    command.make_context(name, words)  # raises on an option or an argument that it does not take


@pytest.mark.parametrize("name", OURS)
def test_every_container_of_ours_is_locked_down(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert not {"privileged", "user", "cap_add"} & set(service)


def test_nothing_is_sent_before_the_replicas_are_up_and_nobody_runs_without_topics() -> None:
    services = COMPOSE["services"]
    assert services["photographs"]["depends_on"] == {"ouzel": {"condition": "service_healthy"}}
    assert services["ouzel"]["depends_on"] == {"topics": {"condition": "service_completed_successfully"}}
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert services["ouzel"]["deploy"]["replicas"] == 2
    assert "disable" not in services["ouzel"].get("healthcheck", {})


def test_a_replica_is_given_longer_to_stop_than_it_may_drain() -> None:
    grace_s = int(COMPOSE["services"]["ouzel"]["stop_grace_period"].removesuffix("s"))
    assert grace_s * 1000 > Settings().drain.timeout_ms


def test_the_photographs_are_those_of_the_demo() -> None:
    (volume,) = COMPOSE["services"]["photographs"]["volumes"]
    source, target, mode = volume.split(":")
    assert (ROOT / source / "chelsea.jpg").is_file()
    assert target in COMPOSE["services"]["photographs"]["command"]
    assert mode == "ro"


def test_everything_that_the_image_copies_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert copied
    assert {source for source in copied if f"!{source}" not in ignored or not (ROOT / source).exists()} == set()


def test_packages_of_the_image_are_pinned_by_hash_and_name_no_index() -> None:
    assert DOCKERFILE.count("--require-hashes") == 3
    for lock in ("requirements.lock", "requirements-openvino.lock", "requirements-gpu.lock"):
        text = (ROOT / lock).read_text()
        assert "://" not in text
        packages = re.findall(r"^[a-z0-9][^\n]*==[^\n]*\\\n +--hash=sha256:", text, re.MULTILINE)
        assert len(packages) == len(re.findall(r"^[a-z0-9][^\n]*==", text, re.MULTILINE)) > 20


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert users == [("10001", "10001")]


def test_the_health_check_asks_the_port_that_is_set() -> None:
    assert f"'OUZEL_HEALTH__PORT', '{Settings().health.port}'" in DOCKERFILE
    assert f"EXPOSE {Settings().health.port}" in DOCKERFILE
