"""The protocol of `delivery.guarantee = "share"`, small enough to look at every state.

A record is acquired under a lock, counted, and acknowledged once its event or dead letter is with the broker. A lock
may lapse at any time, whoever holds it; a record that comes back at the limit of its count is gone without a word.
Some records end every replica that tries to label them; the store may be down.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model.explore import Step

Bug = Literal[
    "accept before publish",
    "ignore the limit",
    "release in an outage",
    "publish the letter after accepting",
    "hold the letter back in an outage",
]

FREE = -1


class Size(NamedTuple):
    """How much is explored."""

    records: str = "gp"
    """g is a good one, p ends the replica that labels it."""
    replicas: int = 2
    limit: int = 5
    """Where the broker discards a record that comes back."""
    margin: int = 1
    """How many deliveries before the last one a record goes to the dead letters, unlabelled."""
    crashes: int = 1
    lapses: int = 1
    """Locks that lapse while their replica is at work."""
    outages: int = 1
    """How often the store goes down."""


class Record(NamedTuple):
    """What the share group knows of a record."""

    holder: int = FREE
    deliveries: int = 0
    """How often it was delivered."""
    state: Literal["there", "accepted", "discarded"] = "there"
    answer: Literal["", "event", "letter"] = ""
    """What of it came to the broker first."""


class Replica(NamedTuple):
    """What a replica knows."""

    hand: int = FREE
    """The record that it has."""
    step: Literal["holds", "published", "accepted"] = "holds"
    deliveries: int = 0
    """How often its record was delivered, when it came."""
    outage: bool = False
    """Whether it knows that the store is down."""


class State(NamedTuple):
    """Everything."""

    records: tuple[Record, ...]
    replicas: tuple[Replica, ...]
    up: bool
    crashes: int
    lapses: int
    outages: int


def put(items: tuple, at: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The same with one of them another."""
    return (*items[:at], item, *items[at + 1 :])


@dataclass(frozen=True, slots=True)
class Share:
    """The model; with a bug in it, if one is named."""

    size: Size
    bug: Bug | None = None

    def start(self) -> State:
        """Nothing is acquired."""
        size = self.size
        records, replicas = (Record(),) * len(size.records), (Replica(),) * size.replicas
        return State(records, replicas, True, size.crashes, size.lapses, size.outages)

    def broken(self, state: State) -> str:
        """See `Model`. A record that is gone has its event or letter, or the replica that accepted it still has."""
        for number, record in enumerate(state.records):
            if record.state == "discarded" and not record.answer:
                return f"I1: record {number} was discarded at the limit, without an event or a letter"
            if record.state == "accepted" and not record.answer:
                return f"I1: record {number} was accepted, and has neither event nor letter"
            spared = state.crashes == self.size.crashes and state.lapses == self.size.lapses
            if record.answer == "letter" and self.size.records[number] == "g" and spared:
                return f"the good record {number} became a dead letter, for no more than an outage"
        return ""

    def done(self, state: State) -> bool:
        """See `Model`."""
        return all(record.state != "there" for record in state.records)

    def steps(self, state: State) -> Iterator[Step[State]]:
        """See `Model`."""
        for number, replica in enumerate(state.replicas):
            name = "ABCDEF"[number]
            if replica.hand == FREE:
                yield from self._acquire(state, number, name)
            else:
                yield from self._work(state, number, name)
            if state.crashes and replica != Replica():
                crashed = self._with(state, number, Replica())._replace(crashes=state.crashes - 1)
                yield Step((name, "crashes and starts again"), crashed, fault=True)
        yield from self._locks(state)
        if state.up and state.outages:
            yield Step(("the store goes down",), state._replace(up=False, outages=state.outages - 1), fault=True)
        if not state.up:
            well = tuple(each._replace(outage=False) for each in state.replicas)
            yield Step(("the store is back",), state._replace(up=True, replicas=well))

    def _acquire(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        """Nothing is polled in an outage."""
        if state.replicas[number].outage and self.bug != "release in an outage":
            return
        for place, record in enumerate(state.records):
            if record.state == "there" and record.holder == FREE:
                taken = record._replace(holder=number, deliveries=record.deliveries + 1)
                holds = state.replicas[number]._replace(hand=place, step="holds", deliveries=taken.deliveries)
                there = state._replace(records=put(state.records, place, taken))
                yield Step((name, f"acquires {place}, delivery {taken.deliveries}"), self._with(there, number, holds))

    def _work(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica = state.replicas[number]
        place, record = replica.hand, state.records[replica.hand]
        letter = self._letter_due(replica)
        early = self.bug == "accept before publish" or (letter and self.bug == "publish the letter after accepting")
        if not state.up and not replica.outage and replica.step == "holds":
            knows = self._with(state, number, replica._replace(outage=True))
            yield Step((name, "hears from another record that the store is down"), knows)
        if replica.step == "published" or (early and replica.step == "holds"):
            accepted = state
            if record.holder == number and record.state == "there":  # else the lock has lapsed, and it is refused
                gone = record._replace(state="accepted", holder=FREE)
                accepted = state._replace(records=put(state.records, place, gone))
            after = replica._replace(step="accepted") if early else replica._replace(hand=FREE)
            yield Step((name, f"accepts {place}"), self._with(accepted, number, after))
        elif letter:
            yield Step((name, f"writes the letter of {place}"), self._published(state, number, "letter", early=early))
        elif self.size.records[place] == "p":
            yield Step((name, f"is ended by {place}"), self._with(state, number, Replica()))
        elif state.up:
            yield Step((name, f"publishes {place}"), self._published(state, number, "event", early=early))
        elif self.bug == "release in an outage":
            released = self._with(self._came_back(state, place), number, Replica(outage=True))
            yield Step((name, f"releases {place}, as the store is down"), released)
        elif not replica.outage:
            yield Step((name, f"cannot fetch {place}"), self._with(state, number, replica._replace(outage=True)))
        elif record.holder != number:
            yield Step((name, f"lets go of {place}"), self._with(state, number, Replica(outage=True)))

    def _letter_due(self, replica: Replica) -> bool:
        """Whether its record is given up. A letter needs no store: an outage is no reason to wait."""
        if self.bug == "ignore the limit" or (self.bug == "hold the letter back in an outage" and replica.outage):
            return False
        return replica.deliveries >= self.size.limit - self.size.margin

    def _published(self, state: State, number: int, answer: Literal["event", "letter"], *, early: bool) -> State:
        replica = state.replicas[number]
        record = state.records[replica.hand]
        answered = record._replace(answer=record.answer or answer)
        there = state._replace(records=put(state.records, replica.hand, answered))
        after = replica._replace(hand=FREE) if early else replica._replace(step="published")
        return self._with(there, number, after)

    def _locks(self, state: State) -> Iterator[Step[State]]:
        """A lock lapses by itself where nobody is at work under it."""
        for place, record in enumerate(state.records):
            if record.holder == FREE or record.state != "there":
                continue
            holder = state.replicas[record.holder]
            at_work = holder.hand == place and (not holder.outage or self._letter_due(holder))
            back = self._came_back(state, place)
            if not at_work:
                yield Step((f"the lock on {place} lapses",), back)
            elif state.lapses:
                slow = back._replace(lapses=state.lapses - 1)
                yield Step((f"the lock on {place} lapses under its replica",), slow, fault=True)

    def _came_back(self, state: State, place: int) -> State:
        record = state.records[place]._replace(holder=FREE)
        if record.deliveries >= self.size.limit:
            record = record._replace(state="discarded")
        return state._replace(records=put(state.records, place, record))

    def _with(self, state: State, number: int, replica: Replica) -> State:
        return state._replace(replicas=put(state.replicas, number, replica))
