"""The numbers that the service's loop goes by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Durations in seconds."""

    commit_interval_s: float
    drain_timeout_s: float
    """At most half of max.poll.interval.ms, so that a drain never costs the membership."""
    metadata_interval_s: float
    topics: tuple[str, ...]
    """The input topics."""
    max_uncommitted_messages: int
    """Of one partition: where the intake pauses it."""
    start: str | int
    """`earliest`, `latest` or milliseconds since the epoch."""
    stop_on_offset_lost: bool
    exit_on_limit: bool
    ignore_earlier_trips: bool
    topic_gone_s: float = 30.0
    """How long a deleted input topic may stay away."""
    stall_s: float = 0.0
    """How long a partition may stand still though the broker has more of it; 0: nobody looks."""
