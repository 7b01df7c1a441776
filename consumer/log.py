"""Where log lines go: stderr, for people in a terminal and as JSON elsewhere, and a file if the settings name one.

    from loguru import logger
    logger.bind(topic="images", partition=3, offset=41).info("image refused")

Secrets never get out: the queries and user-info of URIs and inline data are cut from every line, and a traceback shows
no values of variables.
"""

import logging
import re
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any, TextIO, cast

import orjson
from loguru import logger

from consumer.errors import SettingsError
from consumer.kafka_properties import is_secret
from consumer.redact import MASK, mask_secrets, redact_uri

if TYPE_CHECKING:
    from loguru import Logger, Message, Record

    from consumer.settings import LogSettings


def configure(log: "LogSettings", *, stream: TextIO | None = None) -> None:
    """Send loguru's lines, the standard library's and warnings to `stream` (stderr) and the file that `log` names.

    Replaces what an earlier call set up. Raises `SettingsError` where the file, its rotation or retention will not do.
    """
    stream = sys.stderr if stream is None else stream
    human = log.format == "human" or (log.format == "auto" and stream.isatty())
    # diagnose would print the values of variables into tracebacks: passwords, images.
    safely: dict[str, Any] = {"level": log.level, "diagnose": False, "backtrace": False}
    logger.remove()
    logger.configure(patcher=_redact)
    if human:
        logger.add(stream, format=_human_format, **safely)
    else:
        logger.add(_json_sink(stream), **safely)
    if log.file:
        retention: str | int = int(log.retention) if log.retention.isdigit() else log.retention
        try:
            logger.add(
                log.file,
                format=_json_format,
                rotation=log.rotation,
                retention=retention,
                encoding="utf-8",
                **safely,
            )
        except (ValueError, TypeError) as error:
            remedy = 'give log.rotation as "50 MB" or "1 day", log.retention as "7 days" or a number of files'
            raise SettingsError(f"log.rotation or log.retention will not do: {error}", remedy=remedy) from error
        except OSError as error:
            remedy = "let log.file name a file in a folder that this user may write to"
            raise SettingsError(f"log.file {log.file!r} cannot be written: {error.strerror}", remedy=remedy) from error
    _intercept_standard_logging()


# --- one line -------------------------------------------------------------------------------------------------------

_URI = re.compile(r"\b[a-z][a-z0-9+.-]{0,31}://[^\s'\"<>]*", re.IGNORECASE)
_LONGEST_CHARS = 8_000
_INLINE = re.compile(r"\bdata:([\w.+/-]*)[;,][^\s'\"<>]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without inline data, without its URIs' queries and user-info (a presigned URL is a password), and
    without what `redact.mask_secrets` knows for a secret."""
    if not text.isascii():
        # A lone surrogate has no UTF-8, and no line is lost for it.
        text = text.encode("utf-8", "replace").decode()
    # A secret that the cut goes through would not be known again: what is judged is longer than what is shown.
    shown, long = text[: 2 * _LONGEST_CHARS], len(text) > _LONGEST_CHARS
    if "://" in shown:
        shown = _URI.sub(_marked, shown)
    shown = _INLINE.sub(rf"data:\1,{MASK}", shown) if "data:" in shown else shown
    shown = mask_secrets(shown)
    return f"{shown[:_LONGEST_CHARS]} ..." if long else shown


def _marked(match: "re.Match[str]") -> str:
    """A URI with marks where something was cut."""
    uri = match[0]
    safe, head = redact_uri(uri), re.split(r"[?#]", uri, maxsplit=1)[0]
    if safe.endswith("://"):
        return safe + MASK  # not to be told apart from a password
    if "@" in head.partition("://")[2].partition("/")[0]:
        safe = safe.replace("://", f"://{MASK}@", 1)
    return safe if head == uri else f"{safe}?{MASK}"


def _redact(record: "Record") -> None:
    record["message"] = redacted(record["message"])
    extra = record["extra"]
    for name, value in extra.items():
        if is_secret(name) and name != "key":
            extra[name] = MASK
        elif isinstance(value, str):
            extra[name] = redacted(value)


def _fields(record: "Record") -> dict[str, Any]:
    return {name: value for name, value in record["extra"].items() if not name.startswith("_")}


def _json_line(record: "Record") -> str:
    when = record["time"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    own = {
        "time": when,
        "level": record["level"].name,
        "message": record["message"],
        "logger": record["extra"].get("_logger") or record["name"],
    }
    line = own | {name: value for name, value in _fields(record).items() if name not in own}
    if (error := record["exception"]) is not None:
        import traceback

        line["exception"] = redacted("".join(traceback.format_exception(error.type, error.value, error.traceback)))
    return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _json_sink(stream: TextIO) -> "Callable[[Message], None]":
    def write(message: "Message") -> None:
        stream.write(_json_line(message.record) + "\n")
        stream.flush()

    return write


def _json_format(record: "Record") -> str:
    record["extra"]["_json"] = _json_line(record)
    return "{extra[_json]}\n"


def _human_format(record: "Record") -> str:
    # What others wrote must not steer the reader's terminal.
    record["extra"]["_said"] = _printable(record["message"])
    record["extra"]["_tail"] = _printable(" ".join(f"{name}={value}" for name, value in _fields(record).items()))
    if record["exception"] is not None:
        import traceback

        error = record["exception"]
        text = "".join(traceback.format_exception(error.type, error.value, error.traceback))
        record["extra"]["_trace"] = redacted(text)
        trace = "{extra[_trace]}"
    else:
        trace = ""
    return (
        "<green>{time:HH:mm:ss.SSS}</green> <level>{level: <7}</level> {extra[_said]} <dim>{extra[_tail]}</dim>\n"
        + trace
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


# --- the standard library's log and warnings ------------------------------------------------------------------------


class _ToLoguru(logging.Handler):
    """Hands the standard library's lines to loguru, keeping the name of their logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging` for every line."""
        writer: Any = logger
        if record.name == "kafka":  # librdkafka says the same at every try: `FAIL [client] [thread]: ...`
            facility = record.getMessage().partition(" ")[0]
            writer = rate_limited(f"kafka {facility}")
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        said = writer.bind(_logger=record.name).opt(exception=record.exc_info, depth=1)
        said.log(level, "{}", record.getMessage())


def _log_of_thread(crash: threading.ExceptHookArgs) -> None:
    """Python would print a traceback to stderr as it is."""
    name = crash.thread.name if crash.thread is not None else "a thread"
    about = logger.opt(exception=(crash.exc_type, crash.exc_value or crash.exc_type(), crash.exc_traceback))
    about.error("{} ended by an exception", name)


def _intercept_standard_logging() -> None:
    threading.excepthook = _log_of_thread
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    # One line per place, as Python does by itself.
    if not sys.warnoptions:
        warnings.simplefilter("default")


# --- floods ---------------------------------------------------------------------------------------------------------


class RateLimited:
    """Lets the first lines of a kind through, then one each interval that says how many were left out.

    For lines that a broken store or a bad producer could repeat a thousand times a second. Any thread.
    """

    _MAX_KINDS = 1_000

    def __init__(self, *, first: int = 5, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._first = first
        self._clock_s = clock_s
        self._lock = threading.Lock()
        # kind -> (start of its interval, lines let through in it, lines left out since the last one let through)
        self._kinds: OrderedDict[str, tuple[float, int, int]] = OrderedDict()

    def left_out(self, kind: str, every_s: float) -> int | None:
        """Whether a line of this kind may be written: how many were left out before it, or None to write nothing."""
        now_s = self._clock_s()
        with self._lock:
            start_s, through, missed = self._kinds.pop(kind, (now_s, 0, 0))
            if now_s - start_s >= every_s:
                # A kind that was over its limit gets one line each interval; one that was quiet begins anew.
                start_s, through = now_s, (self._first - 1 if missed else 0)
            allowed = through < self._first
            self._kinds[kind] = (start_s, through + allowed, 0 if allowed else missed + 1)
            while len(self._kinds) > self._MAX_KINDS:
                self._kinds.popitem(last=False)
            return missed if allowed else None


class _Silence:
    """A logger that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._nothing

    def _nothing(self, *_args: object, **_kwargs: object) -> "_Silence":
        return self


_LIMITS = RateLimited()


def rate_limited(kind: str, every_s: float = 30.0) -> "Logger":
    """A logger for one line of this kind, that may keep silent: `rate_limited("store:s3").warning("...")`.

    The first 5 lines of a kind are written, then one every `every_s` seconds with `left_out`, the lines in between.
    `kind` comes from our own code: a class of errors, a store, a partition; never from a message.
    """
    missed = _LIMITS.left_out(kind, every_s)
    if missed is None:
        return cast("Logger", _Silence())
    return logger.bind(left_out=missed) if missed else logger.bind()
