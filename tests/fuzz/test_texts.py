"""Hypothesis on what people write: messages in JSON with their headers, and settings in TOML and the environment."""

import contextlib
import json
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from consumer.errors import InvalidMessage, SettingsError
from consumer.messages import Delivery, ImageJob, Lease, Partition, Records, Skipped
from consumer.settings import KEYS, load
from consumer.stages.parse import Parser

LEASE = Lease(Partition("images", 0), epoch=1, topic_id="t")
PARSE = Parser(max_metadata_bytes=200, max_image_bytes=1_000)
FIELDS = ["image_id", "uri", "data", "sha256", "content_type", "captured_at", "top_k", "metadata", "version"]
EVENT_FIELDS = ["specversion", "id", "source", "type", "datacontenttype", "data", "data_base64", "time"]

likely = st.sampled_from(
    [
        "1.0",
        "a",
        "file:///a.jpg",
        "AAAA",
        "image/png",
        "2026-01-31T09:30:00Z",
        "ouzel.image-reference.v1",
        "0" * 64,
        "\ud800",
    ]
)
texts = st.one_of(likely, st.text(max_size=40))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
references = st.dictionaries(st.sampled_from(FIELDS) | texts, values, max_size=9)
documents = st.one_of(
    references, st.dictionaries(st.sampled_from(EVENT_FIELDS), values | references, max_size=8), values
)
names = st.sampled_from(["content-type", "Content-Type", "image-id", "ce_id", "ce_type", "traceparent", ""])
types = st.sampled_from(
    [b"application/json", b"application/cloudevents+json; x=y", b"image/jpeg", b"text/uri-list", b"a/b+json", b"\xff"]
)
headers = st.lists(st.tuples(names, st.none() | types | st.binary(max_size=30)), max_size=4).map(tuple)
encoded = documents.map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))
raw = st.one_of(encoded, st.binary(max_size=200), texts.map(lambda text: text.encode("utf-8", "surrogatepass")))


@settings(max_examples=250)
@given(value=raw, key=st.none() | st.binary(max_size=30), headers=headers)
@example(value=b"[" * 100_000, key=None, headers=())
@example(value=b'{"image_id":' * 2_000, key=None, headers=())
@example(value=b"9" * 100_000, key=None, headers=(("content-type", b"application/json"),))
def test_whatever_a_message_says_it_is_a_job_or_an_invalid_message(
    value: bytes, key: bytes | None, headers: tuple[tuple[str, bytes | None], ...]
) -> None:
    try:
        parsed = PARSE(Delivery(LEASE, 0, value, key=key, headers=headers))
    except InvalidMessage as error:
        text = str(error)
    else:
        if not isinstance(parsed, ImageJob):
            assert isinstance(parsed, Skipped | Records)
            return
        job = parsed
        assert (job.uri is None) != (job.data is None)
        assert 1 <= len(job.image_id) <= 1024
        assert job.image_id.encode()  # what cannot be written as UTF-8 would fail in the label event
        return
    assert text
    assert "\n" not in text
    assert len(text) < 2_000


toml_values = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(lambda flag: str(flag).lower()),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30).map(json.dumps),
    st.lists(st.integers(-5, 5), max_size=3).map(json.dumps),
    st.sampled_from(["{ a = 1 }", "[[]]", "1979-05-27T07:32:00Z", "'", '"""', "\\", ""]),
)
environment_values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | toml_values
keys = st.sampled_from(sorted(KEYS))


def loaded(path: Path | None, environment: dict[str, str]) -> None:
    with mock.patch.dict(os.environ, environment, clear=True), contextlib.chdir("/"):
        load(path)


def is_settings_or_a_clear_error(path: Path | None, environment: dict[str, str]) -> None:
    try:
        loaded(path, environment)
    except SettingsError as refused:
        error = refused
    else:
        return
    assert str(error)
    assert "Traceback" not in str(error)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(st.tuples(keys, toml_values), max_size=4))
def test_whatever_a_settings_file_says_it_is_settings_or_a_clear_error(
    tmp_path: Path, written: list[tuple[tuple[str, ...], str]]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("".join(f"{'.'.join(key)} = {value}\n" for key, value in written))
    is_settings_or_a_clear_error(path, {})


@settings(max_examples=150)
@given(
    written=st.dictionaries(
        keys, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | toml_values, max_size=4
    )
)
def test_whatever_the_environment_says_it_is_settings_or_a_clear_error(written: dict[tuple[str, ...], str]) -> None:
    is_settings_or_a_clear_error(None, {"OUZEL_" + "__".join(key).upper(): value for key, value in written.items()})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary(max_size=80))
def test_a_settings_file_of_any_bytes_is_a_clear_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    is_settings_or_a_clear_error(path, {})


def test_settings_of_decoding_that_cannot_be_are_refused() -> None:
    with pytest.raises(SettingsError):
        loaded(None, {"OUZEL_DECODE__BACKGROUND": "white"})
    with pytest.raises(SettingsError):
        loaded(None, {"OUZEL_DECODE__ICC": "cmyk"})
