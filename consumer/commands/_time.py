"""Times on the command line (RFC 3339) and keeping to a rate."""

from consumer.errors import SettingsError
from consumer.times import rfc3339, rfc3339_ms

_EXAMPLE = "write one such as 2026-01-31T09:30:00Z"


def parse_time_ms(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time. Raises `SettingsError` for anything else."""
    try:
        return rfc3339_ms(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is not an RFC 3339 time: {error}", remedy=_EXAMPLE) from error


def format_time(timestamp_ms: int | None) -> str | None:
    """RFC 3339 UTC with milliseconds, e.g. `2026-01-31T09:30:00.125Z`; None for None."""
    return None if timestamp_ms is None else rfc3339(timestamp_ms)


class Pacer:
    """Keeps to `rate` items a second, on average and without bursts after a pause; no rate is no waiting."""

    def __init__(self, rate: float | None) -> None:
        self._interval_s = 1 / rate if rate else 0.0
        self._due_s: float | None = None

    def wait_s(self, now_s: float, items: int = 1) -> float:
        """Seconds to wait, at `now_s`, before the next `items`, which are then taken as sent."""
        due_s = now_s if self._due_s is None else max(self._due_s, now_s)
        self._due_s = due_s + items * self._interval_s
        return due_s - now_s
