"""Replicas under test: the real `ouzel run` in a process of its own, with faults from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tests.kafka_broker import Cluster
from tests.processes import free_port, start_process, tail, wait_until

ROOT = Path(__file__).resolve().parent.parent

QUICK = {
    "OUZEL_MODEL__RUNTIME": "null",
    "OUZEL_COMMIT__INTERVAL_MS": "200",
    "OUZEL_KAFKA__METADATA_INTERVAL_MS": "1000",
    "OUZEL_LOG__LEVEL": "INFO",
}
"""Settings of a replica without a model, with commits in quick succession."""

QUICK_CLASSIC = {
    "OUZEL_KAFKA__CONSUMER__SESSION_TIMEOUT_MS": "6000",
    "OUZEL_KAFKA__CONSUMER__HEARTBEAT_INTERVAL_MS": "300",
}
"""A killed member is missed after 6 s instead of 45 (under KIP-848 the broker's setting says so: 6 s in ours), and a
rebalance is noticed at the next heartbeat."""

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says of proxies

CRASHING = "tests.crashing_replica"
"""The entry that kills itself at OUZEL_TEST_CRASH_AT (see there)."""


class TopicNames(Protocol):
    """What a replica must know of its topics (tests/conftest.py: Topics)."""

    @property
    def images(self) -> str: ...
    @property
    def predictions(self) -> str: ...
    @property
    def dead_letters(self) -> str: ...
    @property
    def group(self) -> str: ...


class Replica:
    """One member of the group. Started by `start`; always ended by leaving the `with` block.

    `settings` are OUZEL_ variables over `QUICK`; `arguments` come before the command `run`, `options` after it; the
    package `consumer` is that of `folder`. `enter` comes before its command line and says in which namespaces it runs;
    from out here it is reached at the address `host`.
    """

    def __init__(
        self,
        cluster: Cluster,
        topics: TopicNames,
        *,
        settings: Mapping[str, str] | None = None,
        entry: str = "consumer",
        folder: Path = ROOT,
        arguments: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        enter: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="replica-")
        self.log_file = Path(self._folder.name) / "log.jsonl"
        self.health_port = free_port()
        self._entry = entry
        self._sources = folder
        self._arguments = arguments
        self._options = options
        self._enter = tuple(enter)
        self._host = host
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OUZEL_")},
            **QUICK,
            **_kafka_client(cluster),
            "OUZEL_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
            "OUZEL_KAFKA__GROUP_ID": topics.group,
            "OUZEL_KAFKA__INPUT_TOPICS": json.dumps([topics.images]),
            "OUZEL_KAFKA__OUTPUT_TOPIC": topics.predictions,
            "OUZEL_KAFKA__DEAD_LETTER_TOPIC": topics.dead_letters,
            "OUZEL_HEALTH__HOST": host,
            "OUZEL_HEALTH__PORT": str(self.health_port),
            "OUZEL_LOG__FORMAT": "json",
            **(settings or {}),
        }
        share = self._environment.get("OUZEL_DELIVERY__GUARANTEE") == "share"
        if not share and self._environment.get("OUZEL_KAFKA__GROUP_PROTOCOL", "classic") == "classic":
            self._environment = QUICK_CLASSIC | self._environment
        self._process: subprocess.Popen[bytes] | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, **settings: str) -> Self:
        """Start, or start again; `settings` are further variables from now on."""
        self._environment |= settings
        with self.log_file.open("ab") as output:
            self._process = start_process(
                [*self._enter, sys.executable, "-m", self._entry, *self._arguments, "run", *self._options],
                output=output,
                cwd=self._sources,
                env=self._environment,
            )
        return self

    def wait_ready(self, timeout_s: float = 60) -> Self:
        """Until /readyz is 200."""
        self.wait_for(lambda: self.probe("readyz")[0] == 200, timeout_s, "ready")
        return self

    def wait_for(self, condition: Any, timeout_s: float, what: str) -> None:
        """Until `condition()` holds; at once an error, with the log's tail, when the process ends before."""

        def held() -> bool:
            if self.exit_code is not None and not condition():
                raise AssertionError(f"the replica ended with {self.exit_code}:\n{tail(self.log_file)}")
            return bool(condition())

        try:
            wait_until(held, timeout_s=timeout_s, what=what)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{tail(self.log_file)}") from error

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def wait_exit(self, timeout_s: float = 60) -> int:
        """The exit code, once it ends."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {timeout_s} s:\n{tail(self.log_file)}") from error

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def kill9(self) -> None:
        """Gone without a word."""
        self.signal(signal.SIGKILL)
        self.wait_exit()

    def freeze(self) -> None:
        """SIGSTOP: every thread stands still, librdkafka's too."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, however it is."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(f"--- the replica's log ---\n{tail(self.log_file, 60)}\n")
        self.close()

    # --- what it says -----------------------------------------------------------------------------------------------

    def probe(self, path: str) -> tuple[int, str]:
        """Status and body of a GET at the health port; status 0 where nobody answers."""
        try:
            with _direct.open(f"http://{self._host}:{self.health_port}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def samples(self, name: str, **labels: str) -> list[float]:
        """The metric's samples of this name that carry these labels."""
        return _samples(self.probe("metrics")[1], name, labels)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over `samples`."""
        return sum(self.samples(name, **labels))

    def metrics(self, *names: str) -> tuple[float, ...]:
        """Each one's `metric`, all as of the same moment."""
        _, text = self.probe("metrics")
        return tuple(sum(_samples(text, name, {})) for name in names)

    def log_lines(self) -> list[dict[str, Any]]:
        """Its JSON log so far; lines of other form are left out."""
        if not self.log_file.exists():
            return []
        found = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def said(self, text: str) -> bool:
        """Whether a log line has this in its message."""
        return any(text in line.get("message", "") for line in self.log_lines())


def _samples(text: str, name: str, labels: Mapping[str, str]) -> list[float]:
    from prometheus_client.parser import text_string_to_metric_families

    # To parse the whole page is most of what a poll costs.
    lines = [line for line in text.split("\n") if line.startswith((f"{name}{{", f"{name} "))]
    return [
        sample.value
        for family in text_string_to_metric_families("\n".join(lines))
        for sample in family.samples
        if all(sample.labels.get(key) == value for key, value in labels.items())
    ]


def _kafka_client(cluster: Cluster) -> dict[str, str]:
    """The cluster's security properties as settings."""
    return {
        f"OUZEL_KAFKA__CLIENT__{name.upper().replace('.', '_')}": str(value)
        for name, value in cluster.client_properties().items()
        if name.startswith(("security.", "sasl.", "ssl."))
    }
