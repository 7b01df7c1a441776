"""Times on the command line, and keeping to a rate."""

import pytest

from consumer.commands._time import Pacer, format_time, parse_time_ms
from consumer.errors import SettingsError


def test_a_time_is_read_with_its_zone() -> None:
    assert parse_time_ms("1970-01-01T00:00:01.5Z") == 1500
    assert parse_time_ms("1970-01-01T01:00:01+01:00") == 1000


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31", "2026-01-31+01:00", "2026-01-31T09:30:00", "12"])
def test_a_time_without_a_zone_or_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="RFC 3339"):
        parse_time_ms(text)


def test_a_time_before_the_epoch_is_refused_as_brokers_take_negative_times_for_words() -> None:
    with pytest.raises(SettingsError, match="before 1970") as caught:
        parse_time_ms("1969-12-31T23:59:59.999Z")
    assert (caught.value.exit_code, bool(caught.value.remedy)) == (2, True)


def test_a_time_is_written_in_utc_with_milliseconds() -> None:
    assert format_time(1_769_851_800_125) == "2026-01-31T09:30:00.125Z"
    assert format_time(None) is None


def test_without_a_rate_nothing_waits() -> None:
    pacer = Pacer(None)
    assert [pacer.wait_s(now_s) for now_s in (0.0, 0.0, 5.0)] == [0.0, 0.0, 0.0]


def test_a_rate_spaces_items_out_and_makes_no_burst_after_a_pause() -> None:
    pacer = Pacer(2)
    assert pacer.wait_s(10.0) == 0.0
    assert pacer.wait_s(10.0) == 0.5
    assert pacer.wait_s(100.0, items=4) == 0.0
    assert pacer.wait_s(100.0) == 2.0
