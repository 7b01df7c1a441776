"""How far a long `ouzel send` is: a small file that names the last place up to which everything is acknowledged."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from consumer.errors import CommandRefused

_EVERY_S = 1.0
_BEGIN_ANEW = "--no-resume begins anew; --state FILE keeps this send's place in a file of its own"


@dataclass(slots=True)
class _Open:
    number: int | None
    place: Any
    settled: bool


class Bookmark:
    """Written only after acknowledgement, whole or not at all: after a kill an image may be sent twice, none is missed.

    A place is anything that JSON has, and by which the source goes on after it.

    Args:
        path: of the file; its folder is made.
        about: what is sent, and where to; a file about something else is not gone on with.
        resume: whether to go on from what the file says.

    Raises:
        CommandRefused: the file is about something else, or cannot be read or written.
    """

    def __init__(
        self, path: Path, about: Mapping[str, str], *, resume: bool, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._about = dict(about)
        self._clock_s = clock_s
        self._open: deque[_Open] = deque()
        self._by_number: dict[int, _Open] = {}
        self._blocked = False
        self.place: Any = place_in(path, about) if resume else None
        """Everything up to here is acknowledged; None: nothing yet."""
        self.save()  # that it cannot be written is told before anything is sent

    # --- as images go -----------------------------------------------------------------------------------------------

    def sent(self, number: int, place: Any) -> None:
        """The image at this place was handed over, and will be settled under this number. In the source's order."""
        self._add(_Open(number, place, settled=False))

    def passed_over(self, place: Any) -> None:
        """Nothing is sent for what is at this place."""
        self._add(_Open(None, place, settled=True))
        self._advance()

    def settled(self, number: int, *, acknowledged: bool) -> None:
        """What was sent under this number is with the broker, or is not: then the place stays before it."""
        found = self._by_number.pop(number, None)
        if found is None:
            return
        if acknowledged:
            found.settled = True
            self._advance()
        else:
            self._blocked = True
            while self._open[-1] is not found:
                later = self._open.pop()
                if later.number is not None:
                    self._by_number.pop(later.number, None)
        self.save_when_due()

    def _add(self, entry: _Open) -> None:
        if self._blocked:
            return  # the place will not come past what failed
        self._open.append(entry)
        if entry.number is not None:
            self._by_number[entry.number] = entry

    def _advance(self) -> None:
        while self._open and self._open[0].settled:
            self.place = self._open.popleft().place

    # --- the file ---------------------------------------------------------------------------------------------------

    def save_when_due(self) -> None:
        """Once a second."""
        if self._clock_s() >= self._due_s:
            self.save()

    def save(self) -> None:
        """Now. Raises `CommandRefused` where it cannot be written."""
        self._due_s = self._clock_s() + _EVERY_S
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(orjson.dumps({"v": 1, **self._about, "after": self.place}, option=orjson.OPT_INDENT_2))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise CommandRefused(
                f"{self._path}: how far the sending is cannot be noted: {error.strerror}",
                remedy="--state FILE names another place",
            ) from error

    def finish(self) -> None:
        """All of the source is with the broker: the next send begins anew."""
        if self._blocked or self._open:
            self.save()
        else:
            self._path.unlink(missing_ok=True)


def place_in(path: Path, about: Mapping[str, str]) -> Any:
    """The place that a file names; None where there is no file. Raises `CommandRefused`, see `Bookmark`."""
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise CommandRefused(f"{path}: cannot be read: {error}", remedy=_BEGIN_ANEW) from error
    if not isinstance(found, dict) or found.get("v") != 1:
        raise CommandRefused(f"{path}: not the place of an earlier send", remedy=_BEGIN_ANEW)
    other = [name for name, value in about.items() if found.get(name) != value]
    if other:
        raise CommandRefused(
            f"{path}: the place of another send: its {other[0]} was {found.get(other[0])!r}", remedy=_BEGIN_ANEW
        )
    return found.get("after")


def default_path(folder: Path, about: Mapping[str, str]) -> Path:
    """A file for this very send: by where it goes to and what it reads."""
    digest = hashlib.sha256(orjson.dumps(about, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return folder / "send" / f"{digest[:20]}.json"
