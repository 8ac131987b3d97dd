"""Log lines for people or for programs: one line a record, whatever the record holds."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from heartbeat.utc import utc_text

log = logging.getLogger("heartbeat")

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# The fields in the order in which a line shows them; others follow in the order given.
FIELDS = (
    *("client", "status", "method", "path", "reason"),
    *("flows_due", "flows_triggered", "flows_succeeded", "flows_failed", "flows_running", "flows_remaining"),
    *("duration_ms", "flow", "run_id", "heartbeat_id", "runner_id", "error"),
)

_NOT_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event", "color_message"}

_MISREAD = re.compile(r'[\s"=\\]')  # in a value that is not quoted

_MAX_VALUE = 16_384  # characters of one value; a traceback can be megabytes


def configure(log_format: Format, log_level: Level = "info", *, is_quiet: bool = False) -> None:
    """Send this process's log to stderr: ours from `log_level` on, everybody else's warnings.

    For a process of our own (the command line); an app inside somebody else's process calls `ensure`. A command for
    people (`is_quiet`) says nothing below a warning, unless debug was asked for.
    Calling it again replaces what it did before.
    """
    level = _LEVELS[log_level]
    handler = _handler(log_format)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, LineFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    log.setLevel(max(level, logging.WARNING) if is_quiet and level > logging.DEBUG else level)
    logging.captureWarnings(True)
    threading.excepthook = _log_dead_thread


def ensure(log_format: Format, log_level: Level = "info") -> None:
    """Log to stderr where the host has set up no logging at all; otherwise leave it to the host."""
    if not log.hasHandlers():
        log.addHandler(_handler(log_format))
        if log.level == logging.NOTSET:
            log.setLevel(_LEVELS[log_level])


def escape(text: str) -> str:
    r"""Replace what could end a line or move a cursor by its escape, such as ``\n`` or ``\u2028``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


class LineFormatter(logging.Formatter):
    """Gather a record's fields, each made safe. It never raises: logging would print the raw record then."""

    def format(self, record: logging.LogRecord) -> str:
        return self.line(record, _message(record), _fields(record))

    def line(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any]) -> str:
        raise NotImplementedError


class TextFormatter(LineFormatter):
    """`timestamp level message key=value …`; a value that could be mistaken for two is quoted."""

    def line(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any]) -> str:
        head = f"{_timestamp(record)} {record.levelname} {escape(message)}"
        return " ".join([head, *(f"{escape(key)}={_quoted(value)}" for key, value in fields.items())])


class JsonFormatter(LineFormatter):
    """One ASCII object a line: `timestamp`, `level`, `event`, `message`, then the fields."""

    def line(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any]) -> str:
        head = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "event": _plain(getattr(record, "event", record.name)),
            "message": message,
        }
        return json.dumps(head | {key: value for key, value in fields.items() if key not in head})


def _handler(log_format: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    return handler


def _log_dead_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        log.error(
            "thread %s died",
            args.thread.name if args.thread else "unknown",
            exc_info=args.exc_value,
            extra={"event": "thread_died"},
        )


def _timestamp(record: logging.LogRecord) -> str:
    return utc_text(datetime.fromtimestamp(record.created, UTC), "milliseconds")


def _message(record: logging.LogRecord) -> str:
    try:
        return _text(record.getMessage()).rstrip()
    except Exception:  # noqa: BLE001 -- an argument whose __str__ raises, or too few of them
        return f"{_text(record.msg)} (its arguments cannot be shown)"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    extras = {key: value for key, value in vars(record).items() if key not in _NOT_FIELDS}
    ordered = {key: _plain(extras.pop(key)) for key in FIELDS if key in extras}
    ordered |= {_text(key): _plain(value) for key, value in extras.items()}
    if record.exc_info and record.exc_info[1] is not None:
        ordered["traceback"] = _text(_traceback(record))
    if record.stack_info:
        ordered["stack"] = _text(record.stack_info)
    return ordered


def _traceback(record: logging.LogRecord) -> str:
    assert record.exc_info
    try:
        return logging.Formatter().formatException(record.exc_info)
    except Exception:  # noqa: BLE001 -- an exception whose __str__ raises
        return f"{record.exc_info[0]} (its traceback cannot be shown)"


def _plain(value: object) -> str | int | float | bool | None:
    """Keep what JSON has a word for; the rest becomes text."""
    if value is None or isinstance(value, bool) or type(value) is str:
        return value if type(value) is not str else _text(value)
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return _text(value)


def _text(value: object) -> str:
    """Make text that any encoding and any JSON reader takes, cut to its head and tail."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001
        text = f"<{type(value).__name__} that cannot be shown>"
    if len(text) > _MAX_VALUE:
        half = _MAX_VALUE // 2
        text = f"{text[:half]} … {len(text) - _MAX_VALUE} characters cut … {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _quoted(value: object) -> str:
    text = str(value)
    if not isinstance(value, str) or (text and not _MISREAD.search(text) and text.isprintable()):
        return text
    return escape(json.dumps(text, ensure_ascii=False))
