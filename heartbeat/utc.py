"""A moment in UTC, as every line, answer and document of this package writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_text(moment: datetime, precision: str = "auto") -> str:
    """Return ISO 8601 that ends in Z. `precision` is isoformat's: "seconds" cuts, "auto" keeps microseconds."""
    return moment.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
