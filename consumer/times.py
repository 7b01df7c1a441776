"""Times as text."""

from datetime import UTC, datetime, timedelta


def rfc3339_ms(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time.

    Raises:
        ValueError: it is none, has no offset from UTC, or is before 1970: to a broker negative times are words (-1 the
            end, -2 the beginning).
    """
    if "T" not in text.upper():
        raise ValueError("a date without a time")
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("a time without its offset from UTC")
    since_epoch = when - datetime(1970, 1, 1, tzinfo=UTC)
    if since_epoch < timedelta():
        raise ValueError("a time before 1970")
    return round(since_epoch.total_seconds() * 1000)


def rfc3339(timestamp_ms: int) -> str:
    """RFC 3339 UTC with milliseconds, e.g. `2026-01-31T09:30:00.125Z`."""
    when = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
