"""What a server's answer means: statuses, Retry-After, ETag."""

import pytest

from consumer.adapters.stores.http_answers import failure, retry_after_s, version_of
from consumer.errors import ImageNotFound, OuzelError, StoreUnavailable

# 2026-01-31T09:30:00Z
NOW_S = 1_769_851_800.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, StoreUnavailable) for status in (101, 103, 407, 408, 425, 429, 500, 502, 503, 504, 507, 599)),
        *((status, ImageNotFound) for status in (202, 204, 206, 300, 304, 400, 401, 402, 403, 404, 406, 410, 416, 451)),
    ],
)
def test_a_status_is_an_absent_image_or_a_store_that_cannot_for_now(status: int, kind: type[OuzelError]) -> None:
    assert type(failure(status, "https://host/a", None, wall_s=lambda: NOW_S)) is kind


def test_where_rights_are_missing_the_setting_is_named() -> None:
    for status in (401, 403):
        assert "stores.http.headers" in str(failure(status, "https://host/a", None, wall_s=lambda: NOW_S))
    assert "stores.http.proxy" in str(failure(407, "https://host/a", None, wall_s=lambda: NOW_S))


def test_a_wish_to_be_asked_later_goes_with_the_error() -> None:
    error = failure(429, "https://host/a", "120", wall_s=lambda: NOW_S)
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after_s == 120.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *((None, None), ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("-1", None), ("1.5", None), ("soon", None)),
        *(("", None), ("9" * 400, None), ("١٢", None)),
        ("Sat, 31 Jan 2026 09:31:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 09:31:00", 60.0),
        ("Saturday, 31-Jan-26 09:31:00 GMT", 60.0),
        ("Sat Jan 31 09:31:00 2026", 60.0),
        ("Sat, 31 Jan 2026 09:29:00 GMT", 0.0),
        ("Sat, 31 Jan 9999999 09:29:00 GMT", None),
        ("Sat, 99 Jan 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW_S) == seconds


@pytest.mark.parametrize(
    ("header", "etag"),
    [
        *((None, None), ('"abc"', "abc"), (' "a-b_c" ', "a-b_c"), ('W/"abc"', "W/abc"), ('""', None), ("abc", None)),
        *(('"a"b"', None), ('"' + "a" * 257 + '"', None), ('"\x00"', None), ('"é"', None)),
    ],
)
def test_an_etag_is_what_is_between_its_quotes(header: str | None, etag: str | None) -> None:
    assert version_of(header).etag == etag
