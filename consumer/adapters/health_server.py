"""/livez, /readyz and /metrics over HTTP. Answers questions and changes nothing."""

import errno
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from consumer.errors import SettingsError

Probe = Callable[[], tuple[bool, dict[str, Any]]]
"""Whether all is well, and why (not), as JSON. Called from the server's threads; must not block."""


class HealthServer:
    """Serves from construction until `close`, on threads of its own."""

    def __init__(self, host: str, port: int, *, live: Probe, ready: Probe, registry: CollectorRegistry) -> None:
        """Listen on `host:port`; port 0 takes any free one, told by `address`.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        try:
            self._server = _Server(host, port, {"/livez": live, "/readyz": ready}, registry)
        except OSError as error:
            raise _cannot_listen(error, host, port) from error
        # The interval is how long `close` may take, in seconds.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """`host:port` as it listens, with the port that was found where 0 was asked for."""
        host, port = self._server.server_address[:2]
        text = str(host)
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _cannot_listen(error: OSError, host: str, port: int) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        remedy = "set health.port to a free port, or to 0 for any, or stop the process that has it"
        return SettingsError(f"health.port: {port} on {host} is in use", remedy=remedy)
    if error.errno == errno.EACCES:
        return SettingsError(
            f"health.port: this user may not listen on {port}",
            remedy="set health.port to 1024 or more, or to 0 for any",
        )
    reason = error.strerror or str(error)
    remedy = 'set health.host to an address of this machine: "127.0.0.1", or "0.0.0.0" for all'
    return SettingsError(f"health.host: {host!r} cannot be listened on: {reason}", remedy=remedy)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, probes: dict[str, Probe], registry: CollectorRegistry) -> None:
        self.probes = probes
        self.registry = registry
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host's name up in the DNS, which can take many seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "ouzel"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    # Seconds that a client may stay silent: it holds a thread.
    timeout = 10

    def do_GET(self) -> None:
        """Called by `http.server`."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept") or "")
            self._answer(200, content_type, encode(self.server.registry))
        elif path in self.server.probes:
            self._probe(self.server.probes[path])
        else:
            self._json(404, {"error": "there is /livez, /readyz and /metrics"})

    def do_HEAD(self) -> None:
        """Called by `http.server`: the same without a body."""
        self.do_GET()

    def _probe(self, probe: Probe) -> None:
        try:
            well, reasons = probe()
        except Exception as error:
            # Whatever it is, the answer is: not well.
            well, reasons = False, {"error": type(error).__name__}
        self._json(200 if well else 503, {"ok": well, **reasons})

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(body, default=str).encode() + b"\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Probes come every few seconds: no line each."""
