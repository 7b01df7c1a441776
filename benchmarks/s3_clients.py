"""Which S3 client: `python -m benchmarks.s3_clients` measures obstore against boto3 at objects of 60 kB.

Requests/s and CPU milliseconds an object of the client's process alone, with 1, 8 and 64 threads in flight, the clients
in turn in each round; `store` is obstore as the service calls it, with its deadline. The server is a process of its own
on loopback: `static` answers every GET with S3's headers from memory, so that the client is what is measured; `moto` is
a whole S3 server, and slower than any client. The server's own CPU is told, to see which of the two was the limit.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import obstore
import psutil
from botocore.config import Config
from obstore.store import S3Store

from consumer.adapters.stores.clouds import Endpoint, S3Access, s3_store
from tests.processes import free_port

BUCKET, KEY = "photos", "image.jpg"
OBJECT_BYTES = 60_000
IN_FLIGHT = (1, 8, 64)
CREDENTIALS = {"access_key_id": "measure", "secret_access_key": "measure"}


def main() -> None:
    """One JSON line for each server, client and number in flight on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--servers", default="static,moto")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve, _objects(arguments.folder))
        return
    for server in arguments.servers.split(","):
        with static_server() if server == "static" else _moto() as (endpoint, process):
            _measure_all(server, endpoint, process, rounds=arguments.rounds, seconds=arguments.seconds)


def _measure_all(server: str, endpoint: str, process: psutil.Process, *, rounds: int, seconds: float) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["access_key_id"],
        aws_secret_access_key=CREDENTIALS["secret_access_key"],
        config=Config(max_pool_connections=max(IN_FLIGHT), retries={"total_max_attempts": 1}),
    )
    if server == "moto":
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key=KEY, Body=bytes(OBJECT_BYTES))
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=CREDENTIALS["access_key_id"],
        secret_access_key=CREDENTIALS["secret_access_key"],
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    ours = s3_store(
        [BUCKET],
        endpoint=Endpoint(endpoint),
        region="us-east-1",
        path_style=True,
        access=S3Access(access_key_id=CREDENTIALS["access_key_id"], secret_access_key=CREDENTIALS["secret_access_key"]),
        max_concurrency=max(IN_FLIGHT),
    )
    clients: dict[str, Callable[[], bytes]] = {
        "obstore": lambda: obstore.get(store, KEY).bytes().to_bytes(),
        "boto3": lambda: bytes(client.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()),
        "store": lambda: ours.fetch(f"s3://{BUCKET}/{KEY}", max_bytes=2**25, deadline_s=10).body,
    }
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for number in range(rounds + 1):
        for in_flight in IN_FLIGHT:
            for name, get in clients.items():
                measured = _measure(get, process, in_flight, seconds if number else 0.5)
                if number:  # the first round warms connections
                    found.setdefault((name, in_flight), []).append(measured)
    for (name, in_flight), values in sorted(found.items(), key=lambda item: item[0][1]):
        line: dict[str, Any] = {"server": server, "client": name, "in_flight": in_flight, "rounds": rounds}
        line["requests_per_s"] = _spread([rate for rate, _, _ in values], 0)
        line["cpu_ms_per_object"] = _spread([cpu for _, cpu, _ in values], 3)
        line["server_cpu_ms_per_object"] = _spread([cpu for _, _, cpu in values], 3)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _measure(
    get: Callable[[], bytes], server: psutil.Process, in_flight: int, seconds: float
) -> tuple[float, float, float]:
    """(requests/s, the client's CPU milliseconds an object, the server's) over `seconds`."""

    def until(end_s: float) -> int:
        done = 0
        while time.monotonic() < end_s:
            if len(get()) != OBJECT_BYTES:
                raise RuntimeError("the server gave another object")
            done += 1
        return done

    with ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(lambda _: get(), range(in_flight)))  # a connection for each
        server_s, cpu_s, started_s = _cpu_s(server), time.process_time(), time.monotonic()
        count = sum(pool.map(until, [started_s + seconds] * in_flight))
        wall_s, cpu_s = time.monotonic() - started_s, time.process_time() - cpu_s
        server_s = _cpu_s(server) - server_s
    return count / wall_s, cpu_s / count * 1000, server_s / count * 1000


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


# --- servers --------------------------------------------------------------------------------------------------------


@contextmanager
def static_server(folder: Path | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """(endpoint, process) of a server that gives the files of `folder` by name in any bucket; without one, the same
    60 kB whatever is asked for."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.s3_clients", "--serve", str(port)]
    with _running([*command, *(["--folder", str(folder)] if folder else [])], port) as found:
        yield found


@contextmanager
def _moto() -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as found:
        yield found


@contextmanager
def _running(command: list[str], port: int) -> Iterator[tuple[str, psutil.Process]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError("the server does not answer") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _objects(folder: Path | None) -> dict[bytes, bytes]:
    """Answers by the object's name; the one under the empty name is for all others."""
    if folder is None:
        return {b"": _answer(bytes(OBJECT_BYTES))}
    return {path.name.encode(): _answer(path.read_bytes()) for path in folder.iterdir()}


def _answer(body: bytes) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nx-amz-id-2: measure\r\nx-amz-request-id: measure\r\n"
        "Date: Sat, 31 Jan 2026 09:30:00 GMT\r\nLast-Modified: Sat, 31 Jan 2026 09:00:00 GMT\r\n"
        f'ETag: "{len(body)}"\r\nAccept-Ranges: bytes\r\nContent-Type: image/jpeg\r\n'
        f"Content-Length: {len(body)}\r\nServer: AmazonS3\r\n\r\n"
    ).encode() + body


def _serve(port: int, objects: dict[bytes, bytes]) -> None:
    """On one thread, until a signal ends it."""

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transport, self._asked = transport, b""

        def data_received(self, data: bytes) -> None:
            self._asked += data
            while b"\r\n\r\n" in self._asked:
                head, self._asked = self._asked.split(b"\r\n\r\n", 1)
                name = head.split(b" ", 2)[1].rpartition(b"/")[2]
                self._transport.write(objects.get(name) or objects[b""])

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", port, backlog=256)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
