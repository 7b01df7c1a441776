"""Which store a URI goes to, whether the bytes are the promised ones, and what may be said of a URI."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import ChecksumMismatch, ImageTooLarge, ReferenceRefused
from consumer.messages import ImageJob
from consumer.redact import cut_text, redact_text, redact_uri
from consumer.stages.fetch import check_uri, choose_store, verify
from tests.fakes import FakeImageStore
from tests.unit.deliveries import delivery


@pytest.mark.parametrize("uri", ["fake://images/a", "FAKE://images/a?b#c", "fake:a", "fake://images/é@2x.png"])
def test_the_scheme_chooses_the_store(uri: str) -> None:
    store = FakeImageStore()
    assert choose_store([store], uri) is store


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("file:///a.jpg", "stores.file.roots"),
        ("s3://bucket/a", "stores.s3.buckets"),
        ("gs://bucket/a", "stores.gcs.buckets"),
        ("az://container/a", "stores.azure.containers"),
        ("https://host/a.jpg", "stores.http.hosts"),
        ("data:image/png;base64,QQ==", "inline"),
        ("a.jpg", "scheme"),
        ("//host/a", "scheme"),
        ("", "scheme"),
    ],
)
def test_a_scheme_that_is_off_is_refused_with_what_would_allow_it(uri: str, named: str) -> None:
    with pytest.raises(ReferenceRefused) as caught:
        choose_store([FakeImageStore()], uri)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "fake://127.0.0.1:6666\\@1.1.1.1/",
            "fake://a\\b",
            "fake://a/b\n",
            "fake://a/\tb",
            " fake://a",
            "fake://a/ b",
        ),
        *("fake://a\x00", "fake://a\x7f", "fake://a\x85", "fake://a\xa0b", "fake://user@host/", "fake://u:pw@host/a"),
        "fake://u:pw@[::1]/",
    ],
)
def test_a_uri_that_parsers_could_read_in_two_ways_is_refused_before_any_store_sees_it(uri: str) -> None:
    store = FakeImageStore()
    with pytest.raises(ReferenceRefused) as caught:
        choose_store([store], uri)
    assert store.fetched == []
    assert "pw" not in str(caught.value)


def test_an_at_sign_in_the_path_is_no_user() -> None:
    assert check_uri("file:///photos/a@2x.png") == "file"


def _job(sha256: str | None) -> ImageJob:
    return ImageJob(delivery(b"x"), "a", data=b"image", sha256=sha256)


def test_bytes_are_held_against_bound_and_promise() -> None:
    right = hashlib.sha256(b"image").hexdigest()
    verify(_job(None), b"image", max_bytes=5)
    verify(_job(right), b"image", max_bytes=5)
    verify(_job(right.upper()), b"image", max_bytes=5)
    with pytest.raises(ImageTooLarge, match=r"stores\.max_image_bytes"):
        verify(_job(right), b"image", max_bytes=4)
    with pytest.raises(ChecksumMismatch, match="sha256"):
        verify(_job(right), b"imagf", max_bytes=5)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://host/a.jpg", "https://host/a.jpg"),
        ("https://host:8443/a@2x.jpg?X-Amz-Signature=pw", "https://host:8443/a@2x.jpg"),
        ("https://host/a#pw", "https://host/a"),
        ("https://user:pw@host/a", "https://host/a"),
        ("https://user:p@pw@host/a", "https://host/a"),
        ("https://user:pw/x@host/a", "https://"),
        ("https://user:pw?x@host/a", "https://"),
        ("//user:pw@host/a", "//host/a"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("file:///a%20b", "file:///a%20b"),
        ("data:image/png;base64,pw", "data:"),
        ("DATA:,pw", "data:"),
        ("", ""),
    ],
)
def test_a_redacted_uri_has_no_secret(uri: str, said: str) -> None:
    assert redact_uri(uri) == said


@given(uri=st.text())
def test_redaction_never_fails_and_never_leaves_a_query(uri: str) -> None:
    assert not {"?", "#"} & set(redact_uri(uri))


@given(text=st.text(), most=st.integers(12, 60))
def test_cut_text_is_within_its_bytes(text: str, most: int) -> None:
    assert len(cut_text(text, max_bytes=most).encode()) <= most


def test_uris_in_long_texts_are_redacted_even_where_the_cut_goes_through_them() -> None:
    for before in range(32 * 1024 - 40, 32 * 1024 + 1):
        text = "x" * (before - 1) + " https://user:pw@host/?pw " + "y" * 40_000 + " https://user:pw@host/?pw"
        assert "pw" not in redact_text(text, max_bytes=100_000)
