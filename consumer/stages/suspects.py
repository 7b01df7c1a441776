"""Suspects: messages that the last owner of a partition may have had in hand when it ended without a word. Pure.

Any of them may hold an image that ended it, so they are decoded in a sandbox. An owner can have taken no more than its
own bound past the committed offset, and nothing past the end of the log: what is not among those goes the normal way.
"""


class Suspects:
    """Of one partition, in the order of delivery. Only the thread that owns the consumer touches it."""

    def __init__(self, *, end: int, most: int) -> None:
        """
        Args:
            end: the log's end when the partition was taken over; no suspect is at or past it.
            most: how many messages the last owner may have had in hand.
        """
        self._end = end
        self._most = most
        self._left = most
        self._last: int | None = None

    def take(self, offset: int) -> bool:
        """Whether the message that was read next, at this offset, is one."""
        if offset >= self._end or self._left <= 0:
            return False
        self._left -= 1
        self._last = offset
        return True

    def again(self) -> "Suspects":
        """The same, none taken yet: what was done with them does not hold, and is done once more."""
        return Suspects(end=self._end, most=self._most)

    def passed(self, *, next_offset: int, finished_to: int) -> bool:
        """Whether none is left: all are taken, reading going on at `next_offset`, and all before `finished_to`."""
        all_taken = self._left <= 0 or next_offset >= self._end
        return all_taken and (self._last is None or self._last < finished_to)
