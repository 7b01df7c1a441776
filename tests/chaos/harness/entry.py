"""`ouzel run` under the harness: crash points, a slow model and a still owner come and go as a file says.

OUZEL_TEST_CONTROL=path     JSON of `Told`, looked at 20 times a second; a new `number` makes its crash point and its
                            stillness count anew
OUZEL_TEST_BUG=name         a seeded bug of `bugs`
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from consumer.adapters.kafka import transactional_sink
from consumer.adapters.kafka.share_source import KafkaShareSource
from consumer.bootstrap import Ports
from consumer.errors import Fatal
from consumer.service import end_service, run_service
from consumer.settings import load
from tests.chaos.harness.bugs import plant
from tests.crashing_replica import CrashingProducer, CrashPoint, Wrapped, with_crash_points

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Told:
    """What a control file says."""

    number: int = 0
    crash_at: str = ""
    """`point:count` of `tests.crashing_replica`."""
    slow_model_s: float = 0.0
    """Each batch takes so much longer."""
    still_owner_s: float = 0.0
    """The thread that owns the consumer stands still once for so long."""

    def tell(self, path: Path) -> None:
        """Write the file, whole at once."""
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.replace(path)


class Ear:
    """Follows a control file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = Told()
        self._crash = CrashPoint("nowhere:1")
        self._still_s = 0.0
        self._listen()
        threading.Thread(target=self._follow, name="control", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            self._listen()

    def _listen(self) -> None:
        told = Told(**json.loads(self._path.read_text())) if self._path.exists() else Told()
        if told.number != self._told.number:
            self._crash = CrashPoint(told.crash_at or "nowhere:1")
            self._still_s = told.still_owner_s
        self._told = told

    def passed(self, point: str) -> None:
        """A crash point."""
        self._crash.passed(point)

    def slow_model_s(self) -> float:
        """Of now."""
        return self._told.slow_model_s

    def poll(self, poll: Callable[..., Any]) -> Callable[..., Any]:
        """The owner's poll, still once when it is told so."""

        def call(timeout_s: float) -> Any:
            still_s, self._still_s = self._still_s, 0.0
            time.sleep(still_s)
            return poll(timeout_s)

        return call


def main() -> None:
    """What `ouzel run` does."""
    plant(os.environ.get("OUZEL_TEST_BUG", ""))
    transactional_sink.Producer = CrashingProducer  # type: ignore[attr-defined]
    ear = Ear(Path(os.environ["OUZEL_TEST_CONTROL"]))

    def wrap(ports: Ports) -> Ports:
        wrapped: Any = Wrapped
        faulty = with_crash_points(ports, crash=ear, slow_s=ear.slow_model_s)
        source: Any = faulty.source
        if isinstance(source, KafkaShareSource):  # its owner never polls
            return faulty
        return replace(faulty, source=wrapped(source, poll=ear.poll(source.poll)))

    try:
        run_service(load(), resume="--resume" in sys.argv, wrap=wrap)
    except Fatal as error:
        end_service(error)
    end_service()


if __name__ == "__main__":
    main()
