"""Probes and metrics, asked over real HTTP."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from consumer.adapters.health_server import HealthServer
from consumer.errors import SettingsError
from consumer.metrics import Metrics


class _Service:
    def __init__(self) -> None:
        self.live: tuple[bool, dict[str, Any]] = (True, {})
        self.ready: tuple[bool, dict[str, Any]] = (False, {"waiting_for": ["model"]})


@pytest.fixture
def service() -> _Service:
    return _Service()


@pytest.fixture
def server(service: _Service) -> Iterator[HealthServer]:
    metrics = Metrics()
    metrics.rebalance()
    running = HealthServer(
        "127.0.0.1", 0, live=lambda: service.live, ready=lambda: service.ready, registry=metrics.registry
    )
    yield running
    running.close()


def _ask(
    server: HealthServer, path: str, method: str = "GET", accept: str = "*/*"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_a_probe_is_200_or_503_with_its_reasons(server: HealthServer, service: _Service) -> None:
    response, body = _ask(server, "/livez")
    assert (response.status, json.loads(body)) == (200, {"ok": True})
    response, body = _ask(server, "/readyz?verbose")
    assert (response.status, json.loads(body)) == (503, {"ok": False, "waiting_for": ["model"]})
    service.ready = (True, {"partitions": 3})
    service.live = (False, {"stuck": "decode"})
    assert _ask(server, "/readyz")[0].status == 200
    assert _ask(server, "/livez")[0].status == 503


def test_a_probe_that_raises_is_not_well(service: _Service) -> None:
    def broken() -> tuple[bool, dict[str, Any]]:
        raise RuntimeError("secret")

    server = HealthServer("127.0.0.1", 0, live=broken, ready=broken, registry=Metrics().registry)
    response, body = _ask(server, "/livez")
    server.close()
    assert (response.status, json.loads(body)) == (503, {"ok": False, "error": "RuntimeError"})


def test_metrics_come_as_text_or_as_openmetrics(server: HealthServer) -> None:
    response, body = _ask(server, "/metrics")
    assert (response.status, response.headers.get_content_type()) == (200, "text/plain")
    assert b"ouzel_rebalances_total 1.0" in body
    response, body = _ask(server, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert response.headers.get_content_type() == "application/openmetrics-text"
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/", "/livez/", "/quit", "/metrics/x"])
def test_there_is_nothing_else(server: HealthServer, path: str) -> None:
    assert _ask(server, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(server: HealthServer, method: str) -> None:
    assert _ask(server, "/livez", method)[0].status == 501


def test_head_is_get_without_a_body(server: HealthServer) -> None:
    response, body = _ask(server, "/livez", "HEAD")
    assert (response.status, body) == (200, b"")


def test_a_port_in_use_is_a_settings_error_that_names_it(server: HealthServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"health.port: {port} on 127.0.0.1 is in use") as caught:
        HealthServer("127.0.0.1", port, live=lambda: (True, {}), ready=lambda: (True, {}), registry=Metrics().registry)
    assert "health.port" in caught.value.remedy


def test_an_address_that_is_not_ours_is_a_settings_error_that_names_the_host() -> None:
    with pytest.raises(SettingsError, match=r"health\.host"):
        # TEST-NET-3 (RFC 5737) is nobody's.
        HealthServer("203.0.113.1", 0, live=lambda: (True, {}), ready=lambda: (True, {}), registry=Metrics().registry)


def test_once_closed_nobody_answers(service: _Service) -> None:
    server = HealthServer(
        "127.0.0.1", 0, live=lambda: service.live, ready=lambda: service.ready, registry=Metrics().registry
    )
    host, _, port = server.address.rpartition(":")
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)
