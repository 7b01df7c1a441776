"""A TCP proxy before each broker that passes Kafka's frames on, or does with them what its rules say.

The brokers advertise its ports, so that all that a client sends comes by here. Who a connection belongs to is in its
first request (`client.id`), so a rule can be for one broker, for one replica, or for both.
"""

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down", "both"]
"""`up` is from the client to the broker."""
Effect = Literal["delay", "rate", "hold", "reset", "cut", "late"]

LOOPBACK = "127.0.0.1"
_HEADER = struct.Struct(">i")
_MAX_FRAME_BYTES = 128 * 1024 * 1024
_QUEUE_FRAMES = 256
_PIECE_BYTES = 16 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done to which frames.

    * `delay`: each comes `value` seconds later
    * `rate`: no more than `value` bytes a second on each connection
    * `hold`: nothing passes (a black hole; half open where only one way) until the rule is taken back. What a client
      has sent by then arrives after all, as from a kernel that retransmits, unless it has closed the connection
      meanwhile and `value` is 0
    * `reset`: connections end with RST, new ones too
    * `cut`: a connection ends after `value` more bytes, in the midst of a frame
    * `late`: the answer to a request of kind `api` is `value` seconds late, and what comes behind it on its connection
    """

    effect: Effect
    value: float = 0.0
    direction: Direction = "both"
    broker: int | None = None
    """None for all."""
    client: str | None = None
    """A `client.id`, or what comes before a dash in it: `replica-1` has a `replica-1-producer`. None for all."""
    api: int | None = None
    """For `late`: Kafka's number of the request."""

    def is_for(self, link: "_Link", direction: Direction | None = None) -> bool:
        """Whether it is about this connection, and this way of it."""
        return (
            self.broker in (None, link.broker)
            and (self.client is None or f"{link.client}-".startswith(f"{self.client}-"))
            and (direction is None or self.direction in ("both", direction))
        )


@dataclass(eq=False, slots=True)
class _Link:
    """One client's connection to one broker."""

    broker: int
    client_writer: asyncio.StreamWriter
    broker_writer: asyncio.StreamWriter
    client: str | None = None
    late: dict[int, float] = field(default_factory=dict)
    """Correlation ids whose answers are held, with for how many seconds."""
    budgets: dict[int, int] = field(default_factory=dict)
    """Bytes left, by number of the rule that cuts it."""
    client_gone: bool = False

    def abort(self) -> None:
        """RST both ways."""
        for writer in (self.client_writer, self.broker_writer):
            raw = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class FaultProxy:
    """Listens on `ports` (by broker) of `host`; `start` says where the brokers are. Rules may come and go at any time,
    from any thread."""

    def __init__(self, ports: Mapping[int, int], *, host: str = LOOPBACK) -> None:
        self.ports = dict(ports)
        self._host = host
        self._rules: dict[int, Rule] = {}
        self._numbers = itertools.count(1)
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._changed: asyncio.Event
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)

    # --- any thread -------------------------------------------------------------------------------------------------

    def start(self, upstream: Mapping[int, int], hosts: Mapping[int, str] | None = None) -> None:
        """Listen; `upstream` has the brokers' ports, `hosts` their addresses where that is not loopback."""
        self._thread.start()
        places = {broker: ((hosts or {}).get(broker, LOOPBACK), port) for broker, port in upstream.items()}
        asyncio.run_coroutine_threadsafe(self._listen(places), self._loop).result(10)

    def add(self, rule: Rule) -> int:
        """From now on; returns its number."""
        number = next(self._numbers)
        asyncio.run_coroutine_threadsafe(self._put(number, rule), self._loop).result(10)
        return number

    def remove(self, number: int) -> None:
        """No longer. One that is not there is no error."""
        asyncio.run_coroutine_threadsafe(self._put(number, None), self._loop).result(10)

    def clear(self) -> None:
        """No rule any more."""
        for number in list(self._rules):
            self.remove(number)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._links)

    def close(self) -> None:
        """Everything ends. Idempotent."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    # --- the loop's thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._changed = asyncio.Event()
        self._loop.run_forever()

    async def _listen(self, upstream: Mapping[int, tuple[str, int]]) -> None:
        for broker, port in self.ports.items():

            async def accepted(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, broker: int = broker
            ) -> None:
                await self._connect(broker, upstream[broker], reader, writer)

            self._servers.append(await asyncio.start_server(accepted, self._host, port, limit=1024 * 1024))

    async def _put(self, number: int, rule: Rule | None) -> None:
        if rule is None:
            self._rules.pop(number, None)
            for link in self._links:
                link.budgets.pop(number, None)
        else:
            self._rules[number] = rule
            if rule.effect == "reset":
                for link in [link for link in self._links if rule.is_for(link)]:
                    link.abort()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for link in list(self._links):
            link.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(
        self, broker: int, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(*upstream, limit=1024 * 1024)
        except OSError:
            writer.transport.abort()  # the broker is away: so is what stands for it
            return
        link = _Link(broker, writer, broker_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._carry(link, "up", reader, broker_writer), self._carry(link, "down", broker_reader, writer)
            )
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.abort()

    async def _carry(
        self, link: _Link, way: Literal["up", "down"], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One way of a connection, until it ends. Frames wait in a queue, so that each is delayed by itself."""
        frames: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue(_QUEUE_FRAMES)

        async def read() -> None:
            try:
                while True:
                    head = await reader.readexactly(_HEADER.size)
                    size = _HEADER.unpack(head)[0]
                    if not 0 <= size <= _MAX_FRAME_BYTES:
                        return
                    frame = head + await reader.readexactly(size)
                    if way == "up":
                        self._note_request(link, frame)
                    await frames.put((time.monotonic(), frame))
            except (OSError, asyncio.IncompleteReadError):
                return
            finally:
                if way == "up":
                    link.client_gone = True
                await frames.put(None)

        reading = asyncio.ensure_future(read())
        try:
            while (item := await frames.get()) is not None:
                if not await self._pass(link, way, *item, writer):
                    return
        finally:
            reading.cancel()
            # One way over, both are: Kafka's clients and brokers never half-close.
            other = link.broker_writer if writer is link.client_writer else link.client_writer
            for each in (writer, other):
                with contextlib.suppress(OSError):
                    each.close()

    def _note_request(self, link: _Link, frame: bytes) -> None:
        """Request header: length, api key, version, correlation id, client id (from version 1 on)."""
        if len(frame) < 14:
            return
        api, _version, correlation, length = struct.unpack_from(">hhih", frame, 4)
        if link.client is None:
            link.client = frame[14 : 14 + max(0, length)].decode(errors="replace")
            if any(rule.effect == "reset" and rule.is_for(link) for rule in self._rules.values()):
                link.abort()
        for rule in self._rules.values():
            if rule.effect == "late" and rule.api == api and rule.is_for(link):
                link.late[correlation] = rule.value

    async def _pass(
        self,
        link: _Link,
        way: Literal["up", "down"],
        came_s: float,
        frame: bytes,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Hand one frame on, in time. False where the connection is over."""
        if way == "down" and link.late:
            late_s = link.late.pop(_HEADER.unpack_from(frame, 4)[0], 0.0)
            await asyncio.sleep(late_s)
        while True:
            rules = [(number, rule) for number, rule in self._rules.items() if rule.is_for(link, way)]
            held = [rule for _, rule in rules if rule.effect == "hold"]
            if not held:
                break
            changed = self._changed
            await changed.wait()
            if way == "up" and link.client_gone and not any(rule.value for rule in held):
                return False
        due_s = came_s + max((rule.value for _, rule in rules if rule.effect == "delay"), default=0.0)
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        rate = min((rule.value for _, rule in rules if rule.effect == "rate"), default=0.0)
        for number, rule in rules:
            if rule.effect == "cut":
                left = link.budgets.setdefault(number, int(rule.value))
                link.budgets[number] = left - len(frame)
                if left < len(frame):
                    writer.write(frame[:left])
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    link.abort()
                    return False
        for at in range(0, len(frame), _PIECE_BYTES):
            piece = frame[at : at + _PIECE_BYTES]
            writer.write(piece)
            await writer.drain()
            if rate:
                await asyncio.sleep(len(piece) / rate)
        return True
