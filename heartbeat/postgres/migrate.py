"""Migrations: `migrations/*.sql`, applied by yoyo, one process at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import yoyo
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from heartbeat.errors import SchemaError
from heartbeat.postgres import schema
from heartbeat.postgres.connections import bounded_conninfo
from heartbeat.postgres.errors import translated
from heartbeat.postgres.queries import Queries
from heartbeat.postgres.schema import History, fingerprint, read_history

_RESET = schema.DIRECTORY / "reset" / "drop-everything.sql"


def upgrade(url: str) -> list[str]:
    """Apply the migrations that the database lacks, and return their ids in order.

    Processes that do so at once wait for each other. Raises SchemaError, naming the migration, when one fails:
    it is rolled back whole, the ones before it stay; and where an unreleased version made the schema.
    """
    with _backend(url) as (backend, found):
        found.refuse_unreleased()
        return _apply(backend)


def rollback(url: str, count: int = 1) -> list[str]:
    """Undo the newest `count` migrations, and return their ids, newest first."""
    with _backend(url) as (backend, found):
        found.refuse_unreleased()
        newest_first = list(backend.to_rollback(_migrations()))[:count]
        return [_step(backend, migration, "rollback") for migration in newest_first]


def check_reset(url: str) -> None:
    """Raise SchemaError unless an unreleased version made the schema: nothing else may be reset."""
    with translated(), psycopg.connect(bounded_conninfo(url), autocommit=True) as conn:
        read_history(conn, _queries()).refuse_reset()


def reset(url: str) -> list[str]:
    """Drop what an unreleased version made, with all it holds, and migrate anew; return the ids as upgrade does.

    Nothing that is not ours is dropped: raises SchemaError, naming it, where something depends on our tables.
    """
    with _backend(url) as (backend, found):
        found.refuse_reset()
        try:
            with backend.transaction():
                backend.connection.execute(_RESET.read_text("utf-8"))
        except pg.DependentObjectsStillExist as exc:
            theirs = "; ".join((exc.diag.message_detail or str(exc)).splitlines())
            raise SchemaError(f"nothing was dropped, for something else depends on it: {theirs}") from exc
        return _apply(backend)


@contextmanager
def _backend(url: str) -> Iterator[tuple[PostgresqlPsycopgBackend, History]]:
    """Connect yoyo while no other process migrates, and read what the database has had.

    yoyo's own lock is a row, which a killed process leaves behind. The advisory lock goes with its connection,
    so the process that holds it knows that such a row is stale.
    """
    logging.getLogger("yoyo").setLevel(logging.WARNING)
    queries = _queries()
    with (
        translated(),
        psycopg.connect(bounded_conninfo(url), autocommit=True) as guard,
        PostgresqlPsycopgBackend(_yoyo_uri(url), "_yoyo_migration") as backend,
    ):
        queries.lock_migrations(guard)
        backend.init_database()
        backend.break_lock()
        backend.ensure_internal_schema_updated()
        with backend.lock():
            yield backend, read_history(guard, queries)


def _apply(backend: PostgresqlPsycopgBackend) -> list[str]:
    return [_step(backend, migration, "apply") for migration in backend.to_apply(_migrations())]


def _step(backend: PostgresqlPsycopgBackend, migration: Any, direction: str) -> str:
    """Apply or roll back one migration, and note it in the same transaction.

    yoyo's own apply_one notes it in a transaction of its own: a process killed between the two would leave a
    schema that has the migration and a database that says it has not.
    """
    migration.load()
    # A migration without a transaction (CREATE INDEX CONCURRENTLY) has to bear being applied twice.
    together = backend.transaction if migration.use_transactions else nullcontext
    try:
        with together():
            (_do if direction == "apply" else _undo)(backend, migration)
            backend.log_migration(migration, direction)
    except psycopg.Error as exc:
        message = exc.diag.message_primary or str(exc)
        raise SchemaError(f"the migration {migration.id} could not be {_done(direction)}: {message}") from exc
    return str(migration.id)


def _do(backend: PostgresqlPsycopgBackend, migration: Any) -> None:
    migration.process_steps(backend, "apply")
    _queries().note_fingerprint(
        backend.connection,
        migration_id=migration.id,
        fingerprint=fingerprint(Path(migration.path)),
        version=version("data-flow-heartbeat"),
    )
    backend.mark_one(migration, log=False)


def _undo(backend: PostgresqlPsycopgBackend, migration: Any) -> None:
    # The note goes first: the first migration takes the table of notes along.
    _queries().forget_fingerprint(backend.connection, migration_id=migration.id)
    migration.process_steps(backend, "rollback")
    backend.unmark_one(migration, log=False)


def _done(direction: str) -> str:
    return "applied" if direction == "apply" else "rolled back"


@cache
def _queries() -> Queries:
    """The shipped statements: a DBA's copy of `sql/` does not migrate."""
    return Queries()


def _migrations() -> Any:
    return yoyo.read_migrations(str(schema.DIRECTORY))


def _yoyo_uri(url: str) -> DatabaseURI:
    """Hand libpq's parameters through as they are: yoyo's own parser knows neither sockets nor several hosts."""
    given = {
        key: str(value) for key, value in conninfo_to_dict(bounded_conninfo(url)).items() if value is not None
    }
    database = given.pop("dbname", None)
    return DatabaseURI(
        scheme="postgresql+psycopg",
        username=None,
        password=None,
        hostname=None,
        port=None,
        database=database,
        args=given,
    )
