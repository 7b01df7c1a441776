"""Absences: input topics that were deleted. One that is made again in time goes on. Pure."""

from consumer.errors import TopicMissing


class Absences:
    """Since when which topics are away. Only the owner's thread calls it."""

    def __init__(self, gone_s: float) -> None:
        """A topic may be away for `gone_s`."""
        self._gone_s = gone_s
        self.since_s: dict[str, float] = {}
        """By topic, in monotonic seconds."""

    def note(self, topic: str, *, there: bool, now_s: float) -> None:
        """The cluster said whether the topic is there.

        Raises:
            TopicMissing: it has been away for too long.
        """
        if there:
            self.since_s.pop(topic, None)
        elif now_s - self.since_s.setdefault(topic, now_s) > self._gone_s:
            raise TopicMissing(f"topic {topic} was deleted", remedy="ouzel topics create")
