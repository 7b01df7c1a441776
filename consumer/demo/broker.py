"""`python -m consumer.demo.broker TOPIC...`: the embedded broker as a process of its own.

Prints one JSON line, `{"bootstrap_servers": "127.0.0.1:..."}`, once the topics are there, and serves until its standard
input ends, which is when whoever started it closes the pipe or is gone.
"""

import json
import signal
import sys

from consumer.adapters.mock_broker import MockBroker


def main() -> None:
    """Serve until standard input ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with MockBroker() as broker:
        broker.create_topics(sys.argv[1:])
        sys.stdout.write(json.dumps({"bootstrap_servers": broker.bootstrap_servers}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
