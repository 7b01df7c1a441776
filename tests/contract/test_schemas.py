"""The published schemas describe every field, and say the same as the typed models."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from consumer.bucket_contract import (
    EventBridgeEvent,
    GcsCloudEvent,
    GcsObject,
    PubSubEnvelope,
    S3Event,
    SnsEnvelope,
)
from consumer.contract import DeadLetterHeaders, ImageReference, ImageReferenceCloudEvent, LabelEvent
from tests.contract.schema_files import SCHEMAS, check, fields_of, is_valid, validator_of

MODELS: dict[str, type[BaseModel]] = {
    "image-reference.v1.json": ImageReference,
    "cloudevent-image-reference.v1.json": ImageReferenceCloudEvent,
    "label-event.v1.json": LabelEvent,
    "dead-letter-headers.v1.json": DeadLetterHeaders,
    "s3-event.v1.json": S3Event,
    "sns-s3-event.v1.json": SnsEnvelope,
    "eventbridge-s3-event.v1.json": EventBridgeEvent,
    "gcs-object.v1.json": GcsObject,
    "gcs-cloudevent.v1.json": GcsCloudEvent,
    "gcs-pubsub-event.v1.json": PubSubEnvelope,
}
FIELDS = [
    pytest.param(name, path, field, id=f"{name}{path}")
    for name, schema in SCHEMAS.items()
    for path, field in fields_of(schema)
]

# Values near the bounds of what some field takes, so that mutations land on both sides of them.
NEAR: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 5.0, 0.5, 1.0, 1.5, 1000, 1001, 1000.0, 10**19, -0.1, [], {}, "", " ", "\n"),
    *("a", "a\n", "\x00", "\x7f", "é", "1", "-1", "1.0", "0.3", "create", "log_append", "none", "value", "file:///x"),
    *("a" * 64, "A" * 64, "g" * 64, "a" * 63, "a" * 64 + "\n", "sha256:" + "a" * 64, "sha256:" + "A" * 64, "a" * 257),
    *("x" * 1024, "x" * 1025, "x" * 8192, "x" * 8193, "é" * 1024, "QQ==", "QQ", "QQ=", "Q===", "QQ==\n", "QQ==QQ=="),
    *("QUI=", "QUJD", "QUJDQ", "QR==", "Q-_=", "====", "=QQQ", "QQ=Q", "Q Q=", "٣" * 4, "٣" * 64),
    *("2026-01-31T09:30:00Z", "2026-01-31t09:30:00z", "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
    *("2026-01-31T09:30:00", "2026-01-31T09:30:60Z", "2026-01-31T24:00:00Z", "2026-01-31T09:30:00.1+01:00"),
    *("0000-01-01T00:00:00Z", "2026-01-31T09:30:00.123456789Z", "2026-01-31T09:30:00.1234567891Z", "2026-01-31"),
    *("2026-01-31 09:30:00Z", "2026-01-31T09:30:00+24:00", "2026-01-31T09:30:00-23:59", "2026-01-31T09:30:00Z\n"),
    *("ouzel.image-reference.v1", "ouzel.image-reference.v2", "ouzel.image-reference.v1\n", "ouzel.image-reference.v"),
    *({"a": "b"}, {"a": 1}, {"a": None}, {"": ""}, [{"index": 0, "label": "", "score": 1}], [None]),
    *({"image_id": "a", "uri": "b"}, {"image_id": "a", "uri": "b", "data": None}, {"image_id": "a"}),
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
VALUES = st.sampled_from(NEAR).map(copy.deepcopy) | ANYTHING


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document can be changed: each member of each object and array in it."""
    members = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [place for key, value in members for place in [(*path, key), *_places(value, (*path, key))]]


@st.composite
def _documents(draw: st.DrawFn, name: str) -> Any:
    """An example of the schema after up to three changes."""
    document = copy.deepcopy(draw(st.sampled_from(SCHEMAS[name]["examples"])))
    known = [*sorted(SCHEMAS[name]["properties"]), "unknown"]
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(["set", "set", "delete", "add"]))
        if change == "add":
            document[draw(st.sampled_from(known))] = draw(VALUES)
        elif places := _places(document):
            *way, last = draw(st.sampled_from(places))
            holder = document
            for step in way:
                holder = holder[step]
            if change == "delete":
                del holder[last]
            else:
                holder[last] = draw(VALUES)
    return document


def _accepts(model: type[BaseModel], document: object) -> bool:
    try:
        model.model_validate(document)
    except ValidationError:
        return False
    return True


def _nested(schema: dict[str, Any], model: type[BaseModel]) -> list[tuple[dict[str, Any], type[BaseModel]]]:
    """Each object of the schema with the model that stands for it."""
    pairs = [(schema, model)]
    for name, field in model.model_fields.items():
        inner = schema["properties"][field.alias or name]
        inner = SCHEMAS[inner["$ref"]] if "$ref" in inner else inner.get("items", inner)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                pairs += _nested(inner, kind)
    return pairs


def test_every_schema_has_a_model() -> None:
    assert set(SCHEMAS) == set(MODELS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_valid_2020_12_and_its_examples_are_valid_by_it(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == name
    Draft202012Validator.check_schema(schema)
    for example in schema["examples"]:
        check(name, example)


@pytest.mark.parametrize(("name", "path", "field"), FIELDS)
def test_every_field_has_a_description_a_unit_and_a_valid_example(name: str, path: str, field: dict[str, Any]) -> None:
    assert re.search(r"^\S.*\S Unit: [^.]+\.$", field["description"]), path
    assert field["examples"], path
    for example in field["examples"]:
        validator_of({**field, "$schema": SCHEMAS[name]["$schema"]}).validate(example)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_schema_refuses_unknown_fields(name: str) -> None:
    for path, field in [("", SCHEMAS[name]), *fields_of(SCHEMAS[name])]:
        assert field.get("additionalProperties", {}) is not False, path
        assert "unevaluatedProperties" not in field, path


@pytest.mark.parametrize("name", SCHEMAS)
def test_model_and_schema_have_the_same_fields_and_require_the_same(name: str) -> None:
    for schema, model in _nested(SCHEMAS[name], MODELS[name]):
        fields = {field.alias or own: field for own, field in model.model_fields.items()}
        assert set(fields) == set(schema["properties"]), model
        assert {key for key, field in fields.items() if field.is_required()} == set(schema["required"]), model


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_schema_takes_the_model_takes_and_what_one_refuses_the_other_refuses(
    name: str, data: st.DataObject
) -> None:
    document = data.draw(_documents(name))
    assert _accepts(MODELS[name], document) == is_valid(name, document)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_and_model_agree_on_every_near_miss_of_every_field(name: str) -> None:
    for example in SCHEMAS[name]["examples"]:
        for place in [*_places(example), ("unknown",)]:
            for change in [*(_setter(value) for value in NEAR), _delete]:
                document = copy.deepcopy(example)
                *way, last = place
                holder = document
                for step in way:
                    holder = holder[step]
                change(holder, last)
                assert _accepts(MODELS[name], document) == is_valid(name, document), (place, holder)


def _setter(value: Any) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        holder[key] = copy.deepcopy(value)

    return change


def _delete(holder: Any, key: Any) -> None:
    if isinstance(holder, list) or key in holder:
        del holder[key]
