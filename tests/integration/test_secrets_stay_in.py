"""A secret is planted in every place that may hold one, and all that comes out is searched for it.

What is handed on by contract is no leak: a dead letter's own key, value and headers, untouched, in its topic; and a
message's metadata and headers in its label event. Everything that *tells* of them is searched.
"""

import base64
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from consumer.settings import Settings
from tests.conftest import MakeTopics, Topics
from tests.kafka_broker import Cluster
from tests.kafka_clients import Record, read_to_end, send
from tests.replica import ROOT, Replica

pytestmark = pytest.mark.kafka

CANARY = "canary-"


def canary(place: str) -> str:
    """A secret that says where it was planted. No two alike, and nothing else looks so."""
    return f"{CANARY}{place.replace(' ', '')}9f3a7c"


PROPERTIES = {
    "sasl.username": "ouzel",
    "sasl.password": canary("sasl.password"),
    "ssl.key.password": canary("ssl.key.password"),
    "ssl.key.pem": f"-----BEGIN PRIVATE KEY-----\n{canary('ssl.key.pem')}\n-----END PRIVATE KEY-----",
    "ssl.keystore.password": canary("ssl.keystore.password"),
    "sasl.oauthbearer.config": f"principal=ouzel secret={canary('sasl.oauthbearer.config')}",
    "sasl.oauthbearer.client.secret": canary("sasl.oauthbearer.client.secret"),
    "sasl.oauthbearer.assertion.private.key.pem": canary("assertion.private.key.pem"),
    "sasl.oauthbearer.assertion.private.key.passphrase": canary("assertion.private.key.passphrase"),
    "sasl.kerberos.kinit.cmd": f"echo {canary('kinit')} | kinit",
    "debug": "security,conf,broker,admin,feature",
}
"""Of a client that signs in nowhere, so that it works: PLAINTEXT takes them all and uses none."""

MESSAGES = [
    Record(
        json.dumps(
            {"image_id": "user-info", "uri": f"https://me:{canary('user-info')}@bucket.example.org/a.jpg"}
        ).encode(),
        key=b"user-info",
    ),
    Record(
        json.dumps(
            {
                "uri": "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256"
                f"&X-Amz-Credential={canary('amz-credential')}&X-Amz-Signature={canary('amz-signature')}"
                f"&X-Amz-Security-Token={canary('amz-token')}",
            }
        ).encode(),
    ),
    Record(
        f"https://account.blob.core.windows.net/a.jpg?sv=1&sig={canary('sig')}#token={canary('fragment')}".encode(),
        headers=[("content-type", b"text/uri-list")],
    ),
    Record(json.dumps({"image_id": "data", "uri": f"data:image/png;base64,{canary('data')}"}).encode()),
    Record(json.dumps({"image_id": "ftp", "uri": f"ftp://host/a?token={canary('token')}"}).encode()),
    Record(
        json.dumps(
            {
                "image_id": "metadata",
                "uri": "file:///not/there.jpg",
                "metadata": {"api_token": canary("metadata-token"), "db": {"password": canary("metadata-password")}},
            }
        ).encode(),
    ),
    Record(
        b"no image at all",
        headers=[
            ("authorization", f"Bearer {canary('header-bearer')}".encode()),
            ("x-api-key", canary("header-api-key").encode()),
            ("x-link", f"https://host/a?sig={canary('header-link')}".encode()),
        ],
    ),
    Record(
        f'{{"uri": "https://host/a?sig={canary("cut-json")}"'.encode(), headers=[("content-type", b"application/json")]
    ),
]


@dataclass
class Outputs:
    """All that was said, by who said it."""

    said: dict[str, str] = field(default_factory=dict)

    def add(self, who: str, text: str | bytes) -> None:
        self.said[who] = self.said.get(who, "") + (text if isinstance(text, str) else text.decode(errors="replace"))

    def assert_no_canary(self) -> None:
        leaks = []
        for who, text in self.said.items():
            at = text.lower().find(CANARY)
            while at >= 0:
                leaks.append(f"{who}: ...{text[max(0, at - 120) : at + 60]}...")
                at = text.lower().find(CANARY, at + 1)
        assert not leaks, f"{len(leaks)} leaks:\n" + "\n".join(leaks[:40])


def environment(cluster: Cluster, topics: Topics, more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")},
        "OUZEL_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "OUZEL_KAFKA__CLIENT": json.dumps(PROPERTIES),
        "OUZEL_KAFKA__GROUP_ID": topics.group,
        "OUZEL_KAFKA__INPUT_TOPICS": json.dumps([topics.images]),
        "OUZEL_KAFKA__OUTPUT_TOPIC": topics.predictions,
        "OUZEL_KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
        "OUZEL_MODEL__RUNTIME": "null",
        "OUZEL_LOG__LEVEL": "TRACE",
        **(more or {}),
    }


def ouzel(where: Mapping[str, str], *arguments: str) -> str:
    """Everything that a command says, piped."""
    done = subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        capture_output=True,
        env=dict(where),
        cwd=ROOT,
        timeout=90,
        check=False,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


def side_by_side(outputs: Outputs, commands: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
    """Adds what each of these commands says in its environment, all run at once."""
    with ThreadPoolExecutor(len(commands)) as threads:
        said = threads.map(lambda each: ouzel(*each), commands.values())
        for who, text in zip(commands, said, strict=True):
            outputs.add(who, text)


def ouzel_in_terminal(where: Mapping[str, str], *arguments: str) -> str:
    """The same in a wide terminal, where data are tables."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "consumer", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**where, "COLUMNS": "2000"},
            cwd=ROOT,
        )
        os.close(theirs)
        said = b""
        while select.select([ours], [], [], 90)[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        process.wait(90)
        return said.decode(errors="replace")
    finally:
        os.close(ours)


@pytest.fixture(scope="module")
def worked(
    kafka: Cluster, make_module_topics: MakeTopics, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Topics, Outputs]:
    """A replica at the most talkative level has answered every message; its outputs."""
    topics = make_module_topics(partitions=1)
    outputs = Outputs()
    where = environment(kafka, topics)
    log_file = tmp_path_factory.mktemp("log") / "log.jsonl"
    settings = {name: value for name, value in where.items() if name.startswith("OUZEL_")}
    settings["OUZEL_LOG__FILE"] = str(log_file)
    with Replica(kafka, topics, settings=settings) as replica:
        replica.start().wait_ready()
        photograph = next((ROOT / "consumer" / "data" / "photographs").glob("*.jpg")).read_bytes()
        good = Record(
            json.dumps(
                {
                    "image_id": "good",
                    "data": base64.b64encode(photograph).decode(),
                    "uri_seen": f"https://host/good.jpg?sig={canary('extra-field')}",
                }
            ).encode()
        )
        send(kafka, topics.images, [*MESSAGES, Record(photograph), good])
        wanted = len(MESSAGES) + 2
        replica.wait_for(lambda: replica.metric("ouzel_images_total") == wanted, 60, "all messages answered")
        for path in ("livez", "readyz", "metrics", "nothing"):
            outputs.add(f"probe {path}", replica.probe(path)[1])
        assert replica.terminate() == 0
        outputs.add("log", replica.log_file.read_bytes())
        outputs.add("log file", log_file.read_bytes())
    return where, topics, outputs


def test_a_replica_at_its_most_talkative_says_no_secret(worked: tuple[Any, Any, Outputs]) -> None:
    _, _, outputs = worked
    log = outputs.said["log"]
    assert "conf" in log.lower(), "librdkafka's debug lines are part of what is searched"
    assert "MalformedMessage" in log or "ReferenceRefused" in log
    outputs.assert_no_canary()


def test_events_and_error_headers_tell_no_secret(kafka: Cluster, worked: tuple[Any, Topics, Any]) -> None:
    _, topics, _ = worked
    outputs = Outputs()
    for event in read_to_end(kafka, topics.predictions):
        outputs.add("label event", event.value() or b"")
        outputs.add("label event's headers", repr(event.headers()))
    letters = read_to_end(kafka, topics.dead_letters)
    assert len(letters) >= len(MESSAGES)
    for letter in letters:
        own: Any = letter.headers() or []
        for name, value in own:
            if name.startswith(("__connect.", "ouzel-")):
                outputs.add(f"dead letter header {name}", value or b"")
    outputs.assert_no_canary()


def test_commands_that_look_say_no_secret(worked: tuple[dict[str, str], Topics, Any]) -> None:
    where, _, _ = worked
    outputs = Outputs()
    letters = [("dlq", "show", f"0:{offset}") for offset in range(len(MESSAGES))]
    for command in (
        ("settings",),
        ("settings", "--json"),
        ("doctor",),
        ("topics", "describe"),
        ("topics", "acls", "--principal", "User:ouzel"),
        ("offsets", "show"),
        ("tail", "--from-beginning", "--limit", "2"),
        ("tail", "--dead-letters", "--from-beginning", "--limit", str(len(MESSAGES))),
        ("dlq", "ls"),
        ("dlq", "replay"),
        *letters,
    ):
        outputs.add(f"ouzel {' '.join(command)}", ouzel(where, *command))
    for command in (("settings",), ("dlq", "ls"), letters[0], letters[-2]):
        outputs.add(f"ouzel {' '.join(command)} in a terminal", ouzel_in_terminal(where, *command))
    assert "sasl.password" in outputs.said["ouzel settings in a terminal"]
    assert "user-info" in outputs.said["ouzel dlq show 0:0"]
    outputs.assert_no_canary()


STARTS_THAT_FAIL = {
    "a property that librdkafka lacks": {"OUZEL_KAFKA__CLIENT__SASL_JAAS_CONFIG": canary("sasl.jaas.config")},
    "a property with a typo": {"OUZEL_KAFKA__CLIENT__SASL_PASWORD": canary("sasl.pasword")},
    "a property of a wrong type": {"OUZEL_KAFKA__CLIENT": json.dumps({"sasl.password": [canary("list")]})},
    "properties in tables": {
        "OUZEL_KAFKA__CLIENT": json.dumps({"sasl": {"oauthbearer": {"client": {"secret": [canary("nested")]}}}})
    },
    "properties that are no JSON": {"OUZEL_KAFKA__CLIENT": '{"sasl.password": "' + canary("no-json")},
    "a table that is a list": {"OUZEL_KAFKA": json.dumps([canary("list-table")])},
    "a property refused": {"OUZEL_KAFKA__CLIENT__TRANSACTIONAL_ID": canary("transactional.id")},
    "a variable with a typo": {"OUZEL_KAFKA__CLIENT_SASL_PASSWORD": canary("variable")},
    "a variable of nothing": {"OUZEL_PASSWORD": canary("nothing")},
    "what is no key": {"OUZEL_KAFKA__CLIENT": json.dumps({"ssl.key.pem": canary("pem"), "security.protocol": "SSL"})},
    "no broker": {"OUZEL_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "500"},
    "a model whose place is a URI": {
        "OUZEL_MODEL__RUNTIME": "tensorflow",
        "OUZEL_MODEL__SOURCE": f"https://me:{canary('model')}@host/model?sig={canary('model-sig')}",
    },
    "a model in W&B, which nobody answers for": {
        "OUZEL_MODEL__RUNTIME": "tensorflow",
        "OUZEL_MODEL__SOURCE": "wandb-artifact://team/project/birds:production",
        "OUZEL_WANDB__BASE_URL": "http://127.0.0.1:1",
        "OUZEL_WANDB__API_KEY": canary("wandb.api_key").replace(".", "").ljust(40, "0"),  # as long as W&B's
        "OUZEL_WANDB__TIMEOUT_MS": "2000",
    },
    "a password that the broker refuses": {
        "OUZEL_KAFKA__CLIENT__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "OUZEL_KAFKA__CLIENT__SASL_MECHANISM": "PLAIN",
        "OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "2000",
    },
}


@pytest.mark.parametrize("start", STARTS_THAT_FAIL)
def test_a_start_that_fails_says_no_secret(
    kafka: Cluster, worked: tuple[Any, Topics, Any], start: str, tmp_path: Path
) -> None:
    _, topics, _ = worked
    where = environment(kafka, topics, STARTS_THAT_FAIL[start])
    outputs = Outputs()
    commands = {
        f"ouzel {command}": (where | {"XDG_CACHE_HOME": str(tmp_path / command)}, command)
        for command in ("run", "doctor", "settings")
    }
    side_by_side(outputs, commands)
    assert all(outputs.said.values())
    outputs.assert_no_canary()


def secret_settings(model: type[BaseModel] = Settings, above: str = "OUZEL_") -> Iterator[tuple[str, str]]:
    """Every variable whose setting is a SecretStr, or a table of them, with a value to plant."""
    for name, info in model.model_fields.items():
        variable = above + name.upper()
        kind = str(info.annotation)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from secret_settings(info.annotation, f"{variable}__")
        elif "SecretStr" in kind and "dict" in kind:
            yield variable, json.dumps({"host.example.org": canary(variable)})
        elif "SecretStr" in kind:
            yield variable, canary(variable)


def _other_half(variable: str) -> dict[str, str]:
    """What has to be set beside it."""
    pairs = {
        "OUZEL_STORES__S3__SECRET_ACCESS_KEY": "OUZEL_STORES__S3__ACCESS_KEY_ID",
        "OUZEL_SCHEMA_REGISTRY__PASSWORD": "OUZEL_SCHEMA_REGISTRY__USERNAME",
    }
    return {pairs[variable]: "named"} if variable in pairs else {}


_NO_VALUE = ("OUZEL_STORES__HTTP__HEADERS", "OUZEL_STORES__HTTP__PROXY")
"""What is planted there ends the commands before they look at the others."""


@pytest.mark.parametrize("refused", [False, True], ids=["values that will do", "values that will not"])
def test_no_secret_setting_is_shown(kafka: Cluster, worked: tuple[Any, Topics, Any], refused: bool) -> None:
    _, topics, _ = worked
    planted = {variable: value for variable, value in secret_settings() if (variable in _NO_VALUE) == refused}
    where = environment(kafka, topics, planted)
    for variable in planted:
        where |= _other_half(variable)
    outputs = Outputs()
    side_by_side(outputs, {f"ouzel {command}": (where, command) for command in ("settings", "doctor")})
    assert ("error:" in outputs.said["ouzel settings"]) == refused
    assert [variable for variable in planted if variable not in outputs.said["ouzel settings"]] == []
    outputs.assert_no_canary()


def test_an_internal_failure_says_no_secret(kafka: Cluster, make_topics: MakeTopics) -> None:
    """A defect of ours: the stack trace goes to the dead letter's header and to the log."""
    topics = make_topics(partitions=1)
    where = environment(kafka, topics)
    settings = {name: value for name, value in where.items() if name.startswith("OUZEL_")}
    outputs = Outputs()
    with Replica(kafka, topics, settings=settings, entry="tests.integration.failing_replica") as replica:
        replica.start().wait_ready()
        send(kafka, topics.images, MESSAGES[:1])
        replica.wait_for(lambda: replica.metric("ouzel_images_total") == 1, 60, "the message answered")
        assert replica.terminate() == 0
        outputs.add("log", replica.log_file.read_bytes())
    (letter,) = read_to_end(kafka, topics.dead_letters)
    headers: Any = dict(letter.headers() or [])
    assert b"ZeroDivisionError" in headers["__connect.errors.exception.stacktrace"]
    for name, value in headers.items():
        outputs.add(f"dead letter header {name}", value or b"")
    outputs.assert_no_canary()


def test_a_crash_says_no_secret(kafka: Cluster, make_topics: MakeTopics) -> None:
    """An exception that nobody expected ends the process: exit code 70, and a stack trace without values."""
    topics = make_topics(partitions=1)
    where = environment(kafka, topics)
    settings = {name: value for name, value in where.items() if name.startswith("OUZEL_")}
    settings["OUZEL_TEST_FAIL_AT"] = "start"
    outputs = Outputs()
    with Replica(kafka, topics, settings=settings, entry="tests.integration.failing_replica") as replica:
        assert replica.start().wait_exit(60) == 70
        outputs.add("log", replica.log_file.read_bytes())
    assert "ZeroDivisionError" in outputs.said["log"]
    outputs.assert_no_canary()
