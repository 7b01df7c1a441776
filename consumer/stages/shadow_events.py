"""What a new model says while it is compared, as label events on a topic of their own (`swap.shadow_topic`).

They are no part of any promise: nobody waits for them, no commit depends on them, and where they cannot be written they
are left out. They are told from label events by their topic and by a header.
"""

import threading

from consumer.log import rate_limited
from consumer.messages import Labelled
from consumer.ports import Clock, ResultSink
from consumer.stages.events import EventContext, shadow_event

_MOST_UNDER_WAY = 1_000


class ShadowEvents:
    """Any thread."""

    def __init__(self, sink: ResultSink, context: EventContext, *, topic: str, clock: Clock) -> None:
        """With an empty `topic` nothing is written."""
        self._sink = sink
        self._context = context
        self._topic = topic
        self._clock = clock
        self._lock = threading.Lock()
        self.under_way = 0
        """Records that the broker has not answered for."""

    def publish(self, labelled: Labelled) -> None:
        """Write it, or leave it out."""
        if not self._topic or labelled.delivery.lease.ended:
            return
        with self._lock:
            if self.under_way >= _MOST_UNDER_WAY:
                return
            self.under_way += 1
        try:
            record = shadow_event(labelled, self._context, self._topic, self._clock.utc_now())
        except Exception as error:  # by no fault of the new model's, which is judged by its labels alone
            self._done(error)
        else:
            self._sink.publish(record, self._done)

    def _done(self, error: Exception | None) -> None:
        with self._lock:
            self.under_way -= 1
        if error is not None:
            rate_limited("shadow topic").warning(
                "{} cannot be written, what the new model says is left out: {}", self._topic, error
            )
