"""The protocol of `delivery.guarantee = "at_least_once"`, small enough to look at every state.

Outcomes are produced in the order of their key as they come, and finished when the broker has them; the finished
prefix is committed now and then, one commit at a time. A partition that is revoked is drained, committed and then
fenced. Replicas may be stopped between any two steps, which makes a zombie of one that the group puts out meanwhile;
they crash, acknowledgements and answers are lost, and a drain runs out of time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model.explore import Step

Bug = Literal[
    "commit before publish",
    "commit highest offset",
    "no key order",
    "finish what is abandoned",
    "begin where the last lease stood",
    "commit without a generation",
    "a second commit before the first is answered",
]

MOST_UNDER_WAY = 2


class Size(NamedTuple):
    """How much is explored."""

    partitions: tuple[str, ...] = ("aba",)
    """The keys of the messages of each, a letter a message. The first replica has all partitions at the start."""
    replicas: int = 2
    crashes: int = 1
    revokes: int = 1
    evictions: int = 1
    """How often the group puts out a replica that lives."""
    failures: int = 1
    """Acknowledgements and answers that are lost, drains that run out of time, together."""


class Lease(NamedTuple):
    """What a replica has of one partition. Bits stand for messages."""

    base: int
    """Committed up to here, as the replica believes."""
    produced: int = 0
    finished: int = 0

    @property
    def prefix(self) -> int:
        """The end of what is finished without a gap."""
        end = self.base
        while self.finished >> end & 1:
            end += 1
        return end


class Request(NamedTuple):
    """A commit on its way, or its answer."""

    points: tuple[int | None, ...]
    state: Literal["sent", "old generation", "done", "refused"] = "sent"


class Replica(NamedTuple):
    """What a replica knows."""

    leases: tuple[Lease | None, ...]
    phase: Literal["runs", "drains", "last commit", "dead"] = "runs"
    under_way: tuple[tuple[int, int], ...] = ()
    """(partition, message) produced, and not yet acknowledged, in order."""
    requests: tuple[Request, ...] = ()
    stood: tuple[int, ...] = ()
    """By a bug: where it was in each partition when its lease ended."""


class Left(NamedTuple):
    """Faults that may still come."""

    crashes: int
    revokes: int
    evictions: int
    failures: int


class State(NamedTuple):
    """Everything."""

    committed: tuple[int, ...]
    owner: tuple[int, ...]
    moving: tuple[bool, ...]
    inside: tuple[bool, ...]
    log: tuple[tuple[int, ...], ...]
    """The output: messages, in the order in which they were written."""
    replicas: tuple[Replica, ...]
    left: Left
    flaw: str = ""


def put(items: tuple, at: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The same with one of them another."""
    return (*items[:at], item, *items[at + 1 :])


@dataclass(frozen=True, slots=True)
class AtLeastOnce:
    """The model; with a bug in it, if one is named."""

    size: Size
    bug: Bug | None = None

    def start(self) -> State:
        """The first replica owns all; nothing is read."""
        count, replicas = len(self.size.partitions), self.size.replicas
        return State(
            committed=(0,) * count,
            owner=(0,) * count,
            moving=(False,) * count,
            inside=(True,) * replicas,
            log=((),) * count,
            replicas=(Replica((None,) * count, stood=(0,) * count),) * replicas,
            left=Left(self.size.crashes, self.size.revokes, self.size.evictions, self.size.failures),
        )

    # --- promises ---------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str:
        """See `Model`. Duplicates are allowed; of each message the first event counts for the order."""
        if state.flaw:
            return state.flaw
        for partition, records in enumerate(state.log):
            for message in range(state.committed[partition]):
                if message not in records:
                    return f"I1, I2: {partition}/{message} is behind the committed offset, and has no event"
            keys = self.size.partitions[partition]
            for key in set(keys):
                first = list(dict.fromkeys(message for message in records if keys[message] == key))
                if first != [message for message, of in enumerate(keys) if of == key][: len(first)]:
                    return f"I4: the events of key {key} of partition {partition} come as {first}"
        return ""

    def done(self, state: State) -> bool:
        """See `Model`."""
        return all(
            end == len(keys) for end, keys in zip(state.committed, self.size.partitions, strict=True)
        ) and not any(state.moving)

    # --- what may happen --------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """See `Model`."""
        for number, replica in enumerate(state.replicas):
            name = "ABCDEF"[number]
            yield from self._requests(state, number, name)
            if replica.phase == "dead":
                yield from self._dead(state, number, name)
                continue
            if state.left.crashes:
                yield Step((name, "crashes"), self._crash(state, number), fault=True)
            yield from self._records(state, number, name)
            if replica.phase == "runs":
                yield from self._run(state, number, name)
            else:
                yield from self._drain(state, number, name)
        yield from self._group(state)

    def _records(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica = state.replicas[number]
        if len(replica.under_way) < MOST_UNDER_WAY:
            for partition, message in self._producible(replica):
                lease = replica.leases[partition]
                assert lease is not None
                leases = put(replica.leases, partition, lease._replace(produced=lease.produced | 1 << message))
                produced = replica._replace(leases=leases, under_way=(*replica.under_way, (partition, message)))
                yield Step((name, f"produces {partition}/{message}"), self._with(state, number, produced))
        if replica.under_way:
            partition, message = replica.under_way[0]
            written = state._replace(log=put(state.log, partition, (*state.log[partition], message)))
            finished = replica._replace(under_way=replica.under_way[1:])
            lease = replica.leases[partition]
            if lease is not None and lease.produced >> message & 1:  # not of a lease that is over
                ended = lease._replace(finished=lease.finished | 1 << message)
                finished = finished._replace(leases=put(finished.leases, partition, ended))
            yield Step((name, f"has published {partition}/{message}"), self._with(written, number, finished))
            if state.left.failures:
                again = Step(
                    (name, f"has published {partition}/{message}, not acknowledged"), self._failed(written), True
                )
                yield again  # it stays at the head, and is produced again

    def _producible(self, replica: Replica) -> Iterator[tuple[int, int]]:
        for partition, lease in enumerate(replica.leases):
            if lease is None:
                continue
            keys = self.size.partitions[partition]
            for message in range(lease.base, len(keys)):
                waits = self.bug != "no key order" and any(
                    keys[earlier] == keys[message] and not lease.produced >> earlier & 1
                    for earlier in range(lease.base, message)
                )
                if not waits and not lease.produced >> message & 1:
                    yield partition, message

    def _run(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica, inside = state.replicas[number], state.inside[number]
        holds = any(lease is not None for lease in replica.leases)
        points = self._points(replica, self._all)
        if any(point is not None for point in points) and self._may_commit(replica):
            yield Step((name, f"sends a commit of {_words(points)}"), self._send(state, number, points))
        if self._revoked(state, number):
            yield Step((name, "drains"), self._with(state, number, replica._replace(phase="drains")))
        if not inside and holds:
            yield Step((name, "hears that it was put out"), self._end(state, number, self._all))
        elif not inside and not replica.under_way:
            yield Step((name, "joins the group"), state._replace(inside=put(state.inside, number, True)))
        elif inside:
            for partition, owner in enumerate(state.owner):
                if owner == number and not state.moving[partition] and replica.leases[partition] is None:
                    at = state.committed[partition]
                    if self.bug == "begin where the last lease stood":
                        at = max(at, replica.stood[partition])
                    begun = replica._replace(leases=put(replica.leases, partition, Lease(at)))
                    yield Step((name, f"begins {partition} at {at}"), self._with(state, number, begun))

    def _drain(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        """Finish what has begun, commit it, then fence."""
        replica, revoked = state.replicas[number], self._revoked(state, number)
        if not state.inside[number]:  # nothing to give back any more
            yield Step((name, "hears that it was put out"), self._end(state, number, self._all))
            return
        if state.left.failures:
            late = self._failed(state)
            if self.bug == "finish what is abandoned":
                late = self._abandoned(late, number, revoked)
                late = self._send(late, number, self._points(late.replicas[number], revoked))
                late = self._with(late, number, late.replicas[number]._replace(phase="last commit"))
            else:
                late = self._handed_over(late, number)
            yield Step((name, "runs out of time to drain"), late, fault=True)
        if any(partition in revoked for partition, _ in replica.under_way) or replica.requests:
            return
        points = self._points(replica, revoked)
        if replica.phase == "drains" and any(point is not None for point in points):
            sent = self._send(state, number, points)
            last = sent.replicas[number]._replace(phase="last commit")
            yield Step((name, f"sends the last commit of {_words(points)}"), self._with(sent, number, last))
        else:
            yield Step((name, "ends what was revoked"), self._handed_over(state, number))

    def _requests(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        """Commits arrive in the order in which they were sent. By a bug two are under way, and the first is retried."""
        replica = state.replicas[number]
        for place, request in enumerate(replica.requests):
            words = _words(request.points)
            if request.state in ("sent", "old generation"):
                known = request.state == "sent" or self.bug == "commit without a generation"
                answer: Literal["done", "refused"] = "done" if known else "refused"
                there = self._commit(state, number, request.points) if known else state
                answered = put(replica.requests, place, request._replace(state=answer))
                if replica.phase == "dead":
                    answered = (*replica.requests[:place], *replica.requests[place + 1 :])
                there = self._with(there, number, replica._replace(requests=answered))
                yield Step((name + "'s", f"commit of {words} arrives: {answer}"), there)
                if state.left.failures and replica.phase != "dead":
                    lost = put(replica.requests, place, request._replace(state="refused"))
                    never = self._failed(self._with(state, number, replica._replace(requests=lost)))
                    yield Step((name + "'s", f"commit of {words} is lost"), never, fault=True)
            else:
                rest = (*replica.requests[:place], *replica.requests[place + 1 :])
                told = replica._replace(requests=rest)
                if request.state == "done":
                    told = told._replace(leases=tuple(map(_rebased, told.leases, request.points)))
                yield Step(
                    (name, f"is told that its commit of {words} is {request.state}"), self._with(state, number, told)
                )

    def _dead(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        if state.inside[number]:
            yield Step((name, "is put out by the group"), self._put_out(state, number))
        else:
            alone = all(each.phase == "dead" for each in state.replicas)
            count = len(self.size.partitions)
            again = self._with(state, number, Replica((None,) * count, stood=(0,) * count))
            yield Step((name, "starts again"), again, fault=not alone)

    def _group(self, state: State) -> Iterator[Step[State]]:
        for partition, owner in enumerate(state.owner):
            if owner < 0:
                for number, inside in enumerate(state.inside):
                    if inside and state.replicas[number].phase != "dead":
                        given = state._replace(owner=put(state.owner, partition, number))
                        yield Step(("the group gives", partition, "to", "ABCDEF"[number]), self._new_generation(given))
            elif state.left.revokes and not state.moving[partition] and state.inside[owner]:
                left = state.left._replace(revokes=state.left.revokes - 1)
                wanted = state._replace(moving=put(state.moving, partition, True), left=left)
                yield Step(("the group wants", partition, "back from", "ABCDEF"[owner]), wanted, fault=True)
        if state.left.evictions:
            for number, inside in enumerate(state.inside):
                if inside and state.replicas[number].phase != "dead":
                    left = state.left._replace(evictions=state.left.evictions - 1)
                    out = self._put_out(state._replace(left=left), number)
                    yield Step(("the group puts out", "ABCDEF"[number], "without its knowledge"), out, fault=True)

    # --- the replica ------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> list[int]:
        return list(range(len(self.size.partitions)))

    def _revoked(self, state: State, number: int) -> list[int]:
        return [part for part in self._all if state.owner[part] == number and state.moving[part]]

    def _may_commit(self, replica: Replica) -> bool:
        most = 2 if self.bug == "a second commit before the first is answered" else 1
        return len(replica.requests) < most

    def _points(self, replica: Replica, partitions: list[int]) -> tuple[int | None, ...]:
        points: list[int | None] = []
        for partition, lease in enumerate(replica.leases):
            if lease is None or partition not in partitions:
                points.append(None)
                continue
            end = lease.prefix
            if self.bug == "commit highest offset":
                end = max(lease.base, lease.finished.bit_length())
            elif self.bug == "commit before publish":
                while lease.produced >> end & 1:
                    end += 1
            points.append(end if end > lease.base else None)
        return tuple(points)

    def _send(self, state: State, number: int, points: tuple[int | None, ...]) -> State:
        replica = state.replicas[number]
        if all(point is None for point in points) or (replica.requests and replica.requests[-1].points == points):
            return state
        request = Request(points, "sent" if state.inside[number] else "old generation")
        return self._with(state, number, replica._replace(requests=(*replica.requests, request)))

    def _handed_over(self, state: State, number: int) -> State:
        revoked = self._revoked(state, number)
        state = self._end(state, number, revoked)
        for partition in revoked:
            state = state._replace(owner=put(state.owner, partition, -1), moving=put(state.moving, partition, False))
        return state

    def _end(self, state: State, number: int, partitions: list[int]) -> State:
        """Fence. Records that are under way still get to the broker; what was not produced never will."""
        replica = state.replicas[number]
        stood = list(replica.stood)
        for partition in partitions:
            lease = replica.leases[partition]
            if lease is not None and self.bug == "begin where the last lease stood":
                taken = max(lease.base, lease.produced.bit_length()) + 1
                stood[partition] = min(taken, len(self.size.partitions[partition]))
        leases = tuple(None if part in partitions else lease for part, lease in enumerate(replica.leases))
        return self._with(state, number, replica._replace(leases=leases, phase="runs", stood=tuple(stood)))

    def _abandoned(self, state: State, number: int, partitions: list[int]) -> State:
        replica = state.replicas[number]
        leases = list(replica.leases)
        for partition in partitions:
            lease, everything = leases[partition], (1 << len(self.size.partitions[partition])) - 1
            leases[partition] = lease and lease._replace(finished=everything)
        return self._with(state, number, replica._replace(leases=tuple(leases), under_way=()))

    def _crash(self, state: State, number: int) -> State:
        """A commit that was sent may still arrive."""
        count = len(self.size.partitions)
        sent = tuple(each for each in state.replicas[number].requests if each.state in ("sent", "old generation"))
        state = state._replace(left=state.left._replace(crashes=state.left.crashes - 1))
        dead = Replica((None,) * count, phase="dead", requests=sent, stood=(0,) * count)
        return self._with(state, number, dead)

    # --- the broker -------------------------------------------------------------------------------------------------

    def _commit(self, state: State, number: int, points: tuple[int | None, ...]) -> State:
        for partition, point in enumerate(points):
            if point is None:
                continue
            before, name = state.committed[partition], "ABCDEF"[number]
            if point < before:
                state = state._replace(flaw=f"I3: {partition} went back from {before} to {point}, by {name}")
            state = state._replace(committed=put(state.committed, partition, point))
        return state

    def _put_out(self, state: State, number: int) -> State:
        owner = tuple(-1 if each == number else each for each in state.owner)
        moving = tuple(moves and owner[part] >= 0 for part, moves in enumerate(state.moving))
        out = state._replace(owner=owner, moving=moving, inside=put(state.inside, number, False))
        return self._new_generation(out)

    def _new_generation(self, state: State) -> State:
        """Commits that are on their way are of the old one."""
        replicas = tuple(
            each._replace(
                requests=tuple(
                    request._replace(state="old generation") if request.state == "sent" else request
                    for request in each.requests
                )
            )
            for each in state.replicas
        )
        return state._replace(replicas=replicas)

    # --- small parts ------------------------------------------------------------------------------------------------

    def _with(self, state: State, number: int, replica: Replica) -> State:
        return state._replace(replicas=put(state.replicas, number, replica))

    def _failed(self, state: State) -> State:
        return state._replace(left=state.left._replace(failures=state.left.failures - 1))


def _rebased(lease: Lease | None, point: int | None) -> Lease | None:
    """Committed that far. What this lease has not finished, it did not ask for: the answer is to an older one."""
    if lease is None or point is None or not lease.base < point <= lease.prefix:
        return lease
    return lease._replace(base=point)


def _words(points: tuple[int | None, ...]) -> str:
    return ", ".join(f"{partition}: {point}" for partition, point in enumerate(points) if point is not None)
