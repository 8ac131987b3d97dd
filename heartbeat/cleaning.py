"""What a flow returned or raised, made fit for the database: recording a failure must never fail."""

from __future__ import annotations

import json
import re
import traceback
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
    """Return the traceback as Python prints it, from the flow's own frames on."""
    try:
        ours = exc.__traceback__
        return clean(
            "".join(traceback.format_exception(type(exc), exc, ours.tb_next if ours else None)),
            BACKTRACE_LIMIT,
        )
    except BaseException as failure:  # noqa: BLE001 - see error_text
        return f"(the traceback cannot be had: {type(failure).__name__})"


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


def parse_json(text: str | None) -> Any:
    """Read JSON out of the database; None also for what is beyond Python: thousands of digits or levels."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
