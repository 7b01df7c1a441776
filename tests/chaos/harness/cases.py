"""For each seeded bug of `bugs` the smallest schedule that shows it, and the promises that it may break.

A new guarantee adds its bugs there and its cases here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.harness.episode import Result
from tests.chaos.harness.plan import (
    BROKER_NUMBERS,
    DELIVERY_COUNT_LIMIT,
    DELIVERY_TIMEOUT,
    LOCK_DURATION,
    SESSION_S,
    TRANSACTION_TIMEOUT_S,
    Fault,
    Guarantee,
    Plan,
)
from tests.history import Promise


@dataclass(frozen=True, slots=True)
class Case:
    """One bug, and what shows it."""

    name: str
    breaks: frozenset[Promise]
    """At least one of these."""
    faults: tuple[Fault, ...]
    guarantee: Guarantee = "at_least_once"
    settings: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the plan."""
    quick: bool = False
    """Whether it is in every test run."""

    def plan(self, *, planted: bool) -> Plan:
        """The schedule, with the bug or without."""
        given = {"replicas": 1, "partitions": 3, "per_second": 60, "healed_within_s": 60.0, **self.sizes}
        return Plan(
            guarantee=self.guarantee,
            seed=0,
            faults=self.faults,
            settings=self.settings,
            bug=self.name if planted else "",
            **given,
        )

    def catches(self, result: Result) -> bool:
        """Whether the bug was seen for what it is."""
        return bool(self.breaks & set(result.promises))


_EACH_BROKER_OUT_OF_REACH = tuple(
    Fault(2.0 + 3.0 * place, "black hole", {"broker": number, "direction": "up", "arrives_late": False}, 2.5)
    for place, number in enumerate(BROKER_NUMBERS)
)
"""Events for one broker wait while offsets are committed at another."""
_MANY = {"partitions": 6}
_LONG_SESSION = {
    "OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS": "20000",
    "OUZEL_KAFKA__CONSUMER__MAX_POLL_INTERVAL_MS": "30000",
}
"""So that only the transaction times out."""
_LOCKS_LAPSE: Mapping[str, Any] = {
    "faults": (Fault(1.0, "slow model", {"replica": 0, "seconds": 4.0}, 14.0),),
    "settings": {LOCK_DURATION: "3000", DELIVERY_COUNT_LIMIT: "3"},
    "sizes": {"per_second": 8},
}
"""Every batch takes longer than the lock on its images, until the broker would hand them out no more."""

CASES: tuple[Case, ...] = (
    Case("commit-before-publish", frozenset({"I1", "I2"}), _EACH_BROKER_OUT_OF_REACH, sizes=_MANY, quick=True),
    Case("publish-not-awaited", frozenset({"I1", "I2"}), _EACH_BROKER_OUT_OF_REACH, sizes=_MANY),
    Case(
        "publish-given-up",
        frozenset({"I1", "I2"}),
        (Fault(2.0, "black hole", {"replica": 0, "direction": "up", "arrives_late": False}, 4.0),),
        settings={
            DELIVERY_TIMEOUT: "1500",
            "OUZEL_KAFKA__PRODUCER__SOCKET_TIMEOUT_MS": "1000",
        },
    ),
    Case(
        "commit-highest",
        frozenset({"I1", "I2"}),
        (Fault(2.0, "slow store", {"seconds": 1.5}, 4.0),),
        sizes={"keys": 0, "by_reference": 0.5},
    ),
    Case("commit-taken", frozenset({"I1", "I2"}), (Fault(1.0, "slow model", {"replica": 0, "seconds": 0.5}, 4.0),)),
    Case(
        "no-fence",
        frozenset({"I3"}),
        (
            *(Fault(0.5, "slow model", {"replica": number, "seconds": 0.2}, 50.0) for number in range(2)),
            *(  # one of them owns the partition; the other has time to take it over and to commit
                Fault(3.0 + 22.0 * number, "replica stopped past its session", {"replica": number}, SESSION_S + 10.0)
                for number in range(2)
            ),
        ),
        sizes={"replicas": 2, "partitions": 1, "per_second": 20},
        settings={"OUZEL_BATCH__MAX_SIZE": "1"},
    ),
    Case(
        "no-resume",
        frozenset({"I6"}),
        (Fault(1.0, "replica stopped past its session", {"replica": 0}, SESSION_S + 2.0),),
        sizes={"healed_within_s": 20.0},
    ),
    Case(
        "lose-window",
        frozenset({"I1", "I2"}),
        (
            *(Fault(0.5, "slow model", {"replica": number, "seconds": 0.5}, 8.0) for number in range(2)),
            Fault(3.0, "replica restarted (SIGTERM)", {"replica": 1}, 1.0),
        ),
        settings={"OUZEL_BATCH__MAX_SIZE": "8"},
        sizes={"replicas": 2, "backlog": 300},
    ),
    Case(
        "drop-on-limit",
        frozenset({"I1", "I2"}),
        (
            Fault(2.0, "poison", {"count": 120}),
            Fault(6.0, "resumed after the dead-letter limit (SIGUSR1)", {"replica": 0}),
            Fault(8.0, "resumed after the dead-letter limit (SIGUSR1)", {"replica": 0}),
        ),
        settings={
            "OUZEL_DEAD_LETTERS__MIN_SAMPLE": "20",
            "OUZEL_DEAD_LETTERS__SYSTEM_RATIO": "0.05",
            "OUZEL_DEAD_LETTERS__WINDOW_S": "5",
        },
    ),
    Case(
        "retry-given-up",
        frozenset({"I1", "I2"}),
        (Fault(1.0, "store fails for some", {"every": 2}, 4.0),),
        sizes={"by_reference": 1.0},
        quick=True,
    ),
    Case(
        "event-id-from-clock",
        frozenset({"I7"}),
        (Fault(2.0, "replica killed", {"replica": 0}, 0.5),),
        settings={"OUZEL_COMMIT__INTERVAL_MS": "8000"},
        sizes={"seconds": 12.0},
        quick=True,
    ),
    Case(
        "commits-go-back",
        frozenset({"I3"}),
        (),
        settings={"OUZEL_COMMIT__INTERVAL_MS": "1000"},
        sizes={"seconds": 10.0},
    ),
    Case(
        "keys-out-of-order",
        frozenset({"I4"}),
        (Fault(1.0, "slow store", {"seconds": 1.0}, 4.0),),
        sizes={"keys": 2, "by_reference": 0.5},
    ),
    Case("neighbours-name", frozenset({"altered"}), (), sizes={"seconds": 3.0}),
    Case(
        "two-transactions",
        frozenset({"I1"}),
        (Fault(2.0, "replica killed at a point", {"replica": 0, "point": "offsets-sent", "count": 1}, 6.0),),
        guarantee="exactly_once",
        quick=True,
    ),
    Case(
        "undone-is-forgotten",
        frozenset({"I1", "I6"}),
        (Fault(2.0, "replica stopped past its transaction", {"replica": 0}, TRANSACTION_TIMEOUT_S + 4.0),),
        guarantee="exactly_once",
        settings=_LONG_SESSION,
    ),
    Case(
        "keys-in-transactions",
        frozenset({"I1"}),
        (
            Fault(1.0, "slow store", {"seconds": 1.0}, 9.0),
            *(Fault(3.0 + 3.0 * number, "replica killed", {"replica": 0}, 0.5) for number in range(3)),
        ),
        guarantee="exactly_once",
        sizes={"keys": 0, "by_reference": 0.5},
    ),
    Case(
        "share-accepted-before-publish",
        frozenset({"I1", "I2"}),
        (
            Fault(2.0, "black hole", {"replica": 0, "only": "producer", "direction": "up", "arrives_late": False}, 5.0),
            Fault(6.0, "replica killed", {"replica": 0}, 0.5),
        ),
        guarantee="share",
        quick=True,
    ),
    Case("share-limit-ignored", frozenset({"I1", "I2"}), guarantee="share", **_LOCKS_LAPSE),
    Case("share-exhausted-dropped", frozenset({"I1", "I2"}), guarantee="share", **_LOCKS_LAPSE),
    Case(
        "share-unfinished-accepted",
        frozenset({"I1", "I2"}),
        (
            Fault(1.0, "slow model", {"replica": 0, "seconds": 8.0}, 4.0),  # past the drain
            Fault(2.0, "replica restarted (SIGTERM)", {"replica": 0}, 0.5),
        ),
        guarantee="share",
    ),
    Case(
        "share-lapsed-is-done",
        frozenset({"I1", "I2"}),
        (Fault(1.0, "slow model", {"replica": 0, "seconds": 9.2}, 5.0),),  # a tenth of the lock is left as its margin
        guarantee="share",
        settings={LOCK_DURATION: "10000"},
    ),
    Case(
        "share-whole-poll-accepted",
        frozenset({"I1", "I2"}),
        (
            Fault(1.0, "slow store", {"seconds": 1.5}, 5.0),
            Fault(5.0, "replica killed", {"replica": 0}, 0.5),
        ),
        guarantee="share",
        sizes={"by_reference": 0.5},
    ),
    Case("share-done-is-released", frozenset({"I1"}), (), guarantee="share", sizes={"seconds": 3.0}),
    Case(
        "share-event-id-of-the-delivery",
        frozenset({"I7"}),
        (Fault(2.0, "replica killed at a point", {"replica": 0, "point": "delivered", "count": 4}, 2.0),),
        guarantee="share",
        settings={LOCK_DURATION: "5000"},
    ),
    Case(
        "share-polls-no-more",
        frozenset({"I6"}),
        (Fault(1.0, "store down", {"how": "503"}, 4.0),),
        guarantee="share",
        settings={LOCK_DURATION: "5000"},
        sizes={"by_reference": 0.5, "healed_within_s": 20.0},
    ),
)
"""Every bug of `bugs.BUGS`."""
