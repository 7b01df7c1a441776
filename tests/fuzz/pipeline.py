"""`make hostile`: a real broker, the real service, and hostile messages among good ones.

    python -m tests.fuzz.pipeline --good 10000 --bad 10000 --seed 1

Every good message must have its label event, every hostile one its dead letter, once, and nothing else may be written;
everything is committed, and the replica is well and ends cleanly. Exits 1 where that is not so.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumer import headers as names
from tests.answers import Group
from tests.fuzz import corpus, hostile
from tests.fuzz.hostile import Message, Messages, Places
from tests.kafka_broker import Cluster, KafkaBroker
from tests.kafka_clients import Headers, end_offsets, unique
from tests.replica import Replica, TopicNames
from tests.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server, running_server
from tests.uri_tricks import ALLOWED

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 50_000_000
STANDSTILL_S = 120.0
"""Time without an answer after which the replica is given up."""
IMAGES_CONFIG = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
LETTERS_CONFIG = {"max.message.bytes": str(MAX_MESSAGE_BYTES + 64 * 1024)}
LIMIT_SET_ASIDE = {
    "OUZEL_DEAD_LETTERS__MIN_SAMPLE": "1000000000",
    "OUZEL_DEAD_LETTERS__SYSTEM_CONSECUTIVE": "1000000000",
}
_Place = tuple[int, int]  # partition and offset of an input


@dataclass(slots=True)
class Came:
    """What came of one input."""

    events: list[tuple[str, str, int]] = field(default_factory=list)
    """(image id, SHA-256 of the image, number of labels) of each."""
    letters: list[tuple[str, bytes | None, str | None, Headers]] = field(default_factory=list)
    """(class of the error, key, SHA-256 of the value, headers) of each."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message without its bytes."""

    message: Message
    value_sha256: str | None


class Ledger:
    """What was sent, what came of it, and the verdict."""

    def __init__(self) -> None:
        self.sent: dict[_Place, Sent] = {}
        self.came: dict[_Place, Came] = defaultdict(Came)
        self.stray: list[str] = []
        """Records that name no input."""
        self.answers = 0

    def note_sent(self, place: _Place, message: Message) -> None:
        """It was acknowledged there. Its bytes are not kept."""
        lean = Message(**{name: getattr(message, name) for name in Message.__slots__ if name != "value"}, value=None)
        self.sent[place] = Sent(lean, None if message.value is None else _sha256(message.value))

    def note_event(self, place: _Place, event: Mapping[str, Any]) -> None:
        """A label event of that input."""
        self.answers += 1
        self.came[place].events.append((event["image_id"], event["image"]["sha256"], len(event["labels"])))

    def note_letter(
        self, place: _Place, error: str, key: bytes | None, value_sha256: str | None, headers: Headers
    ) -> None:
        """A dead letter of that input; its headers without those that the service puts on."""
        self.answers += 1
        self.came[place].letters.append((error, key, value_sha256, headers))

    @property
    def expected(self) -> int:
        """How many answers there must be."""
        return sum(sent.message.events + sent.message.letters for sent in self.sent.values())

    def faults(self) -> list[str]:
        """What is not as it must be, a line each."""
        found = [f"a record that names no input: {each}" for each in self.stray]
        found += [f"an answer to {place}, where nothing was sent" for place in self.came.keys() - self.sent.keys()]
        for place, sent in self.sent.items():
            wrong = _wrong(sent, self.came.get(place, Came()))
            found += [f"{sent.message.kind} at {place}: {each}" for each in wrong]
        return found

    def became(self) -> dict[str, Counter[str]]:
        """By kind of message: how many were sent, and what they became."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for place, sent in self.sent.items():
            row, came = table[sent.message.kind], self.came.get(place, Came())
            row["sent"] += 1
            row["labelled"] += len(came.events)
            row.update(error for error, *_ in came.letters)
        return table


def _wrong(sent: Sent, came: Came) -> Iterator[str]:
    message = sent.message
    if (len(came.events), len(came.letters)) != (message.events, message.letters):
        yield (
            f"{len(came.events)} label events and {len(came.letters)} letters, "
            f"not {message.events} and {message.letters} ({[error for error, *_ in came.letters]})"
        )
    for image_id, sha256, labels in came.events:
        if message.image_id not in {None, image_id} or message.image_sha256 not in {None, sha256}:
            yield f"labelled as {image_id} with the bytes {sha256}, not {message.image_id} {message.image_sha256}"
        if not labels:
            yield "no labels"
    for error, key, value_sha256, headers in came.letters:
        if message.errors and error not in message.errors:
            yield f"a letter of {error}, not of {sorted(message.errors)}"
        if key != message.key or value_sha256 != sent.value_sha256:
            yield "a letter with another key or value"
        if headers != _kept(message.headers):
            yield f"a letter with the headers {str(headers)[:200]}"


def _kept(headers: Headers) -> Headers:
    """What a letter must still have of the message's own headers."""
    whole = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    return [(name, value) for name, value in whole if not name.startswith(names.OURS)]


# --- Kafka ------------------------------------------------------------------------------------------------------------


def send(cluster: Cluster, topic: str, messages: Iterable[Message], ledger: Ledger) -> None:
    """Send them, and note where they lie.

    Raises:
        KafkaException: one was refused.
    """
    producer = Producer(
        cluster.client_properties(
            partitioner="murmur2_random", linger_ms=5, enable_idempotence=True, message_max_bytes=MAX_MESSAGE_BYTES
        )
    )
    refused: list[KafkaError] = []
    for message in messages:

        def done(error: KafkaError | None, record: KafkaMessage, message: Message = message) -> None:
            if error is not None:
                refused.append(error)
            else:
                ledger.note_sent((record.partition() or 0, record.offset() or 0), message)

        while True:
            try:
                producer.produce(topic, value=message.value, key=message.key, headers=message.headers, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(60)
    if refused:
        raise KafkaException(refused[0])
    assert left == 0, f"{left} messages were not acknowledged"


class Outputs:
    """Reads label events and dead letters into a ledger. Use as a context manager."""

    def __init__(self, cluster: Cluster, topics: TopicNames, ledger: Ledger) -> None:
        self._cluster, self._topics, self._ledger = cluster, topics, ledger
        self._reader = Consumer(
            cluster.client_properties(
                group_id=unique("outputs"), enable_auto_commit=False, isolation_level="read_committed"
            )
        )
        both = (topics.predictions, topics.dead_letters)
        self._places = [(topic, number) for topic in both for number in end_offsets(cluster, topic)]
        self._reader.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in self._places])

    def read(self, timeout_s: float) -> int:
        """What has come; how many records that were."""
        found = self._reader.consume(500, timeout_s)
        for message in found:
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            self._take(message)
        return len(found)

    def read_to_end(self) -> None:
        """Everything that was published before this call."""
        ends = {
            (topic, number): end
            for topic in (self._topics.predictions, self._topics.dead_letters)
            for number, end in end_offsets(self._cluster, topic).items()
        }

        def at_end() -> bool:
            places = self._reader.position([TopicPartition(*place) for place in ends])
            return all(max(place.offset, 0) >= ends[place.topic, place.partition] for place in places)

        deadline_s = time.monotonic() + 60
        while not at_end():
            assert time.monotonic() < deadline_s, "the end of the outputs was not reached"
            self.read(0.1)

    def _take(self, message: KafkaMessage) -> None:
        raw: list[tuple[str, bytes | None]] = list(message.headers() or [])  # type: ignore[arg-type]
        said = {name: (value or b"").decode("utf-8", "replace") for name, value in raw}
        value, key = message.value(), message.key()
        body = value.encode() if isinstance(value, str) else value
        try:
            if message.topic() == self._topics.dead_letters:
                topic, place = (
                    said[names.ERROR_TOPIC],
                    (int(said[names.ERROR_PARTITION]), int(said[names.ERROR_OFFSET])),
                )
                sha256 = said.get(names.ORIGINAL_SHA256) or (None if body is None else _sha256(body))
                own: Headers = [(name, each) for name, each in raw if not name.startswith(names.OURS)]
                key_bytes = key.encode() if isinstance(key, str) else key
                self._ledger.note_letter(place, said[names.ERROR_EXCEPTION_CLASS], key_bytes, sha256, own)
            else:
                event = json.loads(body or b"")
                topic, place = event["source"]["topic"], (event["source"]["partition"], event["source"]["offset"])
                self._ledger.note_event(place, event)
        except (KeyError, ValueError, TypeError) as error:
            self._ledger.stray.append(f"{message.topic()} {message.partition()} {message.offset()}: {error!r}")
            return
        if topic != self._topics.images:
            self._ledger.stray.append(f"{message.topic()} {message.partition()} {message.offset()}: of {topic}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


# --- the run ----------------------------------------------------------------------------------------------------------


def set_places(folder: Path, server: S3Server) -> Places:
    """Photographs in a folder, and in a bucket of their own."""
    places = hostile.make_places(folder, f"photos-{unique('hostile')}")
    server.make_bucket(places.bucket)
    for name, body in places.photographs.items():
        server.put(places.bucket, name, body)
    return places


def settings_for(places: Places, server: S3Server) -> dict[str, str]:
    """Of a replica with every kind of store, each with an allow-list."""
    return {
        "OUZEL_INPUT__TOMBSTONES": "dead_letter",
        "OUZEL_INPUT__FORMATS": json.dumps(corpus.FORMATS),
        "OUZEL_INPUT__MAX_PIXELS": str(MAX_PIXELS),
        "OUZEL_STORES__FILE__ROOTS": json.dumps([str(places.folder)]),
        "OUZEL_STORES__HTTP__HOSTS": json.dumps([ALLOWED]),
        "OUZEL_STORES__HTTP__SCHEMES": json.dumps(["http", "https"]),
        "OUZEL_STORES__S3__BUCKETS": json.dumps([places.bucket]),
        "OUZEL_STORES__S3__ENDPOINT_URL": server.url,
        "OUZEL_STORES__S3__REGION": REGION,
        "OUZEL_STORES__S3__ACCESS_KEY_ID": ACCESS_KEY,
        "OUZEL_STORES__S3__SECRET_ACCESS_KEY": SECRET_KEY,
    }


@dataclass(frozen=True)
class Topics:
    """Of one campaign."""

    images: str
    predictions: str
    dead_letters: str
    group: str

    @classmethod
    def made(cls, cluster: Cluster, partitions: int = 3) -> Self:
        """New ones."""
        name = unique("hostile")
        topics = cls(name, f"{name}.predictions", f"{name}.dlq", f"{name}.group")
        configs = {topics.images: IMAGES_CONFIG, topics.predictions: None, topics.dead_letters: LETTERS_CONFIG}
        cluster.create_topics(configs, partitions=partitions)
        return topics


@dataclass(frozen=True, slots=True)
class Report:
    """Of one run."""

    faults: list[str]
    seconds: float
    """From the start of reading to the last answer."""
    peak_rss_bytes: int


def run(
    cluster: Cluster,
    topics: TopicNames,
    ledger: Ledger,
    settings: Mapping[str, str],
    *,
    told: Callable[[int], object] = lambda _answers: None,
) -> Report:
    """Let a replica, with the dead-letter limit set aside, answer all that was sent to its topic, and judge.

    `told` is called with the number of answers so far.
    """
    faults: list[str] = []
    with (
        Replica(cluster, topics, settings={**settings, **LIMIT_SET_ASIDE}) as replica,
        Outputs(cluster, topics, ledger) as outputs,
        Group(cluster, topics.group, topics.images) as group,
    ):
        replica.start().wait_ready(120)
        began_s = last_s = time.monotonic()
        while ledger.answers < ledger.expected or group.lag():
            if outputs.read(0.2):
                last_s = time.monotonic()
                told(ledger.answers)
            elif replica.exit_code is not None or time.monotonic() - last_s > STANDSTILL_S:
                faults.append(f"the replica stands still, or ended ({replica.exit_code})")
                break
        outputs.read_to_end()
        if replica.exit_code is None:
            peak_rss_bytes = _peak_rss_bytes(replica.pid)
            probes = [replica.probe(path)[0] for path in ("livez", "readyz")]
            if probes != [200, 200] or replica.metric("ouzel_dead_letter_limit_reached") != 0:
                faults.append(f"the replica is not well: /livez and /readyz {probes}")
            if (status := replica.terminate()) != 0:
                faults.append(f"SIGTERM ended it with {status}")
        else:
            peak_rss_bytes = 0
        if lag := group.lag():
            faults.append(f"not committed to the end: {lag}")
        outputs.read_to_end()  # nothing more may have come
        tracebacks = [line for line in replica.log_lines() if "Traceback" in json.dumps(line)]
        faults += [f"a traceback in the log: {line.get('message')}" for line in tracebacks[:3]]
    return Report(faults + ledger.faults(), last_s - began_s, peak_rss_bytes)


def _peak_rss_bytes(pid: int) -> int:
    """Of a process and, at their present size, of its children (the sandbox)."""
    peak_kb = next(
        int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    children = 0
    with contextlib.suppress(psutil.Error):
        children = sum(child.memory_info().rss for child in psutil.Process(pid).children(recursive=True))
    return peak_kb * 1024 + children


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _counted(messages: Iterable[Message], one_more: Callable[[], object]) -> Iterator[Message]:
    for message in messages:
        yield message
        if message.events == 0 or message.image_id is not None:  # what damage has left whole comes on top
            one_more()


def _tiny_model(folder: Path) -> dict[str, str]:
    from tests.models import tiny_labels, tiny_model

    return {
        "OUZEL_MODEL__RUNTIME": "tensorflow",
        "OUZEL_MODEL__SOURCE": str(tiny_model()),
        "OUZEL_MODEL__LABELS": str(tiny_labels(folder)),
    }


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=10_000, help="good messages")
    parser.add_argument("--bad", type=int, default=10_000, help="hostile messages")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same messages")
    parser.add_argument("--model", choices=("tiny", "null"), default="tiny", help="a small real model, or none")
    options = parser.parse_args()
    ledger = Ledger()
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as scratch,
        KafkaBroker() as broker,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        server, folder = running_server(), Path(scratch) / "photographs"
        folder.mkdir()
        places, topics = set_places(folder, server), Topics.made(broker)
        settings = settings_for(places, server) | (_tiny_model(Path(scratch)) if options.model == "tiny" else {})
        messages = Messages(options.seed, places, max_pixels=MAX_PIXELS).dealt(options.good, options.bad)
        track = progress.add_task("sent", total=options.good + options.bad)
        send(broker, topics.images, _counted(messages, lambda: progress.advance(track)), ledger)
        task = progress.add_task("answered", total=ledger.expected)
        report = run(broker, topics, ledger, settings, told=lambda answers: progress.update(task, completed=answers))
    for kind, row in sorted(ledger.became().items()):
        became = ", ".join(f"{name} {number}" for name, number in row.most_common() if name != "sent" and number)
        sys.stdout.write(f"{kind:38} {row['sent']:6}  {became}\n")
    sys.stdout.write(
        f"{len(ledger.sent)} messages, {ledger.answers} answers in {report.seconds:.1f} s "
        f"({ledger.answers / report.seconds:.0f} a second), peak {report.peak_rss_bytes >> 20} MiB, "
        f"{len(report.faults)} faults\n"
    )
    sys.stdout.writelines(f"{fault}\n" for fault in report.faults[:50])
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
