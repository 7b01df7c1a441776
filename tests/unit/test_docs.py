"""The documents speak of what is there: links, commands, settings with their defaults, metrics, exit codes, errors."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from jsonschema import Draft202012Validator, FormatChecker
from prometheus_client import CollectorRegistry

from consumer import errors, share_group
from consumer.cli import app
from consumer.kafka_properties import BROKER_SIDE, REFUSED, REFUSED_VALUES
from consumer.librdkafka_names import NAMES
from consumer.metrics import Metrics
from consumer.settings import KEYS, SECRETS_DIR_VARIABLE, SETTINGS_VARIABLE, Settings, load, value_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "schemas/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def _blocks(path: Path, language: str) -> Iterator[str]:
    for indent, found, text in _FENCE.findall(path.read_text()):
        if found == language:
            yield "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def _code(path: Path) -> list[str]:
    """Every code span of the prose, and every line of the shell blocks without its comment."""
    lines = [line.split("  #")[0] for block in _blocks(path, "sh") for line in block.splitlines()]
    return [*_SPAN.findall(_prose(path)), *lines]


# --- links ----------------------------------------------------------------------------------------------------------


def _anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, with `-` for spaces."""
    headings = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    # Prose is wrapped, and a link's text may be too.
    for link in _LINK.findall(_prose(path)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{link} leads nowhere"
        assert there.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in _anchors(there), f"{link}: {there.name} has no such heading"


def test_tests_that_are_named_exist() -> None:
    sources = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    named = {
        name for path in DOCUMENTS for name in _SPAN.findall(_prose(path)) if re.fullmatch(r"test(_\w+){2,}", name)
    }
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_document_is_found_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(README)}
    assert set(DOCUMENTS) - {ROOT / "README.md"} <= linked


# --- commands -------------------------------------------------------------------------------------------------------

_ROOT_COMMAND = typer.main.get_command(app)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words call, and the words after it. Fails on one that does not exist."""
    command: Any = _ROOT_COMMAND
    while words and isinstance(getattr(command, "commands", None), dict) and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command `{' '.join(words)}`"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield " ".join(words)
    for name, child in children.items():
        yield from _leaves(child, (*words, name))


@every_document
def test_commands_and_their_options_exist(path: Path) -> None:
    for code in _code(path):
        called = re.match(r"(?:\.venv/bin/)?ouzel ([a-z-].*)", code)
        if called is None:
            continue
        command, rest = _command(called[1].split())
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in rest:
            assert not word.startswith("--") or word in options, f"`{code}`: there is no {word}"


@pytest.mark.parametrize("leaf", list(_leaves(_ROOT_COMMAND)))
def test_no_help_loses_words_in_brackets(leaf: str) -> None:
    # Help is Rich's markup, where [topics] is a style that does not show.
    command, _ = _command(leaf.split())
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    assert [found for text in texts for found in re.findall(r"\[[a-z_.]+\]", text)] == []


def test_the_readme_names_every_command() -> None:
    named = " ".join(_SPAN.findall(README))
    missing = [leaf for leaf in _leaves(_ROOT_COMMAND) if f"ouzel {leaf}" not in named]
    assert missing == []


@every_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in _code(path):
        if called := re.match(r"make ([a-z-]+)", code):
            assert called[1] in targets, code


# --- settings -------------------------------------------------------------------------------------------------------

_SECTIONS = {path[0] for path in KEYS}
_UNITS_OF = {"ms": 1, "s": 1_000, "days": 86_400_000, "KiB": 1024, "MiB": 1024**2, "": 1}
_WITH_DEFAULT = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)`\s\((\d[\d,]*(?:\.\d+)?)(?: (ms|s|days|KiB|MiB))?[):;]")


_OF_A_SHARE_GROUP = {*share_group.wanted(Settings()), "share.session.timeout.ms", "share.heartbeat.interval.ms"}
"""Configuration at the broker."""
_FILES_OF_A_MODEL = {f"model.{end}" for end in ("toml", "onnx", "tflite", "xml", "bin", "savedmodel")}


@every_document
def test_settings_exist(path: Path) -> None:
    for code in _code(path):
        named = re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?: = .*)?$", code)
        if named is None or (ROOT / named[1]).exists() or named[1].split(".")[0] not in _SECTIONS:
            continue
        if named[1] in {*NAMES, *_FILES_OF_A_MODEL, *_OF_A_SHARE_GROUP}:  # librdkafka has a `delivery.` too
            continue
        assert tuple(named[1].split(".")) in KEYS, f"there is no setting {named[1]}"


@every_document
def test_variables_exist(path: Path) -> None:
    tests = "".join(each.read_text() for each in (ROOT / "tests").rglob("*.py") if each != Path(__file__))
    for name in set(re.findall(r"\bOUZEL_[A-Z0-9_]+", path.read_text())):
        if name.startswith("OUZEL_TEST_"):
            assert name in tests, name
        elif name not in {SETTINGS_VARIABLE, SECRETS_DIR_VARIABLE}:
            key = tuple(name.removeprefix("OUZEL_").lower().split("__"))
            assert key in KEYS or KEYS.get(key[:2]) == "properties", f"there is no variable {name}"


@every_document
def test_defaults_are_those_of_the_code(path: Path) -> None:
    for key, number, unit in _WITH_DEFAULT.findall(_prose(path)):
        said = float(number.replace(",", "")) * _UNITS_OF[unit] / (1_000 if unit and key.endswith("_s") else 1)
        assert said == value_of(Settings(), key), f"{key} is not {number} {unit}"


@every_document
def test_settings_files_hold(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(_blocks(path, "toml")):
        tomllib.loads(block)
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        load(file)


def test_the_bounds_on_fetches_are_in_one_table() -> None:
    section = (ROOT / "docs" / "stores.md").read_text().partition("\n## How many at once\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \| (\S+)", section, re.MULTILINE)
    of_stores = [key for key in KEYS if key[0] == "stores" and key[-1].endswith(("max_concurrency", "_per_host"))]
    assert sorted(key for key, _ in rows) == sorted(["pipeline.fetch_concurrency", *map(".".join, of_stores)])
    for key, default in rows:
        assert default == str(value_of(Settings(), key)), key


def test_the_properties_that_are_refused_are_all_named() -> None:
    text = (ROOT / "docs" / "kafka.md").read_text()
    # An older name of enable.auto.commit, and one that KIP-848 has no use for.
    for name in (REFUSED.keys() | REFUSED_VALUES.keys() | BROKER_SIDE.keys()) - {
        "auto.commit.enable",
        "group.protocol.type",
    }:
        assert f"`{name}`" in text, name


# --- metrics, exit codes, errors, events ----------------------------------------------------------------------------


def _metrics() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    suffixes = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffixes.get(family.type, "") for family in registry.collect() if family.name.startswith("ouzel_")
    }


@every_document
def test_metrics_exist(path: Path) -> None:
    named = set(re.findall(r"\bouzel_[a-z_]+", path.read_text()))
    assert named <= _metrics()


def test_the_reader_of_operations_keeps_one_label_an_image(tmp_path: Path) -> None:
    """Of each source the last, though another partition was read first."""
    (script,) = [block for block in _blocks(ROOT / "docs" / "operations.md", "python") if "last_by_source" in block]
    program = tmp_path / "last_by_source.py"
    program.write_text(script)

    def event(offset: int, second: int, version: str, *labels: str, image_id: str = "a") -> str:
        return json.dumps(
            {
                "source": {"topic": "images", "partition": 0, "offset": offset},
                "image_id": image_id,
                "published_at": f"2026-01-31T09:30:0{second}.000Z",
                "labels": [{"label": label} for label in labels],
                "model": {"version": version},
            }
        )

    events = [
        event(1, 5, "2", "wren"),
        event(1, 1, "1", "finch"),
        event(1, 1, "1", "tit", image_id="b"),
        event(2, 2, "1"),
    ]
    run = subprocess.run(
        [sys.executable, str(program)], input="\n".join(events), capture_output=True, text=True, check=True, timeout=30
    )
    assert run.stdout.splitlines() == ["a wren 2", "b tit 1", "a - 1"]


def test_operations_names_every_metric() -> None:
    assert set(re.findall(r"\bouzel_[a-z_]+", (ROOT / "docs" / "operations.md").read_text())) == _metrics()


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _below(child)


def test_the_readme_has_every_exit_code() -> None:
    table = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(", ")}
    assert table == {0, errors.Fatal.exit_code, *(each.exit_code for each in _below(errors.Fatal)), 128 + 2, 128 + 15}


def test_operations_says_what_to_do_at_every_exit_code_and_error() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    ends = text.partition("\n## What to do when it ends\n")[2].partition("\n## ")[0]
    rows = [(int(code), name) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", ends, re.MULTILINE)]
    assert sorted(rows) == sorted((each.exit_code, each.__name__) for each in _below(errors.Fatal))
    other = {int(code) for row in re.findall(r"^\| ([\d, ]+) \| \|", ends, re.MULTILINE) for code in row.split(", ")}
    assert {0, errors.Fatal.exit_code, 128 + 2, 128 + 15, 128 + 9} <= other
    for row in re.findall(r"^\|.*\|$", ends, re.MULTILINE):
        assert row.count("|") == 6, row
    runs = text.partition("\n## What to do while it runs\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line for line in runs.splitlines() if line.startswith("| `"))))
    wanted = {each.__name__ for kind in (errors.InvalidMessage, errors.Retryable) for each in _below(kind)}
    assert wanted <= named, wanted - named


def test_the_readme_has_every_class_of_dead_letters_with_its_family() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| (content|system) \|$", README, re.MULTILINE))
    assert table == {each.__name__: each.family for each in _below(errors.InvalidMessage)}


def test_the_label_event_of_the_readme_is_valid() -> None:
    schema = json.loads((ROOT / "schemas" / "label-event.v1.json").read_text())
    (event,) = _blocks(ROOT / "README.md", "json")
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(event))
