"""`ouzel run` that kills itself, or gets slow, at a named point. Only tests start it; the product has no such code.

OUZEL_TEST_CRASH_AT=point:count    SIGKILL at the count-th passing of
    fetched         an image's bytes are here (references only)
    decoded         its pixels are here
    predicted       the model has answered
    produced        a record was handed to the producer
    delivered       the broker has acknowledged a record, and nobody was told yet
    before-commit   an offset commit, or a share group's acknowledgements, are about to be sent
    after-commit    they were sent
    offsets-sent    a transaction has its offsets, and is not committed
    ended           a transaction is committed, and nobody was told yet
OUZEL_TEST_SLOW_MODEL_S=seconds    each batch takes so much longer
OUZEL_TEST_FREEZE_OWNER=count:seconds   the thread that owns the consumer stands still once, at its count-th message
OUZEL_TEST_HANG_MODEL=count        the model's count-th batch never comes back
OUZEL_TEST_RELABEL=from until      what `--from` and `--until` say; the group is that of the settings
OUZEL_TEST_BUG=commit-taken        a seeded bug: each commit says that everything taken is finished
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from confluent_kafka import Producer

from consumer.adapters.kafka import transactional_sink
from consumer.adapters.kafka.share_source import KafkaShareSource
from consumer.bootstrap import Ports
from consumer.errors import Fatal
from consumer.messages import CommitPoint, Delivery, OpenedImage, Partition
from consumer.service import end_service, run_service
from consumer.settings import load


def end_process() -> None:
    """SIGKILL, and wait for it."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class CrashPoint:
    """Counts the passings of all points; at the chosen one the process ends, or does what `then` says."""

    def __init__(self, chosen: str, then: Callable[[], object] = end_process) -> None:
        self._point, _, count = chosen.partition(":")
        self._left = int(count or 1)
        self._then = then
        self._lock = threading.Lock()

    def passed(self, point: str) -> None:
        """Never returns from the last passing."""
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._then()


class Wrapped:
    """Anything, with some of its methods replaced."""

    def __init__(self, inner: Any, **methods: Callable[..., Any]) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def after(method: Callable[..., Any], passed: Callable[[], None]) -> Callable[..., Any]:
    """The method, with a point behind it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        passed()
        return result

    return call


def before(method: Callable[..., Any], passed: Callable[[], None]) -> Callable[..., Any]:
    """The method, with a point before it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        passed()
        return method(*args, **kwargs)

    return call


class Points(Protocol):
    """Who is told of each passing of a point."""

    def passed(self, point: str) -> None: ...


def with_crash_points(ports: Ports, *, crash: Points | None = None, slow_s: Callable[[], float] | None = None) -> Ports:
    """Puts the points between the service and its ports. `crash` and `slow_s` replace what the environment says."""
    crash = crash or CrashPoint(os.environ.get("OUZEL_TEST_CRASH_AT", "nowhere:1"))
    hang = CrashPoint(f"hang:{os.environ.get('OUZEL_TEST_HANG_MODEL', '0')}", then=threading.Event().wait)
    always_slow_s = float(os.environ.get("OUZEL_TEST_SLOW_MODEL_S", "0"))

    def at(point: str) -> Callable[[], None]:
        return lambda: crash.passed(point)

    def publish(record: Any, done: Callable[[Exception | None], None]) -> None:
        def delivered(error: Exception | None) -> None:
            if error is None:
                crash.passed("delivered")
            done(error)

        ports.sink.publish(record, delivered)
        crash.passed("produced")

    def infer(pixels: Any) -> Any:
        if not pixels.any():  # blank: the service learns at its start what a batch costs
            return ports.model.runtime.infer(pixels)
        time.sleep(always_slow_s if slow_s is None else slow_s())
        hang.passed("hang")
        scores = ports.model.runtime.infer(pixels)
        crash.passed("predicted")
        return scores

    def opened(body: bytes) -> OpenedImage:
        image = decoder.open(body)
        return replace(image, decode=after(image.decode, at("decoded")))

    source: Any = ports.source
    if os.environ.get("OUZEL_TEST_BUG") == "commit-taken":
        source = _committing_what_was_taken(source)
    if isinstance(source, KafkaShareSource):  # its members accept instead
        for member in source.members:
            accept = after(before(member.accept, at("before-commit")), at("after-commit"))
            vars(member).update(accept=accept)
    else:
        commit = after(before(source.commit, at("before-commit")), at("after-commit"))
        source = Wrapped(source, commit=commit, poll=_freezing(source.poll))
    transactions: Any = ports.transactions
    if transactions is not None:
        ends = after(before(transactions.commit, at("before-commit")), at("after-commit"))
        transactions = Wrapped(transactions, commit=ends)
        _in_transactions.append(crash)
    decoder, runtime = ports.model.decoder, ports.model.runtime
    wrapped: Any = Wrapped
    return replace(
        ports,
        source=source,
        sink=wrapped(ports.sink, publish=publish),
        transactions=transactions,
        stores=[wrapped(store, fetch=after(store.fetch, at("fetched"))) for store in ports.stores],
        model=replace(
            ports.model,
            decoder=wrapped(decoder, open=opened),
            runtime=wrapped(runtime, infer=infer),
        ),
    )


_in_transactions: list[Points] = []


class CrashingProducer(Producer):
    """With the points that lie within a transaction's end."""

    def commit_transaction(self, *timeout: float) -> None:
        """See there."""
        for crash in _in_transactions:
            crash.passed("offsets-sent")
        super().commit_transaction(*timeout)
        for crash in _in_transactions:
            crash.passed("ended")


def _committing_what_was_taken(source: Any) -> Any:
    """The bug that I2 forbids: the newest offset taken is committed, whatever became of it."""
    taken: dict[Partition, int] = {}

    def poll(timeout_s: float) -> Any:
        found = source.poll(timeout_s)
        if isinstance(found, Delivery):
            taken[found.partition] = found.offset + 1
        return found

    def commit(points: Mapping[Partition, CommitPoint]) -> None:
        source.commit(
            {each: CommitPoint(taken.get(each, point.offset), point.metadata) for each, point in points.items()}
        )

    return Wrapped(source, poll=poll, commit=commit)


def _freezing(poll: Callable[..., Any]) -> Callable[..., Any]:
    count, _, seconds = os.environ.get("OUZEL_TEST_FREEZE_OWNER", "0:0").partition(":")
    left = int(count)

    def call(timeout_s: float) -> Any:
        nonlocal left
        found = poll(timeout_s)
        if found is not None:
            left -= 1
            if left == 0:
                time.sleep(float(seconds))
        return found

    return call


def main() -> None:
    """What `ouzel run` does."""
    from consumer.commands._range import range_of

    transactional_sink.Producer = CrashingProducer  # type: ignore[attr-defined]
    asked = os.environ.get("OUZEL_TEST_RELABEL", "").split()
    relabel = range_of(*asked, now_ms=time.time_ns() // 1_000_000) if asked else None
    try:
        run_service(load(), resume="--resume" in sys.argv, relabel=relabel, wrap=with_crash_points)
    except Fatal as error:
        end_service(error)
    end_service()


if __name__ == "__main__":
    main()
