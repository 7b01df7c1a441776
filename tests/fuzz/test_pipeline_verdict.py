"""The verdict on hostile messages among good ones sees what it is there to see."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.hostile import Message, Messages, make_places
from tests.fuzz.pipeline import Ledger

GOOD = Message("good", b"g", b"k", events=1, letters=0, image_id="good-1", image_sha256="aa")
BAD = Message("bad", b"b", b"k", [("h", "v"), ("ouzel-origin-topic", "forged")], errors=frozenset({"NotAnImage"}))
VALUE_SHA256 = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"  # of b"b"

GOOD_SHA256 = "cd0aa9856147b6c5b4ff2b7dfee5da20aa38253099ef1b4a64aced233c9afe29"  # of b"g"


def event_of(image_id: str = "good-1", sha256: str = "aa", labels: int = 1) -> dict[str, object]:
    return {"image_id": image_id, "image": {"sha256": sha256}, "labels": [{}] * labels}


def letter(ledger: Ledger, offset: int = 1, error: str = "NotAnImage", sha256: str = VALUE_SHA256) -> None:
    ledger.note_letter((0, offset), error, b"k", sha256, [("h", b"v")])


def answered() -> Ledger:
    """A good message at 0, a bad one at 1, and nothing wrong."""
    ledger = Ledger()
    ledger.note_sent((0, 0), GOOD)
    ledger.note_sent((0, 1), BAD)
    ledger.note_event((0, 0), event_of())
    letter(ledger)
    return ledger


def test_what_is_answered_as_it_must_be_has_no_fault() -> None:
    ledger = answered()
    assert ledger.faults() == []
    assert (ledger.answers, ledger.expected) == (2, 2)
    assert ledger.became()["bad"] == {"sent": 1, "labelled": 0, "NotAnImage": 1}


@pytest.mark.parametrize(
    ("seeded", "said"),
    [
        (lambda ledger: ledger.came[0, 0].events.clear(), "0 label events"),
        (lambda ledger: ledger.note_event((0, 0), event_of()), "2 label events"),
        (lambda ledger: ledger.came[0, 1].letters.clear(), "0 letters"),
        (letter, "2 letters"),
        (
            lambda ledger: ledger.came[0, 0].letters.append(("NotAnImage", b"k", GOOD_SHA256, [])),
            "1 letters, not 1 and 0",
        ),
        (lambda ledger: ledger.note_event((0, 2), event_of()), "where nothing was sent"),
        (lambda ledger: ledger.stray.append("x"), "names no input"),
    ],
)
def test_an_answer_too_few_or_too_many_is_a_fault(seeded: Callable[[Ledger], object], said: str) -> None:
    ledger = answered()
    seeded(ledger)
    (fault,) = ledger.faults()
    assert said in fault


@pytest.mark.parametrize(
    ("seeded", "said"),
    [
        (lambda ledger: ledger.note_event((0, 0), event_of("good-2")), "labelled as good-2"),
        (lambda ledger: ledger.note_event((0, 0), event_of(sha256="bb")), "with the bytes bb"),
        (lambda ledger: ledger.note_event((0, 0), event_of(labels=0)), "no labels"),
        (lambda ledger: letter(ledger, error="ProcessingFailed"), "a letter of ProcessingFailed"),
        (lambda ledger: letter(ledger, sha256="cc"), "another key or value"),
        (lambda ledger: ledger.note_letter((0, 1), "NotAnImage", b"k", VALUE_SHA256, []), "with the headers []"),
    ],
)
def test_an_answer_that_is_another_s_is_a_fault(seeded: Callable[[Ledger], object], said: str) -> None:
    ledger = Ledger()
    ledger.note_sent((0, 0), GOOD)
    ledger.note_sent((0, 1), BAD)
    seeded(ledger)
    if not ledger.came[0, 0].events:
        ledger.note_event((0, 0), event_of())
    else:
        letter(ledger)
    (fault,) = ledger.faults()
    assert said in fault


def test_the_same_seed_deals_the_same_messages(tmp_path: Path) -> None:
    places = make_places(tmp_path, "photos")
    first, second = (list(Messages(3, places, max_pixels=1_000_000).dealt(40, 40)) for _ in range(2))
    assert first == second
    assert sum(message.is_good and message.image_id is not None for message in first) == 40
    assert sum(message.letters > 0 for message in first) == 40
