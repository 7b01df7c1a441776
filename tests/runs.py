"""One run under watch: what is sent, what comes of it, and the verdict.

with Run(kafka, topics, tmp_path) as run, Replica(kafka, topics) as replica:
    replica.start().wait_ready()
    run.send(run.photographs(1000, photographs))
    replica.kill9()
    replica.start()
    run.healed(within_s=60)
    run.assert_all_promises_kept()
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.history import Line, Recorder, SentInput, Summary, base64_or_none, load, sha256_or_none, summarize, verify
from tests.kafka_broker import Cluster
from tests.kafka_clients import Headers, read_to_end, stable_and_high
from tests.observer import Observer, topic_ids
from tests.processes import wait_until
from tests.replica import TopicNames


@dataclass(frozen=True, slots=True)
class Input:
    """A message to send. `image_id` is what its label event must say; None where the service makes the id itself."""

    value: bytes | None = field(repr=False)
    key: bytes | None = None
    image_id: str | None = None
    headers: Headers = field(default_factory=list)
    partition: int | None = None


def inline_image(image_id: str, body: bytes, **more: Any) -> bytes:
    """An `image-reference` with the image in it."""
    return json.dumps({"image_id": image_id, "data": base64.b64encode(body).decode(), **more}).encode()


def referenced_image(image_id: str, path: Path, **more: Any) -> bytes:
    """An `image-reference` to a file; the replica needs its folder in OUZEL_STORES__FILE__ROOTS."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return json.dumps({"image_id": image_id, "uri": path.as_uri(), "sha256": sha256, **more}).encode()


_STORY_BEFORE, _STORY_AFTER = 10, 40


def _story(history: Path, line: int) -> str:
    """What was seen around a line of a history, each thing cut: the file itself goes with the test's folder."""
    lines = history.read_text().splitlines()
    first = max(0, line - _STORY_BEFORE)
    return "\n".join(f"{first + n}: {text[:400]}" for n, text in enumerate(lines[first : line + _STORY_AFTER]))


class Run:
    """Sends, watches and judges. Its history is `folder/history.jsonl`. `share`: the replicas read a share group; `lag`
    asks the broker for its lag."""

    def __init__(
        self,
        cluster: Cluster,
        topics: TopicNames,
        folder: Path,
        *,
        share: bool = False,
        lag: Callable[[], Mapping[tuple[str, int], int]] | None = None,
    ) -> None:
        self._share = share
        self._cluster = cluster
        self._topics = topics
        self.history_path = folder / "history.jsonl"
        self.recorder = Recorder(self.history_path)
        self.observer = Observer(
            cluster,
            self.recorder,
            group=topics.group,
            images=[topics.images],
            predictions=topics.predictions,
            dead_letters=topics.dead_letters,
            share=share,
            lag=lag,
        )
        self._numbers = count()
        self.sent = 0
        """Acknowledged inputs so far, tombstones and all."""
        self.owed = 0
        """Those of them that must be answered: not the tombstones."""

    # --- inputs -----------------------------------------------------------------------------------------------------

    def photographs(
        self, how_many: int, paths: Sequence[Path], *, keys: int = 20, by_reference: bool = False
    ) -> Iterator[Input]:
        """Messages with one photograph each, taken in turn, under so many keys (0: without a key)."""
        bodies = [path.read_bytes() for path in paths]
        for _ in range(how_many):
            number = next(self._numbers)
            image_id = f"image-{number:06d}"
            which = number % len(paths)
            value = referenced_image(image_id, paths[which]) if by_reference else inline_image(image_id, bodies[which])
            yield Input(value, key=b"key-%d" % (number % keys) if keys else None, image_id=image_id)

    def send(self, inputs: Iterable[Input], *, timeout_s: float = 60, **producer: Any) -> list[SentInput]:
        """Send, wait for the acknowledgements, and write both kinds down: acknowledged, and never heard of."""
        ids = topic_ids(self._cluster, [self._topics.images])
        topic_id = ids[self._topics.images]
        lines: list[SentInput] = []
        placeless: list[Input] = []
        properties = {"partitioner": "murmur2_random", "linger_ms": 5, "enable_idempotence": True} | producer
        client = Producer(self._cluster.client_properties(**properties))
        for message in inputs:

            def done(error: KafkaError | None, record: Message, message: Input = message) -> None:
                if error is None and record.offset() is None:
                    placeless.append(message)  # a retry was told "duplicate": it is written, and nobody says where
                    return
                lines.append(self._line(message, topic_id, None if error is not None else record))

            where: Any = {} if message.partition is None else {"partition": message.partition}
            while True:
                try:
                    client.produce(
                        self._topics.images,
                        value=message.value,
                        key=message.key,
                        headers=message.headers,
                        on_delivery=done,
                        **where,
                    )
                    break
                except BufferError:
                    client.poll(0.1)
                except KafkaException as error:
                    if not error.args[0].fatal() and error.args[0].code() != KafkaError._FATAL:
                        raise
                    client.purge()  # what it had in hand is reported as never heard of
                    client.flush(5)
                    client = Producer(self._cluster.client_properties(**properties))
            client.poll(0)
        left = client.flush(timeout_s)
        assert left == 0, f"{left} inputs were neither acknowledged nor given up within {timeout_s} s"
        if placeless:
            known = {(line.partition, line.offset) for line in lines}
            found = [
                record
                for record in read_to_end(self._cluster, self._topics.images)
                if (record.partition(), record.offset()) not in known
            ]
            for message in placeless:
                match = next(
                    record for record in found if (record.key(), record.value()) == (message.key, message.value)
                )
                found.remove(match)
                lines.append(self._line(message, topic_id, match))
        return lines

    def _line(self, message: Input, topic_id: str, record: Message | None) -> SentInput:
        line = SentInput(
            topic=self._topics.images,
            topic_id=topic_id,
            partition=-1 if record is None else record.partition() or 0,
            offset=-1 if record is None else record.offset() or 0,
            key=base64_or_none(message.key),
            image_id=message.image_id,
            sha256=sha256_or_none(message.value),
            acknowledged=record is not None,
        )
        self.recorder.sent(line)
        self.sent += line.acknowledged
        self.owed += not line.owes_nothing
        return line

    @contextmanager
    def sending(self, paths: Sequence[Path], *, per_second: int, keys: int = 20, **producer: Any) -> Iterator[None]:
        """Sends photographs all the while, from a thread, at about this rate."""
        stopping = threading.Event()
        broken: list[BaseException] = []

        def paced() -> Iterator[Input]:
            begun_s = time.monotonic()
            sent = 0
            while not stopping.is_set():
                due = int((time.monotonic() - begun_s) * per_second)
                yield from self.photographs(max(0, due - sent), paths, keys=keys)
                sent = max(sent, due)
                stopping.wait(0.02)

        def work() -> None:
            try:
                self.send(paced(), **producer)
            except BaseException as error:
                broken.append(error)

        thread = threading.Thread(target=work, name="sender", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join(120)
        if broken:
            raise broken[0]

    # --- the verdict ------------------------------------------------------------------------------------------------

    def healed(self, *, within_s: float = 60) -> None:
        """Nothing more is sent and no fault is left: waits for the lag to be zero, which `within_s` holds to (I6); of a
        share group, whose lag nobody can ask for, until all inputs are answered."""
        if self._share:
            self.observer.wait_answered(self.sent, timeout_s=within_s)
            return
        self.recorder.healed(within_s=within_s)
        self.observer.wait_no_lag(timeout_s=within_s)
        self._wait_until_all_is_seen()

    def _wait_until_all_is_seen(self) -> None:
        """Offsets that a transaction committed are seen before its events, where an older transaction of the output is
        still open: that of a replica that was killed ends by its time-out."""

        def nothing_hangs() -> bool:
            stable, high = stable_and_high(self._cluster, (self._topics.predictions, self._topics.dead_letters))
            return stable == high

        wait_until(nothing_hangs, timeout_s=60, what="the last stable offsets to reach the ends (I5)")
        self.observer.wait_round()

    def assert_all_promises_kept(self, *, exactly_once: bool = False, zombies: bool = False) -> Summary:
        """Stop watching and judge the whole run. The summary has the duplicates, for tests that bound them."""
        self.observer.stop()
        history = self.history()
        found = verify(history, exactly_once=exactly_once, zombies=zombies, share=self._share)
        summary = summarize(history)
        listed = "\n".join(str(violation) for violation in found[:20])
        story = _story(self.history_path, found[0].at_line) if found else ""
        assert found == [], f"{len(found)} broken promises ({summary}):\n{listed}\n--- the history there\n{story}"
        return summary

    def history(self) -> list[Line]:
        """The whole history, once nothing more comes.

        What lies in the topic is an input, though its sender knows of one copy: a broker that is killed can forget
        what an idempotent producer sent it, and take the retry as new (librdkafka #4953). Read only where answers ask
        for it; an answer to a place that holds nothing of ours stays a phantom.
        """
        history = load(self.history_path)
        if not any(violation.promise == "phantom" for violation in verify(history, final=False)):
            return history
        sent = [line for line in history if line["kind"] == "sent"]
        places = {(line["topic_id"], line["partition"], line["offset"]) for line in sent}
        by_content = {(line["key"], line["sha256"]): line for line in sent}
        topic_id = topic_ids(self._cluster, [self._topics.images])[self._topics.images]
        retried = [
            line | {"topic_id": topic_id, "partition": record.partition(), "offset": record.offset()}
            for record in read_to_end(self._cluster, self._topics.images)
            if (topic_id, record.partition(), record.offset()) not in places
            and (line := by_content.get((base64_or_none(record.key()), sha256_or_none(record.value()))))
        ]
        return [*history, *retried]

    def __enter__(self) -> Self:
        self.observer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.observer.stop()
        except (AssertionError, RuntimeError):
            if error is None:
                raise
        finally:
            self.recorder.close()
