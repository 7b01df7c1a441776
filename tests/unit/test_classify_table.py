"""The table of `ouzel classify`."""

from typing import Any

import pytest

from consumer.commands.classify import _print_table


def _failed(path: str, message: str = "cut short") -> dict[str, Any]:
    return {"path": path, "error": {"class": "NotAnImage", "message": message, "stage": "decode"}}


def _labelled(path: str, *labels: str) -> dict[str, Any]:
    return {"path": path, "labels": [{"index": 0, "label": label, "score": 0.5} for label in labels]}


@pytest.mark.parametrize("path", ["x[/b]y.jpg", "[bold]a.jpg", "[red"])
def test_brackets_in_names_and_messages_are_shown_as_they_are(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    _print_table([_failed(path, "no [/i] here"), _labelled(path + "2", "[/b]dog")])
    shown = capsys.readouterr().out
    assert shown.count(path) == 2
    assert "[/b]dog" in shown
    assert "[/i]" in shown


def test_control_characters_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table([_failed("a\x1b[2Jb.jpg"), _labelled("c\x1b[2J.jpg", "\x1b[2J")])
    assert "\x1b[2J" not in capsys.readouterr().out


def test_labels_stand_below_each_other_and_none_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table([_labelled("a.jpg", "cat", "dog"), _labelled("b.jpg")])
    shown = capsys.readouterr().out.splitlines()
    assert [next(number for number, line in enumerate(shown) if word in line) for word in ("cat", "dog")] == [3, 4]
    assert any("none above model.min_score" in line for line in shown)
