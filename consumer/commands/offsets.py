"""`ouzel offsets show` and `reset`: where the group is, and moving it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumer.commands._time import parse_time_ms
from consumer.errors import CommandRefused

if TYPE_CHECKING:
    from consumer.adapters.kafka_tools.group_offsets import GroupOffsets, GroupState, PartitionState
    from consumer.messages import CommitPoint, Partition
    from consumer.settings import KafkaSettings

app = typer.Typer(help="Where the group is in its input topics, and moving it.", no_args_is_help=True)

Group = Annotated[str | None, typer.Option(help="Consumer group; else kafka.group_id.")]
Topic = Annotated[list[str] | None, typer.Option(help="Topic; else kafka.input_topics. Repeatable.")]

_AT_REST = ("empty", "dead")
_SHOWN = ("topic", "partition", "committed", "end", "lag", "member")
_RESET = ("topic", "partition", "before", "after", "repeats", "skips")


def _kafka(ctx: typer.Context, group: str | None) -> "KafkaSettings":
    """Refuses the share group of the settings: it has no committed offsets, and what would be shown is not so."""
    from consumer.console import settings_from

    settings = settings_from(ctx)
    kafka = settings.kafka
    if settings.delivery.guarantee == "share" and group in {None, kafka.group_id}:
        tool = f"kafka-share-groups.sh --bootstrap-server {kafka.bootstrap_servers} --group {kafka.group_id}"
        raise CommandRefused(
            f"{kafka.group_id} is a share group (delivery.guarantee), which has no committed offsets: each message is "
            "acknowledged alone",
            remedy=f"{tool} --describe shows where it begins, and its lag; --reset-offsets moves it",
        )
    return kafka


@app.command()
def show(ctx: typer.Context, *, group: Group = None, topic: Topic = None) -> None:
    """Committed offset, end and lag of every partition, and the member that has it.

    The end is the last stable offset: what a transaction that is still open holds back is not counted as lag.
    """
    from consumer.console import print_rows

    kafka = _kafka(ctx, group)
    state = _open(kafka, group).describe(topic or kafka.input_topics)
    rows = [
        {
            "group": state.group_id,
            "state": state.state,
            "topic": found.partition.topic,
            "partition": found.partition.number,
            "committed": found.committed,
            "earliest": found.earliest,
            "end": found.end,
            "lag": found.lag,
            "member": None if found.member is None else str(found.member),
            "note": found.note or None,
        }
        for found in state.partitions
    ]
    print_rows(rows, _SHOWN, title=f"group {state.group_id}: {state.state}, {len(state.members)} members")


@app.command()
def reset(
    ctx: typer.Context,
    *,
    to: Annotated[str, typer.Option(metavar="earliest|latest|TIME|OFFSET", help="TIME is RFC 3339.")],
    group: Group = None,
    topic: Topic = None,
    partition: Annotated[list[int] | None, typer.Option(min=0, help="Only this one; repeatable.")] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only show what would be.")] = False,
) -> None:
    """Move the group to another place in its topics. A dry run, unless --execute is given.

    Refused while the group has a member: stop every replica first. Going back repeats label events (with the same
    ids); going forward leaves messages without a label.

        ouzel offsets reset --to 2026-01-31T09:30:00Z

        ouzel offsets reset --to 4211 --partition 3 --execute
    """
    from consumer.console import print_rows

    kafka = _kafka(ctx, group)
    offsets = _open(kafka, group)
    state = offsets.describe(topic or kafka.input_topics)
    _refuse_while_live(state)
    chosen = _chosen(state, partition)
    targets = _targets(offsets, chosen, to)
    print_rows(_changes(chosen, targets), _RESET, title=f"group {state.group_id}")
    if execute:
        offsets.reset(_commits(chosen, targets))
        typer.echo(f"moved {state.group_id} in {len(targets)} partitions", err=True)
    else:
        typer.echo("a dry run: nothing was changed; --execute does it", err=True)


def _open(kafka: "KafkaSettings", group: str | None) -> "GroupOffsets":
    from consumer.adapters.kafka_tools.group_offsets import GroupOffsets
    from consumer.kafka_properties import client_properties

    timeout_s = kafka.request_timeout_ms / 1000
    return GroupOffsets(client_properties(kafka, "admin"), group or kafka.group_id, timeout_s=timeout_s)


def _refuse_while_live(state: "GroupState") -> None:
    if not state.members and state.state in _AT_REST:
        return
    members = "".join(f"\n  {member} ({member.member_id})" for member in state.members)
    raise CommandRefused(
        f"the group {state.group_id} is live ({state.state}): it would overwrite the new offsets{members}",
        remedy="stop every replica first; one with a group.instance.id stays a member until its session times out",
    )


def _chosen(state: "GroupState", numbers: Sequence[int] | None) -> list["PartitionState"]:
    chosen = [found for found in state.partitions if not numbers or found.partition.number in numbers]
    absent = set(numbers or ()) - {found.partition.number for found in chosen}
    if absent:
        raise typer.BadParameter(f"there is no partition {', '.join(map(str, sorted(absent)))}")
    return chosen


def _targets(offsets: "GroupOffsets", chosen: Sequence["PartitionState"], to: str) -> dict["Partition", int]:
    """Where each partition goes."""
    if to == "earliest":
        return {found.partition: found.earliest for found in chosen}
    if to == "latest":
        return {found.partition: found.end for found in chosen}
    if to.isdecimal():
        return _at_offset(chosen, int(to))
    return offsets.at_time([found.partition for found in chosen], parse_time_ms(to))


def _at_offset(chosen: Sequence["PartitionState"], offset: int) -> dict["Partition", int]:
    if len(chosen) > 1:
        raise typer.BadParameter("an offset is one partition's: choose it with --topic and --partition")
    for found in chosen:
        if not found.earliest <= offset <= found.end:
            raise CommandRefused(
                f"offset {offset} is outside {found.partition}, which has {found.earliest} to {found.end}",
                remedy="choose one of these, or earliest or latest",
            )
    return {found.partition: offset for found in chosen}


def _commits(
    chosen: Sequence["PartitionState"], targets: Mapping["Partition", int]
) -> dict["Partition", "CommitPoint"]:
    """Where each partition goes, with the note of its last owner: under kafka.start = "latest" only the note tells
    that a partition which appears later begins at its beginning. That the owner tripped, or
    ended without a word, was about the old place."""
    from dataclasses import replace

    from consumer.messages import CommitPoint
    from consumer.stages.start import Note

    commits = {}
    for found in chosen:
        note = Note.load(found.note)
        kept = replace(note, trip=None, in_hand=0).dump() if note != Note() else ""
        commits[found.partition] = CommitPoint(targets[found.partition], kept)
    return commits


def _changes(chosen: Sequence["PartitionState"], targets: Mapping["Partition", int]) -> list[dict[str, Any]]:
    rows = []
    for found in chosen:
        after = targets[found.partition]
        moved = None if found.committed is None else after - found.committed
        rows.append(
            {
                "topic": found.partition.topic,
                "partition": found.partition.number,
                "before": found.committed,
                "after": after,
                "repeats": None if moved is None else max(0, -moved),
                "skips": None if moved is None else max(0, moved),
            }
        )
    return rows
