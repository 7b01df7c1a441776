"""Running `ouzel` as a user does, against a broker, and looking at the topics with a plain client."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from typer.testing import CliRunner

from consumer import redact
from consumer.cli import app
from consumer.errors import Fatal, OuzelError

REPOSITORY = Path(__file__).parents[2]
OUZEL = (sys.executable, "-m", "consumer")


@dataclass(frozen=True)
class Topics:
    """The names of one test, and the environment that makes `ouzel` use them."""

    bootstrap_servers: str
    unique: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> str:
        return f"{self.unique}-images"

    @property
    def predictions(self) -> str:
        return f"{self.unique}-predictions"

    @property
    def letters(self) -> str:
        return f"{self.unique}-dlq"

    @property
    def markers(self) -> str:
        return f"{self.letters}.replayed"

    @property
    def group(self) -> str:
        return f"{self.unique}-group"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")}
        return {
            **kept,
            "OUZEL_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "OUZEL_KAFKA__INPUT_TOPICS": f'["{self.images}"]',
            "OUZEL_KAFKA__OUTPUT_TOPIC": self.predictions,
            "OUZEL_KAFKA__DEAD_LETTER_TOPIC": self.letters,
            "OUZEL_KAFKA__GROUP_ID": self.group,
            "PYTHONUNBUFFERED": "1",
            **self.variables,
            **(more or {}),
        }

    def ouzel(
        self, *arguments: str, stdin: bytes = b"", more: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> "Answer":
        """Run a command to its end."""
        done = subprocess.run(
            [*OUZEL, *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment(more),
            cwd=REPOSITORY,
            timeout=timeout_s,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def start_ouzel(self, *arguments: str, program: tuple[str, ...] = OUZEL) -> "subprocess.Popen[bytes]":
        """Start a command whose stdout and stderr are read by the test."""
        return subprocess.Popen(
            [*program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # `communicate` does not see what an earlier `readline` left in a buffer.
            bufsize=0,
            env=self.environment(),
            cwd=REPOSITORY,
        )

    def producer(self, **more: Any) -> Producer:
        properties = {name.replace("_", "."): value for name, value in more.items()}
        return Producer({"bootstrap.servers": self.bootstrap_servers, "log_level": 0, **properties})

    def read_all(self, topic: str, *, isolation: str = "read_committed") -> list[Message]:
        """Every record of the topic that a reader of this isolation can reach now, in order of partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "a-test-reads",
                "isolation.level": isolation,
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "fetch.message.max.bytes": 8 * 1024 * 1024,
                "log_level": 0,
            }
        )
        try:
            partitions = sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
            found: list[Message] = []
            unread = set(partitions)
            while unread:
                message = consumer.poll(20)
                assert message is not None, f"{topic} fell silent"
                error = message.error()
                if error is None:
                    found.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    unread.discard(message.partition())
            return sorted(found, key=lambda each: (each.partition(), each.offset()))
        finally:
            consumer.close()


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [orjson.loads(line) for line in self.stdout.splitlines()]


def ouzel_here(*arguments: str, variables: Mapping[str, str] | None = None) -> Answer:
    """The same in this process, which is many times as quick: for what ends before anybody is asked. An error of ours
    is at the end of `stderr`, and `code` is what `main` makes of it."""
    known = redact._known  # what is a secret stays one for the whole process, and this one goes on
    environment = {**{name: None for name in os.environ if name.startswith("OUZEL_")}, **(variables or {})}
    try:
        done = CliRunner().invoke(app, arguments, env=environment)
    finally:
        redact._known = known
    if isinstance(done.exception, OuzelError):
        code = done.exception.exit_code if isinstance(done.exception, Fatal) else 1
        return Answer(code, done.stdout_bytes, done.stderr + str(done.exception))
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return Answer(done.exit_code, done.stdout_bytes, done.stderr)


def headers_of(message: Message) -> dict[str, bytes | None]:
    """The headers of a message read from a broker, by name."""
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return {name: value.encode() if isinstance(value, str) else value for name, value in pairs}
