"""Log lines: one a record, never forgeable, readable by people and programs."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat import logs

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def record(
    message: object = "m", *args: object, exc: BaseException | None = None, **extra: Any
) -> logging.LogRecord:
    made = logging.getLogger("heartbeat.x").makeRecord(
        "heartbeat.x", logging.INFO, "f", 1, message, args, None, extra=extra
    )
    made.exc_info = (type(exc), exc, exc.__traceback__) if exc else None
    return made


def text(made: logging.LogRecord) -> str:
    return logs.TextFormatter().format(made)


def parsed(made: logging.LogRecord) -> dict[str, Any]:
    line = logs.JsonFormatter().format(made)
    assert line.isascii()
    assert line.isprintable()
    fields: dict[str, Any] = json.loads(line)
    return fields


@pytest.fixture
def process_logging() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("heartbeat")
    before = (root.handlers[:], ours.handlers[:], ours.level, ours.propagate, threading.excepthook)
    yield
    root.handlers[:], ours.handlers[:], ours.level, ours.propagate, threading.excepthook = before
    logging.captureWarnings(False)


def test_a_json_line_has_the_fields_of_the_contract() -> None:
    made = record(
        "heartbeat answered", event="heartbeat", client="10.0.0.1", status=200, duration_ms=1.5, flows_due=3
    )
    made.created = 1_795_460_640.25
    assert parsed(made) == {
        "timestamp": "2026-11-23T19:04:00.250Z",
        "level": "INFO",
        "event": "heartbeat",
        "message": "heartbeat answered",
        "client": "10.0.0.1",
        "status": 200,
        "flows_due": 3,
        "duration_ms": 1.5,
    }


def test_a_text_line_begins_with_its_time_and_level_and_quotes_what_could_be_misread() -> None:
    made = record("run failed", event="run", flow='a status=200 "x"', run_id=7, client=None)
    made.created = 1_795_460_640.25
    assert text(made) == (
        '2026-11-23T19:04:00.250Z INFO run failed client=None flow="a status=200 \\"x\\"" run_id=7'
    )


def test_a_record_without_an_event_is_known_by_its_logger() -> None:
    assert parsed(record())["event"] == "heartbeat.x"


def test_a_field_cannot_pose_as_the_time_or_the_level() -> None:
    assert parsed(record(timestamp="then", level="x"))["level"] == "INFO"


def test_a_traceback_takes_one_line_and_keeps_head_and_tail() -> None:
    try:
        raise ValueError("first\nINFO forged" + "x" * 100_000 + "last")
    except ValueError as exc:
        made = record("failed", exc=exc)
    line = text(made)
    assert line.isprintable()
    assert 'traceback="Traceback (most recent call last):\\n' in line
    assert line.endswith('last"')
    assert len(line) < 20_000
    assert parsed(made)["traceback"].startswith("Traceback (most recent call last):\n")


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")


class UnshowableError(Exception, Unshowable):
    __str__ = Unshowable.__str__


@pytest.mark.parametrize(
    "made",
    [
        record("%s and %s", "one"),
        record("%s", Unshowable()),
        record(Unshowable()),
        record(flow=Unshowable()),
        record(exc=UnshowableError()),
        record(run_id=10**5000),
        record(duration_ms=float("nan")),
        record(reason={"a": [1, {2}]}),
        record("m", **{"a key\nwith": 1}),  # type: ignore[arg-type]
    ],
    ids=range(9),
)
def test_what_cannot_be_shown_is_said_so_and_raises_nothing(made: logging.LogRecord) -> None:
    assert text(made).isprintable()
    assert parsed(made)["level"] == "INFO"


@pytest.mark.parametrize("char", [*LINE_ENDS, "\0", "\x1b", "\x7f", "\x9b", "\u202e", "\ud800"])
def test_a_control_character_is_escaped_wherever_it_stands(char: str) -> None:
    made = record(f"m{char}m", flow=f"f{char}f", exc=ValueError(f"e{char}e"))
    assert text(made).isprintable()
    assert parsed(made)["flow"].startswith("f")


@given(
    message=st.text(), flow=st.text(), formatter=st.sampled_from([logs.TextFormatter(), logs.JsonFormatter()])
)
def test_no_text_forges_a_line(message: str, flow: str, formatter: logging.Formatter) -> None:
    line = formatter.format(record("%s", message, flow=flow))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()


@pytest.mark.parametrize(("log_format", "begins"), [("text", "20"), ("json", '{"timestamp": "20')])
def test_a_process_of_ours_logs_every_warning_in_its_format_once(
    process_logging: None, monkeypatch: pytest.MonkeyPatch, log_format: Any, begins: str
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(log_format)
    logs.configure(log_format)
    logging.getLogger("heartbeat.flow").info("ours")
    logging.getLogger("heartbeat.flow").debug("not this")
    logging.getLogger("psycopg.pool").warning("error connecting\n\tIs the server running?")
    logging.getLogger("uvicorn.error").info("not this")
    thread = threading.Thread(target=lambda: 1 // 0, name="worker")
    thread.start()
    thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith(begins) for line in lines)
    assert "thread worker died" in lines[2]


def test_an_app_in_a_host_without_logging_logs_to_stderr_and_otherwise_leaves_it_to_the_host(
    process_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = logging.getLogger("heartbeat")
    logs.ensure("text")
    assert ours.handlers == [], "pytest has set up logging"
    logging.getLogger().handlers.clear()
    logs.ensure("text")
    logs.ensure("text")
    assert [type(handler.formatter) for handler in ours.handlers] == [logs.TextFormatter]


@pytest.mark.parametrize(
    ("level", "serving", "quiet"),
    [
        ("debug", "debug", "debug"),
        ("info", "info", "warning"),
        ("warning", "warning", "warning"),
        ("error", "error", "error"),
    ],
)
def test_a_service_logs_from_the_level_set_and_a_quiet_command_only_warnings_unless_asked_for_debug(
    process_logging: None, level: Any, serving: str, quiet: str
) -> None:
    ours = logging.getLogger("heartbeat")
    logs.configure("text", level)
    assert logging.getLevelName(ours.level) == serving.upper()
    logs.configure("text", level, is_quiet=True)
    assert logging.getLevelName(ours.level) == quiet.upper()


def test_an_app_in_a_host_without_logging_logs_from_the_level_set(process_logging: None) -> None:
    logging.getLogger().handlers.clear()
    logging.getLogger("heartbeat").setLevel(logging.NOTSET)
    logs.ensure("text", "error")
    assert logging.getLogger("heartbeat").level == logging.ERROR
