"""The files of `schemas/`, with a validator that asserts formats and reads patterns as ECMA-262 does."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

FOLDER = Path(__file__).parents[2] / "schemas"
SCHEMAS: Mapping[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}


def _ecma_pattern(_validator: object, pattern: str, instance: object, _schema: object) -> Iterator[ValidationError]:
    # `$` is the end of the text to ECMA-262, which JSON Schema follows; to Python also the place before a last newline.
    if isinstance(instance, str) and not re.search(re.sub(r"(?<!\\)\$", r"\\Z", pattern), instance):
        yield ValidationError(f"does not match {pattern}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _ecma_pattern})  # type: ignore[no-untyped-call]
_REGISTRY: Registry[Any] = Registry().with_resources(
    # Without `$schema`, which would bring back the plain validator behind a `$ref`.
    (name, DRAFT202012.create_resource({key: value for key, value in schema.items() if key != "$schema"}))
    for name, schema in SCHEMAS.items()
)


def validator_of(schema: str | dict[str, Any]) -> Any:
    """A validator of a file of `schemas/`, or of a schema that refers to them."""
    contents = SCHEMAS[schema] if isinstance(schema, str) else schema
    return _Validator(contents, registry=_REGISTRY, format_checker=FormatChecker())


def is_valid(name: str, document: object) -> bool:
    """Whether a document is one of this schema."""
    return bool(validator_of(name).is_valid(document))


def check(name: str, document: object) -> None:
    """Raises `ValidationError` unless it is."""
    validator_of(name).validate(document)


def fields_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that a schema describes, with its path; constraints that only combine them (`oneOf`) have none."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}/{name}", field
        yield from fields_of(field, f"{path}/{name}")
    if "items" in schema:
        yield from fields_of(schema["items"], f"{path}[]")
