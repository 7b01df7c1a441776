"""`ouzel` with a producer that kills its own process at a chosen commit: `python -m ... MOMENT NTH ARGUMENTS...`.

MOMENT: `before` (all is sent, nothing committed), `during` (the commit is under way), `after` (committed, not told).
"""

import os
import signal
import sys
import threading
from typing import Any

from confluent_kafka import Producer

from consumer.__main__ import main
from consumer.adapters.kafka_tools import clients


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingProducer(Producer):
    """Counts its commits."""

    moment = ""
    left = 0

    def commit_transaction(self, *arguments: Any) -> None:
        cls = type(self)
        cls.left -= 1
        if cls.left == 0 and cls.moment == "before":
            self.flush(10)
            _die()
        if cls.left == 0 and cls.moment == "during":
            threading.Timer(0.002, _die).start()
        super().commit_transaction(*arguments)
        if cls.left == 0 and cls.moment == "after":
            _die()


if __name__ == "__main__":
    DyingProducer.moment, DyingProducer.left = sys.argv[1], int(sys.argv[2])
    setattr(clients, Producer.__name__, DyingProducer)
    sys.argv[1:] = sys.argv[3:]
    main()
