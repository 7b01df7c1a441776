"""What a trial's child may do instead of its work (consumer/adapters/runtimes/trial.py)."""

import json
import os
import signal
import sys
import time


def _answer(said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def crashes() -> None:
    """As a runtime that takes a wrong step in native code."""
    sys.stdin.readline()
    sys.stderr.write("a first line\nthe last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs() -> None:
    """For ever, with a child of its own that holds the pipes."""
    if os.fork() == 0:
        time.sleep(600)
    time.sleep(600)


def leaves() -> None:
    """Without an answer."""
    raise SystemExit(7)


def refuses() -> None:
    """As a runtime that cannot run the model."""
    sys.stdin.readline()
    _answer({"error": "CannotRun", "said": "not in bf16 here", "remedy": "use another"})


def works() -> None:
    """Until it is timed the third time."""
    asked = json.loads(sys.stdin.readline())
    _answer({"scores": [[0.25, 0.75]] * asked["batch_size"]})
    for _ in range(2):
        sys.stdin.readline()
        _answer({"images_per_s": 12.5})
    sys.stdin.readline()
