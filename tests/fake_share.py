"""`ports.ShareSource` in memory, held to the same contract suite as the real one: a share group of one partition."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from consumer.messages import Delivery, Lease, Partition
from tests.fakes import FakeClock


@dataclass(slots=True)
class FakeShared:
    """One message, as the broker keeps it."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    state: str = "available"
    """`available`, `locked`, `done`, or `discarded`: handed out as often as the limit allows."""
    deliveries: int = 0
    owner: object = None
    until_s: float = 0.0


@dataclass(slots=True)
class FakeShareGroup:
    """What the members have in common. The broker's clock is the tests'."""

    clock: FakeClock
    lock_s: float = 30.0
    limit: int = 5
    most: int = 4
    """Messages of one poll."""
    partition: Partition = field(default_factory=lambda: Partition("images", 0))
    records: list[FakeShared] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    """Offsets that came back while their lock held."""
    polls: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, *values: bytes | None, key: bytes | None = None, deliveries: int = 0) -> list[int]:
        """Append messages, handed out so often already."""
        with self.changed:
            new = [
                FakeShared(len(self.records) + number, value, key, deliveries=deliveries)
                for number, value in enumerate(values)
            ]
            self.records += new
            self.changed.notify_all()
        return [each.offset for each in new]

    def lapse(self) -> None:
        """Take back what nobody acknowledged in time. The caller has the lock."""
        for each in self.records:
            if each.state == "locked" and self.clock.now_s >= each.until_s:
                self.give_back(each)

    def give_back(self, record: FakeShared) -> None:
        """The lock is over."""
        record.owner = None
        record.state = "discarded" if record.deliveries >= self.limit else "available"
        self.changed.notify_all()

    def acquire(self, owner: object) -> list[FakeShared]:
        """The next ones, locked. The caller has the lock."""
        self.lapse()
        found = [each for each in self.records if each.state == "available"][: self.most]
        for each in found:
            each.state, each.owner, each.until_s = "locked", owner, self.clock.now_s + self.lock_s
            each.deliveries += 1
        return found

    def states(self) -> list[str]:
        """Of every message, in order."""
        with self.changed:
            self.lapse()
            return [each.state for each in self.records]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
        """Until `condition`, looked at whenever something here changes."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), f"waited {timeout_s:g} s for {what}: {self.records}"


class FakeShareMember:
    """`ports.ShareMember` of a `FakeShareGroup`. `poll_error` is raised once; `refuse` refuses what is accepted."""

    def __init__(self, group: FakeShareGroup) -> None:
        self.group = group
        self.joined = False
        self.closed = False
        self.poll_error: Exception | None = None
        self.refuse = False
        self._lease_of: Callable[[Partition, float], Lease] | None = None
        self._open: set[int] = set()

    def subscribe(self, lease_of: Callable[[Partition, float], Lease]) -> None:
        """See the port."""
        self._lease_of = lease_of

    def poll(self, timeout_s: float) -> Sequence[Delivery]:
        """See the port."""
        assert not self._open, f"{self._open} are not acknowledged"
        assert self._lease_of is not None
        self.joined = True
        if self.poll_error is not None:
            error, self.poll_error = self.poll_error, None
            raise error
        group = self.group
        with group.changed:
            group.polls += 1
            group.changed.notify_all()
            found = group.acquire(self)
            if not found:
                group.changed.wait(min(timeout_s, 0.01))
            self._open = {each.offset for each in found}
            return [
                Delivery(
                    self._lease_of(group.partition, group.clock.now_s),
                    each.offset,
                    each.value,
                    each.key,
                    delivery_count=each.deliveries,
                )
                for each in found
            ]

    def accept(self, deliveries: Sequence[Delivery], timeout_s: float) -> Mapping[Partition, str]:
        """See the port: one lapsed lock has all of them refused."""
        with self.group.changed:
            self.group.lapse()
            records = self._take(deliveries)
            if self.refuse or any(each.owner is not self for each in records):
                return {self.group.partition: "INVALID_RECORD_STATE"}
            for each in records:
                each.state, each.owner = "done", None
            self.group.changed.notify_all()
            return {}

    def release(self, deliveries: Sequence[Delivery], timeout_s: float) -> None:
        """See the port."""
        with self.group.changed:
            self.group.lapse()
            for each in self._take(deliveries):
                if each.owner is self:
                    self.group.released.append(each.offset)
                    self.group.give_back(each)

    def close(self) -> None:
        """See the port."""
        with self.group.changed:
            for each in self.group.records:
                if each.owner is self:
                    self.group.give_back(each)
            self.closed = True
            self.group.changed.notify_all()

    def _take(self, deliveries: Sequence[Delivery]) -> list[FakeShared]:
        offsets = {each.offset for each in deliveries}
        assert offsets <= self._open, f"{offsets - self._open} were not handed out, or are acknowledged already"
        self._open -= offsets
        return [self.group.records[offset] for offset in sorted(offsets)]


class FakeShareSource:
    """`ports.ShareSource`."""

    def __init__(self, group: FakeShareGroup, members: int = 2) -> None:
        self.members = [FakeShareMember(group) for _ in range(members)]

    @property
    def joined(self) -> bool:
        """See the port."""
        return any(member.joined for member in self.members)
