"""The settings, from where they come to one validated whole. The only reader of the environment and settings.toml."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumer.kafka_properties import is_secret
from consumer.settings_checks import conflicts
from consumer.settings_page import SECRET_FILE, Problem, error_page, from_secret_file, validation_problem
from consumer.settings_sources import KeyPath, Layer, catalogue, secret_files, toml_layer, variables_layer
from consumer.settings_tables import (
    AzureStoreSettings,
    BatchSettings,
    CommitSettings,
    DeadLetterSettings,
    DeliverySettings,
    DrainSettings,
    FileStoreSettings,
    GcsStoreSettings,
    HealthSettings,
    HttpStoreSettings,
    InputSettings,
    KafkaSettings,
    LogSettings,
    ModelSettings,
    OutputSettings,
    PipelineSettings,
    RawProperties,
    RetrySettings,
    S3StoreSettings,
    SchemaRegistrySettings,
    Section,
    Settings,
    ShareSettings,
    StoresSettings,
    SwapSettings,
    TopicSettings,
    TrackingSettings,
    TransactionSettings,
    WandbSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_SECRETS_DIR",
    "DOTENV_FILE",
    "KEYS",
    "SECRETS_DIR_VARIABLE",
    "SETTINGS_VARIABLE",
    "AzureStoreSettings",
    "BatchSettings",
    "CommitSettings",
    "DeadLetterSettings",
    "DeliverySettings",
    "DrainSettings",
    "FileStoreSettings",
    "GcsStoreSettings",
    "HealthSettings",
    "HttpStoreSettings",
    "InputSettings",
    "KafkaSettings",
    "LogSettings",
    "ModelSettings",
    "OutputSettings",
    "PipelineSettings",
    "Provenance",
    "RawProperties",
    "RetrySettings",
    "S3StoreSettings",
    "SchemaRegistrySettings",
    "Section",
    "Settings",
    "ShareSettings",
    "StoresSettings",
    "SwapSettings",
    "TopicSettings",
    "TrackingSettings",
    "TransactionSettings",
    "WandbSettings",
    "default_of",
    "keys_of",
    "load",
    "load_with_sources",
    "secret_values",
    "value_of",
]

# --- where they come from -------------------------------------------------------------------------------------------

KEYS = catalogue(Settings)
"""Every dotted path of the settings, as a tuple, and what it holds."""

SETTINGS_VARIABLE = "OUZEL_SETTINGS"
SECRETS_DIR_VARIABLE = "OUZEL_SECRETS_DIR"
DEFAULT_FILE = Path("settings.toml")
DOTENV_FILE = Path(".env")
DEFAULT_SECRETS_DIR = Path("/run/secrets")

Provenance = dict[str, str]
"""Dotted key -> where its value came from: `command line`, `environment variable NAME`, a file, or `default`."""


def load(path: Path | None = None) -> Settings:
    """The effective settings. Raises `SettingsError` with everything that is wrong on one page.

    `path` is what `--settings` named; else `OUZEL_SETTINGS` names the file, else `./settings.toml` is read if it is
    there, else the defaults hold.
    """
    return load_with_sources(path)[0]


def load_with_sources(
    path: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[Settings, Provenance]:
    """The effective settings, and where each came from.

    The first of these that has a key wins: `overrides` (dotted keys, from command-line options), the environment,
    `./.env`, files in the folder of secrets (`OUZEL_SECRETS_DIR`, else `/run/secrets`), the settings file, the default.

    Raises:
        SettingsError: everything that is wrong, on one page.
    """
    layers = _layers(path, overrides or {})
    problems = [problem for layer in layers for problem in layer.problems]
    origins: dict[KeyPath, str] = {}
    for layer in reversed(layers):
        origins |= layer.origins

    settings, wrong = _validated(layers, origins)
    problems += wrong
    flawed = {problem.key for problem in wrong}
    for conflict in conflicts(settings):
        if flawed.isdisjoint(conflict.keys):
            key = conflict.keys[0]
            problems.append(Problem(key, conflict.wrong, conflict.fix, _origin(_key_path(key), origins)))
    if problems:
        raise error_page(problems)
    return settings, _provenance(settings, origins)


def _layers(path: Path | None, overrides: Mapping[str, Any]) -> list[Layer]:
    """First to last: the first that has a key wins."""
    options = Layer()
    for key, value in overrides.items():
        options.values[_key_path(key)] = value
        options.origins[_key_path(key)] = "command line"

    environment = variables_layer(os.environ, KEYS, "environment variable {}".format, not_settings=_not_a_setting)

    dotenv: dict[str, str] = {}
    if DOTENV_FILE.is_file():
        dotenv = {name: value or "" for name, value in dotenv_values(DOTENV_FILE, interpolate=False).items()}
    dotenv_layer = variables_layer(dotenv, KEYS, f"{DOTENV_FILE}, variable {{}}".format, not_settings=_not_a_setting)

    named_folder = os.environ.get(SECRETS_DIR_VARIABLE)
    folder = Path(named_folder) if named_folder else DEFAULT_SECRETS_DIR
    secrets = Layer()
    if named_folder or folder.is_dir():
        texts, problems = secret_files(folder)
        secrets = variables_layer(texts, KEYS, f"{SECRET_FILE}{folder}/{{}}".format, not_settings=_not_a_setting)
        secrets.problems += problems

    named_file = os.environ.get(SETTINGS_VARIABLE)
    read_file = partial(toml_layer, keys=KEYS)
    if path is not None:
        file = read_file(path, named_by="--settings")
    elif named_file:
        file = read_file(Path(named_file), named_by=f"environment variable {SETTINGS_VARIABLE}")
    elif DEFAULT_FILE.is_file():
        file = read_file(DEFAULT_FILE, named_by="the current folder")
    else:
        file = Layer()
    return [options, environment, dotenv_layer, secrets, file]


def _not_a_setting(name: str) -> bool:
    """Variables of ours that are no settings; the OUZEL_TEST_ ones belong to the tests."""
    return name in {SETTINGS_VARIABLE, SECRETS_DIR_VARIABLE} or name.startswith("OUZEL_TEST_")


class _LayerSource(PydanticBaseSettingsSource):
    """A layer, as pydantic-settings takes its sources."""

    def __init__(self, settings_cls: type[BaseSettings], nested: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._nested = nested

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._nested.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._nested


def _merged(layers: list[Layer], leaving_out: frozenset[KeyPath]) -> Settings:
    """The layers merged and validated by pydantic-settings. Raises ValidationError."""

    class Merged(Settings, BaseSettings):
        model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_args: Any, **_sources: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(_LayerSource(settings_cls, layer.nested(leaving_out)) for layer in layers)

    merged = Merged()
    return Settings(**{name: getattr(merged, name) for name in Settings.model_fields})


def _validated(layers: list[Layer], origins: Mapping[KeyPath, str]) -> tuple[Settings, list[Problem]]:
    """The settings without the values that are wrong, and those; so that what is left can be checked too."""
    try:
        return _merged(layers, frozenset()), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    known = [".".join(path) for path, kind in KEYS.items() if kind != "section"]
    problems: dict[KeyPath, Problem] = {}
    for fault in errors:
        # A position in a list or a branch of a union ends the location: the key is the part that a layer has.
        location = tuple(str(part) for part in fault["loc"])
        path = next((location[:end] for end in range(len(location), 0, -1) if location[:end] in origins), location)
        problems.setdefault(path, validation_problem(fault, ".".join(path), _origin(path, origins), known))
    try:
        rest = _merged(layers, frozenset(problems))
    except ValidationError:
        rest = Settings()
    return rest, list(problems.values())


def _key_path(key: str) -> KeyPath:
    """`kafka.client.sasl.password` -> ("kafka", "client", "sasl.password"); plain keys split at every dot."""
    parts = tuple(key.split("."))
    if len(parts) > 3 and KEYS.get(parts[:2]) == "properties":
        return (*parts[:2], ".".join(parts[2:]))
    return parts


def _origin(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    return origins.get(path, "default")


def _provenance(settings: Settings, origins: Mapping[KeyPath, str]) -> Provenance:
    found: Provenance = {}
    for path, kind in KEYS.items():
        if kind == "properties":
            table: RawProperties = getattr(settings.kafka, path[-1])
            for name in table:
                found[".".join((*path, name))] = _origin((*path, name), origins)
        elif kind != "section":
            found[".".join(path)] = _origin(path, origins)
    return found


def keys_of(settings: Settings) -> list[str]:
    """Every dotted key, those of librdkafka's properties that are set included."""
    return list(_provenance(settings, {}))


def default_of(key: str) -> Any:
    """The default at a dotted key; None for a librdkafka property, which has none of ours."""
    path = _key_path(key)
    return None if len(path) > 2 and KEYS.get(path[:2]) == "properties" else value_of(Settings(), key)


def secret_values(settings: Settings, sources: Provenance) -> Iterator[str]:
    """Every value that is never to be told: of keys that are called so, from secret files, and of `SecretStr` wherever
    one is. Empty ones tell nothing and hide nothing."""
    for key, origin in sources.items():
        found = _secrets_in(value_of(settings, key), called_so=is_secret(key) or from_secret_file(origin))
        yield from filter(None, found)


def _secrets_in(value: Any, *, called_so: bool) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _secrets_in(each, called_so=called_so or is_secret(str(name)))
    elif isinstance(value, BaseModel):
        yield from _secrets_in(dict(value), called_so=called_so)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _secrets_in(each, called_so=called_so)
    elif called_so and isinstance(value, str):
        yield value


def value_of(settings: Settings, key: str) -> Any:
    """The value at a dotted key of the provenance."""
    value: Any = settings
    for name in _key_path(key):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value
