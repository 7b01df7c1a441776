"""What log lines look like and what never gets into them."""

import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from consumer.errors import SettingsError
from consumer.log import RateLimited, configure, rate_limited, redacted
from consumer.redact import hide
from consumer.settings import LogSettings


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    """Leaves loguru and the standard library as they were."""
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, threading.excepthook
    yield
    threading.excepthook = hook
    logger.remove()
    logger.configure(patcher=lambda record: None)
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> io.StringIO:
    """JSON lines at DEBUG go here."""
    into = io.StringIO()
    configure(LogSettings(level="DEBUG"), stream=into)
    return into


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_away_from_a_terminal_a_line_is_json_with_its_context_flat(stream: io.StringIO) -> None:
    logger.bind(topic="images", partition=3, offset=41, image_id="a").info("image {}", "refused")
    (line,) = _lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "INFO",
        "message": "image refused",
        "logger": __name__,
        "topic": "images",
        "partition": 3,
        "offset": 41,
        "image_id": "a",
    }


def test_in_a_terminal_a_line_is_for_people() -> None:
    stream = _Terminal()
    configure(LogSettings(), stream=stream)
    logger.bind(topic="images", offset=41).info("a <red> {brace} \x1b[2J")
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} INFO    a <red> \{brace\} \\x1b\[2J topic=images offset=41", _plain(line)
    )


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", line)


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_the_format_can_be_said(log_format: str) -> None:
    stream = _Terminal() if log_format == "json" else io.StringIO()
    configure(LogSettings.model_validate({"format": log_format}), stream=stream)
    logger.info("hello")
    assert stream.getvalue().startswith("{") == (log_format == "json")


def test_less_than_the_level_is_not_written() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="WARNING"), stream=stream)
    logger.info("no")
    logger.warning("yes")
    assert [line["message"] for line in _lines(stream)] == ["yes"]


def test_an_exception_is_one_line_without_the_values_of_variables(stream: io.StringIO) -> None:
    password = "hunter2"

    def fail(secret: str) -> None:
        raise ValueError(f"https://host/image?signature={len(secret)}")

    try:
        fail(password)
    except ValueError:
        logger.exception("it failed")
    (line,) = _lines(stream)
    assert line["message"] == "it failed"
    assert "ValueError" in line["exception"]
    assert "hunter2" not in line["exception"].replace('password = "hunter2"', "")
    assert "signature" not in line["exception"].splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("get https://bucket/a.jpg?X-Amz-Signature=abc&x=1 failed", "get https://bucket/a.jpg?******** failed"),
        ("https://me:pw@host/a", "https://********@host/a"),
        ("data:image/png;base64,AAAA", "data:image/png,********"),
        ("no URI at all? really", "no URI at all? really"),
        ("file:///images/a.jpg", "file:///images/a.jpg"),
        ("a lone surrogate \ud800", "a lone surrogate ?"),
    ],
)
def test_queries_user_info_and_inline_data_are_cut(text: str, safe: str) -> None:
    assert redacted(text) == safe


def test_context_is_redacted_too_and_secrets_masked(stream: io.StringIO) -> None:
    logger.bind(uri="https://host/a?token=x", **{"sasl.password": "hunter2"}, key="k1").info("a")
    (line,) = _lines(stream)
    assert line["uri"] == "https://host/a?********"
    assert line["sasl.password"] == "********"
    assert line["key"] == "k1"


def test_the_standard_librarys_lines_and_warnings_come_along(stream: io.StringIO) -> None:
    logging.getLogger("librdkafka").warning("broker %s", "down")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", UserWarning, stacklevel=1)
    first, second = _lines(stream)
    assert (first["logger"], first["level"], first["message"]) == ("librdkafka", "WARNING", "broker down")
    assert "careful" in second["message"]


def test_the_file_gets_json_and_is_begun_anew_at_its_size(tmp_path: Path) -> None:
    file = tmp_path / "ouzel.log"
    configure(LogSettings(file=str(file), rotation="1 KB", retention="2"), stream=_Terminal())
    for number in range(60):
        logger.bind(number=number).info("a line")
    logger.remove()
    files = sorted(tmp_path.iterdir())
    assert 1 < len(files) <= 3
    assert json.loads(file.read_text().splitlines()[-1])["number"] == 59


@pytest.mark.parametrize(
    ("log", "key"),
    [
        (LogSettings(file="x.log", rotation="sometimes"), "log.rotation"),
        (LogSettings(file="x.log", retention="some"), "log.retention"),
        (LogSettings(file="/proc/nowhere/x.log"), "log.file"),
    ],
)
def test_a_file_that_cannot_be_written_is_a_settings_error(
    log: LogSettings, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=key):
        configure(log, stream=io.StringIO())


def test_of_a_flood_the_first_lines_are_written_then_one_an_interval_with_the_count() -> None:
    now_s = 0.0
    limits = RateLimited(first=2, clock_s=lambda: now_s)
    assert [limits.left_out("a", 30) for _ in range(5)] == [0, 0, None, None, None]
    assert limits.left_out("b", 30) == 0
    now_s = 31.0
    assert [limits.left_out("a", 30) for _ in range(3)] == [3, None, None]
    now_s = 62.0
    assert limits.left_out("a", 30) == 2
    now_s = 124.0
    assert [limits.left_out("a", 30) for _ in range(3)] == [0, 0, None]


def test_kinds_without_end_take_no_memory_without_end() -> None:
    limits = RateLimited()
    for number in range(3_000):
        limits.left_out(str(number), 30)
    assert len(limits._kinds) == 1_000


def test_a_rate_limited_logger_writes_or_keeps_silent(stream: io.StringIO) -> None:
    for number in range(9):
        rate_limited("test of the limit").bind(number=number).warning("again")
    assert [line["number"] for line in _lines(stream)] == [0, 1, 2, 3, 4]


def test_what_librdkafka_repeats_is_written_a_few_times_and_then_seldom(stream: io.StringIO) -> None:
    for number in range(50):
        logging.getLogger("kafka").error("REPEATED [ouzel#consumer-1] [thrd:x]: try %d failed", number)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"].rsplit("try ", 1)[1] for line in lines] == [f"{number} failed" for number in range(5)]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("GET /a?X-Amz-Signature=abc&x=1 failed", "GET /a?X-Amz-Signature=********&x=1 failed"),
        ("https://me:p/w?x@host/a", "https://********"),
        ("sasl.password=hunter2, and more", "sasl.password=********, and more"),
        ('{"api_token": "abc", "n": 1}', '{"api_token": "********", "n": 1}'),
        ("{'sasl.password': 'hunter2'}", "{'sasl.password': '********'}"),
        ('\\"password\\": \\"hunter2\\"', '\\"password\\": \\"********\\"'),
        ("Authorization: Bearer abc.def", "Authorization: ********"),
        ("got a bearer abcdefghijkl", "got a bearer ********"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----********"),
        ("-----BEGIN PRIVATE KEY-----\nMHc", "-----BEGIN PRIVATE KEY-----********"),
        # What only speaks of secrets is left as it is.
        (
            "kafka.client.sasl.pasword: there is no such property",
            "kafka.client.sasl.pasword: there is no such property",
        ),
        ("the token endpoint is away", "the token endpoint is away"),
        ("-----BEGIN CERTIFICATE-----\nMII", "-----BEGIN CERTIFICATE-----\nMII"),
    ],
)
def test_what_is_called_a_secret_is_masked(text: str, safe: str) -> None:
    assert redacted(text) == safe


def test_a_value_of_the_settings_that_is_secret_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.redact._known", ())
    key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqG\n-----END PRIVATE KEY-----\n"
    hide(["correct horse", "short", key])
    assert redacted("said 'correct horse' to a short one") == "said '********' to a short one"
    assert redacted("line 2 is MIGHAgEAMBMGByqGSM49AgEGCCqG") == "line 2 is ********"


def test_a_thread_that_fails_is_a_log_line_without_secrets(stream: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError("password=hunter2")

    hook = threading.excepthook
    thread = threading.Thread(target=fail, name="worker-7")
    thread.start()
    thread.join()
    (line,) = _lines(stream)
    assert line["message"] == "worker-7 ended by an exception"
    assert "ValueError: password=********" in line["exception"]
    assert hook.__module__ == "consumer.log"
