"""settings.toml at the root is the defaults, every one of them, and explains each."""

import re
import tomllib
from pathlib import Path

from consumer.kafka_properties import BROKER_SIDE, REFUSED, REFUSED_VALUES
from consumer.settings import KEYS, Settings, load_with_sources

FILE = Path(__file__).resolve().parent.parent.parent / "settings.toml"


def test_the_file_says_what_the_code_does() -> None:
    table = tomllib.loads(FILE.read_text())
    assert Settings.model_validate(table) == Settings()


def test_every_setting_is_in_the_file_and_nothing_else() -> None:
    _, sources = load_with_sources(FILE)
    in_the_file = {key for key, origin in sources.items() if origin == str(FILE)}
    assert in_the_file == {".".join(path) for path, kind in KEYS.items() if kind not in {"section", "properties"}}
    tables = set(re.findall(r"^\[(.+)\]$", FILE.read_text(), re.MULTILINE))
    assert tables == {".".join(path) for path, kind in KEYS.items() if kind in {"section", "properties"}}


def test_every_key_has_a_comment_of_its_own_above_it_and_numbers_say_their_unit() -> None:
    units = {"_ms": r"millisecond", "_s": r"second", "_bytes": r"byte"}
    comment: list[str] = []
    for line in FILE.read_text().splitlines():
        if line.startswith("#"):
            comment.append(line)
            continue
        if key := re.match(r"(\w+) = ", line):
            assert comment, f"{key[1]} has no comment"
            unit = next((word for suffix, word in units.items() if key[1].endswith(suffix)), "")
            assert re.search(unit, " ".join(comment), re.IGNORECASE), f"{key[1]} does not say its unit"
        comment = []


def test_the_file_names_every_property_that_is_refused() -> None:
    text = FILE.read_text()
    aliases = {"auto.commit.enable", "offset.store.method", "group.protocol.type"}
    for name in (set(REFUSED) | set(REFUSED_VALUES) | set(BROKER_SIDE)) - aliases:
        assert name in text, name
