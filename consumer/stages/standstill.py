"""What waits behind a dead letter that is withheld, where a partition's records go out in its order. For the thread
that publishes; `holds` for any."""

from collections import deque
from collections.abc import Callable

from consumer.messages import Abandoned, Delivery, Labelled, OneOutcome, Outcome, Rejected, Several


def parts_of(outcome: Outcome) -> tuple[OneOutcome, ...]:
    """What became of each record of a message: one of most messages, none of one that was abandoned."""
    if isinstance(outcome, Abandoned):
        return ()
    return outcome.outcomes if isinstance(outcome, Several) else (outcome,)


def letters_of(outcome: Outcome) -> list[Rejected]:
    """Those of its parts that end as dead letters."""
    return [part for part in parts_of(outcome) if isinstance(part, Rejected)]


class StandStill:
    """Outcomes of partitions whose next letter waits for a person, or for an image that succeeds."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Outcome]] = {}
        self._counted: set[int] = set()

    def holds(self, delivery: Delivery) -> bool:
        """Whether what comes of this message's partition has to wait."""
        return id(delivery.lease) in self._waiting

    def add(self, outcome: Outcome) -> bool:
        """Wait with it. True where an image of it has its labels, which counts at once: it may end the wait."""
        self._waiting.setdefault(id(outcome.delivery.lease), deque()).append(outcome)
        labelled = [part.delivery for part in parts_of(outcome) if isinstance(part, Labelled)]
        self._counted.update(map(id, labelled))
        return bool(labelled)

    def counted(self, delivery: Delivery) -> bool:
        """Whether this image was counted while it waited; asked once."""
        if id(delivery) not in self._counted:
            return False
        self._counted.remove(id(delivery))
        return True

    def release(self, which: Callable[[Delivery], bool]) -> list[Outcome]:
        """The outcomes of partitions whose messages fit, in their order."""
        freed: list[Outcome] = []
        for lease, outcomes in list(self._waiting.items()):
            if which(outcomes[0].delivery):
                freed.extend(self._waiting.pop(lease))
        for outcome in freed:
            if outcome.delivery.lease.ended:
                self._counted.difference_update(id(part.delivery) for part in parts_of(outcome))
        return freed
