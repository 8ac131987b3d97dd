"""psycopg's errors as this package's: by SQLSTATE and by the names of our constraints, never by a message's text.

Nor by psycopg's base classes: a lost server and a row that is too large for an index are both OperationalError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg
from psycopg_pool import PoolTimeout

from heartbeat.errors import (
    DatabaseUnavailable,
    HeartbeatError,
    LockTimeout,
    SchemaError,
    SessionEnded,
    StatementTimeout,
    ValidationError,
)

_AWAY = ("08", "25006", "25P03", "40", "53", "57P")
"""How the SQLSTATEs begin that pass when the database is itself again: connection lost, read-only (a standby), idle for
too long, rolled back for another's sake (a deadlock), out of resources, shut down or starting."""

_TIMED_OUT = ("57014", "25P04")
"""The SQLSTATEs of a statement and a transaction that took too long."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise psycopg's errors as this package's."""
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


def translate(exc: psycopg.Error) -> HeartbeatError:
    """Choose the exception of this package that says what a psycopg error means."""
    if isinstance(exc, pg.LockNotAvailable):
        return LockTimeout("another session holds a lock that was needed; see pg_locks")
    if isinstance(exc, pg.AdminShutdown | pg.IdleSessionTimeout):
        return SessionEnded(f"the database cannot be used: {_message(exc)}")
    if exc.sqlstate in _TIMED_OUT:
        return StatementTimeout(f"the database cannot be used: {_message(exc)}")
    if isinstance(exc, pg.UndefinedTable | pg.UndefinedColumn | pg.UndefinedFunction):
        return SchemaError(f"{_message(exc)}: run `heartbeat migrate`")
    if isinstance(exc, pg.InsufficientPrivilege):
        return SchemaError(f"{_message(exc)}: grant this role what the README lists")
    if isinstance(exc, pg.IntegrityError | pg.DataError):
        return _invalid(exc)
    if isinstance(exc, PoolTimeout):
        return DatabaseUnavailable("the database did not give a connection in time")
    if _is_away(exc):
        return DatabaseUnavailable(f"the database cannot be used: {_message(exc)}")
    return HeartbeatError(f"the database refused a statement: {_message(exc)}")


def _is_away(exc: psycopg.Error) -> bool:
    """Whether the connection is lost, or the database is in no state to run anything."""
    if exc.sqlstate is None:  # not the server's: libpq's or psycopg's, of a connection
        return isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
    return exc.sqlstate.startswith(_AWAY) or exc.diag.severity_nonlocalized in ("FATAL", "PANIC")


# The column that a constraint speaks about, and what it asks for. Messages of Postgres are for people and get
# translated; names of constraints are ours.
_RULES = {
    "data_flows_name_unique": ("name", "is taken"),
    "data_flows_name_not_blank": ("name", "must not be blank"),
    "data_flows_name_at_most_200_characters": ("name", "must be at most 200 characters"),
    "data_flows_configuration_is_object": ("configuration", "must be a JSON object"),
    "data_flows_run_interval_positive": ("run_interval", "must be a positive number of seconds"),
    "data_flows_run_interval_at_most_ten_years": (
        "run_interval",
        "must be at most ten years (315576000 seconds)",
    ),
    "data_flows_run_timeout_positive": ("run_timeout", "must be a positive number of seconds, or None"),
    "data_flows_run_timeout_at_most_ten_years": (
        "run_timeout",
        "must be at most ten years (315576000 seconds)",
    ),
}


def _invalid(exc: pg.Error) -> ValidationError:
    if exc.diag.constraint_name in _RULES:
        field, rule = _RULES[exc.diag.constraint_name]
        return ValidationError(f"{field} {rule}", field=field)
    return ValidationError(_message(exc), field=exc.diag.column_name)


def _message(exc: psycopg.Error) -> str:
    """Cut Postgres's message to its first line; a connection error's repeats itself for every address."""
    message = exc.diag.message_primary or str(exc)
    return (message.strip().splitlines() or [type(exc).__name__])[0]
