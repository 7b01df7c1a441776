"""Who may do what on a real Kafka with StandardAuthorizer: PLAINTEXT, SASL_SSL with SCRAM, mutual TLS.

A replica gets what `ouzel topics acls` prints and nothing more. Kafka's own kafka-acls.sh is in a jar that the tests do
not fetch: its command lines are read by a parser with its options, and applied by the admin protocol.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from consumer.names import transactional_ids
from tests.answers import Group
from tests.conftest import MakeTopics, Topics
from tests.integration.command_line import ouzel_here
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import Record, read_to_end, send
from tests.kafka_doors import PRINCIPALS, SCRAM_PASSWORD, Door, mutual_tls
from tests.processes import wait_until
from tests.replica import ROOT, Replica

pytestmark = pytest.mark.kafka

NOT_AUTHORIZED = 7
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional_id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
_PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}

EXACTLY_ONCE = {"OUZEL_DELIVERY__GUARANTEE": "exactly_once", "OUZEL_TRANSACTION__MAX_MS": "100"}


# --- kafka-acls.sh --------------------------------------------------------------------------------------------------


def _kafka_acls() -> argparse.ArgumentParser:
    """The options of kafka-acls.sh that we print (Kafka's documentation, "Command Line Interface")."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--command-config")
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--allow-host", default="*")
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--cluster", action="store_const", const="kafka-cluster")
    for resource in ("topic", "group", "transactional-id"):
        parser.add_argument(f"--{resource}")
    parser.add_argument("--resource-pattern-type", choices=_PATTERNS, default="literal")
    return parser


def bindings(command: str) -> list[AclBinding]:
    """What a printed line makes."""
    words = shlex.split(command)
    assert words[0] == "kafka-acls.sh"
    line = _kafka_acls().parse_args(words[1:])
    ((resource, name),) = [(each, getattr(line, each)) for each in _RESOURCES if getattr(line, each)]
    return [
        AclBinding(
            _RESOURCES[resource],
            name,
            _PATTERNS[line.resource_pattern_type],
            line.allow_principal,
            line.allow_host,
            _OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for operation in line.operation
    ]


def apply(broker: KafkaBroker, *commands: str) -> None:
    for made in broker.admin().create_acls([acl for line in commands for acl in bindings(line)]).values():
        made.result(20)


# --- ouzel ----------------------------------------------------------------------------------------------------------


def environment(cluster: Cluster, topics: Topics, more: Mapping[str, str] | None = None) -> dict[str, str]:
    properties = {
        name: value
        for name, value in cluster.client_properties().items()
        if name.startswith(("security.", "sasl.", "ssl."))
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")},
        "OUZEL_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "OUZEL_KAFKA__CLIENT": json.dumps(properties),
        "OUZEL_KAFKA__GROUP_ID": topics.group,
        "OUZEL_KAFKA__INPUT_TOPICS": json.dumps([topics.images]),
        "OUZEL_KAFKA__OUTPUT_TOPIC": topics.predictions,
        "OUZEL_KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
        "OUZEL_TOPICS__REPLICATION_FACTOR": "1",
        **(more or {}),
    }


def ouzel(where: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        capture_output=True,
        text=True,
        env=dict(where),
        cwd=ROOT,
        timeout=90,
        check=False,
    )


def printed(
    cluster: Cluster, topics: Topics, principal: str, *options: str, settings: Mapping[str, str] | None = None
) -> list[str]:
    where = environment(cluster, topics, settings)
    answer = ouzel_here("topics", "acls", "--principal", principal, *options, variables=where)
    assert answer.code == 0, answer.stderr
    return answer.stdout.decode().splitlines()


@pytest.fixture
def topics(secure_broker: KafkaBroker, make_topics: MakeTopics) -> Topics:
    """Topics on the secure broker that nobody but the administrator may use."""
    return make_topics(partitions=1, cluster=secure_broker)


@pytest.fixture
def image(photographs: list[Path]) -> bytes:
    return photographs[0].read_bytes()


def assert_labels(broker: KafkaBroker, topics: Topics, replica: Replica, image: bytes) -> None:
    """It becomes ready, labels an image, writes a dead letter, stops cleanly, and has committed."""
    send(broker, topics.images, [Record(image, key=b"good"), Record(b"no image", key=b"bad")])
    replica.wait_ready()
    replica.wait_for(lambda: replica.metric("ouzel_images_total") == 2, 60, "both messages finished")
    assert replica.terminate() == 0
    assert [event.key() for event in read_to_end(broker, topics.predictions)] == [b"good"]
    assert [letter.key() for letter in read_to_end(broker, topics.dead_letters)] == [b"bad"]
    with Group(broker, topics.group, topics.images) as group:
        assert group.lag() == {}


# --- the least rights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["plaintext", "scram", "mtls"])
def test_a_replica_labels_with_exactly_the_rights_that_are_printed(
    secure_broker: KafkaBroker, topics: Topics, image: bytes, door: Door
) -> None:
    cluster = secure_broker.door(door)
    asked = ("topics", "acls", "--principal", PRINCIPALS[door], "--host", "127.0.0.1")
    answer = ouzel(environment(cluster, topics), *asked)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    made = {(acl.operation, acl.restype, acl.name) for line in lines for acl in bindings(line)}
    assert made == {
        (AclOperation.READ, ResourceType.TOPIC, topics.images),
        (AclOperation.READ, ResourceType.GROUP, topics.group),
        (AclOperation.WRITE, ResourceType.TOPIC, topics.predictions),
        (AclOperation.WRITE, ResourceType.TOPIC, topics.dead_letters),
    }
    apply(secure_broker, *lines)
    with Replica(cluster, topics) as replica:
        replica.start()
        assert_labels(secure_broker, topics, replica, image)
        replica.start().wait_ready()  # and goes on after what it has committed
        assert replica.terminate() == 0
        assert len(read_to_end(secure_broker, topics.predictions)) == 1


class TokenEndpoint:
    """An identity provider that knows one client: OAuth 2.0's client credentials grant (RFC 6749, 4.4)."""

    def __init__(self, client_id: str, secret: str) -> None:
        known = f"Basic {b64encode(f'{client_id}:{secret}'.encode()).decode()}"

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                right = self.headers["Authorization"] == known and form["grant_type"] == ["client_credentials"]
                now = int(time.time())
                claims = {"sub": client_id, "iat": now, "exp": now + 3600, "scope": form.get("scope", [""])[0]}
                token = ".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "none"}, claims)) + "."
                answer = {"access_token": token, "expires_in": 3600} if right else {"error": "invalid_client"}
                body = json.dumps(answer).encode()
                self.send_response(200 if right else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _oauth(endpoint: TokenEndpoint, secret: str) -> dict[str, str]:
    return {
        "OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": endpoint.url,
        "OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_CLIENT_ID": "ouzel-oauth",
        "OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_CLIENT_SECRET": secret,
        "OUZEL_KAFKA__CLIENT__SASL_OAUTHBEARER_SCOPE": "kafka",
        "OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "5000",
    }


def test_oauthbearer_works_by_settings_alone(secure_broker: KafkaBroker, topics: Topics, image: bytes) -> None:
    cluster = secure_broker.door("oauth")
    apply(secure_broker, *printed(cluster, topics, PRINCIPALS["oauth"]))
    with TokenEndpoint("ouzel-oauth", "client-secret") as endpoint:
        with Replica(cluster, topics, settings=_oauth(endpoint, "client-secret")) as replica:
            replica.start()
            assert_labels(secure_broker, topics, replica, image)
        with Replica(cluster, topics, settings=_oauth(endpoint, "wrong-secret")) as replica:
            assert replica.start().wait_exit(60) == NOT_AUTHORIZED
            last = replica.log_lines()[-1]
            assert last["error_class"] == "NotAuthorized"
            assert "OAUTHBEARER token" in last["message"]
            assert "invalid_client" in last["message"]
            assert "wrong-secret" not in replica.log_file.read_text()


def test_properties_come_from_the_file_and_the_password_from_the_environment(
    secure_broker: KafkaBroker, topics: Topics, image: bytes, tmp_path: Path
) -> None:
    cluster = secure_broker.door("scram")
    apply(secure_broker, *printed(cluster, topics, "User:ouzel"))
    assert secure_broker.doors is not None
    file = tmp_path / "settings.toml"
    file.write_text(
        f"""[kafka.client]
"security.protocol" = "SASL_SSL"
sasl.mechanism = "SCRAM-SHA-512"
"sasl.username" = "ouzel"
ssl.ca.location = "{secure_broker.doors.certificates.authority}"
"""
    )
    bare = Cluster(cluster.bootstrap_servers)
    settings = {"OUZEL_KAFKA__CLIENT__SASL_PASSWORD": SCRAM_PASSWORD}
    with Replica(bare, topics, settings=settings, arguments=("--settings", str(file))) as replica:
        replica.start()
        assert_labels(secure_broker, topics, replica, image)


@pytest.mark.parametrize(
    ("missing", "protocol", "guarantee"),
    [
        ("images", "classic", {}),
        ("predictions", "classic", {}),
        ("dead_letters", "classic", {}),
        ("group", "classic", {}),
        ("group", "consumer", {}),
        ("group", "classic", EXACTLY_ONCE),
        ("group", "consumer", EXACTLY_ONCE),
        ("transactional-id", "consumer", EXACTLY_ONCE),
    ],
)
def test_without_any_one_of_them_it_ends_with_exit_code_7_and_names_the_right_and_the_command(
    secure_broker: KafkaBroker, topics: Topics, image: bytes, missing: str, protocol: str, guarantee: dict[str, str]
) -> None:
    cluster = secure_broker.door("scram")
    lines = printed(cluster, topics, "User:ouzel", settings=guarantee)
    resource = missing if missing in {"group", "transactional-id"} else "topic"
    name = transactional_ids(topics.group, "") if missing == "transactional-id" else getattr(topics, missing)
    (withheld,) = [line for line in lines if [f"--{resource}", name] == _resource(line)]
    operation = "Write" if missing in {"predictions", "dead_letters", "transactional-id"} else "Read"
    apply(secure_broker, *(line for line in lines if line != withheld))
    with Replica(cluster, topics, settings={"OUZEL_KAFKA__GROUP_PROTOCOL": protocol} | guarantee) as replica:
        assert replica.start().wait_exit(60) == NOT_AUTHORIZED
        last = replica.log_lines()[-1]
        assert last["error_class"] == "NotAuthorized"
        assert f"{operation} on {resource} {name} is missing" in last["remedy"]
        assert withheld in last["remedy"]
        assert "ouzel topics acls" in last["remedy"]
        apply(secure_broker, withheld)
        replica.start()
        assert_labels(secure_broker, topics, replica, image)


def _resource(line: str) -> list[str]:
    """The option and the name of what a printed line is about."""
    words = shlex.split(line)
    (at,) = [words.index(option) for option in ("--topic", "--group", "--transactional-id") if option in words]
    return words[at : at + 2]


@pytest.mark.parametrize("guarantee", [{}, EXACTLY_ONCE], ids=["at_least_once", "exactly_once"])
@pytest.mark.parametrize("output", ["predictions", "dead_letters"])
def test_a_right_that_only_the_first_record_needs_is_named_too(
    secure_broker: KafkaBroker, topics: Topics, image: bytes, output: str, guarantee: dict[str, str]
) -> None:
    cluster, topic = secure_broker.door("scram"), getattr(topics, output)
    lines = printed(cluster, topics, "User:ouzel", settings=guarantee)
    (withheld,) = [line for line in lines if topic in shlex.split(line)]
    apply(secure_broker, *(line for line in lines if line != withheld))
    secure_broker.allow(AclOperation.DESCRIBE, ResourceType.TOPIC, topic)  # it is seen, so the start is no trouble
    with Replica(cluster, topics, settings=guarantee) as replica:
        replica.start().wait_ready()
        send(secure_broker, topics.images, [Record(image if output == "predictions" else b"no image")])
        assert replica.wait_exit(60) == NOT_AUTHORIZED
        assert withheld in replica.log_lines()[-1]["remedy"]
        assert sum("is undone" in line["message"] for line in replica.log_lines()) <= 1, "it tried again first"


@pytest.mark.parametrize("denied", ["images", "predictions", "dead_letters"])
def test_the_doctor_names_a_right_of_which_not_even_describe_is_there(
    secure_broker: KafkaBroker, topics: Topics, denied: str
) -> None:
    cluster, topic = secure_broker.door("scram"), getattr(topics, denied)
    lines = printed(cluster, topics, "User:ouzel")
    (withheld,) = [line for line in lines if topic in shlex.split(line)]
    apply(secure_broker, *(line for line in lines if line != withheld))
    answer = ouzel(environment(cluster, topics, {"OUZEL_MODEL__RUNTIME": "null"}), "doctor")
    assert answer.returncode == 1
    failed = [row for row in map(json.loads, answer.stdout.splitlines()) if row["check"] == "rights"]
    assert {row["result"] for row in failed if f"topic {topic}:" not in row["said"]} <= {"pass", "warn"}
    (row,) = [row for row in failed if f"topic {topic}:" in row["said"]]
    assert row["result"] == "fail"
    assert withheld in row["fix"]


# --- the other roles ------------------------------------------------------------------------------------------------


def test_a_sender_and_a_reader_need_no_more_than_is_printed_for_them(
    secure_broker: KafkaBroker, topics: Topics, photographs: list[Path]
) -> None:
    cluster = secure_broker.door("scram")
    where = environment(cluster, topics)
    photograph = str(photographs[0])
    refused = ouzel(where, "send", photograph)
    assert refused.returncode == NOT_AUTHORIZED, refused.stderr
    apply(secure_broker, *printed(cluster, topics, "User:ouzel", "--role", "sender"))
    sent = ouzel(where, "send", photograph)
    assert sent.returncode == 0, sent.stderr
    assert len(read_to_end(secure_broker, topics.images)) == 1

    send(secure_broker, topics.predictions, [Record(b'{"image_id": "finch", "labels": []}')])
    apply(secure_broker, *printed(cluster, topics, "User:ouzel", "--role", "reader"))
    read = ouzel(where, "tail", "--from-beginning", "--limit", "1")
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)["image_id"] == "finch"
    listed = ouzel(where, "dlq", "ls")
    assert listed.returncode == 0, listed.stderr


def test_an_administrator_creates_topics_and_an_operator_replays_and_resets_with_what_is_printed(
    secure_broker: KafkaBroker, topics: Topics, image: bytes
) -> None:
    fresh = Topics(
        images=f"{topics.images}-made",
        predictions=f"{topics.predictions}-made",
        dead_letters=f"{topics.dead_letters}-made",
        group=f"{topics.group}-made",
        partitions=1,
    )
    cluster = secure_broker.door("mtls")
    where = environment(cluster, fresh)
    refused = ouzel(where, "topics", "create")
    assert refused.returncode == NOT_AUTHORIZED, refused.stderr
    apply(secure_broker, *printed(cluster, fresh, "User:ouzel-mtls", "--role", "admin"))
    made = ouzel(where, "topics", "create")
    assert made.returncode == 0, made.stderr
    assert ouzel(where, "topics", "describe").returncode == 0

    # Letters are the service's, who is somebody else.
    service = secure_broker.door("scram")
    apply(secure_broker, *printed(service, fresh, "User:ouzel"))
    with Replica(service, fresh) as replica:
        send(secure_broker, fresh.images, [Record(b"no image", key=b"bad"), Record(image, key=b"good")])
        replica.start().wait_ready()
        replica.wait_for(lambda: replica.metric("ouzel_images_total") == 2, 60, "both messages finished")
        assert replica.terminate() == 0

    for command in (("dlq", "replay", "--all", "--execute"), ("offsets", "show")):
        assert ouzel(where, *command).returncode in {2, NOT_AUTHORIZED}
    apply(secure_broker, *printed(cluster, fresh, "User:ouzel-mtls", "--role", "operator"))
    replayed = ouzel(where, "dlq", "replay", "--execute")
    assert replayed.returncode == 0, replayed.stderr
    assert [record.key() for record in read_to_end(secure_broker, fresh.images)].count(b"bad") == 2
    wait_until(lambda: ouzel(where, "offsets", "show").returncode == 0, timeout_s=60, what="the group's offsets")
    moved = ouzel(where, "offsets", "reset", "--to", "earliest", "--execute")
    assert moved.returncode == 0, moved.stderr


# --- log-ins that fail ----------------------------------------------------------------------------------------------


def ends_with_7(cluster: Cluster, topics: Topics, **properties: str) -> str:
    """The replica's last message and remedy: it ends by itself, well before any test's patience."""
    settings = {f"OUZEL_KAFKA__CLIENT__{name.upper()}": value for name, value in properties.items()}
    settings["OUZEL_KAFKA__REQUEST_TIMEOUT_MS"] = "3000"
    with Replica(cluster, topics, settings=settings) as replica:
        assert replica.start().wait_exit(60) == NOT_AUTHORIZED
        last = replica.log_lines()[-1]
        assert last["error_class"] == "NotAuthorized"
        assert "Traceback" not in replica.log_file.read_text()
        return f"{last['message']} | {last['remedy']}"


def test_a_wrong_password(secure_broker: KafkaBroker, topics: Topics) -> None:
    said = ends_with_7(secure_broker.door("scram"), topics, sasl_password="not-the-secret")
    assert "refuses who we are" in said
    assert "sasl.*" in said
    assert "not-the-secret" not in said


def test_a_wrong_password_of_the_producer_alone_shows_at_the_first_record(
    secure_broker: KafkaBroker, topics: Topics, image: bytes
) -> None:
    cluster = secure_broker.door("scram")
    apply(secure_broker, *printed(cluster, topics, "User:ouzel"))
    send(secure_broker, topics.images, [Record(image)])
    with Replica(cluster, topics, settings={"OUZEL_KAFKA__PRODUCER__SASL_PASSWORD": "not-the-secret"}) as replica:
        assert replica.start().wait_exit(60) == NOT_AUTHORIZED
        assert replica.log_lines()[-1]["error_class"] == "NotAuthorized"
    with Replica(cluster, topics) as replica:  # nothing was committed past it
        replica.start().wait_ready()
        replica.wait_for(
            lambda: replica.metric("ouzel_images_total", outcome="labelled") == 1, 60, "the image labelled"
        )


def _authority(broker: KafkaBroker, *, right: bool) -> str:
    assert broker.doors is not None
    certificates = broker.doors.certificates
    return str(certificates.authority if right else certificates.other_authority)


@pytest.mark.parametrize(
    ("door", "right_authority", "fault"),
    [
        ("scram", False, "unable to get local issuer certificate"),
        ("mtls", False, "unable to get local issuer certificate"),
        ("expired", True, "certificate has expired"),
        ("misnamed", True, "IP address mismatch"),
    ],
)
def test_a_broker_that_is_not_believed(
    secure_broker: KafkaBroker, topics: Topics, door: Door, right_authority: bool, fault: str
) -> None:
    authority = _authority(secure_broker, right=right_authority)
    said = ends_with_7(secure_broker.door(door), topics, ssl_ca_location=authority)
    assert fault in said
    assert "ssl.ca.location" in said
    assert "name the host" in said


@pytest.fixture
def client_stores(secure_broker: KafkaBroker) -> Mapping[str, Path]:
    assert secure_broker.doors is not None
    certificates = secure_broker.doors.certificates
    return {"expired": certificates.expired_client, "stranger": certificates.stranger}


@pytest.mark.parametrize("whose", ["expired", "stranger"])
def test_a_client_certificate_that_the_broker_does_not_believe(
    secure_broker: KafkaBroker, topics: Topics, client_stores: Mapping[str, Path], whose: str
) -> None:
    store = {name.replace(".", "_"): value for name, value in mutual_tls(client_stores[whose]).items()}
    said = ends_with_7(secure_broker.door("mtls"), topics, **store)
    assert "refuses our certificate" in said
    assert "ssl.certificate.location" in said


def test_no_client_certificate_where_one_is_asked_for(secure_broker: KafkaBroker, topics: Topics) -> None:
    cluster = Cluster(
        secure_broker.door("mtls").bootstrap_servers,
        {"security.protocol": "SSL", "ssl.ca.location": _authority(secure_broker, right=True)},
    )
    assert "refuses our certificate" in ends_with_7(cluster, topics)


@pytest.mark.parametrize(
    ("door", "command"),
    [
        ("expired", ("doctor",)),
        ("misnamed", ("topics", "describe")),
        ("expired", ("send", "x.jpg")),
        ("misnamed", ("tail", "--limit", "1")),
    ],
)
def test_commands_say_so_too(
    secure_broker: KafkaBroker,
    topics: Topics,
    door: Door,
    command: tuple[str, ...],
    photographs: list[Path],
) -> None:
    words = [str(photographs[0]) if word == "x.jpg" else word for word in command]
    where = environment(secure_broker.door(door), topics, {"OUZEL_KAFKA__REQUEST_TIMEOUT_MS": "3000"})
    where |= {"OUZEL_MODEL__RUNTIME": "null"}
    answer = ouzel(where, *words)
    assert answer.returncode == (1 if command == ("doctor",) else NOT_AUTHORIZED), answer.stderr
    assert "ssl.ca.location" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
