"""`ouzel run` with a partition that gets stuck in its client, as the race of librdkafka #5591 leaves one: paused there,
while the service takes it for one that is read. Only tests start it; the product has no such code.

OUZEL_TEST_STUCK=partition:starts   the first so many times that this partition is begun, it gets stuck at once
"""

import os
import sys
from dataclasses import replace
from typing import Any

from confluent_kafka import TopicPartition

from consumer.bootstrap import Ports
from consumer.errors import Fatal
from consumer.messages import Lease
from consumer.service import end_service, run_service
from consumer.settings import load
from tests.crashing_replica import Wrapped

ENTRY = "tests.stuck_replica"


def with_a_stuck_partition(ports: Ports) -> Ports:
    """Puts the fault between the service and its source."""
    number, _, starts = os.environ["OUZEL_TEST_STUCK"].partition(":")
    left = int(starts)
    source: Any = ports.source

    def start(lease: Lease, offset: int) -> None:
        nonlocal left
        source.start(lease, offset)
        if lease.partition.number == int(number) and left > 0:
            left -= 1
            source._consumer.pause([TopicPartition(*lease.partition)])

    wrapped: Any = Wrapped
    return replace(ports, source=wrapped(source, start=start))


def main() -> None:
    """What `ouzel run` does."""
    try:
        run_service(load(), resume="--resume" in sys.argv, wrap=with_a_stuck_partition)
    except Fatal as error:
        end_service(error)
    end_service()


if __name__ == "__main__":
    main()
