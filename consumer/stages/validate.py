"""Validate: a document against its typed model, with an error that says what to do and repeats nothing of it."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from consumer.errors import MalformedMessage

M = TypeVar("M", bound=BaseModel)

_MAX_PROBLEMS_NAMED = 5
_OUR_REASON = "Value error, "  # what pydantic puts before the text of a validator of ours


def validated(model: type[M], document: Mapping[str, object], remedies: Mapping[str, str]) -> M:
    """The document as its model.

    Args:
        model: what it must be.
        document: parsed JSON.
        remedies: what to do about a field, by its name; empty for a name that needs no more words. A name that is not
            in it is of the sender's own making, of any length and content, and is not repeated.

    Raises:
        MalformedMessage: names up to five fields that are missing or wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = [_problem(tuple(problem["loc"]), problem["msg"], remedies) for problem in problems[:_MAX_PROBLEMS_NAMED]]
    more = len(problems) - len(named)
    # Outside the handler, so that no trace carries pydantic's view of the input along.
    raise MalformedMessage("; ".join(named) + (f"; and {more} more" if more else ""))


def _problem(location: tuple[int | str, ...], message: str, remedies: Mapping[str, str]) -> str:
    names = [str(part) for part in location if part in remedies]
    where = ".".join(names) + ": " if names else ""
    if message.startswith(_OUR_REASON):
        return where + message.removeprefix(_OUR_REASON)  # ours say what to do
    remedy = remedies[names[-1]] if names else ""
    return f"{where}{message}" + (f"; {remedy}" if remedy else "")
