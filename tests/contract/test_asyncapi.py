"""The AsyncAPI document has the members that 3.0 requires, and every `$ref` in it leads somewhere.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator

from consumer.adapters.schema_registry.encoders import _CONTENT_TYPES, Format
from consumer.settings import KafkaSettings
from consumer.stages.events import JsonEncoder
from tests.contract.schema_files import FOLDER, SCHEMAS, fields_of

DOCUMENT: dict[str, Any] = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text(encoding="utf-8"))
ROOT_MEMBERS = {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
CHANNEL_MEMBERS = {
    *("address", "messages", "title", "summary", "description", "servers", "parameters", "tags", "externalDocs"),
    "bindings",
}
OPERATION_MEMBERS = {
    *("action", "channel", "title", "summary", "description", "security", "tags", "externalDocs", "bindings"),
    *("traits", "messages", "reply"),
}
MESSAGE_MEMBERS = {
    *("headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags"),
    *("externalDocs", "bindings", "examples", "traits"),
}


def _resolve(reference: str) -> Any:
    """What a `$ref` leads to: a place in the document, or a file of `schemas/`. Raises KeyError where nowhere."""
    if not reference.startswith("#/"):
        return SCHEMAS[reference.removeprefix("./")]
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _messages() -> dict[str, Any]:
    messages: dict[str, Any] = DOCUMENT["components"]["messages"]
    return messages


def test_the_document_has_the_members_of_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert set(DOCUMENT) <= ROOT_MEMBERS
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"]


def test_it_has_the_four_topics_by_the_names_of_the_settings() -> None:
    kafka = KafkaSettings()
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == {
        *kafka.input_topics,
        kafka.output_topic,
        kafka.dead_letter_topic,
        kafka.dead_letter_topic + ".replayed",
    }
    topics = {each["address"]: each["bindings"]["kafka"] for each in DOCUMENT["channels"].values()}
    assert all(binding["topic"] == address for address, binding in topics.items())
    sizes = {address: each["topicConfiguration"].get("max.message.bytes") for address, each in topics.items()}
    assert sizes["images"] == kafka.max_message_bytes
    assert sizes["images.dlq"] == kafka.max_message_bytes + 64 * 1024


@pytest.mark.parametrize("reference", sorted(set(_references(DOCUMENT))))
def test_every_reference_resolves(reference: str) -> None:
    assert isinstance(_resolve(reference), dict)


@pytest.mark.parametrize("name", DOCUMENT["channels"])
def test_a_channel_has_an_address_and_messages(name: str) -> None:
    channel = DOCUMENT["channels"][name]
    assert set(channel) <= CHANNEL_MEMBERS
    assert channel["messages"]
    for message in channel["messages"].values():
        assert message["$ref"].startswith("#/components/messages/")


@pytest.mark.parametrize("name", DOCUMENT["operations"])
def test_an_operation_has_an_action_on_a_channel_of_the_document(name: str) -> None:
    operation = DOCUMENT["operations"][name]
    assert set(operation) <= OPERATION_MEMBERS
    assert operation["action"] in {"send", "receive"}
    assert operation["channel"]["$ref"].startswith("#/channels/")


@pytest.mark.parametrize("name", _messages())
def test_a_message_has_a_payload_a_key_and_schemas_that_are_schemas(name: str) -> None:
    message = _messages()[name]
    assert set(message) <= MESSAGE_MEMBERS
    assert message["bindings"]["kafka"]["bindingVersion"] == "0.5.0"
    for part in (message["payload"], message.get("headers", {}), message["bindings"]["kafka"]["key"]):
        schema = part
        if "schemaFormat" in part:
            assert set(part) == {"schemaFormat", "schema"}
            assert part["schemaFormat"] == "application/schema+json;version=2020-12"
            schema = part["schema"]
        Draft202012Validator.check_schema(_resolve(schema["$ref"]) if "$ref" in schema else schema)


def test_every_message_is_on_a_topic_and_every_schema_file_is_used() -> None:
    used = {each["$ref"] for channel in DOCUMENT["channels"].values() for each in channel["messages"].values()}
    assert used == {f"#/components/messages/{name}" for name in _messages()}
    assert {each for each in _references(DOCUMENT) if each.startswith("./")} == {f"./{name}" for name in SCHEMAS}


def test_a_label_event_says_one_of_the_forms_that_it_is_written_in() -> None:
    written = [JsonEncoder.content_type, *(_CONTENT_TYPES[each] for each in get_args(Format))]
    headers = DOCUMENT["components"]["schemas"]["labelEventHeaders"]["properties"]
    assert headers["content-type"]["enum"] == [each.decode() for each in written]


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_header_has_a_description_a_unit_and_an_example(name: str) -> None:
    for path, field in fields_of(DOCUMENT["components"]["schemas"][name]):
        assert "Unit - " in field["description"], path
        assert field["examples"], path
        for example in field["examples"]:
            Draft202012Validator(field).validate(example)
