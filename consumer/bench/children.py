"""Child processes that are asked one thing after the other: a JSON line in, a JSON line out."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson

from consumer import errors
from consumer.demo.processes import Child
from consumer.errors import OuzelError

_ENDING_S = 10.0
_CODE = Path(__file__).resolve().parents[2]


def environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """Ours, the user's settings included, with these settings over them.

    `overrides` are by dotted key; lists as JSON.
    """
    # The settings do not care how a variable's name is written, and take the last of two.
    ours = {_variable(key): value for key, value in overrides.items()}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    paths = filter(None, (str(_CODE), kept.get("PYTHONPATH", "")))
    return {**kept, **ours, "PYTHONPATH": os.pathsep.join(paths)}


def _variable(key: str) -> str:
    """`kafka.client.security.protocol` -> `OUZEL_KAFKA__CLIENT__SECURITY_PROTOCOL`."""
    *tables, name = key.split(".", 2 if key.split(".")[1] in {"client", "consumer", "producer", "admin"} else -1)
    return "OUZEL_" + "__".join(part.upper().replace(".", "_") for part in (*tables, name))


class Asked:
    """A child that answers. Leaving it ends it."""

    def __init__(self, child: Child) -> None:
        self.child = child

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer; raises what it raised, if that is one of ours, and `Fatal` with its log's end where it ended."""
        into, out = self.child.process.stdin, self.child.process.stdout
        if into is None or out is None:
            raise TypeError("a child that is asked has a standard input and output")
        try:
            into.write(orjson.dumps(question) + b"\n")
            into.flush()
            line = out.readline()
        except OSError:
            line = b""
        if not line:
            self.child.process.wait(_ENDING_S)
            raise self.child.failure(f"the process for {self.child.name} ended")
        answer: dict[str, Any] = orjson.loads(line)
        if "error" in answer:
            kind: type[errors.Fatal] = getattr(errors, answer["error"], errors.Fatal)
            raise kind(answer["message"], remedy=answer["remedy"])
        return answer


@contextmanager
def asked(
    name: str, module: str, arguments: Sequence[str], *, log: Path, overrides: Mapping[str, str]
) -> Iterator[Asked]:
    """`python -m MODULE ARGUMENTS`, to be asked; ended when the block is left."""
    ours = environment(overrides)
    with Child(name, ["-m", module, *arguments], log=log, environment=ours, read_stdout=True) as child:
        yield Asked(child)


class Answering(Protocol):
    """What a child answers by."""

    def answer(self, asked: dict[str, Any]) -> Mapping[str, Any]:
        """One question."""
        ...


def answer_on_workload(make: Callable[[Path, float, Path | None], Answering]) -> None:
    """The side of a child that is started with FOLDER MEGAPIXELS [SETTINGS]; what answers is made with its first
    question, so that errors of that are told too."""
    folder, megapixels, *named = sys.argv[1:]
    made: list[Answering] = []

    def answer(asked: dict[str, Any]) -> Mapping[str, Any]:
        if not made:
            made.append(make(Path(folder), float(megapixels), Path(named[0]) if named else None))
        return made[0].answer(asked)

    answer_questions(answer)


def answer_questions(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The child's side: until standard input ends. What libraries write to stdout goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            try:
                said = dict(answer(orjson.loads(line)))
            except OuzelError as error:
                kind = type(error).__name__
                said = {"error": kind, "message": str(error), "remedy": getattr(error, "remedy", "")}
            out.write(orjson.dumps(said) + b"\n")
            out.flush()
