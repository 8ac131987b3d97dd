"""Whether a database has the schema that this version was written for: asked at every start, without yoyo.

The migrations that it has had stand in yoyo's table, the text that each had in `data_flow_schema`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg

from heartbeat.errors import SchemaError
from heartbeat.postgres.queries import Queries

_PACKAGE = Path(__file__).parents[1]

DIRECTORY = _PACKAGE / "migrations" if (_PACKAGE / "migrations").is_dir() else _PACKAGE.parent / "migrations"
"""Inside the package in a wheel, beside it in a checkout."""


def check_schema(conn: psycopg.Connection[Any], queries: Queries) -> None:
    """Raise SchemaError unless the database has exactly the migrations that this version knows."""
    found = read_history(conn, queries)
    if not found.applied:
        raise SchemaError("the database has no schema yet: run `heartbeat migrate`")
    found.refuse_unreleased()
    if found.missing:
        raise SchemaError(
            f"the schema is older than this version (it lacks {found.missing[0]}): run `heartbeat migrate`"
        )
    if found.unknown:
        raise SchemaError(
            f"the schema is newer than this version (it has {found.unknown[-1]}): upgrade data-flow-heartbeat, "
            f"or undo it with the newer version's `heartbeat migrate --rollback {len(found.unknown)}`"
        )


class History:
    """Which migrations a database has had, against those that this version knows."""

    def __init__(self, applied: set[str], notes: list[Any]) -> None:
        """`notes` are the rows of data_flow_schema."""
        known = _fingerprints()
        noted = {note.migration_id: note.fingerprint for note in notes}
        self.applied = applied
        self.missing = sorted(known.keys() - applied)
        self.unknown = sorted(applied - known.keys())
        self._ours = applied & (known.keys() | noted.keys())
        self._was_released = any(int(note.version.split(".")[0]) >= 1 for note in notes)
        # A host's own migrations may stand in the same table; they are none of ours, and not noted.
        diverged = bool(self.missing and noted.keys() - known.keys())
        self._is_another = diverged or any(noted.get(id) != known[id] for id in applied & known.keys())

    def refuse_unreleased(self) -> None:
        """Raise SchemaError where the schema has the right migrations in another wording, or others altogether."""
        if self._is_another and not self._was_released:
            raise SchemaError(
                "the schema was made by an unreleased version and cannot be upgraded: "
                "`heartbeat migrate --reset` drops it with all that it holds and makes it anew"
            )

    def refuse_reset(self) -> None:
        """Raise SchemaError where a reset would drop what can be kept."""
        if not self._ours:
            raise SchemaError("the database has no schema of ours to reset: run `heartbeat migrate`")
        if not self._is_another:
            raise SchemaError("there is nothing to reset: the schema is this version's")
        if self._was_released:
            raise SchemaError("a released version made the schema: it is upgraded, never reset")


def read_history(conn: psycopg.Connection[Any], queries: Queries) -> History:
    """Ask a database which migrations it has had; none, where it has no schema of ours."""
    try:
        applied = {row.migration_id for row in queries.applied_migrations(conn)}
    except pg.UndefinedTable:
        return History(set(), [])
    try:
        return History(applied, queries.schema_fingerprints(conn) if applied else [])
    except pg.UndefinedTable:
        return History(applied, [])


def _fingerprints() -> dict[str, str]:
    """Return the migrations' ids with the SHA-256 of their texts; a comment or a blank line makes no difference."""
    return {file.stem: fingerprint(file) for file in _forward_files()}


def _forward_files() -> list[Path]:
    return [file for file in sorted(DIRECTORY.glob("*.sql")) if not file.name.endswith(".rollback.sql")]


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of a migration's text without comments and blank lines."""
    lines = (line.rstrip() for line in file.read_text("utf-8").splitlines())
    code = "\n".join(line for line in lines if line and not line.lstrip().startswith("--"))
    return hashlib.sha256(code.encode()).hexdigest()
