"""The database of one service: statements of our own, in bounded time, and the connections that flows borrow.

Pools apart, so that flows which take every connection of theirs never keep a heartbeat from its own. Any thread may
call; psycopg's pools have locks of their own, and a `Session` belongs to one thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool, PoolTimeout

from heartbeat.errors import DatabaseUnavailable, SessionEnded
from heartbeat.postgres.connections import (
    POOL,
    ConnectFailure,
    Connection,
    bounded_conninfo,
    has_spoken,
    prove,
    sever,
    with_options,
)
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.embedded import EmbeddedServer
from heartbeat.postgres.errors import translated
from heartbeat.postgres.flow_connections import FlowConnections
from heartbeat.postgres.queries import Queries
from heartbeat.postgres.statements import STATEMENT_TIMEOUT, Statements
from heartbeat.settings import Settings

T = TypeVar("T")

log = logging.getLogger("heartbeat")

_SCRIPTS = ("begin_bounded",)
"""Of service.sql: what every session of ours is set to."""

_FRESH = 0.05
"""Seconds after its last use for which a connection needs no proof that it is good: a heartbeat's next statement."""

_TRUSTED = 1.0
"""The same for a statement that can be run again in another session."""

_OWN_CONNECTIONS = 8
"""Most connections for statements of our own; each is held for one statement."""

# A pooler that does not carry prepared statements across transactions answers with one of these.
_NOT_PREPARED = (pg.InvalidSqlStatementName, pg.DuplicatePreparedStatement)


class _OwnConnection(psycopg.Connection[Any]):
    """A connection for our own statements."""

    used_at = 0.0
    """When it last did what it should, by `time.monotonic()`."""


class Database(Statements):
    """Opens the pools, runs statements on pooled connections, lends connections to flows, closes it all."""

    def __init__(self, settings: Settings, queries: Queries, deadlines: Deadlines) -> None:
        self._settings = settings
        self._queries = queries
        self._deadlines = deadlines
        self._embedded: EmbeddedServer | None = None
        self._conninfo = ""
        self._sessions_have_bounds = False
        self._prepare_threshold: int | None = 2
        self._own: ConnectionPool[_OwnConnection] | None = None
        self._failure = ConnectFailure()
        self._flows: FlowConnections | None = None
        self._lock = threading.Lock()

    # ── its life ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_embedded(self) -> bool:
        """Whether the server is ours, under the data directory."""
        return self._settings.database_url is None

    @property
    def url(self) -> str:
        """The libpq URL or connection string, password included."""
        return self._conninfo

    @property
    def flows(self) -> FlowConnections:
        """What flows borrow."""
        if self._flows is None:
            raise DatabaseUnavailable("the database is closed")
        return self._flows

    def open(self) -> None:
        """Start the embedded server, if that is what is used, and the pools. Raises DatabaseUnavailable."""
        if self.is_embedded:
            self._embedded = EmbeddedServer(self._settings.data_dir)
            self._conninfo = bounded_conninfo(self._embedded.start())
        else:
            self._conninfo = bounded_conninfo(self._settings.database_url or "")
        self._sessions_have_bounds = self._try_bounds()
        self._own = ConnectionPool(
            self._conninfo_for(*_SCRIPTS),
            connection_class=self._failure.noted_by(_OwnConnection),
            kwargs={"autocommit": True},
            max_size=_OWN_CONNECTIONS,
            name="heartbeat-own",
            configure=self._configure_own,
            **POOL,
            open=True,
        )
        self._flows = FlowConnections(self._conninfo, self._settings, self._queries, self._deadlines)

    def close(self) -> None:
        """Close the pools; the last process out stops the embedded server."""
        if self._own is not None:
            self._own.close(timeout=1.0)
        if self._flows is not None:
            self._flows.close()
        if self._embedded is not None:
            self._embedded.stop()
            self._embedded = None

    def connect(self, *scripts: str) -> Connection:
        """Open a connection outside the pools, with the settings of some scripts."""
        with translated():
            conn = psycopg.connect(self._conninfo_for(*scripts), autocommit=True)
            self._configure_own(conn)
            return conn

    def _try_bounds(self) -> bool:
        """Find out whether a session can have our settings from its start.

        A pooler refuses them at connect, or drops them; each transaction then sets them for itself.
        """
        options = self._queries.session_options(*_SCRIPTS)
        with translated():
            try:
                with psycopg.connect(with_options(self._conninfo, options), autocommit=True) as conn:
                    if self._queries.has_bounds(conn):
                        return True
            except psycopg.OperationalError:
                psycopg.connect(self._conninfo).close()  # raises if it was not the options
        log.info("the connection pooler takes no settings; they are set in each transaction")
        return False

    def _conninfo_for(self, *scripts: str) -> str:
        if not self._sessions_have_bounds:
            return self._conninfo
        return with_options(self._conninfo, self._queries.session_options(*scripts))

    # ── our own statements ───────────────────────────────────────────────────────────────────────────────────

    def run_trusting(self, statement: Callable[..., T], /, **parameters: Any) -> T:
        """Run one statement without first proving the connection good, if it was good a moment ago.

        Where the server had ended the session instead of running it, it is run again in another session.
        """
        try:
            with translated(), self._lent(trusted=_TRUSTED) as conn, self.bounded(conn, STATEMENT_TIMEOUT):
                return statement(conn, **parameters)
        except SessionEnded:
            return self.run(statement, **parameters)

    @contextmanager
    def _lent(self, trusted: float = _FRESH) -> Iterator[Connection]:
        pool = self._own
        if pool is None:
            raise DatabaseUnavailable("the database is closed")
        conn = self._good_one(pool, trusted)
        try:
            yield conn
            conn.used_at = time.monotonic()
        finally:
            pool.putconn(conn)

    def _good_one(self, pool: ConnectionPool[_OwnConnection], trusted: float) -> _OwnConnection:
        """Take a connection that answers, or that did what it should within the last `trusted` seconds."""
        while True:
            try:
                conn = pool.getconn()
            except PoolTimeout as exc:
                raise self._failure.behind(exc) from exc
            if (time.monotonic() - conn.used_at < trusted and not has_spoken(conn)) or self._is_good(conn):
                return conn
            pool.putconn(conn)  # which throws it away

    def _is_good(self, conn: Connection) -> bool:
        try:
            prove(conn, self._deadlines)
        except psycopg.Error:
            conn.close()
            self._forget_connections()
            return False
        return True

    @contextmanager
    def bounded(self, conn: Connection, seconds: float, *scripts: str) -> Iterator[None]:
        """Bound each wait of a session in the block. It has the settings of the scripts, or is given them here."""
        # The server bounds the statement; the deadline bounds the wait for a server that has vanished.
        with self._deadlines.limit(seconds + 0.5, lambda: sever(conn)):
            try:
                if self._sessions_have_bounds and seconds == STATEMENT_TIMEOUT:
                    yield
                    return
                for script in scripts or _SCRIPTS:
                    getattr(self._queries, script)(conn)
                if seconds != STATEMENT_TIMEOUT:
                    self._queries.bound_statement(conn, milliseconds=f"{seconds * 1000:.0f}")
                try:
                    yield
                except BaseException:
                    conn.rollback()
                    raise
                conn.commit()
            except _NOT_PREPARED as exc:
                self._stop_preparing()
                raise DatabaseUnavailable(
                    "the connection pooler does not keep prepared statements; they are off from now on"
                ) from exc
            except psycopg.OperationalError:
                if conn.closed or conn.broken:
                    self._forget_connections()
                raise

    def _configure_own(self, conn: Connection) -> None:
        # A configuration or a result that Python cannot read must not take the rows beside it along.
        conn.adapters.register_loader("jsonb", TextLoader)
        conn.prepare_threshold = self._prepare_threshold

    def _stop_preparing(self) -> None:
        with self._lock:
            if self._prepare_threshold is not None:
                log.warning("prepared statements are off: the connection pooler does not keep them")
                self._prepare_threshold = None
        self._forget_connections()

    def _forget_connections(self) -> None:
        """Replace what the pools hold: where one connection died, its neighbours most likely did."""
        if self._own is not None and not self._own.closed:
            self._own.drain()
        if self._flows is not None:
            self._flows.forget()


class Session(Statements):
    """A connection of its own for a thread that must wait for no pool: opened when needed, and anew when it broke."""

    def __init__(self, database: Database, *scripts: str) -> None:
        """`scripts` are what its settings are, besides those of every session of ours."""
        self._database = database
        self._scripts = (*_SCRIPTS, *scripts)
        self._conn: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next statement opens another."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        if self._conn is None or self._conn.closed:
            self._conn = self._database.connect(*self._scripts)
        try:
            yield self._conn
        except pg.LockNotAvailable:
            raise
        except (psycopg.OperationalError, DatabaseUnavailable):
            self.close()  # in whatever state it is
            raise

    def bounded(self, conn: Connection, seconds: float) -> AbstractContextManager[None]:
        return self._database.bounded(conn, seconds, *self._scripts)
