"""Which sizes are explored: `quick` in every test run, `large` by `make model`."""

from typing import Generic, NamedTuple, TypeVar

from tests.model import at_least_once, exactly_once, share

T = TypeVar("T")


class Sizes(NamedTuple, Generic[T]):
    """Of one protocol."""

    quick: list[T]
    large: list[T]


AT_LEAST_ONCE = Sizes(
    quick=[
        at_least_once.Size(("aba",), crashes=1, revokes=0, evictions=0, failures=0),
        at_least_once.Size(("ab",), crashes=0, revokes=1, evictions=1, failures=0),
    ],
    large=[at_least_once.Size(("aba",)), at_least_once.Size(("ab", "a"))],
)
EXACTLY_ONCE = Sizes(
    quick=[
        exactly_once.Size(("ab",), crashes=0, revokes=1, evictions=1, failures=0),
        exactly_once.Size(("a", "a"), crashes=0, revokes=1, evictions=0, failures=1),
    ],
    large=[exactly_once.Size(("ab",)), exactly_once.Size(("a", "a"))],
)
SHARE = Sizes(
    quick=[
        share.Size("gp", crashes=1, lapses=0),
        share.Size("gp", crashes=0, lapses=1),
        share.Size("gp", limit=6, margin=2),
    ],
    large=[share.Size("gpp", limit=6, margin=2)],
)
