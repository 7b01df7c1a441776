"""A real S3 server (moto's, in a process of its own), and a proxy before it that makes trouble.

moto and not s3proxy: it has versions, delete markers, requester pays, IAM rights and signatures, and answers with S3's
own error codes; s3proxy has no versions. Neither throttles, stalls or resets: `FaultyProxy` does, for either.
"""

import atexit
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.processes import free_port, start_process, tail, wait_until

ACCESS_KEY, SECRET_KEY, REGION = "AKIAEXAMPLE", "plantedsecret", "eu-west-1"
PAGE_KEYS = 100
"""In one answer to a listing: S3's own thousand would ask for as many puts."""


class S3Server:
    """Started by `start`, ended by `stop`; started anew it is empty, as moto keeps all in memory."""

    def __init__(self, *, tls: "Certificates | None" = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self._log = self._folder / "log"
        self._tls = tls
        self.port = free_port()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Return once it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        if self._tls:
            command += ["-c", str(self._tls.chain), "-k", str(self._tls.key)]
        with self._log.open("ab") as output:
            environment = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE_KEYS)}
            self._process = start_process(command, output=output, env=environment)
        try:
            wait_until(self._answers, timeout_s=60, what="the S3 server")
        except TimeoutError:
            raise AssertionError(tail(self._log)) from None
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """By its process id."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def client(self, service: str = "s3") -> Any:
        """boto3's, for putting things there."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            verify=str(self._tls.authority) if self._tls else None,
        )

    def put(self, bucket: str, key: str, body: bytes) -> str:
        """The object's version id; empty in a bucket without versions."""
        return str(self._putting.put_object(Bucket=bucket, Key=key, Body=body).get("VersionId", ""))

    @cached_property
    def _putting(self) -> Any:
        return self.client()

    def make_bucket(self, name: str, *, versions: bool = False) -> None:
        """An empty bucket."""
        client = self.client()
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        if versions:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    @contextmanager
    def rights_enforced(self) -> Iterator[None]:
        """Whoever asks needs a key that exists, a right signature, and the right."""
        self._moto("reset-auth", b"0")
        try:
            yield
        finally:
            self._moto("reset-auth", b"inf")

    def _moto(self, what: str, body: bytes) -> None:
        asked = urllib.request.Request(  # noqa: S310  # our own server on loopback
            f"{self.url}/moto-api/{what}", data=body, headers={"Content-Type": "text/plain"}, method="POST"
        )
        with urllib.request.urlopen(asked, timeout=10):  # noqa: S310
            pass


@cache
def running_server() -> S3Server:
    """One for the whole test run, ended with it."""
    server = S3Server().start()
    atexit.register(server.__exit__)
    return server


Fault = Literal["none", "stall", "drip", "reset", "reset-body", "cut-body", "slow-down", "error-500", "answer"]
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class FaultyProxy:
    """Passes requests on to a server on loopback, or misbehaves as `fault` says. One thread a connection."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault: Fault = "none"
        self.heads: list[bytes] = []
        """The first lines and headers of every request so far."""
        self.body_bytes_sent = 0
        self.hung_up = threading.Event()
        """Set when the client closed a connection that stalls or drips."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def answers(self, status: str, body: bytes, headers: bytes = b"") -> None:
        """Answer this to every request from now on."""
        self._said = (status, body, headers)
        self.fault = "answer"

    def let_go(self) -> None:
        """Close the connections that stall or drip, now and from now on."""
        self._closing.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    asked += piece
                self.heads.append(asked)
                self._answer(connection, asked)
            except OSError:
                return

    def _answer(self, connection: socket.socket, asked: bytes) -> None:
        fault = self.fault
        if fault == "none":
            self._pass_on(connection, asked)
        elif fault == "reset":
            _reset(connection)
        elif fault == "stall":
            self._until_hung_up(connection, b"")
        elif fault == "drip":
            self._until_hung_up(connection, b"HTTP/1.1 200 OK\r\nx-amz-request-id: " + b"a" * 10_000)
        elif fault == "slow-down":
            _say(connection, "503 Slow Down", _SLOW_DOWN)
        elif fault == "error-500":
            _say(connection, "500 Internal Server Error", _INTERNAL)
        elif fault == "answer":
            _say(connection, *self._said)
        elif fault in {"reset-body", "cut-body"}:
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 100000\r\n\r\n' + b"x" * 1000)
            if fault == "reset-body":
                _reset(connection)

    def _until_hung_up(self, connection: socket.socket, drops: bytes) -> None:
        """Send a byte now and then, or none, until the client has enough."""
        connection.settimeout(0.05)
        for number in range(10_000):
            if self._closing.is_set():
                return
            try:
                connection.sendall(drops[number : number + 1])
                if connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.hung_up.set()

    def _pass_on(self, connection: socket.socket, asked: bytes) -> None:
        head, _, rest = asked.partition(b"\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self._server_port), timeout=60) as server:
            server.sendall(head + b"\r\nConnection: close\r\n\r\n" + rest)
            answer = b""
            while b"\r\n\r\n" not in answer and (piece := server.recv(65536)):
                answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            connection.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            connection.sendall(body)
            self.body_bytes_sent += len(body)
            while body := server.recv(65536):
                connection.sendall(body)
                self.body_bytes_sent += len(body)


@cache
def running_proxy() -> FaultyProxy:
    """One before the server of the whole test run."""
    return FaultyProxy(running_server().port)


def _say(connection: socket.socket, status: str, body: bytes, headers: bytes = b"") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + headers + b"Connection: close\r\n\r\n" + body)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: who signed, and what a server at 127.0.0.1 shows."""

    authority: Path
    chain: Path
    key: Path


def certificates(folder: Path) -> Certificates:
    """A CA of one's own, and a server's certificate by it, good for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(UTC)

    def signed(
        subject: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of the tests")]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]),
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(days=1),
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if not ca:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(by, hashes.SHA256())

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = Certificates(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
    authority = signed("authority of the tests", ca_key, ca_key, ca=True)
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.chain.write_bytes(signed("server", key, ca_key, ca=False).public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
