"""Fakes of the ports, held to the same contract suites as the real adapters."""

import hashlib
import threading
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consumer.errors import (
    BrokerUnreachable,
    DecoderCrashed,
    EventTooLarge,
    ImageNotFound,
    ImageTooLarge,
    MalformedMessage,
    ModelNotFound,
    ModelsUnavailable,
    NotAnImage,
    OutputUnavailable,
    ReferenceRefused,
    SandboxFailed,
    StoreUnavailable,
    TransactionBroken,
)
from consumer.headers import ORIGIN_RECORD_INDEX
from consumer.messages import (
    CommitPoint,
    Decoded,
    Delivery,
    ImageFacts,
    ImageHeader,
    ImageJob,
    Lease,
    ModelInfo,
    OpenedImage,
    OutputRecord,
    Parsed,
    Partition,
    Records,
    Rejected,
    Skipped,
    StoredImage,
)
from consumer.ports import AssignmentListener, Clock, CommitResult, ModelVersion, OffsetLost, TopicFacts
from consumer.stages.batch import padded_sizes
from consumer.stages.infer import Inference
from consumer.stages.serving import Serving


class FakeImageStore:
    """`ports.ImageStore` in memory, under `fake://`. Switch `available` off to make it fail; `fetched` counts calls.

    Args:
        images: bytes by URI.
    """

    schemes = frozenset({"fake"})

    def __init__(self, images: Mapping[str, bytes] | None = None) -> None:
        self.images = dict(images or {})
        self.available = True
        self.fetched: list[str] = []
        self._lock = threading.Lock()

    def health_key(self, uri: str) -> str:
        """Scheme and host."""
        return "fake://" + uri.removeprefix("fake://").split("/", 1)[0]

    def fetch(self, uri: str, *, max_bytes: int, deadline_s: float) -> StoredImage:
        """See `ports.ImageStore.fetch`."""
        if not uri.startswith("fake://images/"):
            raise ReferenceRefused("only fake://images/ is allowed")
        with self._lock:
            self.fetched.append(uri)
        if not self.available or deadline_s <= 0:
            raise StoreUnavailable("switched off, or no time left")
        body = self.images.get(uri)
        if body is None:
            raise ImageNotFound("no such image")
        if len(body) > max_bytes:
            raise ImageTooLarge(f"{len(body)} bytes, and {max_bytes} are the most")
        return StoredImage(body)


class FakeModelRegistry:
    """`ports.ModelRegistry` in memory. Switch `available` off to make it fail.

    `while_downloading` is called after each file of a download, and may raise; `asked` counts calls by name. `spoil`
    changes what a download writes.
    """

    def __init__(self) -> None:
        self.available = True
        self.asked: Counter[str] = Counter()
        self.while_downloading: Callable[[Path], None] = lambda _written: None
        self.spoil: Callable[[str, bytes], bytes] = lambda _name, body: body
        self._files: dict[str, dict[str, bytes]] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._aliases: dict[str, list[str]] = {}

    def put(self, files: Mapping[str, bytes], *, digest: str = "", gate: str = "original") -> str:
        """Have a version, whoever made it; its number."""
        number = str(len(self._files) + 1)
        self._files[number], self._told[number] = dict(files), (digest, gate)
        return number

    def versions(self) -> Sequence[ModelVersion]:
        """See `ports.ModelRegistry`."""
        self._ask("versions")
        return [self._version(number) for number in reversed(self._files)]

    def resolve(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        self._ask("resolve")
        if alias in {"", "latest"} and self._files:
            return self._version(str(len(self._files)))
        return self._version(self._aliases.get(alias, [alias])[0])

    def download(self, version: ModelVersion, into: Path, moved: Callable[[int, int | None], None]) -> None:
        """See `ports.ModelRegistry`."""
        self._ask("download")
        done = 0
        for name, body in self._files[version.version].items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(self.spoil(name, body))
            done += len(body)
            moved(done, version.size_bytes)
            self.while_downloading(into / name)

    def upload(self, folder: Path, *, aliases: Sequence[str], moved: Callable[[int, int | None], None]) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        self._ask("upload")
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        digest = "sha256:" + hashlib.sha256(files["MANIFEST.sha256"]).hexdigest()
        gate = tomllib.loads(files["model.toml"].decode())["gate"]["status"]
        number = next((each for each, told in self._told.items() if told[0] == digest), "")
        number = number or self.put(files, digest=digest, gate=gate)
        size = sum(map(len, files.values()))
        moved(size, size)
        for alias in aliases:
            self.point(alias, number)
        return self._version(number)

    def point(self, alias: str, version: str) -> str:
        """See `ports.ModelRegistry`."""
        self._ask("point")
        self._version(version)
        history = self._aliases.setdefault(alias, [])
        before = history[0] if history else ""
        if before != version:
            history.insert(0, version)
        return before

    def roll_back(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""
        self._ask("roll_back")
        if len(self._aliases.get(alias, [])) < 2:
            raise ModelNotFound(f"{alias!r} stood for no version before")
        self._aliases[alias].pop(0)
        return self._version(self._aliases[alias][0])

    def _ask(self, what: str) -> None:
        self.asked[what] += 1
        if not self.available:
            raise ModelsUnavailable("switched off")

    def _version(self, number: str) -> ModelVersion:
        if number not in self._files:
            raise ModelNotFound(f"no version {number!r}")
        digest, gate = self._told[number]
        aliases = tuple(sorted(alias for alias, history in self._aliases.items() if history[0] == number))
        size = sum(map(len, self._files[number].values()))
        return ModelVersion(number, digest=digest, aliases=aliases, size_bytes=size, gate=gate)


# --- time ----------------------------------------------------------------------------------------------------------


class FakeClock:
    """`ports.Clock` that stands still until it is told to go on."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def monotonic_s(self) -> float:
        """Seconds."""
        return self.now_s

    def utc_now(self) -> str:
        """Always the same moment."""
        return "2026-01-31T09:30:00.125Z"

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


# --- Kafka ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FakeRecord:
    """One record of a log."""

    offset: int
    value: bytes | None
    key: bytes | None = None


@dataclass(slots=True)
class FakeLog:
    """One partition. `end` may lie beyond the last record: transaction markers."""

    records: list[FakeRecord] = field(default_factory=list)
    start: int = 0
    end: int = 0


class FakeCluster:
    """What a `FakeSource` and a `FakeGroupView` have in common: logs, topic ids and committed offsets."""

    def __init__(self, partitions: Mapping[str, int] | None = None) -> None:
        self.changed = threading.Condition()
        self.topics: dict[str, TopicFacts] = {}
        self.logs: dict[Partition, FakeLog] = {}
        self.committed: dict[Partition, CommitPoint] = {}
        self.commits: list[dict[Partition, CommitPoint]] = []
        """Every commit that landed, in order."""
        self.has_members = False
        for name, count in (partitions or {}).items():
            self.create(name, count)

    def create(self, topic: str, partitions: int, *, topic_id: str = "id-1") -> None:
        """Make a topic; one of that name goes away with its records, and its offsets stay, as they may."""
        with self.changed:
            for partition in [each for each in self.logs if each.topic == topic]:
                del self.logs[partition]
            self.topics[topic] = TopicFacts(topic_id, partitions)
            for number in range(partitions):
                self.logs[Partition(topic, number)] = FakeLog()
            self.changed.notify_all()

    def add_partition(self, topic: str) -> Partition:
        """One more."""
        facts = self.topics[topic]
        partition = Partition(topic, facts.partitions)
        self.topics[topic] = replace(facts, partitions=facts.partitions + 1)
        self.logs[partition] = FakeLog()
        return partition

    def send(self, partition: Partition, *values: bytes | None, key: bytes | None = None, gap: int = 0) -> list[int]:
        """Append records; `gap` offsets that hold none go before each. Returns their offsets."""
        with self.changed:
            log = self.logs[partition]
            offsets = []
            for value in values:
                offset = log.end + gap
                log.records.append(FakeRecord(offset, value, key))
                log.end = offset + 1
                offsets.append(offset)
            self.changed.notify_all()
            return offsets

    def retain_from(self, partition: Partition, offset: int) -> None:
        """Retention takes what is older."""
        log = self.logs[partition]
        log.start = offset
        log.end = max(log.end, offset)
        log.records = [record for record in log.records if record.offset >= offset]

    def cut(self, partition: Partition, offset: int) -> None:
        """An unclean election takes what is newer."""
        log = self.logs[partition]
        log.end = offset
        log.records = [record for record in log.records if record.offset < offset]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
        """Until `condition`, looked at whenever something here changes."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), f"waited {timeout_s:g} s for {what}"


class FakeSource:
    """`ports.MessageSource` on a `FakeCluster`. The group's decisions are scripted: `assign`, `revoke`, `lose`.

    A commit lands when it is asked about or at the next poll, and is answered by that poll; `hold_commits` keeps both
    back, `refuse_commits` answers with an error. `poll_error` is raised once.
    """

    def __init__(self, cluster: FakeCluster, *, clock: FakeClock | None = None) -> None:
        self.cluster = cluster
        self.clock = clock or FakeClock()
        self.hold_commits = False
        self.refuse_commits = False
        self.poll_error: Exception | None = None
        self.paused: set[Partition] = set()
        self.assigned: set[Partition] = set()
        self.closed = False
        self.joined = False
        self.throttled_until_s = 0.0
        self.deaf: dict[Partition, int] = {}
        """Partitions that hand nothing over, with how many more `start`s leave them so."""
        self.on_poll: Callable[[], None] = lambda: None
        """Runs at the start of every poll."""
        self._listener: AssignmentListener | None = None
        self._left: tuple[Partition, ...] = ()
        self._leases: dict[Partition, Lease] = {}
        self._at: dict[Partition, int] = {}
        self._handed_over: set[Partition] = set()
        self._lost_told: set[Partition] = set()
        self._script: deque[tuple[str, tuple[Partition, ...], threading.Event]] = deque()
        self._sent: deque[dict[Partition, CommitPoint]] = deque()
        self._landed = 0
        self._answer: CommitResult | None = None

    # --- the script, from any thread ------------------------------------------------------------------------------

    def assign(self, *partitions: Partition) -> threading.Event:
        """The group gives these; the event is set when the listener has returned."""
        return self._order("assign", partitions)

    def revoke(self, *partitions: Partition) -> threading.Event:
        """The group wants these back."""
        return self._order("revoke", partitions)

    def lose(self, *partitions: Partition) -> threading.Event:
        """The group has given these to another already."""
        return self._order("lose", partitions)

    def _order(self, what: str, partitions: tuple[Partition, ...]) -> threading.Event:
        done = threading.Event()
        with self.cluster.changed:
            self._script.append((what, partitions, done))
            self.cluster.changed.notify_all()
        return done

    # --- the port --------------------------------------------------------------------------------------------------

    def subscribe(self, listener: AssignmentListener) -> None:
        """See the port."""
        self._listener = listener
        self.cluster.has_members = True
        left, self._left = self._left, ()
        if left:
            self.assign(*left)

    def leave(self) -> None:
        """See the port. What was assigned is assigned again by the next `subscribe`."""
        self._left = tuple(sorted(self.assigned))
        if self._left:
            self.revoke(*self._left)

    def poll(self, timeout_s: float) -> Delivery | OffsetLost | None:
        """See the port."""
        self.on_poll()
        failure = self._run_script()
        self._settle_commits()
        if failure is not None:
            raise failure
        if self.poll_error is not None:
            error, self.poll_error = self.poll_error, None
            raise error
        with self.cluster.changed:
            found = self._next()
            if found is None and timeout_s > 0 and not self._script:
                self.cluster.changed.wait(min(timeout_s, 0.01))
            return found

    def start(self, lease: Lease, offset: int) -> None:
        """See the port."""
        assert lease.partition in self.assigned, f"{lease.partition} is not ours"
        with self.cluster.changed:
            self._leases[lease.partition] = lease
            self._at[lease.partition] = offset
            self._handed_over.discard(lease.partition)
            self._lost_told.discard(lease.partition)
            self.paused.discard(lease.partition)
            if lease.partition in self.deaf:
                self.deaf[lease.partition] -= 1
                if self.deaf[lease.partition] < 0:
                    del self.deaf[lease.partition]
            self.cluster.changed.notify_all()

    def pause(self, partitions: Iterable[Partition]) -> None:
        """See the port."""
        self.paused.update(each for each in partitions if each in self._leases)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """See the port."""
        self.paused.difference_update(set(partitions))

    def position(self, partition: Partition) -> int | None:
        """See the port."""
        return self._at[partition] if partition in self._handed_over else None

    def lag(self) -> Mapping[Partition, int]:
        """See the port."""
        return {each: max(0, self.cluster.logs[each].end - at) for each, at in self._at.items()}

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port."""
        self._sent.append(dict(points))
        if self.closed:
            self._land()

    @property
    def commit_under_way(self) -> bool:
        """See the port."""
        return bool(self._sent)

    def commit_result(self) -> CommitResult | None:
        """See the port."""
        answer, self._answer = self._answer, None
        return answer

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """See the port."""
        if not self.hold_commits:
            self._land()
        nowhere = CommitPoint(-1)
        return all(self.cluster.committed.get(each, nowhere).offset >= point.offset for each, point in points.items())

    def close(self) -> None:
        """See the port."""
        if self.closed:
            return
        self.closed = True
        if self.assigned:
            self.revoke(*sorted(self.assigned))
        failure = self._run_script()
        self._land()
        if failure is not None:
            raise failure

    # --- inside ----------------------------------------------------------------------------------------------------

    def _run_script(self) -> Exception | None:
        """As librdkafka's callbacks: what escapes one is raised after all have run."""
        failure: Exception | None = None
        while self._script:
            what, partitions, done = self._script.popleft()
            try:
                self._tell(what, partitions)
            except Exception as error:
                failure = error
            if what != "assign":
                self.assigned.difference_update(partitions)
                for partition in partitions:
                    self._leases.pop(partition, None)
                    self._at.pop(partition, None)
                    self._handed_over.discard(partition)
            done.set()
        return failure

    def _tell(self, what: str, partitions: tuple[Partition, ...]) -> None:
        assert self._listener is not None
        if what == "assign":
            self.joined = True
            self.assigned.update(partitions)
            self._listener.on_assigned(partitions)
        elif what == "revoke":
            self._listener.on_revoked(partitions)
        else:
            self._listener.on_lost(partitions)

    def _answer_later(self, points: dict[Partition, CommitPoint]) -> None:
        """The answer to a commit that landed long ago comes now."""
        self._sent.clear()
        self._landed = 0
        self._answer = CommitResult(points, {})

    def _land(self) -> None:
        with self.cluster.changed:
            for points in list(self._sent)[self._landed :]:
                self._landed += 1
                if self.refuse_commits:
                    continue
                foreign = set(points) - self.assigned
                assert not foreign, f"a commit of {foreign}, which are another's"
                self.cluster.committed.update(points)
                self.cluster.commits.append(points)
            self.cluster.changed.notify_all()

    def _settle_commits(self) -> None:
        if self.hold_commits or not self._sent:
            return
        self._land()
        points = self._sent.popleft()
        self._landed -= 1
        refused = dict.fromkeys(points, "COORDINATOR_NOT_AVAILABLE") if self.refuse_commits else {}
        self._answer = CommitResult({} if refused else points, refused)

    def _next(self) -> Delivery | OffsetLost | None:
        for partition, lease in self._leases.items():
            if partition in self.paused or partition in self._lost_told or partition in self.deaf:
                continue
            log, at = self.cluster.logs.get(partition, FakeLog()), self._at[partition]
            if not log.start <= at <= log.end:
                self._lost_told.add(partition)
                return OffsetLost(partition)
            record = next((each for each in log.records if each.offset >= at), None)
            if record is not None:
                self._at[partition] = record.offset + 1
                self._handed_over.add(partition)
                return Delivery(lease, record.offset, record.value, record.key, received_s=self.clock.monotonic_s())
            if partition in self._handed_over:
                self._at[partition] = log.end  # past transaction markers
        return None


class FakeGroupView:
    """`ports.GroupView` on a `FakeCluster`. Clear `answering` to keep questions waiting; `reachable` off refuses."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.reachable = True
        self.answering = threading.Event()
        self.answering.set()
        self.asked = 0

    def cluster_id(self) -> str:
        """See the port."""
        self._ask()
        return "fake-cluster"

    def topics(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """See the port."""
        self._ask()
        return {name: self.cluster.topics[name] for name in names if name in self.cluster.topics}

    def committed(self, partitions: Sequence[Partition]) -> Mapping[Partition, CommitPoint]:
        """See the port."""
        self._ask()
        return {each: self.cluster.committed[each] for each in partitions if each in self.cluster.committed}

    def commit_while_empty(self, points: Mapping[Partition, CommitPoint]) -> bool:
        """See the port."""
        self._ask()
        if any(each.topic not in self.cluster.topics for each in points):
            raise BrokerUnreachable("a topic is not there any more")
        if not self.cluster.has_members:
            self.cluster.committed.update(points)
        return not self.cluster.has_members

    def offsets(self, partitions: Sequence[Partition], at: str | int) -> Mapping[Partition, int]:
        """See the port. Times are offsets here: record n was written at n ms."""
        self._ask()
        if not self.cluster.logs.keys() >= set(partitions):
            raise BrokerUnreachable("a partition is not there any more")
        found = {}
        for partition in partitions:
            log = self.cluster.logs[partition]
            if at == "earliest":
                found[partition] = log.start
            elif at in ("latest", "stable"):
                found[partition] = log.end
            else:
                found[partition] = next((each.offset for each in log.records if each.offset >= int(at)), log.end)
        return found

    def close(self) -> None:
        """See the port."""
        self.answering.set()

    def _ask(self) -> None:
        self.asked += 1
        assert self.answering.wait(5)
        if not self.reachable:
            raise BrokerUnreachable("switched off")


Done = Callable[[Exception | None], None]


class FakeSink:
    """`ports.ResultSink` in memory. `answers` decides each record's fate: None, an error, or `FakeSink.HOLD`, which
    keeps it under way until `answer`. Reports come from a thread of the sink's own."""

    HOLD = Exception("held")

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.handed_over: list[OutputRecord] = []
        """Every record, in the order of the calls, repeats included."""
        self.written: list[OutputRecord] = []
        """What readers see."""
        self.answers: Callable[[OutputRecord], Exception | None] = lambda _record: None
        self.under_way: list[tuple[OutputRecord, Done]] = []
        """Not reported on yet."""
        self.held: list[tuple[OutputRecord, Done]] = []
        """Those of them that wait for `answer`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fake-sink")

    def publish(self, record: OutputRecord, done: Done) -> None:
        """See the port."""
        with self.changed:
            self.handed_over.append(record)
            self.under_way.append((record, done))
            error = self.answers(record)
            if error is FakeSink.HOLD:
                self.held.append((record, done))
            self.changed.notify_all()
        if error is not FakeSink.HOLD:
            self._thread.submit(self._report, record, done, error)

    def answer(self, number: int = 0, error: Exception | None = None) -> None:
        """Report on the n-th record held; returns when its report was made."""
        with self.changed:
            record, done = self.held.pop(number)
        self._thread.submit(self._report, record, done, error).result(5)

    def close(self, timeout_s: float) -> int:
        """See the port."""
        with self.changed:
            self.changed.wait_for(lambda: not self.under_way, timeout_s)
            left = len(self.under_way)
        self._thread.shutdown(wait=True)
        return left

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
        """Until `condition`, looked at whenever something here changes."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), f"waited {timeout_s:g} s for {what}"

    def _report(self, record: OutputRecord, done: Done, error: Exception | None) -> None:
        if error is None:
            self.written.append(record)
        done(error)
        with self.changed:
            self.under_way.remove((record, done))
            self.changed.notify_all()


class FakeTransactionalSink(FakeSink):
    """`ports.ResultSink` and `ports.Transactions` on a `FakeCluster`. `written` is what read_committed readers see.

    `ends` decides how the next commits end: `commit`, `abort`, `lost` (nobody knows, and it was aborted) or `landed`
    (nobody knows, and it was committed). Clear `settling` to keep ends waiting.
    """

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.ends: deque[str] = deque()
        self.settling = threading.Event()
        self.settling.set()
        self.in_transaction: list[OutputRecord] = []
        self.undone: list[list[OutputRecord]] = []
        """What each transaction held that was not committed."""
        self._busy = False
        self._undos = 0
        self._answer: CommitResult | None = None
        self._ends_thread = ThreadPoolExecutor(1, thread_name_prefix="fake-transactions")
        self._broken: Exception | None = None

    def _report(self, record: OutputRecord, done: Done, error: Exception | None) -> None:
        if error is None and self._broken is None:
            self.in_transaction.append(record)
            done(None)
        elif isinstance(error, EventTooLarge) and error.args[-1:] == ("local",):
            done(error)
        else:
            broken = TransactionBroken(str(self._broken or error))
            broken.__cause__ = error
            self._broken = self._broken or error
            done(broken)
        with self.changed:
            self.under_way.remove((record, done))
            self.changed.notify_all()

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port."""
        assert not self.under_way, "a commit while records are under way"
        assert not self._busy
        self._busy = True
        self._ends_thread.submit(self._end, dict(points))

    @property
    def commit_under_way(self) -> bool:
        """See the port."""
        return self._busy or self._answer is not None

    def commit_result(self) -> CommitResult | None:
        """See the port."""
        answer, self._answer = self._answer, None
        return answer

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:
        """See the port."""
        del points
        with self.changed:
            assert self.changed.wait_for(lambda: not self._busy, timeout_s)
        return self._answer is None or not self._answer.undone

    @property
    def unresolved(self) -> bool:
        """See the port."""
        return self._undos > 0

    def undo(self) -> None:
        """See the port."""
        self._undos += 1
        self._ends_thread.submit(self._give_up)

    def _end(self, points: dict[Partition, CommitPoint]) -> None:
        assert self.settling.wait(8)
        how = self.ends.popleft() if self.ends else "commit"
        if how in ("commit", "landed"):
            with self.cluster.changed:
                for partition, point in points.items():
                    before = self.cluster.committed.get(partition, CommitPoint(0))
                    assert point.offset >= before.offset, f"{partition} goes back"
                self.cluster.committed.update(points)
                self.cluster.commits.append(points)
                self.written.extend(self.in_transaction)
                self.in_transaction.clear()
                self.cluster.changed.notify_all()
        else:
            self._drop()
        self._answer = CommitResult({}, {}, undone=how) if how != "commit" else CommitResult(points, {})
        with self.changed:
            self._busy = False
            self.changed.notify_all()

    def _give_up(self) -> None:
        assert self.settling.wait(8)
        self._drop()
        self._broken = None
        self._undos -= 1

    def _drop(self) -> None:
        while self.held:
            self.answer(error=OutputUnavailable("purged"))
        if self.in_transaction:
            self.undone.append(list(self.in_transaction))
        self.in_transaction.clear()


# --- images and models ---------------------------------------------------------------------------------------------


class FakeDecoder:
    """`ports.ImageDecoder` whose images are numbers: `b"7"` is uint8 [2, 2, 3] full of 7, declared as 4 x 4.

    `b"bad"` is no image, `b"crash"` brings out a defect. Clear `gate` to keep decoding waiting. `side` is that of the
    pixels.
    """

    def __init__(self, side: int = 2) -> None:
        self._side = side
        self.gate = threading.Event()
        self.gate.set()

    def measure(self, body: bytes) -> ImageHeader:
        """See the port."""
        if body == b"crash":
            raise ZeroDivisionError("a defect")
        if not body.isdigit():
            raise NotAnImage("not a number")
        return ImageHeader(4, 4, "PNG", decode_bytes=4 * 4 * 3)

    def open(self, body: bytes) -> OpenedImage:
        """See the port."""
        return OpenedImage(self.measure(body), partial(self.decode, body))

    def decode(self, body: bytes) -> Decoded:
        """See the port."""
        assert self.gate.wait(5)
        pixels = np.full((self._side, self._side, 3), int(body) % 256, np.uint8)
        return Decoded(pixels, ImageFacts(4, 4, "PNG", hashlib.sha256(body).hexdigest(), len(body)))


class FakeSandbox(FakeDecoder):
    """`ports.SandboxedDecoder`: a `FakeDecoder` that ends on `culprits`, and cannot be had while `missing`.

    `decoded` are the images that it was given, in order; `closed` counts.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__(side)
        self.culprits: set[bytes] = set()
        self.missing = False
        self.decoded: list[bytes] = []
        self.closed = 0

    def measure(self, body: bytes) -> ImageHeader:
        """See the port."""
        if self.missing:
            raise SandboxFailed("switched off")
        self.decoded.append(body)
        if body in self.culprits:
            raise DecoderCrashed("the decoder's process was ended by SIGSEGV")
        return super().measure(body)

    def close(self) -> None:
        """See the port."""
        self.closed += 1


class FakeRuntime:
    """`ports.ModelRuntime`: an image full of n has class n % 8, and the next one where n is in `others`. `poison` makes
    a batch fail, `not_numbers` gives NaN. Clear `gate` to keep a call waiting; `fatal` is raised whatever the images
    are. Versions have digests of their own."""

    info = ModelInfo("fake", "1", "sha256:" + "00" * 32, "fake", "f32")
    class_count = 8

    def __init__(self, version: str = "1", *, side: int = 2) -> None:
        self.info = replace(FakeRuntime.info, version=version, digest=fake_digest(version))
        self.input_size = (side, side)
        self.others: set[int] = set()
        self.closed = 0
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.poison: set[int] = set()
        self.not_numbers: set[int] = set()
        self.fatal: Exception | None = None
        self.calls: list[list[int]] = []
        """The pixel value of every slot of every call, padding included."""
        self.warmed: list[int] = []

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """See the port."""
        self.warmed += batch_sizes

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See the port."""
        values = [int(image[0, 0, 0]) for image in pixels]
        self.calls.append(values)
        self.running.set()
        assert self.gate.wait(10)
        if self.fatal is not None:
            raise self.fatal
        if self.poison.intersection(values):
            raise ValueError("poisoned")
        scores = np.zeros((len(values), self.class_count), np.float32)
        for row, value in enumerate(values):
            found = value + (value in self.others)
            scores[row, found % self.class_count] = np.nan if value in self.not_numbers else 1.0
        return scores

    def close(self) -> None:
        """See the port."""
        self.closed += 1


def fake_digest(version: str) -> str:
    """Of a `FakeRuntime` of this version."""
    return "sha256:" + f"{int(version) - 1:064x}"


def fake_serving(
    runtime: FakeRuntime,
    decoder: FakeDecoder | None = None,
    sandbox: FakeSandbox | None = None,
    *,
    clock: Clock | None = None,
) -> Serving:
    """A model over fakes: batches of up to four, one label."""
    side = runtime.input_size[0]
    labels = FakeLabels()
    return Serving(
        decoder=decoder or FakeDecoder(side),
        sandbox=sandbox or FakeSandbox(side),
        inference=Inference(runtime, labels, sizes=padded_sizes(4), top_k=1, min_score=0.5, clock=clock or FakeClock()),
        decodes_as=runtime.input_size,
    )


class FakeLabels:
    """`ports.Labels`: class-0, class-1, ..."""

    def __len__(self) -> int:
        return FakeRuntime.class_count

    def name(self, index: int) -> str:
        """See the port."""
        return f"class-{index}"


def fake_parse(delivery: Delivery) -> Parsed:
    """`ports.MessageParser`: a `fake://` URI, or the image itself; `b"malformed"` is neither, `b"skip"` asks for
    nothing. Several of these, with a bar between them, are the records of one message."""
    values = (delivery.value or b"").split(b"|")
    if len(values) == 1:
        return _fake_entry(delivery, values[0], 0)
    return Records(delivery, tuple(_fake_part(delivery, value, index) for index, value in enumerate(values)))


def _fake_part(message: Delivery, value: bytes, index: int) -> ImageJob | Rejected | Skipped:
    header = (ORIGIN_RECORD_INDEX, str(index).encode())
    part = replace(message, headers=(*message.headers, header), part_of=message)
    try:
        return _fake_entry(part, value, index)
    except MalformedMessage as error:
        return Rejected(part, error, "parse")


def _fake_entry(delivery: Delivery, value: bytes, index: int) -> ImageJob | Skipped:
    image_id = f"{delivery.partition}-{delivery.offset}"
    if value == b"skip":
        return Skipped(delivery, "removed")
    if value == b"malformed":
        raise MalformedMessage("malformed")
    if value.startswith(b"fake://"):
        return ImageJob(delivery, image_id, uri=value.decode(), record_index=index)
    return ImageJob(delivery, image_id, data=value, record_index=index)


class FakeRunTracker:
    """`ports.RunTracker` in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.images: list[tuple[bytes, dict[str, object]]] = []
        self.models: list[tuple[ModelInfo, str]] = []
        self.closed = False

    def figures(self, values: Mapping[str, float]) -> None:
        """See the port."""
        if not self.closed:
            self.rows.append(dict(values))

    def image(self, body: bytes, row: Mapping[str, object]) -> None:
        """See the port."""
        if not self.closed:
            self.images.append((body, dict(row)))

    def model(self, info: ModelInfo, source: str) -> None:
        """See the port."""
        if not self.closed:
            self.models.append((info, source))

    def close(self, timeout_s: float) -> None:
        """See the port."""
        del timeout_s
        self.closed = True
