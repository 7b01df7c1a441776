"""`ouzel schemas register` and `show`: the schemas of the topics in the registry."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from consumer.errors import CommandRefused

if TYPE_CHECKING:
    from consumer.adapters.schema_registry.client import Schema, SchemaRegistryClient
    from consumer.adapters.schema_registry.encoders import Format
    from consumer.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Register our schemas, or compare the registry's with them.")

InputFormat = Literal["json-schema", "avro", "protobuf"]
Input = Annotated[
    InputFormat | None,
    typer.Option("--input", help="Also image references in this format, for the subjects of the input topics."),
]
_SHOWN = ("subject", "schema", "format", "versions", "ours", "compatibility")


@dataclass(frozen=True, slots=True)
class _Plan:
    """A schema of ours, and where it belongs."""

    subject: str
    name: str
    written_as: "Format"
    schema: "Schema"


@app.command()
def register(
    ctx: typer.Context,
    *,
    input_format: Input = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be registered, and whether the registry would take it.")
    ] = False,
) -> None:
    """Register the schema of label events, in output.format, under the output topic's subject.

    The subject is TOPIC-value (TopicNameStrategy). The service itself registers nothing: where its schema is missing it
    ends with exit code 6. It writes with the id of exactly this schema, whatever is registered there later. One that is
    there already stays as it is. Exit code 1 if the registry finds one incompatible with what is there.

        ouzel schemas register --dry-run

        ouzel schemas register --input avro
    """
    from consumer.adapters.schema_registry.client import asked
    from consumer.console import print_rows

    client, plans = _open(ctx, input_format)
    rows: list[dict[str, Any]] = []
    for plan in plans:
        row = _state(client, plan)
        refused = row["compatibility"] == "incompatible"
        if row["id"] is not None:
            row["result"] = "is registered, left as it is"
        elif refused:
            row["result"] = "incompatible: not registered"
        elif dry_run:
            row["result"] = "would be registered"
        else:
            row["id"] = asked(client.register_schema, plan.subject, plan.schema)
            row["result"] = "registered"
        rows.append(row)
    print_rows(rows, ("subject", "schema", "format", "id", "result"))
    if any(row["id"] is None and row["compatibility"] == "incompatible" for row in rows):
        typer.echo(_INCOMPATIBLE, err=True)
        raise typer.Exit(1)


@app.command()
def show(ctx: typer.Context, *, input_format: Input = None) -> None:
    """Compare what is registered with our schemas; exit code 1 where one of ours is not registered.

    `ours` is the id and version of exactly our schema; `compatibility` is what the registry says of it against the
    versions that are there, by the level that is set for the subject.
    """
    from consumer.console import print_rows

    client, plans = _open(ctx, input_format)
    rows = [_state(client, plan) for plan in plans]
    print_rows(rows, _SHOWN)
    if any(row["id"] is None for row in rows):
        typer.echo(_MISSING, err=True)
        raise typer.Exit(1)


_MISSING = "fix: ouzel schemas register"
_INCOMPATIBLE = (
    "fix: see what is there (`ouzel schemas show`); give the events a topic of their own (kafka.output_topic), choose "
    "the format that its readers know (output.format), or set the subject's compatibility level in the registry"
)


def _open(ctx: typer.Context, input_format: InputFormat | None) -> "tuple[SchemaRegistryClient, list[_Plan]]":
    from consumer import bootstrap
    from consumer.console import settings_from

    settings = settings_from(ctx)
    if settings.output.format == "json" and input_format is None:
        raise CommandRefused(
            'output.format is "json", which has no schema in a registry',
            remedy='set output.format to "json-schema", "avro" or "protobuf", or give --input for image references',
        )
    client = bootstrap.open_registry(settings)
    return client, _plans(settings, input_format)


def _plans(settings: "Settings", input_format: InputFormat | None) -> list[_Plan]:
    from consumer.adapters.schema_registry.encoders import schema_of, value_subject
    from consumer.adapters.schema_registry.formats import IMAGE_REFERENCE, LABEL_EVENT

    written_as, kafka = settings.output.format, settings.kafka
    plans = []
    if written_as != "json":
        schema = schema_of(LABEL_EVENT, written_as)
        plans.append(_Plan(value_subject(kafka.output_topic), LABEL_EVENT, written_as, schema))
    if input_format is not None:
        schema = schema_of(IMAGE_REFERENCE, input_format)
        plans += [
            _Plan(value_subject(topic), IMAGE_REFERENCE, input_format, schema) for topic in settings.kafka.input_topics
        ]
    return plans


def _state(client: "SchemaRegistryClient", plan: _Plan) -> dict[str, Any]:
    """What the registry has of a plan, and says of it."""
    from consumer.adapters.schema_registry.client import asked

    versions = asked(client.get_versions, plan.subject) or []
    ours = asked(client.lookup_schema, plan.subject, plan.schema, True) if versions else None
    compatible = "nothing to compare with"
    if versions:
        found = asked(client.test_compatibility, plan.subject, plan.schema)
        compatible = "incompatible" if found is False else "compatible"
    return {
        "subject": plan.subject,
        "schema": plan.name,
        "format": plan.written_as,
        "versions": ", ".join(map(str, versions)),
        "id": None if ours is None else ours.schema_id,
        "version": None if ours is None else ours.version,
        "ours": "not registered" if ours is None else f"id {ours.schema_id}, version {ours.version}",
        "compatibility": compatible,
    }
