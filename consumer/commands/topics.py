"""`ouzel topics create`, `describe` and `acls`: the topics as the settings want them, and who may use them."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from consumer.adapters.kafka_admin import KafkaAdmin, TopicFacts, TopicPlan
    from consumer.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create the topics, or compare them with the settings.")


@app.command()
def create(
    ctx: typer.Context,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the broker whether it would; create nothing.")
    ] = False,
) -> None:
    """Create the input, output and dead-letter topics, the one that notes what was replayed, and swap.shadow_topic.

    Partitions, replication, retention and sizes come from the settings topics.* and kafka.max_message_bytes. A topic
    that is there already is left as it is: see `ouzel topics describe`. The user needs Create; the service itself does
    not. With delivery.guarantee = "share" it also sets the configuration of the share group, whatever it was before.
    """
    from consumer.console import print_rows, settings_from

    settings = settings_from(ctx)
    admin = open_admin(settings)
    plans = plans_for(settings, admin)
    there = admin.topics([plan.name for plan in plans])
    missing = [plan for plan in plans if there[plan.name] is None]
    made = admin.create(missing, dry_run=dry_run) if missing else {}
    rows = []
    for plan in plans:
        facts = there[plan.name]
        if made.get(plan.name):
            result = "would be created" if dry_run else "created"
        elif facts is not None and differences(plan, facts):
            result = "exists and differs: ouzel topics describe"
        else:
            result = "exists, left as it is"
        rows.append({"topic": plan.name, "result": result, **_shown(plan)})
    if settings.delivery.guarantee == "share":
        rows.append(_configure_group(settings, admin, dry_run=dry_run))
    print_rows(rows, ("topic", "result", "partitions", "replicas", "config"))


def _configure_group(settings: "Settings", admin: "KafkaAdmin", *, dry_run: bool) -> dict[str, Any]:
    """The row of the share group. What the broker has for all groups alone is not set, but has to be right."""
    from consumer import share_group

    group_id = settings.kafka.group_id
    own = admin.group_config(group_id)
    wanted = {name: value for name, value in share_group.wanted(settings).items() if name in own}
    if wanted:
        admin.set_group_config(group_id, wanted, dry_run=dry_run)
    share_group.check(settings, share_group.found({**own, **wanted}, admin.broker_config))
    config = " ".join(f"{name}={value}" for name, value in wanted.items())
    result = "would be set" if dry_run else "set"
    return {"topic": f"share group {group_id}", "result": result, "partitions": "", "replicas": "", "config": config}


@app.command()
def describe(ctx: typer.Context) -> None:
    """Compare the topics with the settings, line by line; exit code 1 where they differ or one is missing."""
    from consumer.console import print_rows, settings_from

    settings = settings_from(ctx)
    admin = open_admin(settings)
    plans = plans_for(settings, admin)
    there = admin.topics([plan.name for plan in plans])
    rows: list[dict[str, Any]] = []
    for plan in plans:
        facts = there[plan.name]
        if facts is None:
            fix = "ouzel topics create"
            rows.append({"topic": plan.name, "property": "", "is": "missing", "wanted": "", "ok": False, "fix": fix})
        else:
            rows += _compared(plan, facts)
    if settings.delivery.guarantee == "share":
        rows += _compared_group(settings, admin)
    print_rows(rows, ("topic", "property", "is", "wanted", "ok"))
    for row in rows:
        if row["fix"]:
            typer.echo(f"{row['topic']} {row['property']}: {row['fix']}", err=True)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


class RoleOption(StrEnum):
    """`rights.Role`, as typer takes a choice."""

    SERVICE = "service"
    SENDER = "sender"
    READER = "reader"
    OPERATOR = "operator"
    ADMIN = "admin"


class AclOutput(StrEnum):
    """How `acls` prints."""

    COMMANDS = "commands"
    TABLE = "table"
    JSON = "json"


@app.command()
def acls(
    ctx: typer.Context,
    *,
    principal: Annotated[str, typer.Option(help="Who is allowed: User:NAME as the broker's authorizer names it.")],
    role: Annotated[
        RoleOption,
        typer.Option(help="What for: run; send; tail and dlq ls; dlq replay and offsets; topics create."),
    ] = RoleOption.SERVICE,
    host: Annotated[str, typer.Option(help="IP address that it may come from; else any.")] = "",
    bootstrap_server: Annotated[str, typer.Option(help="For the commands; else kafka.bootstrap_servers.")] = "",
    command_config: Annotated[str, typer.Option(help="For the commands: file with an administrator's log-in.")] = "",
    output: Annotated[AclOutput, typer.Option(help="Shell commands, or the rights themselves.")] = AclOutput.COMMANDS,
) -> None:
    """Print the least rights that a principal needs, as commands of Kafka's kafka-acls.sh. Asks no broker.

    Topics, group and transactional id are those of the settings. Read and Write imply Describe. `service` is what
    `ouzel run` needs, `sender` `ouzel send`, `reader` `ouzel tail` and `ouzel dlq ls`, `operator` `ouzel dlq replay`
    and `ouzel offsets`, `admin` `ouzel topics create`.

        ouzel topics acls --principal User:ouzel

        ouzel topics acls --principal User:ouzel --command-config admin.properties | sh
    """
    from consumer.console import print_json, print_table, settings_from
    from consumer.rights import commands, rights_of

    if ":" not in principal:
        raise typer.BadParameter(f"{principal!r} has no type; did you mean User:{principal}?", param_hint="--principal")
    settings = settings_from(ctx)
    kafka = settings.kafka
    needed = rights_of(settings, role.value)
    if output is AclOutput.COMMANDS:
        servers = bootstrap_server or kafka.bootstrap_servers
        for line in commands(needed, principal, bootstrap_servers=servers, host=host, command_config=command_config):
            typer.echo(line)
        return
    rows = [
        {
            "principal": principal,
            "host": host or "*",
            "operation": right.operation,
            "resource": right.resource,
            "name": right.name,
            "pattern": right.pattern,
            "why": right.why,
        }
        for right in needed
    ]
    if output is AclOutput.JSON:
        for row in rows:
            print_json(row)
    else:
        title = f"{principal}, from {host or 'any host'}"
        print_table(rows, ("operation", "resource", "name", "why"), title=title)


def open_admin(settings: "Settings") -> "KafkaAdmin":
    """An admin client of these settings."""
    from consumer.adapters.kafka_admin import KafkaAdmin
    from consumer.kafka_properties import client_properties

    return KafkaAdmin(client_properties(settings.kafka, "admin"), timeout_s=settings.kafka.request_timeout_ms / 1000)


def plans_for(settings: "Settings", admin: "KafkaAdmin") -> "list[TopicPlan]":
    """The topics that the settings want; the broker is asked for its number of replicas where they leave it open."""
    replicas = settings.topics.replication_factor
    return topic_plans(settings, replicas if replicas > 0 else admin.default_replication_factor())


def topic_plans(settings: "Settings", replicas: int | None) -> "list[TopicPlan]":
    """The topics that the settings want, on so many replicas; None leaves the number to the broker."""
    from consumer.adapters.kafka_admin import TopicPlan
    from consumer.kafka_properties import HEADROOM_BYTES
    from consumer.names import replay_marker_topic

    kafka, topics = settings.kafka, settings.topics
    # With fewer than three replicas, two in sync would stop every write as soon as one broker restarts.
    safe = {"min.insync.replicas": "2"} if replicas is not None and replicas >= 3 else {}

    def kept(retention_ms: int, max_bytes: int) -> dict[str, str]:
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(retention_ms),
            "max.message.bytes": str(max_bytes),
            **safe,
        }

    wanted = {name: kept(topics.input_retention_ms, kafka.max_message_bytes) for name in kafka.input_topics}
    for name in filter(None, (kafka.output_topic, settings.swap.shadow_topic)):
        wanted[name] = kept(topics.output_retention_ms, kafka.max_message_bytes)
    # A letter is the original and the headers that say what was wrong with it.
    letters_max_bytes = kafka.max_message_bytes + HEADROOM_BYTES
    wanted[kafka.dead_letter_topic] = kept(topics.dead_letter_retention_ms, letters_max_bytes)
    # The last marker of each letter says that it went back; they are small and read from the start.
    markers = replay_marker_topic(kafka.dead_letter_topic)
    wanted[markers] = {"cleanup.policy": "compact", **safe}
    return [
        TopicPlan(name, 1 if name == markers else topics.partitions, -1 if replicas is None else replicas, config)
        for name, config in wanted.items()
    ]


def differences(plan: "TopicPlan", facts: "TopicFacts") -> dict[str, tuple[str, str, str]]:
    """What is not as planned: property -> (what it is, what is wanted, what to do)."""
    found: dict[str, tuple[str, str, str]] = {}
    if facts.partitions != plan.partitions:
        fix = (
            "set topics.partitions to it, or add partitions with kafka-topics --alter (keys then move)"
            if facts.partitions < plan.partitions
            else "set topics.partitions to it; partitions cannot be taken away"
        )
        found["partitions"] = (str(facts.partitions), str(plan.partitions), fix)
    if plan.replication_factor > 0 and facts.replication_factor != plan.replication_factor:
        fix = "set topics.replication_factor to it, or kafka-reassign-partitions"
        found["replicas"] = (str(facts.replication_factor), str(plan.replication_factor), fix)
    for name, wanted in plan.config.items():
        actual = facts.config.get(name, "")
        if facts.config and actual != wanted:
            fix = f"kafka-configs --alter --entity-type topics --entity-name {plan.name} --add-config {name}={wanted}"
            found[name] = (actual, wanted, fix)
    return found


def _compared(plan: "TopicPlan", facts: "TopicFacts") -> list[dict[str, Any]]:
    different = differences(plan, facts)
    actual = {"partitions": str(facts.partitions), "replicas": str(facts.replication_factor), **facts.config}
    wanted = {"partitions": str(plan.partitions), "replicas": str(plan.replication_factor), **plan.config}
    rows = []
    for name, value in wanted.items():
        is_now, _, fix = different.get(name, (actual.get(name), "", ""))
        if is_now is None:
            is_now, fix = "not shown to us", "allow DescribeConfigs on the topic to compare it"
        row = {"topic": plan.name, "property": name, "is": is_now, "wanted": "" if value == "-1" else value}
        rows.append({**row, "ok": name not in different, "fix": fix})
    return rows


def _compared_group(settings: "Settings", admin: "KafkaAdmin") -> list[dict[str, Any]]:
    from consumer import share_group

    group_id = settings.kafka.group_id
    found = share_group.found(admin.group_config(group_id), admin.broker_config)
    different = share_group.differences(settings, found)
    return [
        {
            "topic": f"share group {group_id}",
            "property": name,
            "is": found.get(name, "not there"),
            "wanted": value,
            "ok": name not in different,
            "fix": "ouzel topics create" if name in different else "",
        }
        for name, value in share_group.wanted(settings).items()
    ]


def _shown(plan: "TopicPlan") -> dict[str, Any]:
    replicas: int | str = plan.replication_factor if plan.replication_factor > 0 else "as the broker has it"
    config = " ".join(f"{name}={value}" for name, value in plan.config.items())
    return {"partitions": plan.partitions, "replicas": replicas, "config": config}
