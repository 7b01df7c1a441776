"""Schema registries for tests: a real one (Apicurio, from Maven), and a server that answers as Confluent's does.

Confluent's own is in no public repository but Confluent's. Apicurio has the same API under /apis/ccompat/v7, but gives
Protobuf as text alone and knows no GUIDs; what only Confluent's answers is said by `RegistryServer`, with the paths,
fields and error codes of its API reference: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

import base64
import fcntl
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import psutil

from tests.kafka_broker import KafkaUnavailable, find_java
from tests.processes import free_port, start_process, tail, wait_until

APICURIO_VERSION = "3.0.9"  # the last that runs on Java 17, as the broker does; 3.3 wants 21
_JARS = Path(__file__).resolve().parents[1] / ".kafka"


def _fetch_apicurio() -> Path:
    """The runner's jar; Maven fetches it at the first call (109 MB, about 15 s).

    Raises:
        KafkaUnavailable: it is not here and Maven is missing or fails.
    """
    folder = _JARS / f"apicurio-{APICURIO_VERSION}"
    jar = folder / f"apicurio-registry-app-{APICURIO_VERSION}-runner.jar"
    if jar.is_file():
        return jar
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("no Maven: install `mvn`")
    _JARS.mkdir(exist_ok=True)
    with (_JARS / "fetching.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jar.is_file():
            sys.stderr.write(f"Fetching Apicurio Registry {APICURIO_VERSION} by Maven into .kafka/ (109 MB, once)\n")
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=_JARS) as scratch:
                _fetch_to(Path(scratch), maven).rename(folder)  # complete or not there at all
    return jar


def _fetch_to(scratch: Path, maven: str) -> Path:
    artifact = f"io.apicurio:apicurio-registry-app:{APICURIO_VERSION}:tar.gz:all"
    answer = subprocess.run(
        [
            *(maven, "-q", "-B", "--strict-checksums", "dependency:copy"),
            *(f"-Dartifact={artifact}", f"-DoutputDirectory={scratch}"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=scratch,
    )
    if answer.returncode != 0:
        raise KafkaUnavailable(f"Maven could not fetch Apicurio:\n{(answer.stdout + answer.stderr)[-2000:]}")
    whole = scratch / "whole"
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
        # Python 3.11 has the filter from 3.11.4 on; Maven has verified the archive.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(whole)  # noqa: S202  (filtered by the line above)
    return whole


class SchemaRegistry:
    """Apicurio in memory, on a port of its own. `stop` and `start` keep the address and lose the schemas."""

    def __init__(self) -> None:
        self._java, self._jar = find_java(), _fetch_apicurio()
        self._folder = tempfile.TemporaryDirectory(prefix="registry-")
        self._log = Path(self._folder.name) / "log"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    def start(self) -> Self:
        """Until it answers."""
        with self._log.open("ab") as output:
            self._process = start_process(
                [
                    *(self._java, "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                    *(f"-Dquarkus.http.port={self._port}", "-Dquarkus.http.host=127.0.0.1", "-jar", str(self._jar)),
                ],
                output=output,
                cwd=Path(self._folder.name),
                env={"PATH": "/usr/bin:/bin", "HOME": self._folder.name},
            )
        wait_until(self._answers, timeout_s=90, what=f"the schema registry\n{tail(self._log)}")
        return self

    def stop(self) -> None:
        """At once; whoever asks is refused."""
        if self._process is not None:
            if psutil.pid_exists(self._process.pid):
                self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"the schema registry ended:\n{tail(self._log)}")
        try:
            with urlopen(f"{self.url}/subjects", timeout=2) as answer:  # noqa: S310  (our own server)
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()


class RegistryServer:
    """Answers the questions of a reader as Confluent's registry does, or fails as one can.

    `schemas` are bodies by number or GUID; `serialized` what `format=serialized` makes of them instead. `failing` is
    answered to everything while it is set. `asked` lists the paths.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, Mapping[str, Any]] = {}
        self.serialized: dict[str, bytes] = {}
        self.failing: tuple[int, bytes] | None = None
        self.asked: list[str] = []
        self.credentials: list[str | None] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.credentials.append(self.headers["Authorization"])
                registry.asked.append(self.path)
                status, body = registry._answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                del args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, path: str) -> tuple[int, bytes]:
        if self.failing is not None:
            return self.failing
        parts = urlsplit(path)
        key = parts.path.rpartition("/")[2]
        found = self.schemas.get(key)
        if found is None:
            return 404, json.dumps({"error_code": 40403, "message": f"Schema {key} not found"}).encode()
        if parse_qs(parts.query).get("format") == ["serialized"] and key in self.serialized:
            found = {**found, "schema": base64.b64encode(self.serialized[key]).decode()}
        return 200, json.dumps(found).encode()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
