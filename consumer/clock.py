"""The system's time, as `ports.Clock`."""

import time
from datetime import UTC, datetime


class SystemClock:
    """Monotonic seconds and RFC 3339 UTC."""

    def monotonic_s(self) -> float:
        """See the port."""
        return time.monotonic()

    def utc_now(self) -> str:
        """See the port."""
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
