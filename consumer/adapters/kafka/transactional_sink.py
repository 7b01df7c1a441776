"""Label events, dead letters and offsets in one transaction, on librdkafka.

Records go out by `publish`, as from `KafkaSink`; the first one opens a transaction. What ends it blocks, so it has a
thread of its own. Three things can come of it: it is committed; it is aborted; or nobody knows, and then the producer
is discarded and a new one of the same `transactional.id` settles it: `init_transactions` fences the old one off,
completes what was prepared and aborts the rest. Only then do the group's committed offsets say what holds.

A fatal error of the producer is raised by whatever call into it comes next, in whichever thread, and delivery reports
that this call had in hand are lost with it: then nobody but this file can tell the owner.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from loguru import logger

from consumer.adapters.kafka.sink import CALL_ERRORS, Done, hand_over
from consumer.adapters.kafka.translate import authentication_error, delivery_error
from consumer.adapters.librdkafka import PRODUCER_FENCED, denied_by
from consumer.errors import (
    EventTooLarge,
    Fatal,
    NotAuthorized,
    SettingsError,
    Stalled,
    TransactionBroken,
    TransactionFenced,
)
from consumer.log import rate_limited
from consumer.messages import CommitPoint, OutputRecord, Partition
from consumer.ports import Clock, CommitResult

_CALL_S = 5.0
"""For one call into librdkafka; it is repeated where that is allowed."""
_STUCK_S = 15.0
"""A call that has not come back for so long may never do: `send_offsets_to_transaction` ignores its time-out for as
long as the group's coordinator cannot be reached (librdkafka#5456, #5511). It cannot be cancelled."""
_SURE_S = 2.0
"""... and has not come back in this time of ours either: a process that was stopped finds its clock far ahead."""
_END_S = 30.0
"""For all calls that end one transaction; past it nobody knows how it ended."""
_TRY_AGAIN_S = 0.5
_MOST_FENCED = 10
_FENCED_WINDOW_S = 600.0
_NOT_AUTHORIZED = frozenset({KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
_OFFSETS_NOT_AUTHORIZED = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED})


class _MustAbort(Exception):
    """The transaction failed as a whole, and that is certain."""


class _Unknown(Exception):
    """Nobody knows how it ended, or this producer is of no more use."""


class TransactionalSink:
    """See `ports.ResultSink` and `ports.Transactions`. `properties` are librdkafka's, complete. `publish` is called by
    one thread, the committer's methods by another."""

    def __init__(
        self, properties: Mapping[str, Any], *, group_metadata: Callable[[], Any], shared_id: bool, clock: Clock
    ) -> None:
        """`group_metadata` tells who we are in the group (KIP-447). With `shared_id` the `transactional.id` is one that
        another replica may have been given by mistake: being fenced again and again is then an error."""
        self._properties = dict(properties)
        self._group_metadata = group_metadata
        self._shared_id = shared_id
        self._clock = clock
        self._lock = threading.Lock()
        self._overflow: deque[tuple[OutputRecord, Done]] = deque()
        self._open = False
        """Whether a transaction is; begun by the first record or by the commit of offsets alone."""
        self._broken: Exception | None = None
        self._unwritten: set[str] = set()
        """The topics of the open transaction's records that were not written."""
        self._number = 0
        """Of the transaction: what is reported of an older one's records says nothing of this."""
        self._calling_since_s: float | None = None
        self._stuck = (0.0, 0.0)
        """The call that seems to be, by when it began, and since when it seems so."""
        self._silent = ""
        """Why reports may be missing, where they may."""
        self._answer: CommitResult | None = None
        self._failure: Fatal | None = None
        self._busy = False
        self._unresolved = True
        self._undos_asked = 0  # written by the owner alone
        self._undos_done = 0  # written by the transactions' thread alone
        self._changed = threading.Condition()
        self._fenced_s: deque[float] = deque()
        self._log_in_refused: NotAuthorized | None = None
        self._closing = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._work.put(self._introduce)
        self._producer = self._new_producer()
        self._reports = threading.Thread(target=self._serve_reports, name="delivery-reports", daemon=True)
        self._reports.start()
        self._thread = threading.Thread(target=self._run, name="transactions", daemon=True)
        self._thread.start()

    # --- records ----------------------------------------------------------------------------------------------------

    def publish(self, record: OutputRecord, done: Done) -> None:
        """See the port. `TransactionBroken` stands for all that a plain sink would report, but for a record that is too
        large for our own producer: that one never entered the transaction."""
        with self._lock:
            if self._broken is None and not self._open:
                self._begin()
            if self._broken is not None:
                done(TransactionBroken(str(self._broken)))  # of no record's own
            elif self._overflow or not self._produce(record, done):
                self._overflow.append((record, done))

    def close(self, timeout_s: float) -> int:
        """See the port. What is open is aborted: readers would wait for its time-out."""
        left = 0
        if not self._closing.is_set():
            self._closing.set()
            self._work.put(None)
            self._thread.join(timeout=timeout_s)
            left = len(self._producer) + len(self._overflow)
            if self._open and not self._thread.is_alive():
                self._abort_at_close(timeout_s)
        self._reports.join(timeout=5)
        return left

    def _abort_at_close(self, timeout_s: float) -> None:
        try:
            self._producer.purge()
            self._producer.abort_transaction(timeout_s)
        except CALL_ERRORS as error:
            logger.warning("the last transaction is not aborted, readers wait until it times out: {}", error)

    def _begin(self) -> None:
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            self._broken = error
        else:
            self._open = True

    def _produce(self, record: OutputRecord, done: Done) -> bool:
        """False where librdkafka's queue is full: the record waits its turn."""
        try:
            return hand_over(self._producer, record, self._reporter(record.topic, done))
        except KafkaException as error:
            told = delivery_error(error.args[0], record.topic)
            if isinstance(told, EventTooLarge):
                done(told)
            else:
                self._broken = told
                done(_broken(told))
            return True

    def _reporter(self, topic: str, done: Done) -> Callable[[KafkaError | None, Message], None]:
        number = self._number

        def report(error: KafkaError | None, _message: Message) -> None:
            try:
                if error is None:
                    done(None)
                    return
                told = delivery_error(error, topic)
                if number == self._number:
                    self._unwritten.add(topic)
                    self._broken = self._broken or told
                done(_broken(told))
            except Exception as failure:  # nothing may escape a callback
                logger.opt(exception=failure).error("a delivery report could not be handled")
                self._broken = self._broken or failure
                self._silent = str(failure)

        return report

    def _serve_reports(self) -> None:
        try:
            self._poll_for_reports()
        except Exception as error:
            logger.opt(exception=error).error("delivery reports end")
            self._failure = Fatal(f"delivery reports cannot go on: {error}", remedy="start the replica again")

    def _poll_for_reports(self) -> None:
        while not (self._closing.is_set() and not self._thread.is_alive()):
            try:
                self._producer.poll(0.1)
            except CALL_ERRORS as error:
                with self._lock:
                    self._broken = self._broken or error
                    self._silent = str(error)
                self._closing.wait(0.1)  # a dead producer says so at once, until it is replaced
            if self._overflow:
                with self._lock:
                    while self._overflow and self._produce(*self._overflow[0]):
                        self._overflow.popleft()

    # --- for the owner ----------------------------------------------------------------------------------------------

    def commit(self, points: Mapping[Partition, CommitPoint]) -> None:
        """See the port.

        Who we are is asked here, by the thread that hears of rebalances: asked later, it could be who we became after
        these partitions were lost, and the coordinator would take their offsets.
        """
        self._busy = True
        me = self._group_metadata()
        self._work.put(lambda: self._end_and_tell(points, me))

    @property
    def commit_under_way(self) -> bool:
        """See the port. Until its answer has been read."""
        return self._busy or self._answer is not None

    def commit_result(self) -> CommitResult | None:
        """See the port.

        Raises:
            TransactionFenced, NotAuthorized, SettingsError: nothing can be committed any more.
            Stalled: librdkafka does not come back from a call.
        """
        if self._failure is not None:
            raise self._failure
        self._check_call()
        answer, self._answer = self._answer, None
        if answer is None and self._silent and not self._busy and not self.unresolved:
            return CommitResult({}, {}, undone=self._silent)
        return answer

    def _check_call(self) -> None:
        since_s, now_s = self._calling_since_s, self._clock.monotonic_s()
        if since_s is None or now_s - since_s < _STUCK_S:
            return
        if self._stuck[0] != since_s:
            self._stuck = since_s, now_s
        elif now_s - self._stuck[1] > _SURE_S:
            raise Stalled(
                f"a call of librdkafka about a transaction, given {_CALL_S:g} s, has not come back for "
                f"{now_s - since_s:.0f} s",
                remedy="start again, as a supervisor does: the broker undoes what was open, and it is done again",
            )

    def confirm_commit(self, points: Mapping[Partition, CommitPoint], timeout_s: float) -> bool:  # noqa: ARG002
        """See the port. It holds, or holds not, as a whole."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._busy, timeout_s):
                return False
        return self._failure is None and (self._answer is None or not self._answer.undone)

    @property
    def unresolved(self) -> bool:
        """See the port."""
        return self._unresolved or self._undos_done != self._undos_asked

    def undo(self) -> None:
        """See the port."""
        self._undos_asked += 1
        self._work.put(self._give_up)

    # --- the thread of transactions ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            self._noting_failure(work)

    def _noting_failure(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Fatal as error:
            self._failure = error
        except Exception as error:
            logger.opt(exception=error).error("a transaction failed")
            self._failure = Fatal(f"transactions cannot go on: {error}", remedy="start the replica again")

    def _end_and_tell(self, points: Mapping[Partition, CommitPoint], me: Any) -> None:
        try:
            self._noting_failure(lambda: self._end(points, me))
        finally:
            with self._changed:
                self._busy = False  # by no other work: a commit may be sent while that ends
                self._changed.notify_all()

    def _end(self, points: Mapping[Partition, CommitPoint], me: Any) -> None:
        undone = ""
        try:
            self._must_be_open(me)
            offsets = [TopicPartition(*partition, point.offset, point.metadata) for partition, point in points.items()]
            self._retrying(lambda: self._producer.send_offsets_to_transaction(offsets, me, _CALL_S))
            self._retrying(lambda: self._producer.commit_transaction(_CALL_S))
        except _MustAbort as error:
            undone = str(error)
            self._unresolved = True
            self._abort()
        except _Unknown as error:
            undone = str(error)
            self._unresolved = True
            self._recover()
        else:
            self._settled()
        self._answer = CommitResult({} if undone else dict(points), {}, undone=undone)

    def _must_be_open(self, me: Any) -> None:
        if me is None:
            raise _MustAbort("we are no member of the group any more")
        with self._lock:
            if not self._open and self._broken is None:
                self._begin()  # there are offsets alone to commit
            if self._broken is not None:
                raise _MustAbort(str(self._broken))

    def _give_up(self) -> None:
        if self._open or self._broken is not None:
            self._abort()
        self._undos_done += 1

    def _abort(self) -> None:
        if not self._open:  # none could be begun: the producer is of no more use
            self._recover()
            return
        try:
            with self._lock:
                self._overflow.clear()
            # A report of this transaction may else be taken for the next one's: librdkafka#4849.
            self._retrying(lambda: self._producer.flush(_CALL_S))
            if self._broken is not None:
                self._ask_why()
            self._retrying(lambda: self._producer.abort_transaction(_CALL_S))
        except (_MustAbort, _Unknown):
            self._recover()
        else:
            self._settled()

    def _ask_why(self) -> None:
        """Why the open transaction failed: reports say no more than that records were purged, and librdkafka tells it
        to who wants to begin another one, which does nothing while one is open.

        Raises:
            NotAuthorized, SettingsError: no patience mends it.
        """
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            why: KafkaError = error.args[0]
            if why.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise delivery_error(why, " or ".join(sorted(self._unwritten))) from error
            refusal = self._refusal(why)
            if refusal is not None:
                raise refusal from error
        except SystemError:
            return  # the abort finds it

    def _recover(self) -> None:
        """A new producer; all that the older one of its name left open is settled. However long that takes."""
        self._replace()
        self._introduce()

    def _introduce(self) -> None:
        while not self._closing.is_set():
            try:
                self._retrying(lambda: self._producer.init_transactions(_CALL_S))
            except (_MustAbort, _Unknown) as error:
                if self._log_in_refused is not None:
                    raise self._log_in_refused from error
                rate_limited("init transactions").warning("waiting for the transaction coordinator: {}", error)
                self._closing.wait(_TRY_AGAIN_S)
                self._replace()
            else:
                self._settled()
                return

    def _replace(self) -> None:
        with self._lock:
            self._overflow.clear()
            old, self._producer = self._producer, self._new_producer()
        with suppress(*CALL_ERRORS):
            old.purge()
            old.flush(1)

    def _settled(self) -> None:
        self._number += 1
        self._open = False
        self._broken = None
        self._unwritten.clear()
        self._silent = ""
        self._log_in_refused = None
        self._unresolved = False

    def _retrying(self, call: Callable[[], object]) -> None:
        """Call, and again while librdkafka says that the same call may be repeated.

        Raises:
            _MustAbort, _Unknown, TransactionFenced, NotAuthorized.
        """
        deadline_s = self._clock.monotonic_s() + _END_S
        while True:
            self._calling_since_s = self._clock.monotonic_s()
            try:
                call()
            except SystemError as error:  # of two calls that meet one fatal error
                raise _Unknown(str(error)) from error
            except KafkaException as error:
                found: KafkaError = error.args[0]
                if not found.retriable() or self._clock.monotonic_s() >= deadline_s or self._closing.is_set():
                    raise self._classified(found) from error
                self._closing.wait(0.02)
            else:
                return
            finally:
                self._calling_since_s = None

    def _classified(self, error: KafkaError) -> Exception:
        if error.code() in PRODUCER_FENCED:
            return self._fenced(error)
        refusal = self._refusal(error)
        if refusal is not None:
            return refusal
        return _MustAbort(error.str()) if error.txn_requires_abort() else _Unknown(error.str())

    def _refusal(self, error: KafkaError) -> Fatal | None:
        """What no patience mends."""
        if error.code() in _NOT_AUTHORIZED:
            return NotAuthorized(
                f"the broker refuses transactions of {self._properties['transactional.id']}: {error.str()}",
                remedy="Write on it is needed; `ouzel topics acls` prints the commands",
                denied=denied_by(error),
            )
        if error.code() in _OFFSETS_NOT_AUTHORIZED:
            return NotAuthorized(
                f"the broker refuses the group's offsets: {error.str()}",
                remedy="Read on the group and on the input topics is needed; `ouzel doctor` shows what is missing",
                denied=denied_by(error),
            )
        if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            return SettingsError(
                f"the broker allows no transaction of {self._properties['transaction.timeout.ms']} ms: {error.str()}",
                remedy="lower transaction.timeout_ms, or raise transaction.max.timeout.ms of the brokers",
            )
        if error.code() in (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION):
            return SettingsError(
                f"the broker has no transactions: {error.str()}",
                remedy='brokers from 2.5 have all that is needed; else delivery.guarantee = "at_least_once"',
            )
        return None

    def _fenced(self, error: KafkaError) -> Exception:
        """By the broker, as we stood still for longer than the transaction may, or by another replica of our name."""
        now_s = self._clock.monotonic_s()
        self._fenced_s.append(now_s)
        while self._fenced_s[0] < now_s - _FENCED_WINDOW_S:
            self._fenced_s.popleft()
        if self._shared_id and len(self._fenced_s) >= _MOST_FENCED:
            return TransactionFenced(
                f"fenced {len(self._fenced_s)} times in ten minutes: another replica uses the transactional.id "
                f"{self._properties['transactional.id']}",
                remedy="give each replica its own transaction.id, for example with {hostname}, or leave it empty; if "
                "each has one, they stand still for longer than transaction.timeout_ms",
            )
        return _Unknown(f"fenced: {error.str()}")

    def _new_producer(self) -> Producer:
        return Producer({**self._properties, "error_cb": self._on_client_error}, logger=logging.getLogger("kafka"))

    def _on_client_error(self, error: KafkaError) -> None:
        self._log_in_refused = authentication_error(error) or self._log_in_refused
        rate_limited(f"producer {error.name()}").bind(code=error.name()).warning("kafka producer: {}", error.str())


def _broken(cause: Exception) -> TransactionBroken:
    broken = TransactionBroken(str(cause))
    broken.__cause__ = cause
    return broken
