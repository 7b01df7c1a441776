"""All that is wrong with the settings, on one page: what, where it came from, and what to do."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consumer.errors import SettingsError
from consumer.kafka_properties import is_secret
from consumer.redact import MASK

SECRET_FILE = "secret file "  # noqa: S105 - an origin
"""How the origin of a value from the folder of secrets begins."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    key: str
    """Dotted (`batch.max_size`), or the name of a file or environment variable that is wrong itself."""
    wrong: str
    fix: str = ""
    origin: str = ""
    """`environment variable OUZEL_...`, a file, `default`; empty where `key` says it."""


def error_page(problems: Iterable[Problem]) -> SettingsError:
    """The problems as one error, in the order of their keys."""
    listed = sorted(dict.fromkeys(problems), key=lambda problem: problem.key)
    count = "one problem" if len(listed) == 1 else f"{len(listed)} problems"
    blocks = [f"{count} with the settings"]
    for problem in listed:
        lines = [f"  {problem.key}: {problem.wrong}"]
        if problem.origin:
            lines.append(f"    from: {problem.origin}")
        if problem.fix:
            lines.append(f"    fix:  {problem.fix}")
        blocks.append("\n".join(lines))
    return SettingsError("\n\n".join(blocks))


def from_secret_file(origin: str) -> bool:
    """Whether a value came from the folder of secrets: then it is one, whatever its key."""
    return origin.startswith(SECRET_FILE)


def shown(key: str, value: Any) -> str:
    """A value as it may be shown: a secret as asterisks, anything long cut short."""
    if is_secret(key):
        return MASK
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: equal but for separators, else the most alike, else None."""
    names = list(known)
    squeezed = {_squeezed(candidate): candidate for candidate in names}
    if _squeezed(name) in squeezed:
        return squeezed[_squeezed(name)]
    found = difflib.get_close_matches(_squeezed(name), squeezed, n=1, cutoff=0.75)
    return squeezed[found[0]] if found else None


def near_key(key: str, known: Iterable[str]) -> str | None:
    """`near` for a dotted key; a name that is right but in the wrong table is found in the other one."""
    names = list(known)
    last = key.rpartition(".")[2]
    elsewhere = [name for name in names if name.rpartition(".")[2] == last]
    return elsewhere[0] if len(elsewhere) == 1 else near(key, names)


def _squeezed(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


_UNITS = {"_ms": "in milliseconds", "_s": "in seconds", "_bytes": "in bytes"}


def validation_problem(error: Mapping[str, Any], key: str, origin: str, known: Iterable[str]) -> Problem:
    """One of pydantic's errors in our words. The value is shown unless it is a secret or its key is unknown."""
    kind, facts = str(error["type"]), dict(error.get("ctx") or {})
    if kind == "extra_forbidden":
        meant = near_key(key, known)
        fix = f"did you mean {meant}?" if meant else "delete it; `ouzel settings` lists the keys there are"
        return Problem(key, "there is no such setting", fix, origin)
    value = MASK if from_secret_file(origin) else shown(key, error.get("input"))
    wrong = f"{value} will not do: {str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}"
    return Problem(key, wrong, _fix(key, kind, facts), origin)


_FIXES = {
    "float": "give a number",
    "finite": "give a number",
    "bool": "give true or false",
    "list": 'give a list: ["a", "b"] in settings.toml, a,b or JSON in the environment',
    "string": "give text, in quotes in settings.toml",
}


def _fix(key: str, kind: str, facts: Mapping[str, Any]) -> str:
    unit = next((text for suffix, text in _UNITS.items() if key.endswith(suffix)), "")
    if kind == "literal_error":
        return f"choose {facts['expected']}"
    if kind.startswith("int"):
        return f"give a whole number {unit}".rstrip()
    if kind in {"too_short", "too_long"}:
        return (
            f"give {facts.get('min_length', facts.get('max_length'))} or {'more' if kind == 'too_short' else 'fewer'}"
        )
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    said = [f"{words} {facts[bound]}" for bound, words in bounds.items() if bound in facts]
    if said:
        return f"give {' and '.join(said)} {unit}".rstrip()
    return _FIXES.get(kind.partition("_")[0], "")
