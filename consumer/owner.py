"""What the two loops have in common (`pipeline`, `share_pipeline`): what other threads, signal handlers and probes see
of them, the inbox through which word comes to them, and the thread that asks the cluster for them.
"""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from loguru import logger

from consumer.errors import BrokerUnreachable
from consumer.messages import Partition
from consumer.ports import Clock
from consumer.stages.dead_letter_limit import Trip
from consumer.stages.publish import Settled

ASK_AGAIN_S = 1.0
"""After a question that brought nothing."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Crash:
    """A thread cannot go on; the loop raises it."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question brought; `then` runs in the owner's thread."""

    then: Callable[[], None]


class Questions:
    """Asks what blocks (`ports.GroupView`), one question at a time, in a thread of its own."""

    def __init__(self, tell: Callable[[Answer | Crash], None]) -> None:
        """`tell` puts what came of a question into the owner's inbox."""
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="questions")

    def ask(self, question: Callable[[], T], then: Callable[[T], None], failed: Callable[[], None]) -> None:
        """Returns at once. `then` or, where the brokers cannot be reached, `failed` runs in the owner's thread; any
        other error ends the loop."""

        def work() -> None:
            try:
                answer = question()
            except BrokerUnreachable as error:
                logger.warning("{}", error)
                self._tell(Answer(failed))
            except BaseException as error:
                self._tell(Crash(error))
            else:
                self._tell(Answer(lambda: then(answer)))

        self._thread.submit(work)

    def close(self) -> None:
        """Ask no more. What is being asked is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Owner(Generic[Item]):
    """The face of a loop. Besides what stands here its inbox takes `Item`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inbox: queue.SimpleQueue[Settled | Crash | Answer | Item] = queue.SimpleQueue()
        self._questions = Questions(self._inbox.put)
        # Plain flags: a signal handler runs in the owner's thread, which may be inside the lock of an Event.
        self._stop = False
        self._resume = False
        self._held_for: Trip | None = None
        self.finished = False
        """Whether a range is labelled and committed to its end, by all replicas together."""
        self.turned_s = clock.monotonic_s()
        """Monotonic second of the loop's last turn."""

    def stop(self) -> None:
        """Finish what is in flight, settle it, leave the group."""
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop

    def resume(self) -> None:
        """Go on after the dead-letter limit."""
        self._resume = True

    @property
    def holding(self) -> bool:
        """Whether the dead-letter limit holds the replica."""
        return self._held_for is not None

    @property
    def unresolved(self) -> bool:
        """Whether everything waits for the transaction coordinator, as it is unknown how the last transaction ended."""
        return False

    @property
    def stalled(self) -> frozenset[Partition]:
        """Partitions that stand still though the broker has more of them, and that a rejoin did not help."""
        return frozenset()

    def settled(self, settled: Settled) -> None:
        """The publisher's word on one delivery."""
        self._inbox.put(settled)

    def crashed(self, error: BaseException) -> None:
        """A thread cannot go on."""
        self._inbox.put(Crash(error))
