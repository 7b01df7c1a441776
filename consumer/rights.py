"""Who needs which rights on Kafka: the one place that says so. `ouzel topics acls` prints them, `ouzel doctor` asks for
the service's, and the error of a right that is missing names the command that grants it.

Read and Write each imply Describe (Kafka's authorizers; "Authorization and ACLs" of its documentation), so Describe
stands here only where nothing else does. No role but `admin` may create anything.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from consumer.errors import Fatal, NotAuthorized
from consumer.names import replay_marker_topic, replay_transactional_id, transactional_ids
from consumer.settings_tables import KafkaSettings, Settings, TransactionSettings

Role = Literal["service", "sender", "reader", "operator", "admin"]
"""`ouzel run` · `ouzel send` · `ouzel tail` and `ouzel dlq ls` · `ouzel dlq replay` and `ouzel offsets` ·
`ouzel topics`."""

ROLES: tuple[Role, ...] = get_args(Role)

Resource = Literal["topic", "group", "transactional-id", "cluster"]
Pattern = Literal["literal", "prefixed"]
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs", "AlterConfigs"]


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on one resource, named in full."""

    operation: Operation
    resource: Resource
    name: str
    """The topic, group or transactional id; of the cluster Kafka's own `kafka-cluster`."""
    why: str
    pattern: Pattern = "literal"
    """`prefixed`: on everything whose name begins so."""

    def __str__(self) -> str:
        return f"{self.operation} on {'the cluster' if self.resource == 'cluster' else f'{self.resource} {self.name}'}"


def rights(
    kafka: KafkaSettings,
    role: Role,
    *,
    shadow_topic: str = "",
    transactions: TransactionSettings | None = None,
    share: bool = False,
) -> tuple[Right, ...]:
    """The least that a role needs with these settings; `shadow_topic` is that of `[swap]`, empty for none;
    `transactions` are given where the service uses them; `share`: whether a share group is read."""
    found = {
        "service": _service,
        "sender": _sender,
        "reader": _reader,
        "operator": _operator,
        "admin": _admin,
    }[role](kafka)
    more = [*(_shadow(shadow_topic, role) if shadow_topic else ()), *(_share_group(kafka, role) if share else ())]
    if transactions is not None and role == "service":
        begin = transactional_ids(kafka.group_id, transactions.id)
        pattern: Pattern = "literal" if transactions.id == begin else "prefixed"
        more.append(Right("Write", "transactional-id", begin, "label events and offsets in one", pattern))
    return tuple(dict.fromkeys([*found, *more]))


def _service(kafka: KafkaSettings) -> Iterator[Right]:
    for topic in kafka.input_topics:
        yield Right("Read", "topic", topic, "images")
    yield Right("Read", "group", kafka.group_id, "partitions and their committed offsets")
    yield Right("Write", "topic", kafka.output_topic, "label events")
    yield Right("Write", "topic", kafka.dead_letter_topic, "dead letters")


def _sender(kafka: KafkaSettings) -> Iterator[Right]:
    yield Right("Write", "topic", kafka.input_topics[0], "images; `ouzel send` writes to the first input topic")


def _reader(kafka: KafkaSettings) -> Iterator[Right]:
    yield Right("Read", "topic", kafka.output_topic, "label events")
    yield Right("Read", "topic", kafka.dead_letter_topic, "dead letters")
    yield Right("Read", "topic", replay_marker_topic(kafka.dead_letter_topic), "which letters went back")


def _operator(kafka: KafkaSettings) -> Iterator[Right]:
    markers = replay_marker_topic(kafka.dead_letter_topic)
    yield Right("Read", "topic", kafka.dead_letter_topic, "dead letters")
    yield Right("Read", "topic", markers, "which letters went back")
    yield Right("Write", "topic", markers, "which letters went back")
    for topic in kafka.input_topics:
        yield Right("Write", "topic", topic, "letters that go back")
        yield Right("Read", "topic", topic, "`ouzel offsets` moves the group in it")
    transactional_id = replay_transactional_id(kafka.dead_letter_topic)
    yield Right("Write", "transactional-id", transactional_id, "each letter goes back once")
    yield Right("Read", "group", kafka.group_id, "`ouzel offsets` shows and moves it")


def _admin(kafka: KafkaSettings) -> Iterator[Right]:
    letters = kafka.dead_letter_topic
    for topic in (*kafka.input_topics, kafka.output_topic, letters, replay_marker_topic(letters)):
        yield from _made(topic)
    yield Right("DescribeConfigs", "cluster", "kafka-cluster", "the broker's default number of replicas")


def _shadow(topic: str, role: Role) -> Iterator[Right]:
    if role == "service":
        yield Right("Write", "topic", topic, "what a new model says while it is compared")
    elif role == "reader":
        yield Right("Read", "topic", topic, "what a new model says while it is compared")
    elif role == "admin":
        yield from _made(topic)


def _share_group(kafka: KafkaSettings, role: Role) -> Iterator[Right]:
    if role in {"service", "admin"}:
        yield Right(
            "DescribeConfigs", "group", kafka.group_id, "whether the share group is set as the settings want it"
        )
    if role == "admin":
        yield Right("AlterConfigs", "group", kafka.group_id, "`ouzel topics create` sets the share group")


def _made(topic: str) -> Iterator[Right]:
    yield Right("Create", "topic", topic, "`ouzel topics create`")
    yield Right("Describe", "topic", topic, "to see whether it is there")
    yield Right("DescribeConfigs", "topic", topic, "to compare it with the settings")


def principal_of(kafka: KafkaSettings) -> str:
    """Who the service is to the broker, as far as its settings tell; `User:...` where only the broker knows."""
    user = kafka.client.get("sasl.username")
    return f"User:{user}" if user else "User:..."


def commands(
    needed: Sequence[Right], principal: str, *, bootstrap_servers: str, host: str = "", command_config: str = ""
) -> list[str]:
    """A line of Kafka's kafka-acls.sh for each resource, ready for a shell. `host` is an IP address; empty: any."""
    by_resource: dict[tuple[Resource, str, Pattern], list[str]] = {}
    for right in needed:
        by_resource.setdefault((right.resource, right.name, right.pattern), []).append(right.operation)
    start = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers]
    start += ["--command-config", command_config] if command_config else []
    start += ["--add", "--allow-principal", principal]
    start += ["--allow-host", host] if host else []
    return [
        shlex.join(
            [
                *start,
                *(word for operation in operations for word in ("--operation", operation)),
                *((f"--{resource}",) if resource == "cluster" else (f"--{resource}", name)),
                *(("--resource-pattern-type", pattern) if pattern != "literal" else ()),
            ]
        )
        for (resource, name, pattern), operations in by_resource.items()
    ]


def rights_of(settings: Settings, role: Role = "service") -> tuple[Right, ...]:
    """`rights`, with all that the settings say."""
    guarantee = settings.delivery.guarantee
    return rights(
        settings.kafka,
        role,
        shadow_topic=settings.swap.shadow_topic,
        transactions=settings.transaction if guarantee == "exactly_once" else None,
        share=guarantee == "share",
    )


def named_in_full(error: Fatal, settings: Settings) -> Fatal:
    """The service's error; where a right is missing, with its name and the command that grants it."""
    if not isinstance(error, NotAuthorized) or not error.denied:
        return error
    missing = [
        right
        for right in rights_of(settings)
        if right.resource == error.denied and (error.denied != "topic" or right.name == error.topic)
    ]
    if not missing:
        return error
    return NotAuthorized(str(error), remedy=remedy(settings.kafka, missing), denied=error.denied, topic=error.topic)


def remedy(kafka: KafkaSettings, missing: Sequence[Right]) -> str:
    """What to do about rights that the service lacks: the commands, and how to print all of them."""
    principal = principal_of(kafka)
    lines = " ; ".join(commands(missing, principal, bootstrap_servers=kafka.bootstrap_servers))
    every = f"ouzel topics acls --principal {shlex.quote(principal)}"
    named = " and ".join(str(right) for right in missing)
    return f"{named} is missing; have the cluster's owner run: {lines} (all that are needed: {every})"
