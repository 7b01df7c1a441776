"""What one run is: its sizes, its settings, and the seeded schedule of its faults. Pure; as JSON it can be replayed."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Guarantee = Literal["at_least_once", "exactly_once", "share"]
GUARANTEES: tuple[Guarantee, ...] = ("at_least_once", "exactly_once", "share")
Protocol = Literal["classic", "consumer"]
Platform = Literal["namespaces", "disk", "clock"]
"""What some kinds of fault ask of the machine: network namespaces, small disks of their own, processes with a wall
clock of their own."""
PLATFORM: tuple[Platform, ...] = ("namespaces", "disk", "clock")

BROKER_NUMBERS = (1, 2, 3)
DELIVERY_TIMEOUT = "OUZEL_KAFKA__PRODUCER__DELIVERY_TIMEOUT_MS"
LOCK_DURATION = "OUZEL_SHARE__LOCK_DURATION_MS"
DELIVERY_COUNT_LIMIT = "OUZEL_SHARE__DELIVERY_COUNT_LIMIT"
"""Of a share group. The replicas' settings; the group is told the same."""
SESSION_S = 5.0
"""After which the group misses a silent member."""
MAX_POLL_INTERVAL_S = 8.0
TRANSACTION_TIMEOUT_S = 6.0
"""After which the broker aborts a transaction whose replica is silent."""
_PAST_SESSION_S = (SESSION_S + 1.0, SESSION_S + 4.0)
_PAST_TRANSACTION_S = (TRANSACTION_TIMEOUT_S + 2.0, TRANSACTION_TIMEOUT_S + 5.0)
_FIRST_S = 2.0
BROKER_SESSION_S = 6.0
"""After which the controller fences a silent broker: `broker.session.timeout.ms` of the brokers."""
_GAP_S = 0.5
"""Between two faults of one thing."""
_MEAN_GAP_S = 1.5
_TRIES = 20
_HEALED_WITHIN_S: Mapping[Guarantee, float] = {
    "at_least_once": 90.0,
    "exactly_once": 90.0,
    # What was handed out often comes in portions of a few records, the last time one by one: KAFKA-17541.
    "share": 240.0,
}

CRASH_POINTS = ("fetched", "decoded", "predicted", "produced", "delivered", "before-commit", "after-commit")
_IN_TRANSACTIONS = ("offsets-sent", "ended")
# Kafka's numbers of requests: https://kafka.apache.org/protocol#protocol_api_keys
APIS = {"Produce": 0, "OffsetCommit": 8, "JoinGroup": 11, "EndTxn": 26, "TxnOffsetCommit": 28, "ShareAcknowledge": 79}
_APIS_OF: Mapping[Guarantee, tuple[str, ...]] = {
    "at_least_once": ("Produce", "OffsetCommit", "JoinGroup"),
    "exactly_once": ("Produce", "EndTxn", "EndTxn", "TxnOffsetCommit", "JoinGroup"),
    "share": ("Produce", "ShareAcknowledge", "ShareAcknowledge"),
}

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: from `at_s` after the run's begin, for `for_s`. What the parameters mean, `faults` says."""

    at_s: float
    kind: str
    params: Params = field(default_factory=dict)
    for_s: float = 0.0
    claims: tuple[str, ...] = ()
    """What it is done to: no other fault is done to the same meanwhile."""

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the draws go by."""

    guarantee: Guarantee
    replicas: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw of a kind."""

    params: Params
    for_s: float
    claims: tuple[str, ...]


Draw = Callable[[random.Random, Sizes], Drawn]


def _replica(dice: random.Random, sizes: Sizes) -> int:
    return dice.randrange(sizes.replicas)


def _of_replica(low_s: float, high_s: float, **params: Any) -> Draw:
    def draw(dice: random.Random, sizes: Sizes) -> Drawn:
        number = _replica(dice, sizes)
        return Drawn({"replica": number, **params}, _seconds(dice, low_s, high_s), (f"replica {number}",))

    return draw


def _of_broker(low_s: float, high_s: float) -> Draw:
    def draw(dice: random.Random, _sizes: Sizes) -> Drawn:
        number = dice.choice(BROKER_NUMBERS)
        return Drawn({"broker": number}, _seconds(dice, low_s, high_s), (f"broker {number}",))

    return draw


def _of_all(claim: str, low_s: float, high_s: float, **choices: Sequence[Any]) -> Draw:
    """One thing that there is once; each parameter is drawn from its choices."""

    def draw(dice: random.Random, _sizes: Sizes) -> Drawn:
        params = {name: dice.choice(values) for name, values in choices.items()}
        return Drawn(params, _seconds(dice, low_s, high_s), (claim,))

    return draw


def _seconds(dice: random.Random, low_s: float, high_s: float) -> float:
    return round(dice.uniform(low_s, high_s), 1)


def _crash(dice: random.Random, sizes: Sizes) -> Drawn:
    number = _replica(dice, sizes)
    points = CRASH_POINTS + (_IN_TRANSACTIONS if sizes.guarantee == "exactly_once" else ())
    params = {"replica": number, "point": dice.choice(points), "count": dice.randint(1, 8)}
    return Drawn(params, _seconds(dice, 3, 6), (f"replica {number}",))


def _slow_model(dice: random.Random, sizes: Sizes) -> Drawn:
    number = _replica(dice, sizes)
    slow_s = dice.choice((0.2, 0.5, 1.0, MAX_POLL_INTERVAL_S + 1.0))
    return Drawn({"replica": number, "seconds": slow_s}, _seconds(dice, 3, 8), (f"replica {number}",))


def _storm(dice: random.Random, _sizes: Sizes) -> Drawn:
    return Drawn({"every_s": 2.0, "seed": dice.randrange(1_000_000)}, _seconds(dice, 6, 10), ("storm",))


def _coordinator(dice: random.Random, sizes: Sizes) -> Drawn:
    what = dice.choice(("group", "transaction") if sizes.guarantee == "exactly_once" else ("group",))
    how = dice.choice(("kill", "restart"))
    claims = tuple(f"broker {number}" for number in BROKER_NUMBERS)
    return Drawn({"of": what, "how": how, "replica": _replica(dice, sizes)}, _seconds(dice, 2, 5), claims)


def _network(low_s: float, high_s: float, **choices: Sequence[Any]) -> Draw:
    """The way between a broker and all replicas, or between a replica and all brokers."""

    def draw(dice: random.Random, sizes: Sizes) -> Drawn:
        params: Params = {name: dice.choice(values) for name, values in choices.items()}
        if dice.random() < 0.5:
            params["broker"] = dice.choice(BROKER_NUMBERS)
            claim = f"way to broker {params['broker']}"
        else:
            params["replica"] = _replica(dice, sizes)
            claim = f"way of replica {params['replica']}"
        return Drawn(params, _seconds(dice, low_s, high_s), (claim,))

    return draw


def _clock(dice: random.Random, sizes: Sizes) -> Drawn:
    number = _replica(dice, sizes)
    params = {"replica": number, "seconds": dice.choice((-3600, -300, 300, 3600))}
    return Drawn(params, _seconds(dice, 2, 8), (f"replica {number}",))


def _late(dice: random.Random, sizes: Sizes) -> Drawn:
    api = dice.choice(_APIS_OF[sizes.guarantee])
    number = _replica(dice, sizes)
    params = {"replica": number, "api": api, "seconds": round(dice.uniform(1, 8), 1)}
    return Drawn(params, _seconds(dice, 2, 6), (f"way of replica {number}",))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how often it is drawn, and how."""

    draw: Draw
    weight: int = 2
    guarantees: tuple[Guarantee, ...] = GUARANTEES
    makes_zombies: bool = False
    """Whether a replica may be held past its session, and what it had in hand be written later (I4)."""
    needs: Platform | None = None
    """What it asks of the machine: only plans that have it draw it."""


KINDS: Mapping[str, Kind] = {
    "replica killed": Kind(_of_replica(0.5, 4), weight=4),
    "replica killed at a point": Kind(_crash, weight=5),
    "replica stopped (SIGSTOP) for a moment": Kind(_of_replica(0.5, 3)),
    "replica stopped past its session": Kind(_of_replica(*_PAST_SESSION_S), weight=3, makes_zombies=True),
    "replica stopped past its transaction": Kind(
        _of_replica(*_PAST_TRANSACTION_S), weight=3, guarantees=("exactly_once",), makes_zombies=True
    ),
    "owner's thread stands still": Kind(
        _of_replica(MAX_POLL_INTERVAL_S + 1, MAX_POLL_INTERVAL_S + 3), makes_zombies=True
    ),
    "replica restarted (SIGTERM)": Kind(_of_replica(1, 4), weight=3),
    "rebalance storm": Kind(_storm, weight=2),
    "slow model": Kind(_slow_model, makes_zombies=True),
    "broker killed": Kind(_of_broker(2, 6), weight=3, makes_zombies=True),
    "broker restarted (SIGTERM)": Kind(_of_broker(2, 6), makes_zombies=True),
    "broker paused": Kind(_of_broker(2, 10), weight=3, makes_zombies=True),
    "controller killed": Kind(_of_all("controller", 2, 5), weight=1, makes_zombies=True),
    "coordinator moved": Kind(_coordinator, weight=3, makes_zombies=True),
    "network delay": Kind(_network(3, 8, seconds=(0.05, 0.2, 1.0)), makes_zombies=True),
    "network rate": Kind(_network(3, 8, bytes_per_s=(20_000, 100_000)), makes_zombies=True),
    "black hole": Kind(
        _network(2, 10, direction=("up", "down", "both"), arrives_late=(False, True)), weight=5, makes_zombies=True
    ),
    "connections reset": Kind(_network(0.1, 3), weight=3, makes_zombies=True),
    "connections cut in a frame": Kind(
        _network(1, 4, direction=("up", "down"), after_bytes=(100, 5_000, 50_000)), weight=3, makes_zombies=True
    ),
    "late answers": Kind(_late, weight=4, makes_zombies=True),
    "partitions added": Kind(_of_all("partitions", 0, 0, more=(1, 2)), weight=1),
    "slow store": Kind(_of_all("store", 2, 6, seconds=(0.3, 1.0))),
    "store down": Kind(_of_all("store", 2, 6, how=("503", "stall", "reset"))),
    "store fails for some": Kind(_of_all("store", 2, 6, every=(2, 3))),
    "poison": Kind(_of_all("poison", 0, 0, count=(5, 20))),
    "resumed after the dead-letter limit (SIGUSR1)": Kind(_of_replica(0, 0), weight=0),  # by hand only
    "replica unplugged": Kind(_of_replica(2, 12), weight=4, makes_zombies=True, needs="namespaces"),
    "broker unplugged": Kind(_of_broker(2, 12), weight=3, makes_zombies=True, needs="namespaces"),
    "broker cut off from its peers": Kind(
        _of_broker(2, BROKER_SESSION_S + 8), weight=4, makes_zombies=True, needs="namespaces"
    ),
    "disk full": Kind(_of_broker(3, 8), weight=2, makes_zombies=True, needs="disk"),
    "clock step": Kind(_clock, weight=2, makes_zombies=True, needs="clock"),
}
"""By name. What `begin` and `end` mean for each is in `faults`."""


def schedule(
    seed: int,
    faults: int,
    guarantee: Guarantee,
    replicas: int,
    partitions: int,
    *,
    apart_s: float = 0.0,
    platform: Sequence[Platform] = (),
) -> tuple[Fault, ...]:
    """So many faults, several at once; equal arguments give equal schedules. Each ends by itself. With `apart_s` there
    is one at a time, and so long a rest after each: then a recovery is that of one fault. Of the kinds that need
    something of the machine it draws those for which `platform` has it."""
    dice = random.Random(f"schedule {seed}")  # a text is hashed the same in every process
    sizes = Sizes(guarantee, replicas, partitions)
    names = [name for name, kind in KINDS.items() if guarantee in kind.guarantees and kind.needs in (None, *platform)]
    weights = [KINDS[name].weight for name in names]
    found: list[Fault] = []
    at_s = _FIRST_S
    for _ in range(faults):
        at_s = round(at_s + min(dice.expovariate(1 / _MEAN_GAP_S), 3 * _MEAN_GAP_S), 1)
        if apart_s and found:
            at_s = round(found[-1].end_s + apart_s, 1)
        fault = None
        for _ in range(_TRIES):
            name = dice.choices(names, weights)[0]
            drawn = KINDS[name].draw(dice, sizes)
            fault = Fault(at_s, name, drawn.params, drawn.for_s, drawn.claims)
            if not _collides(fault, found):
                break
        else:
            assert fault is not None
            at_s = max(each.end_s for each in found) + _GAP_S
            fault = Fault(round(at_s, 1), fault.kind, fault.params, fault.for_s, fault.claims)
        found.append(fault)
    return tuple(found)


def _collides(fault: Fault, others: Sequence[Fault]) -> bool:
    return any(
        set(fault.claims) & set(other.claims)
        and fault.at_s < other.end_s + _GAP_S
        and other.at_s < fault.end_s + _GAP_S
        for other in others
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """One run ("episode"). All that it does follows from this."""

    guarantee: Guarantee
    seed: int
    replicas: int
    partitions: int
    faults: tuple[Fault, ...]
    protocol: Protocol = "classic"
    per_second: int = 40
    keys: int = 20
    by_reference: float = 0.3
    """Share of the photographs that are sent as a reference to the store."""
    backlog: int = 0
    """Images sent before the replicas start."""
    seconds: float = 0.0
    """Images are sent at least so long, and until every fault is over."""
    healed_within_s: float = 90.0
    """In which all that is left over is answered after the last fault."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the replicas, over the harness's own."""
    bug: str = ""
    """A seeded bug of `bugs`."""
    platform: tuple[Platform, ...] = ()
    """What it asks of the machine: it runs nowhere else."""

    @property
    def zombies(self) -> bool:
        """Whether a replica may go on after its partitions were given away."""
        return any(fault.kind in KINDS and KINDS[fault.kind].makes_zombies for fault in self.faults)

    @property
    def keeps_order(self) -> bool:
        """Whether the events of a key keep their order: not past a delivery time-out, as the README says."""
        return DELIVERY_TIMEOUT not in self.settings

    def dump(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load_plan(path: Path) -> Plan:
    """What `Plan.dump` wrote."""
    found = json.loads(path.read_text())
    faults = tuple(Fault(**fault | {"claims": tuple(fault["claims"])}) for fault in found.pop("faults"))
    platform = tuple(found.pop("platform", ()))
    return Plan(**found, faults=faults, platform=platform)


def draw_plan(
    guarantee: Guarantee,
    seed: int,
    faults: int,
    *,
    replicas: tuple[int, int] = (1, 6),
    partitions: tuple[int, int] = (1, 12),
    apart_s: float = 0.0,
    platform: tuple[Platform, ...] = (),
) -> Plan:
    """A run of so many faults, its sizes drawn from the seed between the bounds, both included. With another `platform`
    the same seed has other faults, of the same sizes."""
    dice = random.Random(f"sizes {seed}")
    members, parts = dice.randint(*replicas), dice.randint(*partitions)
    settings = {
        # librdkafka's own is a minute: a black hole then ends before a request times out.
        "OUZEL_KAFKA__CLIENT__SOCKET_TIMEOUT_MS": dice.choice(("5000", "60000")),
        "OUZEL_BATCH__MAX_SIZE": dice.choice(("1", "8", "32")),
        "OUZEL_COMMIT__INTERVAL_MS": dice.choice(("50", "500")),
    }
    delivery_timeout_ms = dice.choice(("5000", "30000", ""))  # past it nobody knows what became of a record
    if guarantee == "at_least_once" and delivery_timeout_ms:
        settings[DELIVERY_TIMEOUT] = delivery_timeout_ms
    return Plan(
        guarantee=guarantee,
        seed=seed,
        replicas=members,
        partitions=parts,
        faults=schedule(seed, faults, guarantee, members, parts, apart_s=apart_s, platform=platform),
        healed_within_s=_HEALED_WITHIN_S[guarantee],
        protocol=dice.choice(("classic", "consumer")),
        per_second=dice.choice((20, 40, 60)),
        keys=dice.choice((0, 5, 50)),
        by_reference=dice.choice((0.0, 0.3, 0.6)),
        settings=settings,
        platform=platform,
    )
