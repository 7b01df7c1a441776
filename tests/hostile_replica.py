"""`ouzel run` whose decoder has holes (tests/hostile_decoder.py), in threads and sandbox alike. Only tests start it."""

import sys
from dataclasses import replace

from consumer.bootstrap import Ports
from consumer.bootstrap_model import sandboxed
from consumer.errors import Fatal
from consumer.service import end_service, run_service
from consumer.settings import load
from tests.hostile_decoder import FACTORY, HostileDecoder

ENTRY = "tests.hostile_replica"


def with_holes(ports: Ports) -> Ports:
    """The same service with another decoder."""
    arguments = {"input_size": ports.model.runtime.input_size}
    sandbox = sandboxed(load(), FACTORY, arguments)
    return replace(ports, model=replace(ports.model, decoder=HostileDecoder(**arguments), sandbox=sandbox))


def main() -> None:
    """What `ouzel run` does."""
    try:
        run_service(load(), resume="--resume" in sys.argv, wrap=with_holes)
    except Fatal as error:
        end_service(error)
    end_service()


if __name__ == "__main__":
    main()
