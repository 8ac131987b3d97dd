"""The types of what `add_flow` is given; which values make sense is the database's business, told by its constraints.

Each raises ValidationError, which names the field and shows the value.
"""

from __future__ import annotations

import json

from heartbeat.cleaning import holds_nul, safe_repr
from heartbeat.errors import ValidationError


def text(field: str, value: object) -> str:
    """Accept text that Postgres stores."""
    if not isinstance(value, str):
        raise ValidationError(f"{field} must be text; got {safe_repr(value):.100}", field=field, value=value)
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise ValidationError(
            f"{field} holds a lone surrogate: {safe_repr(value):.100}", field=field, value=value
        ) from exc
    if "\0" in value:
        raise ValidationError(
            f"{field} holds a NUL character: {safe_repr(value):.100}", field=field, value=value
        )
    return value


def boolean(field: str, value: object) -> bool:
    """Accept True and False, and nothing that is only like them."""
    if not isinstance(value, bool):
        raise ValidationError(
            f"{field} must be True or False; got {safe_repr(value):.100}", field=field, value=value
        )
    return value


def whole_number(field: str, value: object) -> int:
    """Accept what an integer column holds. Which numbers make sense is for the table's constraints to say."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValidationError(
            f"{field} must be a whole number; got {safe_repr(value):.100}", field=field, value=value
        )
    if not -(2**31) <= value < 2**31:
        raise ValidationError(
            f"{field} must be at most 2147483647; got {safe_repr(value):.100}", field=field, value=value
        )
    return value


def json_object(field: str, value: object) -> str:
    """Accept a dict that is JSON, and return it as text."""
    if not isinstance(value, dict):
        raise ValidationError(
            f"{field} must be a JSON object (a dict); got {safe_repr(value):.100}", field=field, value=value
        )
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        if holds_nul(text):
            raise ValueError("a string in it has a NUL character")
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValidationError(f"{field} is no JSON: {exc}", field=field, value=value) from exc
    return text
