"""Who is compared: how each is started, which message it takes, and the settings that were found best for it."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers import environments
from benchmarks.peers.processes import Tree, server
from benchmarks.peers.work import Pair, Work, bentoml_request, inference_request
from tests.processes import free_port

_SERVERS = Path(__file__).resolve().parent / "servers"
SETTINGS = Path(__file__).resolve().parent / "settings.json"
"""The winners of `python -m benchmarks.peers tune`, by pair and peer."""

# Cores to labelling: all in one process, or a process for each.
_PROCESSES: list[dict[str, Any]] = [{"workers": 1, "threads": 2}, {"workers": 2, "threads": 1}]
_LANES: dict[str, Any] = {"workers": 1, "threads": 1, "lanes": 2}


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them."""

    name: str
    title: str
    environment: str
    script: str
    """Its server, in `servers/`."""
    door: Literal["http", "kafka"]
    packages: tuple[str, ...]
    """Whose versions the table shows."""
    body: Callable[[bytes], bytes]
    """From a JPEG to its message."""
    content_type: str
    path: str
    ready: str
    processes: list[dict[str, Any]] = field(default_factory=lambda: _PROCESSES)
    axes: dict[str, list[Any]] = field(default_factory=lambda: {"batch": [8, 16, 32], "wait_ms": [1, 5, 20]})
    """What else is searched, one axis after the other; the first value of each is where the search begins."""

    def start(self, pair: Pair) -> dict[str, Any]:
        """Where the search begins."""
        return {
            **self.processes[0],
            "infer": _infers(pair)[0],
            **{name: values[0] for name, values in self.axes.items()},
        }

    def stages(self, pair: Pair) -> Iterator[list[dict[str, Any]]]:
        """What is tried in place of the best so far: first how processes and inference are laid out, then each axis."""
        yield [{**processes, "infer": infer} for processes, infer in product(self.processes, _infers(pair))]
        for name, values in self.axes.items():
            yield [{name: value} for value in values]

    def best(self, pair: Pair) -> dict[str, Any]:
        """The settings found best, or where the search begins if there was none."""
        found = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
        # Of the same runtime in another precision where this one was not searched.
        pairs = [str(pair), *(each for each in found if each.startswith(pair.runtime))]
        for each in pairs:
            if self.name in found.get(each, {}):
                chosen: dict[str, Any] = found[each][self.name]["best"]
                return chosen
        return self.start(pair)

    @contextmanager
    def running(
        self, work: Work, pair: Pair, chosen: Mapping[str, Any], kafka: Mapping[str, str] | None = None
    ) -> Iterator["Running"]:
        """Its server, ready. Raises PeerError."""
        port = free_port()
        settings = {
            **work.peer_settings(pair),
            "lanes": 1,
            **chosen,
            "port": port,
            "more_ports": [free_port(), free_port()],
            **({"kafka": dict(kafka)} if kafka else {}),
        }
        command = [str(environments.python_of(self.environment)), str(_SERVERS / self.script)]
        base = f"http://127.0.0.1:{port}"
        # The system's own folder for such things: its name must be short, as Ray's sockets lie in it.
        with (
            tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch,
            server(command, {**settings, "scratch": scratch}, ready=base + self.ready) as tree,
        ):
            yield Running(tree, base + self.path)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready."""

    tree: Tree
    url: str


def _infers(pair: Pair) -> list[str]:
    return ["streams", "batch"] if pair.runtime == "openvino" else ["frozen", "signature"]


def _as_it_is(body: bytes) -> bytes:
    return body


# In the server's process (0 workers), or in one or two workers that get every request by a queue.
_MLSERVER_PROCESSES: list[dict[str, Any]] = [
    {"workers": 0, "threads": 2},
    {"workers": 0, "threads": 1, "lanes": 2},
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
]

_MLSERVER_KAFKA = Peer(
    name="mlserver-kafka",
    title="MLServer, Kafka",
    environment="mlserver",
    script="mlserver_server.py",
    door="kafka",
    packages=("mlserver", "aiokafka"),
    body=inference_request,
    content_type="application/json",
    path="/v2/models/labeler/infer",
    ready="/v2/models/labeler/ready",
    processes=_MLSERVER_PROCESSES,
)

PEERS = {
    peer.name: peer
    for peer in (
        _MLSERVER_KAFKA,
        replace(_MLSERVER_KAFKA, name="mlserver-http", title="MLServer, HTTP", door="http", packages=("mlserver",)),
        Peer(
            name="litserve",
            title="LitServe, HTTP",
            environment="litserve",
            script="litserve_server.py",
            door="http",
            packages=("litserve",),
            body=_as_it_is,
            content_type="image/jpeg",
            path="/predict",
            ready="/health",
            axes={"batch": [8, 16, 32], "wait_ms": [1, 5, 20], "fast_queue": [False, True]},
        ),
        Peer(
            name="bentoml",
            title="BentoML, HTTP",
            environment="bentoml",
            script="bentoml_server.py",
            door="http",
            packages=("bentoml",),
            body=bentoml_request,
            content_type="application/json",
            path="/predict",
            ready="/readyz",
            processes=[*_PROCESSES, _LANES],
            # It decides itself how long to wait, and refuses what it thinks will take longer than this.
            axes={"batch": [8, 16, 32], "max_latency_ms": [60_000, 1_000]},
        ),
        Peer(
            name="ray",
            title="Ray Serve, HTTP",
            environment="ray",
            script="ray_server.py",
            door="http",
            packages=("ray",),
            body=_as_it_is,
            content_type="image/jpeg",
            path="/predict",
            ready="/-/healthz",
            processes=[*_PROCESSES, _LANES],
        ),
    )
}
