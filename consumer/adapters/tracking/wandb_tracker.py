"""A replica's run at W&B, written by a child process: what happens there never happens here.

    figures, images ──> queue (bounded; full: dropped and counted) ──> a thread ──> pipe ──> child ──> W&B's client

The child is started anew a few times if it ends, each time with a run of the same name. Where the server does not take
the run as it begins, the next one is written to disk alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from loguru import logger

from consumer.adapters.tracking.child_process import (
    PROGRAM,
    ChildProcess,
    NotTaken,
    child_environment,
    how_it_ended,
)
from consumer.adapters.tracking.wandb_child import SERVER_REFUSED, STOPPED
from consumer.messages import ModelInfo

QUEUE_MOST_ITEMS = 128
QUEUE_MOST_BYTES = 16 * 1024 * 1024

_START_S = 60.0  # W&B's client waits this long for its own process
_LOOK_S = 0.5
_JOIN_S = 0.5


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run is called, where it goes, and what is said of it as it begins."""

    project: str
    entity: str
    """Empty: the API key's own."""
    group: str
    name: str
    mode: Literal["online", "offline"]
    folder: Path
    """Runs are written below it."""
    config: Mapping[str, object] = field(default_factory=dict)
    """As JSON can carry it; nothing secret."""
    base_url: str = ""
    """Empty: W&B's own cloud, or what WANDB_BASE_URL says."""
    api_key: str = field(default="", repr=False)
    timeout_s: float = 10.0
    """For the server's answer as the run begins."""
    interval_s: float = 30.0
    """Between two looks at the machine: CPU, memory, GPU."""
    finish_s: float = 5.0
    """What `close` will give the run to be sent."""


@dataclass(frozen=True, slots=True)
class _Item:
    request: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)


class WandbTracker:
    """Fulfils `ports.RunTracker`."""

    def __init__(
        self,
        run: RunFacts,
        *,
        dropped: Callable[[int], None],
        program: Sequence[str] = PROGRAM,
        waits_s: Sequence[float] = (1.0, 10.0, 60.0),
        patience_s: float = 60.0,
    ) -> None:
        """Begins at once, and waits for nothing.

        Args:
            run: what it is called and where it goes.
            dropped: told how many items were dropped, from any thread.
            program: the child's.
            waits_s: seconds before each new start of a child that ended.
            patience_s: seconds that the child may take nothing, before it is ended.
        """
        self._facts = run
        self._mode: str = run.mode
        self._dropped = dropped
        self._program = tuple(program)
        self._waits_s = tuple(waits_s)
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._over = False
        self._close_by_s: float | None = None
        self._model: Mapping[str, Any] | None = None
        self._child: ChildProcess | None = None
        self._began = False
        self._said_lost = False
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        self._thread.start()

    # --- the port ---------------------------------------------------------------------------------------------------

    def figures(self, values: Mapping[str, float]) -> None:
        """See the port."""
        self._put(_Item({"do": "figures", "values": dict(values)}))

    def image(self, body: bytes, row: Mapping[str, object]) -> None:
        """See the port."""
        self._put(_Item({"do": "image", "row": dict(row)}, body))

    def model(self, info: ModelInfo, source: str) -> None:
        """See the port."""
        self._put(_Item({"do": "model", "info": asdict(info), "source": source}))

    def close(self, timeout_s: float) -> None:
        """See the port."""
        with self._changed:
            if self._close_by_s is None:
                self._close_by_s = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s + _JOIN_S)
        if (child := self._child) is not None and child.running:
            child.kill()

    # --- the queue --------------------------------------------------------------------------------------------------

    def _put(self, item: _Item) -> None:
        with self._changed:
            fits = (
                not self._over
                and self._close_by_s is None
                and len(self._queue) < QUEUE_MOST_ITEMS
                and self._queued_bytes + len(item.body) <= QUEUE_MOST_BYTES
            )
            if fits:
                self._queue.append(item)
                self._queued_bytes += len(item.body)
                self._changed.notify_all()
        if not fits:
            self._dropped(1)

    def _next(self, child: ChildProcess, begin_by_s: float) -> _Item | None:
        """Waits for it, and for the run to have begun: what is handed to a child that cannot begin is lost. None where
        the child ended or all is done. Raises NotTaken where the run does not begin."""
        with self._changed:
            while child.running and not (self._began and (self._queue or self._close_by_s is not None)):
                now_s = time.monotonic()
                if self._close_by_s is not None and now_s >= self._close_by_s:
                    return None
                if not self._began and now_s >= begin_by_s:
                    raise NotTaken("it does not begin")
                self._changed.wait(_LOOK_S)
            if not self._queue or not child.running:
                return None
            item = self._queue.popleft()
            self._queued_bytes -= len(item.body)
            return item

    # --- the thread -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            for wait_s in (*self._waits_s, None):
                ended = self._one_child()
                if ended is None or self._close_by_s is not None or wait_s is None:
                    break
                self._warn(f"{ended}; again in {wait_s:g} s")
                with self._changed:
                    self._changed.wait_for(lambda: self._close_by_s is not None, wait_s)
            if ended is not None:
                self._warn(f"{ended}; the rest of it is dropped")
        finally:
            with self._changed:
                self._over = True
                left = len(self._queue)
                self._queue.clear()
            if left:
                self._dropped(left)

    def _warn(self, what: str) -> None:
        logger.bind(mode=self._mode).warning("tracking: {}. Labels are not affected", what)

    def _one_child(self) -> str | None:
        """From start to end; how it ended, None where that is as it should be."""
        try:
            key = self._facts.api_key if self._mode == "online" else None
            child = ChildProcess(self._program, child_environment(self._facts.folder, key), self._hear)
        except OSError as error:
            return f"its process cannot be started: {error}"
        self._child = child
        self._began = False
        said = ""
        try:
            begun_s = time.monotonic()
            child.write(self._begin(), until_s=lambda: self._until_s(begun_s))
            self._hand_over(child)
        except NotTaken as error:
            said = str(error)
        child.end_input()
        if self._close_by_s is None and child.running:
            child.kill()
            child.wait(time.monotonic() + _JOIN_S)
            return f"its process was ended, as {said}"
        code = child.wait(self._close_by_s if self._close_by_s is not None else time.monotonic() + _JOIN_S)
        if code is None:
            child.kill()
            child.wait(time.monotonic() + _JOIN_S)
            return self._unsent()
        return self._verdict(code, child)

    def _hand_over(self, child: ChildProcess) -> None:
        begin_by_s = time.monotonic() + self._patience_s
        while (item := self._next(child, begin_by_s)) is not None:
            if item.request["do"] == "model":
                self._model = item.request
            self._write(child, item)

    def _write(self, child: ChildProcess, item: _Item) -> None:
        begun_s = time.monotonic()
        try:
            child.write(item.request, item.body, until_s=lambda: self._until_s(begun_s))
        except NotTaken:
            self._dropped(1)
            raise

    def _unsent(self) -> str:
        return f"the run was not sent within {self._facts.finish_s:g} s (tracking.finish_timeout_ms)"

    def _until_s(self, begun_s: float) -> float:
        patience_s = begun_s + self._patience_s
        return patience_s if self._close_by_s is None else min(patience_s, self._close_by_s)

    def _begin(self) -> dict[str, Any]:
        facts = asdict(self._facts) | {
            "do": "begin",
            "mode": self._mode,
            "folder": str(self._facts.folder.absolute()),
            "start_s": _START_S,
        }
        del facts["api_key"]  # in its environment
        return facts | ({"model": self._model} if self._model is not None else {})

    def _verdict(self, code: int, child: ChildProcess) -> str | None:
        if code == 0:
            return None if self._close_by_s is not None else "its process ended"
        if code == STOPPED:
            self._warn("the run was stopped at the server, and nothing more is noted")
            return None
        words = child.last_words()
        because = f": {words}" if words else ""
        if code == SERVER_REFUSED and self._close_by_s is None:
            self._mode = "offline"
            return (
                f"the server does not take the run{because}. It is written to {self._facts.folder} alone; send it "
                "later with `wandb sync`"
            )
        return f"its process {how_it_ended(code)}{because}"

    def _hear(self, said: dict[str, Any]) -> None:
        if "lost" in said:
            self._dropped(1)
            if not self._said_lost:
                self._said_lost = True
                self._warn(f"figures are lost: {said['lost']} ({self._facts.folder})")
        if "unsent" in said:
            self._warn(f"{self._unsent()}. It is in {said['unsent']}: send it with `wandb sync`")
        if "began" in said:
            about = logger.bind(mode=self._mode, folder=str(said["began"]), url=str(said.get("url", "")))
            about.info("tracking: run {} began", self._facts.name)
            with self._changed:
                self._began = True
                self._changed.notify_all()


def probe(facts: RunFacts, *, program: Sequence[str] = PROGRAM, start_s: float = 30.0) -> str | None:
    """Whether the server answers and knows us: None where it does, else the reason. Blocks for `timeout_s` of the
    facts, and `start_s` for the child to start, at most."""
    heard: dict[str, Any] = {}
    until_s = time.monotonic() + facts.timeout_s + start_s
    try:
        child = ChildProcess(program, child_environment(facts.folder, facts.api_key), heard.update)
        child.write({"do": "probe", "base_url": facts.base_url, "timeout_s": facts.timeout_s}, until_s=lambda: until_s)
    except (OSError, NotTaken) as error:
        return f"its process cannot be started: {error}"
    code = child.wait(until_s)
    if code is None:
        child.kill()
        return "no answer in time"
    words = child.last_words()  # after its answer
    if "user" in heard:
        return None
    return str(heard.get("refused", words or how_it_ended(code)))
