"""What `model.source` may say."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import SettingsError
from consumer.model_reference import ModelReference, parse_reference

PIN = "sha256:" + "0123456789abcdef" * 4


def _nothing_lies_there(_path: str) -> bool:
    return False


def _parsed(text: str) -> ModelReference:
    return parse_reference(text, exists=_nothing_lies_there)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/birds", ModelReference("file", "/models/birds")),
        ("models/birds/", ModelReference("file", "models/birds")),
        ("/models/birds:production", ModelReference("file", "/models/birds", "production")),
        ("file:///models/birds:3", ModelReference("file", "/models/birds", "3")),
        ("file:///my%20models/a%3Ab", ModelReference("file", "/my models/a:b")),
        ("file://localhost/models/birds", ModelReference("file", "/models/birds")),
        (f"/models/birds:production@{PIN}", ModelReference("file", "/models/birds", "production", PIN)),
        (f"/models/birds@{PIN}", ModelReference("file", "/models/birds", pin=PIN)),
        ("/with:colon/birds", ModelReference("file", "/with:colon/birds")),
        ("s3://models/team/birds", ModelReference("s3", "models/team/birds")),
        (f"S3://models/birds/:v1@{PIN}", None),
        (f"s3://models/birds:v1@{PIN}", ModelReference("s3", "models/birds", "v1", PIN)),
        ("wandb-artifact://team/project/birds:v12", ModelReference("wandb-artifact", "team/project/birds", "v12")),
        (
            "wandb-artifact://wandb-registry-models/birds:production",
            ModelReference("wandb-artifact", "wandb-registry-models/birds", "production"),
        ),
        (
            "wandb-artifact://org/wandb-registry-models/birds",
            ModelReference("wandb-artifact", "org/wandb-registry-models/birds"),
        ),
    ],
)
def test_every_form_is_read(text: str, expected: ModelReference | None) -> None:
    if expected is None:
        with pytest.raises(SettingsError):
            _parsed(text)
    else:
        assert _parsed(text) == expected


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("/models/bi\nrds", "control"),
        ("/models/birds:", "after the colon"),
        ("/models/birds:two words", "after the colon"),
        ("/models/:production", "after the colon"),
        ("/models/birds@sha256:abc", "64 digits"),
        (f"/models/birds@{PIN}:production", "64 digits"),
        (f"/models/birds@{PIN.upper().replace('SHA', 'sha')}", "64 digits"),
        ("file://host/models", "whole path"),
        ("file://models", "whole path"),
        ("file:///", "no path"),
        ("s3://models", "prefix"),
        ("s3:///birds", "bucket"),
        ("s3://models//birds", "prefix"),
        ("s3://models/../birds", "prefix"),
        ("s3://models/birds?versionId=1", "prefix"),
        ("s3://me:hunter2secret@models/birds", "user names"),
        ("wandb-artifact://project/birds:latest", "entity, project and name"),
        ("wandb-artifact://a/b/c/d:latest", "entity, project and name"),
        ("wandb-artifact://me:hunter2secret@team/project/birds", "user names"),
        ("gs://models/birds", "nothing is known of gs://"),
        ("https://example.org/model", "nothing is known"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(text: str, because: str) -> None:
    with pytest.raises(SettingsError, match=because) as refused:
        _parsed(text)
    assert "hunter2secret" not in str(refused.value) + refused.value.remedy


def test_a_path_that_lies_there_as_it_is_written_wins() -> None:
    def exists(path: str) -> bool:
        return path in {"/models/birds:production", f"/models/odd@{PIN}"}

    assert parse_reference("/models/birds:production", exists=exists).alias == ""
    assert parse_reference(f"/models/birds:production@{PIN}", exists=exists) == ModelReference(
        "file", "/models/birds:production", pin=PIN
    )
    assert parse_reference(f"file:///models/odd@{PIN}", exists=exists).pin == ""
    assert parse_reference("/models/birds:staging", exists=exists).alias == "staging"


_name = st.text(string.ascii_lowercase + string.digits, min_size=3, max_size=12)
_alias = st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True))
_pin = st.one_of(st.just(""), st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True))
_odd = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20).filter(lambda text: "/" not in text)
_references = st.one_of(
    st.builds(
        lambda parts, alias, pin: ModelReference("file", "/" + "/".join(parts), alias, pin),
        st.lists(_odd, min_size=1, max_size=4),
        _alias,
        _pin,
    ),
    st.builds(lambda a, b, alias, pin: ModelReference("s3", f"{a}/{b}", alias, pin), _name, _name, _alias, _pin),
    st.builds(
        lambda a, b, c, alias, pin: ModelReference("wandb-artifact", f"{a}/{b}/{c}", alias, pin),
        *(_name, _name, _name, _alias, _pin),
    ),
)


@given(_references)
def test_what_is_written_is_read_again(reference: ModelReference) -> None:
    assert _parsed(str(reference)) == reference


@given(st.text(max_size=60))
def test_whatever_is_written_is_a_reference_or_refused(text: str) -> None:
    try:
        found = _parsed(text)
    except SettingsError:
        return
    assert found.location
    assert _parsed(str(found)).scheme == found.scheme
