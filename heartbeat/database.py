"""Connections: the pools, the embedded server, and psycopg's errors as ours.

Two pools, so that flows which take every connection of theirs never keep a heartbeat from its own.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from heartbeat.deadlines import Deadlines
from heartbeat.embedded import EmbeddedServer
from heartbeat.errors import DatabaseUnavailable
from heartbeat.pgerrors import translated
from heartbeat.queries import Queries
from heartbeat.settings import Settings

Connection = psycopg.Connection[Any]

log = logging.getLogger("heartbeat")

CONNECT_TIMEOUT = 3
"""Seconds to establish a connection, libpq's own bound. With _CHECK_LIMIT it keeps a 503 within five seconds."""

STATEMENT_TIMEOUT = 4.0
"""Seconds that a statement of ours may take: what begin_bounded says."""

_CHECK_LIMIT = 1.0
"""Seconds for a pooled connection to prove itself: one into a black hole would hang for minutes."""

_OWN_CONNECTIONS = 8
"""Most connections for statements of our own; each is held for one statement."""

# libpq's defaults wait for minutes on a peer that has vanished. What the URL says wins.
_BOUNDS: dict[str, str | int] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "heartbeat",
}

# A pooler that does not carry prepared statements across transactions answers with one of these.
_NOT_PREPARED = (pg.InvalidSqlStatementName, pg.DuplicatePreparedStatement)


class Database:
    """The database of one service: open it, take transactions from it, close it."""

    def __init__(self, settings: Settings, queries: Queries, deadlines: Deadlines) -> None:
        self._settings = settings
        self._queries = queries
        self._deadlines = deadlines
        self._embedded: EmbeddedServer | None = None
        self._conninfo = ""
        self._own_conninfo = ""
        self._has_bounds = False
        self._prepare_threshold: int | None = 2
        self._own: ConnectionPool[Connection] | None = None
        self._flows: ConnectionPool[Connection] | None = None
        self._lock = threading.Lock()

    @property
    def is_embedded(self) -> bool:
        """Whether the server is ours, under the data directory."""
        return self._settings.database_url is None

    @property
    def url(self) -> str:
        """The libpq URL or connection string, password included."""
        return self._conninfo

    def open(self) -> None:
        """Start the embedded server, if that is what is used, and the pools. Raises DatabaseUnavailable."""
        if self.is_embedded:
            self._embedded = EmbeddedServer(self._settings.data_dir)
            self._conninfo = bounded_conninfo(self._embedded.start())
        else:
            self._conninfo = bounded_conninfo(self._settings.database_url or "")
        self._own_conninfo, self._has_bounds = self._try_bounds()
        self._own = self._pool("own", self._own_conninfo, _OWN_CONNECTIONS, self._configure_own)
        self._flows = self._pool(
            "flows", self._conninfo, self._settings.concurrency, _configure_flows, reset=self._reset
        )

    def close(self) -> None:
        """Close the pools; the last process out stops the embedded server."""
        for pool in (self._own, self._flows):
            if pool is not None:
                pool.close(timeout=1.0)
        if self._embedded is not None:
            self._embedded.stop()
            self._embedded = None

    def connect(self) -> Connection:
        """Open a connection outside the pools, for whoever must not wait for one."""
        with translated():
            conn = psycopg.connect(self._own_conninfo, autocommit=True)
            self._configure_own(conn)
            return conn

    def _try_bounds(self) -> tuple[str, bool]:
        """Return how to connect for our own statements, and whether such a session has begin_bounded's settings.

        A pooler refuses them at connect, or drops them; each transaction then sets them for itself.
        """
        options = f"{conninfo_to_dict(self._conninfo).get('options') or ''} {self._queries.session_options()}"
        bounded = make_conninfo(self._conninfo, options=options.strip())
        with translated():
            try:
                with psycopg.connect(bounded, autocommit=True) as conn:
                    if self._queries.has_bounds(conn):
                        return bounded, True
            except psycopg.OperationalError:
                psycopg.connect(self._conninfo).close()  # raises if it was not the options
        log.info("the connection pooler takes no settings; they are set in each transaction")
        return self._conninfo, False

    @contextmanager
    def transaction(
        self,
        conn: Connection | None = None,
        *,
        timeout: float = STATEMENT_TIMEOUT,
        begin: Callable[[Connection], object] | None = None,
    ) -> Iterator[Connection]:
        """Run statements of our own, every wait bounded; `timeout` is seconds for each.

        Each statement commits by itself where the session has its bounds from the start: nothing is held between
        two of them, and the round trips of a transaction are spared. With another `timeout`, another `begin` than
        begin_bounded, or behind a pooler, they are one transaction.

        Raises DatabaseUnavailable when the database cannot be reached or does not answer in time, LockTimeout
        when somebody else's lock was in the way.
        """
        with translated(), self._borrowed(conn) as connection:
            try:
                # The server bounds the statement; this bounds the wait for a server that has vanished.
                with self._deadlines.limit(timeout + 0.5, lambda: sever(connection)):
                    if self._has_bounds and begin is None and timeout == STATEMENT_TIMEOUT:
                        yield connection
                        return
                    (begin or self._queries.begin_bounded)(connection)
                    if timeout != STATEMENT_TIMEOUT:
                        self._queries.bound_statement(connection, milliseconds=f"{timeout * 1000:.0f}")
                    try:
                        yield connection
                    except BaseException:
                        connection.rollback()
                        raise
                    connection.commit()
            except _NOT_PREPARED as exc:
                self._stop_preparing()
                raise DatabaseUnavailable(
                    "the connection pooler does not keep prepared statements; they are off from now on"
                ) from exc
            except psycopg.OperationalError:
                if connection.closed or connection.broken:
                    self._forget_connections()
                raise

    def lend_to_flow(self) -> Connection:
        """Take a connection for a flow; it must be given back. Raises DatabaseUnavailable when none is to be had."""
        if self._flows is None:
            raise DatabaseUnavailable("the database is closed")
        try:
            return self._flows.getconn()
        except (PoolTimeout, PoolClosed) as exc:
            raise DatabaseUnavailable("no database connection could be had for the flow in time") from exc

    def take_back(self, conn: Connection) -> None:
        """Return a flow's connection to the pool, which resets it."""
        if self._flows is not None:
            self._flows.putconn(conn)

    def allow_flow_connections(self, count: int) -> None:
        """Let the flows have so many connections: stuck threads keep theirs, and others need some too."""
        if self._flows is not None and not self._flows.closed:
            self._flows.resize(0, count)

    def _borrowed(self, conn: Connection | None) -> AbstractContextManager[Connection]:
        if conn is not None:
            return _lent(conn)
        if self._own is None:
            raise DatabaseUnavailable("the database is closed")
        return self._own.connection()

    def _pool(
        self,
        name: str,
        conninfo: str,
        size: int,
        configure: Callable[[Connection], None] | None,
        reset: Callable[[Connection], None] | None = None,
    ) -> ConnectionPool[Connection]:
        return ConnectionPool(
            conninfo,
            kwargs={"autocommit": name == "own"},
            min_size=0,
            max_size=size,
            name=f"heartbeat-{name}",
            timeout=float(CONNECT_TIMEOUT),
            # Give a failed attempt up at once, so that the next request tries anew instead of waiting out a backoff.
            reconnect_timeout=0.5,
            check=self._check,
            configure=configure,
            reset=reset,
            open=True,
        )

    def _reset(self, conn: Connection) -> None:
        """Take back what a flow may have changed on the server; one that it changed in Python is thrown away."""
        if _looks_changed(conn):
            conn.close()
            return
        conn.autocommit = True
        self._queries.discard_session(conn)
        conn.autocommit = False

    def _check(self, conn: Connection) -> None:
        try:
            with self._deadlines.limit(_CHECK_LIMIT, lambda: sever(conn)):
                ConnectionPool.check_connection(conn)
        except psycopg.Error:
            self._forget_connections()
            raise

    def _configure_own(self, conn: Connection) -> None:
        conn.prepare_threshold = self._prepare_threshold

    def _stop_preparing(self) -> None:
        with self._lock:
            if self._prepare_threshold is not None:
                log.warning("prepared statements are off: the connection pooler does not keep them")
                self._prepare_threshold = None
        self._forget_connections()

    def _forget_connections(self) -> None:
        """Replace what the pool holds: where one connection died, its neighbours most likely did."""
        for pool in (self._own, self._flows):
            if pool is not None and not pool.closed:
                pool.drain()


def bounded_conninfo(url: str) -> str:
    """Return a connection string that says what `url` says and bounds every wait that it leaves open."""
    bounds: dict[str, str | int] = {
        **_BOUNDS,
        **{k: v for k, v in conninfo_to_dict(url).items() if v is not None},
    }
    return make_conninfo("", **bounds)


def sever(conn: Connection) -> None:
    """Break a connection from another thread, so that whoever waits on it gets an error."""
    try:
        duplicate = socket.socket(fileno=os.dup(conn.fileno()))
    except (psycopg.Error, OSError):
        return  # it is closed already
    with duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


@contextmanager
def _lent(conn: Connection) -> Iterator[Connection]:
    yield conn


def _configure_flows(conn: Connection) -> None:
    # DISCARD ALL drops prepared statements behind psycopg's back: it must not believe that it has some.
    conn.prepare_threshold = None


def _looks_changed(conn: Connection) -> bool:
    # psycopg has no public way to ask for handlers and for adapters of the connection's own.
    adapters = conn.adapters
    return (
        conn.autocommit
        or conn.prepare_threshold is not None
        or conn.row_factory is not tuple_row
        or conn.cursor_factory is not psycopg.Cursor
        or conn.server_cursor_factory is not psycopg.ServerCursor
        or (conn.isolation_level, conn.read_only, conn.deferrable) != (None, None, None)
        or bool(conn._notice_handlers or conn._notify_handlers)
        or any(adapters._own_dumpers.values())
        or any(adapters._own_loaders)
    )
