"""What is sent in a run: photographs at a steady rate, inline and by reference to a store that can fail, and poison."""

import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos.harness.plan import Plan
from tests.http_server import Exchange, Handler, HttpServer, answer, reset
from tests.runs import Input, Run, inline_image

MAX_IMAGE_BYTES = 200_000
"""Of the replicas' settings: what the store has under /huge.jpg is more."""
_STEP_S = 0.02


class Store:
    """Photographs over HTTP at the address `host`, well or badly served: `mode` is `ok`, `slow`, `503`, `stall`,
    `reset` or `some`."""

    def __init__(self, paths: Sequence[Path], *, host: str) -> None:
        self._server = HttpServer(host=host)
        self._mode = "ok"
        self._slow_s = 0.0
        self._every = 2
        self._changed = threading.Event()
        for number, path in enumerate(paths):
            self._server.routes[f"/{number}.jpg"] = self._failing(number, answer(path.read_bytes()))
        self._server.routes["/huge.jpg"] = answer(b"\xff\xd8" + b"x" * MAX_IMAGE_BYTES)
        self.origin = self._server.origin
        self.host = f"{host}:{self._server.port}"
        self.network = f"{host}/32"

    def tell(self, mode: str, *, slow_s: float = 0.0, every: int = 2) -> None:
        """From now on. What stalls is let go."""
        self._mode, self._slow_s, self._every = mode, slow_s, every
        changed, self._changed = self._changed, threading.Event()
        changed.set()

    def _failing(self, number: int, well: Handler) -> Handler:
        def handle(exchange: Exchange) -> None:
            mode, changed = self._mode, self._changed
            if mode == "503" or (mode == "some" and number % self._every == 0):
                answer(b"down", 503)(exchange)
            elif mode == "reset":
                reset(exchange)
            elif mode == "stall":
                changed.wait()
                exchange.keep_alive = False
            else:
                if mode == "slow":
                    changed.wait(self._slow_s)
                well(exchange)

        return handle

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tell("ok")
        self._server.close()


class Sender:
    """A thread that sends until `stop`."""

    def __init__(self, run: Run, plan: Plan, paths: Sequence[Path], store: Store) -> None:
        self._run = run
        self._plan = plan
        self._bodies = [path.read_bytes() for path in paths]
        self._store = store
        self._dice = random.Random(f"sender {plan.seed}")
        self._numbers = itertools.count()
        self._poison: deque[Input] = deque()
        self._stopping = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)

    def inputs(self, how_many: int) -> Iterator[Input]:
        """Photographs, in turn."""
        for _ in range(how_many):
            number = next(self._numbers)
            image_id, which = f"image-{number:06d}", number % len(self._bodies)
            if self._dice.random() < self._plan.by_reference:
                value = json.dumps({"image_id": image_id, "uri": f"{self._store.origin}/{which}.jpg"}).encode()
            else:
                value = inline_image(image_id, self._bodies[which])
            yield Input(value, key=self._key(number), image_id=image_id)

    def poison(self, how_many: int) -> None:
        """So many bad messages among the next ones, of each sort in turn."""
        makers: tuple[Callable[[str], bytes | None], ...] = (
            lambda name: inline_image(name, self._bodies[0][: len(self._bodies[0]) // 2]),
            lambda name: f'{{"image_id": "{name}", "data": '.encode(),
            lambda name: json.dumps({"image_id": name, "uri": f"{self._store.origin}/absent.jpg"}).encode(),
            lambda name: json.dumps({"image_id": name, "uri": f"{self._store.origin}/huge.jpg"}).encode(),
            lambda name: inline_image(name, b"no image at all"),
            lambda _name: None,
        )
        for _ in range(how_many):
            number = next(self._numbers)
            value = makers[number % len(makers)](f"poison-{number:06d}")
            self._poison.append(Input(value, key=self._key(number) or b"tombstone"))

    def _key(self, number: int) -> bytes | None:
        return b"key-%d" % (number % self._plan.keys) if self._plan.keys else None

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout_s: float = 180) -> None:
        """No more, and every acknowledgement is in or given up. Raises what broke it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            assert not self._thread.is_alive(), f"the sender still waits for acknowledgements after {timeout_s:g} s"
        if self._broken is not None:
            raise RuntimeError("the sender broke") from self._broken

    def _paced(self) -> Iterator[Input]:
        begun_s, sent = time.monotonic(), 0
        while not self._stopping.is_set():
            due = int((time.monotonic() - begun_s) * self._plan.per_second)
            yield from self.inputs(due - sent)
            sent = due
            while self._poison:
                yield self._poison.popleft()
            self._stopping.wait(_STEP_S)

    def _work(self) -> None:
        properties: dict[str, Any] = {
            "delivery_timeout_ms": 120_000,
            "socket_timeout_ms": 10_000,
            "topic_metadata_refresh_interval_ms": 1_000,  # so that it sends to added partitions, too
        }
        try:
            self._run.send(self._paced(), timeout_s=150, **properties)
        except BaseException as error:
            self._broken = error
