"""Migrations: `migrations/*.sql`, applied by yoyo, one process at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import yoyo
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from heartbeat.errors import SchemaError
from heartbeat.postgres.connections import bounded_conninfo
from heartbeat.postgres.errors import translated
from heartbeat.postgres.queries import Queries

_PACKAGE = Path(__file__).parents[1]

DIRECTORY = _PACKAGE / "migrations" if (_PACKAGE / "migrations").is_dir() else _PACKAGE.parent / "migrations"
"""Inside the package in a wheel, beside it in a checkout."""


def upgrade(url: str) -> list[str]:
    """Apply the migrations that the database lacks, and return their ids in order.

    Processes that do so at once wait for each other. Raises SchemaError, naming the migration, when one fails:
    it is rolled back whole, the ones before it stay.
    """
    with _backend(url) as backend:
        return [_step(backend, migration, "apply") for migration in backend.to_apply(_migrations())]


def rollback(url: str, count: int = 1) -> list[str]:
    """Undo the newest `count` migrations, and return their ids, newest first."""
    with _backend(url) as backend:
        newest_first = list(backend.to_rollback(_migrations()))[:count]
        return [_step(backend, migration, "rollback") for migration in newest_first]


def check_schema(conn: psycopg.Connection[Any], queries: Queries) -> None:
    """Raise SchemaError unless the database has exactly the migrations that this version knows."""
    try:
        applied = {row.migration_id for row in queries.applied_migrations(conn)}
    except pg.UndefinedTable as exc:
        raise SchemaError("the database has no schema yet: run `heartbeat migrate`") from exc
    except pg.InsufficientPrivilege as exc:
        raise SchemaError("this role may not read _yoyo_migration: grant it what the README lists") from exc
    known = {migration.id for migration in _migrations()}
    if missing := sorted(known - applied):
        raise SchemaError(
            f"the schema is older than this version (it lacks {missing[0]}): run `heartbeat migrate`"
        )
    if unknown := sorted(applied - known):
        raise SchemaError(
            f"the schema is newer than this version (it has {unknown[-1]}): upgrade data-flow-heartbeat, "
            f"or undo it with the newer version's `heartbeat migrate --rollback {len(unknown)}`"
        )


@contextmanager
def _backend(url: str) -> Iterator[PostgresqlPsycopgBackend]:
    """Connect yoyo while no other process migrates.

    yoyo's own lock is a row, which a killed process leaves behind. The advisory lock goes with its connection,
    so whoever holds it knows that such a row is stale.
    """
    logging.getLogger("yoyo").setLevel(logging.WARNING)
    with (
        translated(),
        psycopg.connect(bounded_conninfo(url), autocommit=True) as guard,
        PostgresqlPsycopgBackend(_yoyo_uri(url), "_yoyo_migration") as backend,
    ):
        Queries().lock_migrations(guard)
        backend.init_database()
        backend.break_lock()
        backend.ensure_internal_schema_updated()
        with backend.lock():
            yield backend


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
            migration.process_steps(backend, direction)
            (backend.mark_one if direction == "apply" else backend.unmark_one)(migration, log=False)
            backend.log_migration(migration, direction)
    except psycopg.Error as exc:
        message = exc.diag.message_primary or str(exc)
        raise SchemaError(f"the migration {migration.id} could not be {_done(direction)}: {message}") from exc
    return str(migration.id)


def _done(direction: str) -> str:
    return "applied" if direction == "apply" else "rolled back"


def _migrations() -> Any:
    return yoyo.read_migrations(str(DIRECTORY))


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
