"""The protocol of `delivery.guarantee = "exactly_once"`, small enough to look at every state.

Replicas take messages, produce their events into a transaction of their own, and end it with the offsets inside. The
broker is a transaction coordinator for each replica, a group that fences those it put out, and one output partition
for each input partition. Replicas may be stopped between any two steps, which makes a zombie of one that the group
puts out meanwhile; they crash, records fail, transactions time out, answers to a commit are lost, and a commit request
may arrive long after its sender gave up on it.

A message is a number in its partition and a key. Fetching and labelling are left out: an outcome that was not produced
is nothing that anybody sees. Offsets have no gaps here; those are tried on the real ledger (`test_real_pipeline.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model.explore import Step

Bug = Literal[
    "commit before publish",
    "commit highest offset",
    "no fence of late results",
    "end the lease after unsealing",
    "key order in the place of partition order",
    "reuse the producer after an ambiguous end",
    "offsets outside of the transaction",
    "read offsets that are not stable",
    "offsets of the revoked partitions alone",
    "go on after an abort without rewinding",
    "offsets without a generation",
    "transactions never time out",
    "a commit request that was sent twice",  # no bug of ours: what KIP-890 closes, and librdkafka has not yet
]

COMMITTED = -1
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
    """Records that fail, commits without an answer, transactions of living replicas that time out, together."""


class Lease(NamedTuple):
    """What a replica has of one partition."""

    base: int
    """Committed up to here, as the replica believes."""
    produced: int = 0
    """A bit for each message handed to the producer."""

    @property
    def prefix(self) -> int:
        """The end of what was produced without a gap."""
        end = self.base
        while self.produced >> end & 1:
            end += 1
        return end


Phase = Literal["runs", "sealed", "offsets sent", "ending", "aborts", "renews", "dead"]


class Replica(NamedTuple):
    """What a replica knows."""

    leases: tuple[Lease | None, ...]
    phase: Phase = "runs"
    fenced: bool = False
    """Whether the coordinator has a newer epoch of its transactional id, which it need not know."""
    under_way: tuple[tuple[int, int], ...] = ()
    """(partition, message) produced, and not yet at the broker."""
    dirty: bool = False
    """Whether anything was produced in the transaction."""
    late: tuple[tuple[int, int], ...] = ()
    """Results still to come of leases that have ended; nothing comes of them but by a bug."""
    handing_over: bool = False
    """By a bug: revoked partitions are committed, unsealed, and not ended yet."""


class Transaction(NamedTuple):
    """What the coordinator knows of one transactional id."""

    state: Literal["none", "ongoing", "prepared"] = "none"
    points: tuple[int | None, ...] = ()
    """Offsets that wait for its end, by partition."""
    request: Literal["none", "sent", "done", "refused"] = "none"
    """The replica's commit request and its answer."""
    stray: bool = False
    """Whether a commit request whose sender waits no more is still on its way, of the current epoch."""


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
    """Of each partition, as the group sees it; -1 for none."""
    moving: tuple[bool, ...]
    """Whether the group wants it back."""
    inside: tuple[bool, ...]
    """Whether the group knows the replica, in the current generation."""
    log: tuple[tuple[tuple[int, int], ...], ...]
    """The output: (message, `COMMITTED` or whose open transaction it is in); aborted records are left out."""
    replicas: tuple[Replica, ...]
    transactions: tuple[Transaction, ...]
    left: Left
    flaw: str = ""


def put(items: tuple, at: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The same with one of them another."""
    return (*items[:at], item, *items[at + 1 :])


@dataclass(frozen=True, slots=True)
class ExactlyOnce:
    """The model; with a bug in it, if one is named."""

    size: Size
    bug: Bug | None = None

    def start(self) -> State:
        """The first replica owns all; nothing is read."""
        count, replicas = len(self.size.partitions), self.size.replicas
        none = (None,) * count
        return State(
            committed=(0,) * count,
            owner=(0,) * count,
            moving=(False,) * count,
            inside=(True,) * replicas,
            log=((),) * count,
            replicas=(Replica(none),) * replicas,
            transactions=(Transaction(points=none),) * replicas,
            left=Left(self.size.crashes, self.size.revokes, self.size.evictions, self.size.failures),
        )

    # --- promises ---------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str:
        """See `Model`. What a read_committed reader has seen, and what it can still come to see."""
        if state.flaw:
            return state.flaw
        for partition, records in enumerate(state.log):
            seen = [message for message, whose in records if whose == COMMITTED]
            if len(set(seen)) < len(seen):
                return f"I1: a read_committed reader sees {seen} of partition {partition}"
            if seen != sorted(seen):
                return f"I4: a read_committed reader sees {seen} of partition {partition}"
            there = {message for message, _ in records}
            for message in range(state.committed[partition]):
                if message not in there:
                    return f"I1, I2: {partition}/{message} is behind the committed offset, and has no event"
        return ""

    def done(self, state: State) -> bool:
        """See `Model`. Everything is labelled and committed, and no transaction is open (I5)."""
        return (
            all(end == len(keys) for end, keys in zip(state.committed, self.size.partitions, strict=True))
            and all(whose == COMMITTED for records in state.log for _, whose in records)
            and all(each.state == "none" for each in state.transactions)
            and not any(state.moving)
        )

    # --- what may happen --------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step[State]]:
        """See `Model`."""
        for number, replica in enumerate(state.replicas):
            name = "ABCDEF"[number]
            if replica.phase == "dead":
                yield from self._dead(state, number, name)
            else:
                yield from self._replica(state, number, name)
                yield from self._faults_of_replica(state, number, name)
            yield from self._coordinator(state, number, name)
        yield from self._group(state)

    def _replica(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica, transaction = state.replicas[number], state.transactions[number]
        phase = replica.phase
        if replica.under_way and phase in ("runs", "sealed"):
            yield from self._write(state, number, name)
        if phase == "runs":
            yield from self._run(state, number, name)
        elif phase == "sealed":
            if not replica.under_way:  # all that was under way is acknowledged
                yield self._send_offsets(state, number, name)
        elif phase == "offsets sent":
            sent = transaction._replace(request="refused" if replica.fenced else "sent")
            ending = replica._replace(phase="ending")
            yield Step((name, "commits the transaction"), self._with(state, number, ending, sent))
            if self.bug == "a commit request that was sent twice" and not replica.fenced and state.left.failures:
                twice = self._failed(self._with(state, number, ending, sent._replace(stray=True)))
                yield Step((name, "commits the transaction, and the request is sent twice"), twice, fault=True)
        elif phase == "ending":
            answered = transaction._replace(request="none")
            if transaction.request == "done":
                settled = self._committed(self._with(state, number, None, answered), number)
                yield Step((name, "is told that it is committed"), settled)
            elif transaction.request == "refused":
                told = self._with(state, number, None, answered)
                yield Step((name, "is told that it is fenced"), self._rewound(told, number, "renews"))
        elif phase == "aborts":
            if replica.fenced or transaction.state == "prepared":
                yield Step((name, "may not abort: a new producer"), self._rewound(state, number, "renews"))
            else:
                yield Step((name, "aborts and rewinds"), self._abort(state, number))
        elif phase == "renews" and transaction.state != "prepared":  # it waits for what was prepared
            fresh = self._aborted(state, number)
            renewed = fresh.replicas[number]._replace(phase="runs", fenced=False)
            yield Step((name, "begins a new producer"), self._with(fresh, number, renewed))

    def _run(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica = state.replicas[number]
        inside, holds = state.inside[number], any(lease is not None for lease in replica.leases)
        if len(replica.under_way) < MOST_UNDER_WAY:
            for partition, message in self._producible(replica):
                yield Step((name, f"produces {partition}/{message}"), self._produce(state, number, partition, message))
            for partition, message in replica.late:
                lease = replica.leases[partition]
                gone = replica._replace(late=tuple(each for each in replica.late if each != (partition, message)))
                if lease is None or message >= lease.prefix:
                    told = self._produce(self._with(state, number, gone), number, partition, message)
                    yield Step((name, f"produces {partition}/{message}, a late result"), told)
        if replica.handing_over:
            ended = self._handed_over(state, number)
            yield Step((name, "ends what was revoked"), ended)
        if replica.dirty:
            yield Step((name, "seals"), self._with(state, number, replica._replace(phase="sealed")))
        elif any(owner == number and moves for owner, moves in zip(state.owner, state.moving, strict=True)):
            yield Step((name, "gives back what was revoked"), self._handed_over(state, number))
        if not inside and (holds or replica.dirty):
            lost = self._with(state, number, replica._replace(phase="aborts"))
            yield Step((name, "hears that it was put out"), lost)
        elif not inside:
            yield Step((name, "joins the group"), state._replace(inside=put(state.inside, number, True)))
        else:
            yield from self._begin(state, number, name)

    def _begin(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        """Read where a partition stands. OffsetFetch with `require_stable` waits for what is pending."""
        replica = state.replicas[number]
        for partition, owner in enumerate(state.owner):
            if owner != number or state.moving[partition] or replica.leases[partition] is not None:
                continue
            pending = any(each.points[partition] is not None for each in state.transactions)
            if not pending or self.bug == "read offsets that are not stable":
                lease = Lease(state.committed[partition])
                begun = replica._replace(leases=put(replica.leases, partition, lease))
                yield Step((name, f"begins {partition} at {lease.base}"), self._with(state, number, begun))

    def _faults_of_replica(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica, left = state.replicas[number], state.left
        if left.crashes:
            yield Step((name, "crashes"), self._crash(state, number), fault=True)
        if not left.failures:
            return
        if replica.under_way and replica.phase in ("runs", "sealed"):
            partition, message = replica.under_way[0]
            failed = replica._replace(phase="aborts", under_way=())
            lost = self._failed(self._with(state, number, failed))
            yield Step((name, f"cannot write {partition}/{message}"), lost, fault=True)
        if replica.phase == "ending":
            yield Step((name, "gets no answer: ambiguous"), self._ambiguous(state, number), fault=True)

    def _dead(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        if state.inside[number]:
            yield Step((name, "is put out by the group"), self._put_out(state, number))
        else:
            alone = all(each.phase == "dead" for each in state.replicas)
            again = Replica((None,) * len(self.size.partitions), phase="renews", fenced=True)
            yield Step((name, "starts again"), self._with(state, number, again), fault=not alone)

    def _coordinator(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        transaction, replica = state.transactions[number], state.replicas[number]
        if transaction.request == "sent":
            yield Step((name + "'s", "commit request arrives"), self._arrive(state, number, stray=False))
        if transaction.stray:
            yield Step((name + "'s", "old commit request arrives"), self._arrive(state, number, stray=True), fault=True)
        if transaction.state == "prepared":
            yield Step((name + "'s", "transaction is completed"), self._complete(state, number))
        if transaction.state == "ongoing":
            ended = self._fence(self._aborted(state, number), number)
            if replica.phase == "dead" and self.bug != "transactions never time out":
                yield Step((name + "'s", "transaction times out"), ended)
            elif replica.phase != "dead" and state.left.failures:
                yield Step((name + "'s", "transaction times out"), self._failed(ended), fault=True)

    def _group(self, state: State) -> Iterator[Step[State]]:
        for partition, owner in enumerate(state.owner):
            if owner < 0:
                for number, inside in enumerate(state.inside):
                    if inside and state.replicas[number].phase != "dead":
                        given = state._replace(owner=put(state.owner, partition, number))
                        yield Step(("the group gives", partition, "to", "ABCDEF"[number]), given)
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

    def _producible(self, replica: Replica) -> Iterator[tuple[int, int]]:
        """In partition order the next message alone; by a bug the next of any key."""
        any_key = self.bug in ("key order in the place of partition order", "commit highest offset")
        for partition, lease in enumerate(replica.leases):
            if lease is None:
                continue
            keys = self.size.partitions[partition]
            for message in range(lease.prefix, len(keys)):
                waits = any(
                    not lease.produced >> earlier & 1 and (not any_key or keys[earlier] == keys[message])
                    for earlier in range(lease.base, message)
                )
                if not waits and not lease.produced >> message & 1:
                    yield partition, message

    def _produce(self, state: State, number: int, partition: int, message: int) -> State:
        replica = state.replicas[number]
        leases, lease = replica.leases, replica.leases[partition]
        if lease is not None:
            leases = put(leases, partition, lease._replace(produced=lease.produced | 1 << message))
        under_way = (*replica.under_way, (partition, message))
        return self._with(state, number, replica._replace(leases=leases, under_way=under_way, dirty=True))

    def _write(self, state: State, number: int, name: str) -> Iterator[Step[State]]:
        replica, transaction = state.replicas[number], state.transactions[number]
        partition, message = replica.under_way[0]
        if replica.fenced:
            fenced = self._rewound(state, number, "renews")
            yield Step((name, f"may not write {partition}/{message}: fenced"), fenced)
        elif transaction.state != "prepared":
            log = put(state.log, partition, (*state.log[partition], (message, number)))
            written = replica._replace(under_way=replica.under_way[1:])
            ongoing = transaction._replace(state="ongoing")
            there = self._with(state._replace(log=log), number, written, ongoing)
            yield Step((name, f"has written {partition}/{message}"), there)

    def _points(self, state: State, number: int) -> tuple[int | None, ...]:
        """The commit points of all that it has."""
        points: list[int | None] = []
        revokes = any(owner == number and moves for owner, moves in zip(state.owner, state.moving, strict=True))
        for partition, lease in enumerate(state.replicas[number].leases):
            if lease is None:
                point = None
            elif self.bug == "commit highest offset":
                point = max(lease.base, lease.produced.bit_length())
            elif self.bug == "commit before publish":
                point = min(lease.prefix + 1, len(self.size.partitions[partition]))
            else:
                point = lease.prefix
            if self.bug == "offsets of the revoked partitions alone" and revokes and not state.moving[partition]:
                point = None
            points.append(point)
        return tuple(points)

    def _send_offsets(self, state: State, number: int, name: str) -> Step[State]:
        replica = state.replicas[number]
        if replica.fenced:
            return Step((name, "may not send offsets: fenced"), self._rewound(state, number, "renews"))
        known = state.inside[number] or self.bug == "offsets without a generation"
        if not known:
            refused = self._with(state, number, replica._replace(phase="aborts"))
            return Step((name, "may not send offsets: of an old generation"), refused)
        points = self._points(state, number)
        for partition, point in enumerate(points):
            if point is not None and state.owner[partition] != number:
                state = state._replace(flaw=f"I3: {name} commits {point} of {partition}, which is another's")
        sent = state.transactions[number]._replace(state="ongoing", points=points)
        if self.bug == "offsets outside of the transaction":
            state = self._commit(state, points)
            sent = sent._replace(points=(None,) * len(points))
        words = ", ".join(f"{partition}: {point}" for partition, point in enumerate(points) if point is not None)
        return Step(
            (name, f"sends offsets {words}"), self._with(state, number, replica._replace(phase="offsets sent"), sent)
        )

    def _committed(self, state: State, number: int) -> State:
        """The transaction is over. What was revoked ends while nothing can be produced."""
        replica = state.replicas[number]
        leases = tuple(lease and Lease(lease.prefix, lease.produced) for lease in replica.leases)
        state = self._with(state, number, replica._replace(phase="runs", leases=leases, dirty=False))
        if not any(owner == number and moves for owner, moves in zip(state.owner, state.moving, strict=True)):
            return state
        if self.bug == "end the lease after unsealing":
            return self._with(state, number, state.replicas[number]._replace(handing_over=True))
        return self._handed_over(state, number)

    def _handed_over(self, state: State, number: int) -> State:
        """The revoked leases end, and the group is told."""
        given = [part for part, owner in enumerate(state.owner) if owner == number and state.moving[part]]
        state = self._end(state, number, given)
        state = self._with(state, number, state.replicas[number]._replace(handing_over=False))
        for partition in given:
            state = state._replace(owner=put(state.owner, partition, -1), moving=put(state.moving, partition, False))
        return state

    def _end(self, state: State, number: int, partitions: list[int]) -> State:
        """Leases end; results that were in the works come late."""
        replica = state.replicas[number]
        leases, late = replica.leases, set(replica.late)
        for partition in partitions:
            lease = leases[partition]
            if lease is not None:
                if self.bug == "no fence of late results" and lease.prefix < len(self.size.partitions[partition]):
                    late.add((partition, lease.prefix))
                leases = put(leases, partition, None)
        return self._with(state, number, replica._replace(leases=leases, late=tuple(sorted(late))))

    def _rewound(self, state: State, number: int, phase: Phase) -> State:
        """Every lease ends, to begin anew at the committed offsets."""
        state = self._end(state, number, list(range(len(self.size.partitions))))
        cleared = state.replicas[number]._replace(phase=phase, under_way=(), dirty=False)
        return self._handed_over(self._with(state, number, cleared), number)

    def _abort(self, state: State, number: int) -> State:
        state = self._aborted(state, number)
        if self.bug == "go on after an abort without rewinding":
            replica = state.replicas[number]
            return self._with(state, number, replica._replace(phase="runs", under_way=(), dirty=False))
        return self._rewound(state, number, "runs")

    def _ambiguous(self, state: State, number: int) -> State:
        """No answer: committed, aborted by its time-out, or still on its way."""
        state = self._failed(state)
        transaction = state.transactions[number]
        stray = transaction.request == "sent"
        state = self._with(state, number, None, transaction._replace(request="none", stray=transaction.stray or stray))
        if self.bug == "reuse the producer after an ambiguous end":
            return self._committed(state, number)
        return self._rewound(state, number, "renews")

    def _crash(self, state: State, number: int) -> State:
        transaction = state.transactions[number]
        stray = transaction.stray or transaction.request == "sent"
        dead = Replica((None,) * len(self.size.partitions), phase="dead", fenced=state.replicas[number].fenced)
        state = state._replace(left=state.left._replace(crashes=state.left.crashes - 1))
        return self._with(state, number, dead, transaction._replace(request="none", stray=stray))

    # --- the broker -------------------------------------------------------------------------------------------------

    def _arrive(self, state: State, number: int, *, stray: bool) -> State:
        """A commit request of the current epoch: older ones went away with their epoch."""
        transaction = state.transactions[number]
        prepared = transaction.state if transaction.state == "none" else "prepared"
        if stray:
            return self._with(state, number, None, transaction._replace(state=prepared, stray=False))
        return self._with(state, number, None, transaction._replace(state=prepared, request="done"))

    def _complete(self, state: State, number: int) -> State:
        """The markers are written: what was open is committed, and so are the offsets."""
        transaction = state.transactions[number]
        log = tuple(
            tuple((message, COMMITTED if whose == number else whose) for message, whose in records)
            for records in state.log
        )
        state = self._commit(state._replace(log=log), transaction.points)
        return self._with(state, number, None, transaction._replace(state="none", points=(None,) * len(log)))

    def _aborted(self, state: State, number: int) -> State:
        """Its open records are passed over by readers, its offsets forgotten, and older requests mean nothing."""
        transaction = state.transactions[number]
        log = tuple(tuple(each for each in records if each[1] != number) for records in state.log)
        none = transaction._replace(state="none", points=(None,) * len(log))
        fresh = self._with(state._replace(log=log), number, None, none)
        return fresh if state.replicas[number].phase != "renews" else self._fence(fresh, number)

    def _fence(self, state: State, number: int) -> State:
        """A new epoch: requests of the old one are refused."""
        transaction, replica = state.transactions[number], state.replicas[number]
        request = "refused" if transaction.request == "sent" else transaction.request
        fenced = transaction._replace(request=request, stray=False)
        return self._with(state, number, replica._replace(fenced=True), fenced)

    def _commit(self, state: State, points: tuple[int | None, ...]) -> State:
        for partition, point in enumerate(points):
            if point is None:
                continue
            if point < state.committed[partition]:
                flaw = f"I3: {partition} went back from {state.committed[partition]} to {point}"
                state = state._replace(flaw=state.flaw or flaw)
            state = state._replace(committed=put(state.committed, partition, point))
        return state

    def _put_out(self, state: State, number: int) -> State:
        """A new generation without it: its partitions are free."""
        owner = tuple(-1 if each == number else each for each in state.owner)
        moving = tuple(moves and owner[part] >= 0 for part, moves in enumerate(state.moving))
        return state._replace(owner=owner, moving=moving, inside=put(state.inside, number, False))

    # --- small parts ------------------------------------------------------------------------------------------------

    def _with(
        self,
        state: State,
        number: int,
        replica: Replica | None,
        transaction: Transaction | None = None,
    ) -> State:
        replicas = state.replicas if replica is None else put(state.replicas, number, replica)
        transactions = state.transactions if transaction is None else put(state.transactions, number, transaction)
        return state._replace(replicas=replicas, transactions=transactions)

    def _failed(self, state: State) -> State:
        return state._replace(left=state.left._replace(failures=state.left.failures - 1))
