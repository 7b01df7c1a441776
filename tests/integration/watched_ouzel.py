"""`ouzel` with an eye on the network: `python watched_ouzel.py FILE ARGUMENT...` notes in FILE what it connects to."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

_EVENTS = frozenset({"socket.connect", "socket.getaddrinfo", "socket.sendto"})


def _watch(file: Path) -> None:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            with file.open("a") as notes:
                notes.write(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[:2]}\n")

    sys.addaudithook(note)


if __name__ == "__main__" and multiprocessing.parent_process() is None:
    _watch(Path(sys.argv.pop(1)))
    from consumer.__main__ import main

    main()
