"""What a flow returned or raised, made fit for the database: recording a failure must never fail."""

from __future__ import annotations

import json
import math
import re
import traceback
from types import TracebackType
from typing import Any

ERROR_LIMIT = 10_000
BACKTRACE_LIMIT = 50_000
RESULT_LIMIT = 1_000_000
_REPR_LIMIT = 10_000


def clean(text: str, limit: int) -> str:
    """Make text that Postgres stores: no NUL, no lone surrogates, at most about `limit` characters.

    What is too long keeps its head and its tail, where a traceback says most.
    """
    text = str.__str__(text)  # a subclass's own methods are the flow's, and may raise
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters cut …\n{text[-half:]}"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def error_text(exc: BaseException) -> str:
    """Say what was raised: the type, then its message if it has one."""
    name = type(exc).__qualname__
    try:
        message = str.__str__(str(exc))
    except BaseException as failure:  # noqa: BLE001 - a raising __str__ is the flow's failure, not ours
        message = f"(its text cannot be had: {type(failure).__name__})"
    return clean(f"{name}: {message}" if message else name, ERROR_LIMIT)


def backtrace_text(exc: BaseException) -> str:
    """Return the traceback as Python prints it, from the flow's own frames on where it has any."""
    try:
        frames = flow_frames(exc.__traceback__) or exc.__traceback__
        return clean("".join(traceback.format_exception(type(exc), exc, frames)), BACKTRACE_LIMIT)
    except BaseException as failure:  # noqa: BLE001 - see error_text
        return f"(the traceback cannot be had: {type(failure).__name__})"


def flow_frames(frame: TracebackType | None) -> TracebackType | None:
    """Return the first frame that is not between a command and a flow; None where an exception passed none."""
    while frame is not None and _is_ours(frame.tb_frame.f_globals.get("__name__", "")):
        frame = frame.tb_next
    return frame


def _is_ours(module: str) -> bool:
    """Whether a module stands above a flow; the demo's flows are flows like any other."""
    if module in ("contextlib", "concurrent.futures._base", "asyncio.tasks"):
        return True
    return module.partition(".")[0] == "heartbeat" and module != "heartbeat.demo.flows"


def result_json(result: Any) -> tuple[str | None, str | None]:
    """Return what `run()` returned as JSON text, and what was wrong with it, if anything.

    What is not JSON, or is too large, becomes a JSON string of its repr, cut.
    """
    if result is None:
        return None, None
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False)
        text.encode()  # refuses lone surrogates, as Postgres does
        if not holds_nul(text) and len(text) <= RESULT_LIMIT:
            return text, None
        problem = "it is too large" if len(text) > RESULT_LIMIT else "it holds a NUL character"
    except BaseException as exc:  # noqa: BLE001 - whatever an odd object's methods raise
        problem = f"it is no JSON ({type(exc).__name__})"
    return json.dumps(clean(safe_repr(result), _REPR_LIMIT)), problem


def holds_nul(json_text: str) -> bool:
    """Whether a string in JSON text has a NUL character, which jsonb refuses."""
    return re.search(r"(?<!\\)(\\\\)*\\u0000", json_text) is not None


def safe_repr(value: Any) -> str:
    """Return the repr of anything, also of what raises in it or has too many digits."""
    try:
        return str.__str__(repr(value))
    except BaseException as exc:  # noqa: BLE001 - see error_text
        return f"({type(value).__name__}, whose repr cannot be had: {type(exc).__name__})"


def load_json(text: str) -> Any:
    """Read JSON out of the database. Raises ValueError for what is beyond Python, or would not be JSON again."""
    try:
        return _DECODER.decode(text)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def parse_json(text: str | None) -> Any:
    """Read JSON out of the database; None also for what `load_json` refuses."""
    try:
        return None if text is None else load_json(text)
    except ValueError:
        return None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]}… is too large")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite)
