"""The statements of `sql/` as callables: loaded by aiosql, checked against the schema at start."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import aiosql
import psycopg
from aiosql.types import SQLOperationType
from aiosql.utils import SQLLoadException, SQLParseException
from psycopg import pq
from psycopg.pq.abc import PGresult
from psycopg.rows import namedtuple_row

from heartbeat.errors import QueryError
from heartbeat.postgres import session_script

_PACKAGE = Path(__file__).parents[1]

SHIPPED = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"
"""Inside the package in a wheel, beside it in a checkout."""


class Queries:
    """The statements by name: `queries.claim(conn, as_of=…, …)`.

    Rows are named tuples. A statement that returns rows returns them all, as a list.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Load the SQL files of a directory, the shipped ones by default.

        Raises QueryError, naming the file, for one that aiosql cannot read, and for a statement that is missing,
        defined twice, or whose parameters are not those of the shipped one.
        """
        self._statements = self._shipped = _load(SHIPPED)
        if directory is not None and directory.resolve() != SHIPPED.resolve():
            self._statements = _load(directory)
            _compare(self._shipped, self._statements, directory)
        for name, statement in self._statements.items():
            setattr(self, name, statement.call)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"no statement is named {name!r}")

    def send(self, conn: psycopg.Connection[Any], name: str, /, **parameters: Any) -> psycopg.Cursor[Any]:
        """Send a statement with others in one message; the cursor has its rows once the transaction has ended."""
        cursor = conn.cursor(row_factory=namedtuple_row)
        return cursor.execute(self._statements[name].sql, parameters)

    def session_options(self, *script_names: str) -> str:
        """Return what scripts set with SET LOCAL, as libpq's `options`: for sessions that have it from their start.

        Of two values for one setting the later counts. Raises QueryError for a line that such a session could not
        have: anything but BEGIN and SET LOCAL.
        """
        return " ".join(self._statements[name].session_options() for name in script_names)

    def check(self, conn: psycopg.Connection[Any]) -> None:
        """Have Postgres parse every statement against the live schema; nothing that they say is done.

        Wants a connection outside a transaction.
        Raises QueryError with file, statement and Postgres's message for the first that it refuses, or whose
        columns are not the shipped one's.
        """
        for name, statement in self._statements.items():
            columns = statement.describe(conn)
            shipped = self._shipped.get(name, statement)
            if shipped is not statement and columns != (expected := shipped.describe(conn)):
                raise statement.error(f"returns the columns {columns}, expected {expected}")


class _Statement:
    """One named statement."""

    def __init__(self, file: Path, name: str, function: Any, cursor: Any) -> None:
        self.file = file
        self.name = name
        self.operation: SQLOperationType = function.operation
        self.parameters = sorted(function.parameters or ())
        self.sql: str = function.sql
        # A plain aiosql query is a generator that runs when it is consumed: take all its rows at once.
        self.call = _all_rows(cursor) if self.operation is SQLOperationType.SELECT else function

    def describe(self, conn: psycopg.Connection[Any]) -> list[str]:
        """Return the result's columns with their types, as Postgres sees them."""
        if self.operation is SQLOperationType.SCRIPT:
            return self._try_script(conn)
        sql = self._numbered()
        parsed = conn.pgconn.prepare(b"", sql.encode())
        if parsed.status != pq.ExecStatus.COMMAND_OK:
            raise self.error(_reason(parsed, sql))
        described = conn.pgconn.describe_prepared(b"")
        return [
            f"{(described.fname(column) or b'').decode()} {_type_name(conn, described.ftype(column))}"
            for column in range(described.nfields)
        ]

    def _numbered(self) -> str:
        """Return the statement with Postgres's own $1, $2 for parameters, as psycopg will send it."""
        numbers = {name: f"${number}" for number, name in enumerate(self.parameters, 1)}

        def replaced(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            if match[1] is None:
                raise self.error("a % stands alone in it; write %% for a percent sign")
            return numbers[match[1]]

        return re.sub(r"%(?:%|\((\w+)\)s|)", replaced, self.sql)

    def session_options(self) -> str:
        """Return what a script sets with SET LOCAL, as libpq's `options`."""
        try:
            return session_script.options(self.sql)
        except ValueError as exc:
            raise self.error(str(exc)) from exc

    def _try_script(self, conn: psycopg.Connection[Any]) -> list[str]:
        """Run a script and take it back: several statements cannot be parsed without being run."""
        try:
            self.call(conn)
        except psycopg.Error as exc:
            raise self.error(exc.diag.message_primary or str(exc)) from exc
        finally:
            conn.rollback()
        return []

    def error(self, reason: str) -> QueryError:
        return QueryError(f"{self.file}, {self.name}: {reason}", file=str(self.file), query=self.name)


def _all_rows(cursor: Callable[..., AbstractContextManager[Any]]) -> Callable[..., list[Any]]:
    def call(conn: psycopg.Connection[Any], **parameters: Any) -> list[Any]:
        with cursor(conn, **parameters) as rows:
            fetched: list[Any] = rows.fetchall()
            return fetched

    return call


def _load(directory: Path) -> dict[str, _Statement]:
    """Read the files one by one: of a whole directory, aiosql lets a name that two files share win silently."""
    statements: dict[str, _Statement] = {}
    files = sorted(directory.glob("*.sql"))
    if not files:
        raise QueryError(f"{directory} holds no .sql files", file=str(directory))
    for file in files:
        loaded = _load_file(file)
        for name in loaded.available_queries:
            function = getattr(loaded, name)
            if name.endswith("_cursor") and name.removesuffix("_cursor") in loaded.available_queries:
                continue  # aiosql's companion of every query that returns rows
            if name in statements:
                raise QueryError(
                    f"{file}: {name} stands in {statements[name].file.name} too", file=str(file), query=name
                )
            statements[name] = _Statement(file, name, function, getattr(loaded, f"{name}_cursor", None))
    return statements


def _load_file(file: Path) -> Any:
    try:
        return aiosql.from_path(file, "psycopg", kwargs={"row_factory": namedtuple_row})
    except (SQLParseException, SQLLoadException, ValueError, OSError) as exc:
        raise QueryError(f"{file}: {exc}", file=str(file)) from exc


def _compare(shipped: dict[str, _Statement], given: dict[str, _Statement], directory: Path) -> None:
    for name, original in shipped.items():
        if name not in given:
            file = directory / original.file.name
            raise QueryError(f"{file}: the statement {name} is missing", file=str(file), query=name)
        statement = given[name]
        if statement.parameters != original.parameters:
            raise statement.error(
                f"takes ({', '.join(statement.parameters)}), expected ({', '.join(original.parameters)})"
            )
        if statement.operation is not original.operation:
            raise statement.error("the sign behind its parameters is not that of the shipped statement")


def _type_name(conn: psycopg.Connection[Any], oid: int) -> str:
    known = conn.adapters.types.get(oid)
    return known.name if known else f"of type {oid}"


def _reason(result: PGresult, sql: str) -> str:
    """Postgres's message, with the line of the statement that it points at."""

    def field(which: pq.DiagnosticField) -> str:
        return (result.error_field(which) or b"").decode(errors="replace")

    message = (
        field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode(errors="replace").strip()
    )
    position = field(pq.DiagnosticField.STATEMENT_POSITION)
    if not position:
        return message
    line = sql.count("\n", 0, int(position) - 1)
    return f"{message} (at: {sql.splitlines()[line].strip()})"
