"""`data:` URIs: what RFC 2397 allows, and the bound before anything is decoded."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.stores.data_store import DataStore
from consumer.errors import ImageTooLarge, ReferenceRefused


def _fetch(uri: str, max_bytes: int = 1024) -> bytes:
    return DataStore().fetch(uri, max_bytes=max_bytes, deadline_s=0).body


@pytest.mark.parametrize(
    "uri",
    [
        *("data:image/png;base64,aW1hZ2U=", "DATA:;BASE64,aW1hZ2U=", "data:;base64,aW1hZ2U", "data:,image"),
        *("data:image/png,im%61ge", "data:image/png;name=a;base64,aW1hZ2U%3D", "data:;base64,aW1h%0AZ2U="),
        *("data:,image#fragment", "data:;base64,aW1hZ2U=#fragment"),
    ],
)
def test_an_image_is_read_in_every_form(uri: str) -> None:
    assert _fetch(uri) == b"image"


@given(body=st.binary(max_size=64))
def test_what_goes_in_comes_out(body: bytes) -> None:
    assert _fetch("data:image/png;base64," + base64.b64encode(body).decode(), len(body)) == body
    assert _fetch("data:," + "".join(f"%{byte:02x}" for byte in body), len(body)) == body


@given(body=st.binary(min_size=1, max_size=64))
def test_one_byte_too_many_is_too_large(body: bytes) -> None:
    with pytest.raises(ImageTooLarge):
        _fetch("data:image/png;base64," + base64.b64encode(body).decode(), len(body) - 1)
    with pytest.raises(ImageTooLarge):
        _fetch("data:," + "".join(f"%{byte:02x}" for byte in body), len(body) - 1)


def test_far_too_many_are_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_args: object, **_options: object) -> bytes:
        raise AssertionError("decoded")

    monkeypatch.setattr(base64, "b64decode", decode)
    monkeypatch.setattr("consumer.adapters.stores.data_store.unquote_to_bytes", decode)
    with pytest.raises(ImageTooLarge):
        _fetch("data:;base64," + "A" * 2_000)
    with pytest.raises(ImageTooLarge):
        _fetch("data:," + "A" * 2_000)


@pytest.mark.parametrize(
    "uri", ["data:", "data:image/png;base64", "data:;base64,a", "data:;base64,a*==", "data:,é", "http://host/,a", ""]
)
def test_what_is_no_data_uri_is_refused(uri: str) -> None:
    with pytest.raises(ReferenceRefused):
        _fetch(uri)
