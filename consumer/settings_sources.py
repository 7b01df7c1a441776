"""The layers that settings come from, each as path -> value, and where it came from. Reads no environment.

What the keys are comes from the model: which paths are tables, which hold librdkafka's properties, which are lists.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from consumer.kafka_properties import PROPERTY_TABLES
from consumer.librdkafka_names import NAMES
from consumer.settings_page import Problem, near

PREFIX = "OUZEL_"
_FILE = "_FILE"
NESTING = "__"

Kind = Literal["section", "properties", "list", "mapping", "value"]
KeyPath = tuple[str, ...]


@dataclass(slots=True)
class Layer:
    """One source's settings, and what is wrong with it."""

    values: dict[KeyPath, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def nested(self, leaving_out: frozenset[KeyPath] = frozenset()) -> dict[str, Any]:
        """As tables in tables, the way the model takes them."""
        tables: dict[str, Any] = {}
        for path, value in self.values.items():
            if path in leaving_out:
                continue
            table = tables
            for name in path[:-1]:
                table = table.setdefault(name, {})
            table[path[-1]] = value
        return tables


def catalogue(model: type[BaseModel], above: KeyPath = ()) -> dict[KeyPath, Kind]:
    """Every path of the settings and what it holds."""
    found: dict[KeyPath, Kind] = {}
    for name, info in model.model_fields.items():
        path = (*above, name)
        annotation = _bare(info.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found[path] = "section"
            found |= catalogue(annotation, path)
        elif above == ("kafka",) and name in PROPERTY_TABLES:
            found[path] = "properties"
        elif get_origin(annotation) is list:
            found[path] = "list"
        else:
            found[path] = "mapping" if get_origin(annotation) is dict else "value"
    return found


def _bare(annotation: Any) -> Any:
    """The type without `| None`."""
    if get_origin(annotation) in {Union, UnionType}:
        kept = [part for part in get_args(annotation) if part is not type(None)]
        return kept[0] if len(kept) == 1 else annotation
    return annotation


def flattened(
    table: Mapping[str, Any], keys: Mapping[KeyPath, Kind], above: KeyPath = ()
) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of nested tables. A librdkafka property is one name with dots, however it was nested."""
    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, Mapping) and keys.get(path) == "section":
            yield from flattened(value, keys, path)
        elif isinstance(value, Mapping) and keys.get(path) == "properties":
            for dotted, inner in _dotted(value):
                yield (*path, dotted), inner
        else:
            # An unquoted TOML time is a time object; the settings hold it as text.
            yield path, value.isoformat() if isinstance(value, datetime) else value


def _dotted(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            for rest, inner in _dotted(value):
                yield f"{name}.{rest}", inner
        else:
            yield name, value


# --- settings.toml --------------------------------------------------------------------------------------------------


def toml_layer(path: Path, keys: Mapping[KeyPath, Kind], named_by: str) -> Layer:
    """A settings file. `named_by` says who named it; a file that is not there is then a problem."""
    layer = Layer()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"{named_by} names it; create it or name another"
        layer.problems.append(Problem(str(path), "there is no such settings file", fix))
    except OSError as error:
        fix = "name a TOML file that this user may read"
        layer.problems.append(Problem(str(path), f"cannot be read: {error.strerror}", fix))
    except UnicodeDecodeError as error:
        fix = "save the file as UTF-8"
        layer.problems.append(Problem(str(path), f"is not UTF-8 text (byte {error.start})", fix))
    except tomllib.TOMLDecodeError as error:
        fix = "mend the syntax at that line; text goes in quotes, a table's name in [brackets]"
        layer.problems.append(Problem(str(path), f"is not TOML: {error}", fix))
    else:
        for key, value in flattened(table, keys):
            layer.values[key] = value
            layer.origins[key] = str(path)
    return layer


# --- environment, .env and secret files -----------------------------------------------------------------------------

# A Kubernetes service named "ouzel" puts these into every pod beside it (enableServiceLinks); not ours.
_SERVICE_LINK = re.compile(r"OUZEL_(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def variables_layer(
    variables: Mapping[str, str],
    keys: Mapping[KeyPath, Kind],
    origin: Callable[[str], str],
    *,
    not_settings: Callable[[str], bool],
) -> Layer:
    """Settings by `OUZEL_TABLE__KEY` names: of the environment, a .env file or a folder of secrets.

    In librdkafka's tables `_` stands for the dot. `not_settings` tells our own variables that are no settings.
    """
    layer = Layer()
    # The shorter name first: OUZEL_BATCH as JSON is the table that OUZEL_BATCH__MAX_SIZE then overrides.
    for name, text in sorted(variables.items()):
        upper = name.upper()
        if not upper.startswith(PREFIX) or not_settings(upper) or _is_service_link(upper, text):
            continue
        path = _path(upper, keys)
        if path is None:
            layer.problems.append(_unknown_variable(name, upper, keys, origin(name)))
            continue
        try:
            found = list(_read(path, text, keys))
        except ValueError as error:
            layer.problems.append(Problem(".".join(path), str(error), "mend the JSON, or unset it", origin(name)))
            continue
        for key, value in found:
            layer.values[key] = value
            layer.origins[key] = origin(name)
    return layer


def _is_service_link(name: str, text: str) -> bool:
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and _SERVICE_ADDRESS.match(text) is not None


def _path(name: str, keys: Mapping[KeyPath, Kind]) -> KeyPath | None:
    path = tuple(name.removeprefix(PREFIX).lower().split(NESTING))
    if path in keys:
        return path
    if len(path) == 3 and path[2] and keys.get(path[:2]) == "properties":
        property_name = path[2].replace("_", ".")
        # PASSWORD_FILE is how some images name a file with the value in it; librdkafka's own ..._FILE are properties.
        if not property_name.endswith(".file") or property_name in NAMES:
            return (*path[:2], property_name)
    return None


def _read(path: KeyPath, text: str, keys: Mapping[KeyPath, Kind]) -> Iterator[tuple[KeyPath, Any]]:
    kind = keys.get(path, "value")
    if kind in {"section", "properties", "mapping"}:
        value = _json(text, "a JSON object")
        if not isinstance(value, dict):
            raise ValueError("a whole table is given as a JSON object")
        nested: dict[str, Any] = value
        for name in reversed(path):
            nested = {name: nested}
        yield from flattened(nested, keys)
    elif kind == "list" and text.lstrip().startswith("["):
        yield path, _json(text, "a JSON list, which its bracket announces")
    elif kind == "list":
        yield path, [part.strip() for part in text.split(",") if part.strip()]
    else:
        yield path, text


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # The text itself may be a secret: say the place only.
        raise ValueError(f"is not {what} (line {error.lineno}, column {error.colno})") from None


def _unknown_variable(name: str, upper: str, keys: Mapping[KeyPath, Kind], origin: str) -> Problem:
    meant = _near_variable(upper, keys)
    if upper.endswith(_FILE) and _path(upper.removesuffix(_FILE), keys) is not None:
        named = upper.removesuffix(_FILE)
        fix = f"put the file under the name {named} into the folder that OUZEL_SECRETS_DIR names, else /run/secrets"
    elif meant:
        fix = f"did you mean {meant}?"
    else:
        fix = "unset it; `ouzel settings` lists the keys there are: table.key is OUZEL_TABLE__KEY, two underscores"
    return Problem(name, "there is no such setting", fix, origin)


def _near_variable(upper: str, keys: Mapping[KeyPath, Kind]) -> str | None:
    for path, kind in keys.items():
        table = variable_name(path)
        # OUZEL_KAFKA_CLIENT_SASL_PASSWORD: right but for the double underscores.
        loose = "_+".join(re.escape(part) for part in re.split("_+", table)) + "_+(.+)"
        if kind == "properties" and (match := re.fullmatch(loose, upper)):
            return f"{table}{NESTING}{match[1]}"
    return near(upper, [variable_name(path) for path, kind in keys.items() if kind != "section"])


def variable_name(path: KeyPath) -> str:
    """The environment variable of a setting."""
    return PREFIX + NESTING.join(name.upper().replace(".", "_") for name in path)


def secret_files(folder: Path) -> tuple[dict[str, str], list[Problem]]:
    """Files named like variables (`OUZEL_KAFKA__CLIENT__SASL_PASSWORD`), as Docker and Kubernetes mount secrets.

    Line ends after the text are cut off. What others keep there under names of their own is left alone.
    """
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        files = sorted(path for path in folder.iterdir() if path.name.upper().startswith(PREFIX))
    except OSError as error:
        fix = "name a folder that this user may read"
        return texts, [Problem(str(folder), f"the folder of secrets cannot be read: {error.strerror}", fix)]
    for path in files:
        try:
            texts[path.name] = path.read_text(encoding="utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            problems.append(Problem(str(path), "the secret is not UTF-8 text", "store it as text"))
        except OSError as error:
            # Docker makes an empty folder where the file to be mounted is missing.
            wrong = f"the secret cannot be read: {error.strerror}"
            problems.append(Problem(str(path), wrong, "mount it as a file that this user may read"))
    return texts, problems
