"""Connections: the pools, the embedded server, and psycopg's errors as ours.

Pools apart, so that flows which take every connection of theirs never keep a heartbeat from its own.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from heartbeat.errors import DatabaseUnavailable
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.embedded import EmbeddedServer
from heartbeat.postgres.errors import translated
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

Connection = psycopg.Connection[Any]

log = logging.getLogger("heartbeat")

CONNECT_TIMEOUT = 3
"""Seconds to establish a connection, libpq's own bound. With _CHECK_LIMIT it keeps a 503 within five seconds."""

STATEMENT_TIMEOUT = 4.0
"""Seconds that a statement of ours may take: what begin_bounded says."""

_CHECK_LIMIT = 1.0
"""Seconds for a pooled connection to prove itself: one into a black hole would hang for minutes."""

_TRUSTED = 1.0
"""Seconds for which whoever trusts takes a connection to be good after its last use, unless its server has hung up."""

_trusting: ContextVar[bool] = ContextVar("trusting", default=False)
"""What `transaction(trusting=True)` tells the pool's check, which is made in the same thread."""

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

_POOL: dict[str, Any] = {
    "min_size": 0,
    "timeout": float(CONNECT_TIMEOUT),
    # Give a failed attempt up at once, so that the next request tries anew instead of waiting out a backoff.
    "reconnect_timeout": 0.5,
    "open": True,
}

# A pooler that does not carry prepared statements across transactions answers with one of these.
_NOT_PREPARED = (pg.InvalidSqlStatementName, pg.DuplicatePreparedStatement)


class _OwnConnection(psycopg.Connection[Any]):
    """A connection for our own statements."""

    used_at = -math.inf
    """When it last did what it should, by `time.monotonic()`."""


class Database:
    """The database of one service: open it, take transactions from it, close it."""

    def __init__(self, settings: Settings, queries: Queries, deadlines: Deadlines) -> None:
        self._settings = settings
        self._queries = queries
        self._deadlines = deadlines
        self._embedded: EmbeddedServer | None = None
        self._conninfo = ""
        self._has_bounds = False
        self._prepare_threshold: int | None = 2
        self._own: ConnectionPool[_OwnConnection] | None = None
        self._recording: ConnectionPool[_OwnConnection] | None = None
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
        self._has_bounds = self._try_bounds()
        self._own = self._own_pool("own", _OWN_CONNECTIONS, "begin_bounded")
        self._recording = self._own_pool("recording", 1, "begin_bounded", "bound_recording")
        self._flows = ConnectionPool(
            self._conninfo,
            max_size=self._settings.concurrency,
            name="heartbeat-flows",
            check=self._check,
            configure=_configure_flows,
            reset=self._reset,
            **_POOL,
        )

    def close(self) -> None:
        """Close the pools; the last process out stops the embedded server."""
        for pool in (self._own, self._recording, self._flows):
            if pool is not None:
                pool.close(timeout=1.0)
        if self._embedded is not None:
            self._embedded.stop()
            self._embedded = None

    def connect(self) -> Connection:
        """Open a connection outside the pools, for whoever must not wait for one."""
        with translated():
            conn = psycopg.connect(self._own_conninfo("begin_bounded"), autocommit=True)
            self._configure_own(conn)
            return conn

    def _try_bounds(self) -> bool:
        """Find out whether a session can have our settings from its start.

        A pooler refuses them at connect, or drops them; each transaction then sets them for itself.
        """
        with translated():
            try:
                with psycopg.connect(self._with_settings("begin_bounded"), autocommit=True) as conn:
                    if self._queries.has_bounds(conn):
                        return True
            except psycopg.OperationalError:
                psycopg.connect(self._conninfo).close()  # raises if it was not the options
        log.info("the connection pooler takes no settings; they are set in each transaction")
        return False

    def _own_conninfo(self, *scripts: str) -> str:
        return self._with_settings(*scripts) if self._has_bounds else self._conninfo

    def _with_settings(self, *scripts: str) -> str:
        """Return how to connect to a session that has from its start what the scripts set."""
        given = conninfo_to_dict(self._conninfo).get("options") or ""
        return make_conninfo(
            self._conninfo, options=f"{given} {self._queries.session_options(*scripts)}".strip()
        )

    def _own_pool(self, name: str, size: int, *scripts: str) -> ConnectionPool[_OwnConnection]:
        return ConnectionPool(
            self._own_conninfo(*scripts),
            connection_class=_OwnConnection,
            kwargs={"autocommit": True},
            max_size=size,
            name=f"heartbeat-{name}",
            check=self._check_own,
            configure=self._configure_own,
            **_POOL,
        )

    @contextmanager
    def transaction(
        self,
        conn: Connection | None = None,
        *,
        timeout: float = STATEMENT_TIMEOUT,
        recording: bool = False,
        trusting: bool = False,
    ) -> Iterator[Connection]:
        """Run statements of our own, every wait bounded; `timeout` is seconds for each.

        Each statement commits by itself where the session has its bounds from the start: nothing is held between
        two of them, and the round trips of a transaction are spared. With another `timeout`, or behind a pooler,
        they are one transaction. `recording` is for record_outcomes: bound_recording has its say, too.
        `trusting` spares the round trip that proves a connection good, if it was used a moment ago; it is for who
        can try again.

        Raises DatabaseUnavailable when the database cannot be reached or does not answer in time, SessionEnded when
        the statement was not run because the server had ended the session, LockTimeout when somebody else's lock
        was in the way.
        """
        pool = self._recording if recording else self._own
        with translated(), _lent(conn) if conn else self._borrowed(pool, trusting) as connection:
            try:
                # The server bounds the statement; this bounds the wait for a server that has vanished.
                with self._deadlines.limit(timeout + 0.5, lambda: sever(connection)):
                    if self._has_bounds and timeout == STATEMENT_TIMEOUT:
                        yield connection
                        return
                    self._queries.begin_bounded(connection)
                    if recording:
                        self._queries.bound_recording(connection)
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

    @contextmanager
    def _borrowed(self, pool: ConnectionPool[_OwnConnection] | None, trusting: bool) -> Iterator[Connection]:
        if pool is None:
            raise DatabaseUnavailable("the database is closed")
        _trusting.set(trusting)
        with pool.connection() as conn:
            yield conn
            conn.used_at = time.monotonic()

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

    def _check_own(self, conn: _OwnConnection) -> None:
        if not _trusting.get() or time.monotonic() - conn.used_at > _TRUSTED or _has_spoken(conn):
            self._check(conn)

    def _configure_own(self, conn: Connection) -> None:
        conn.prepare_threshold = self._prepare_threshold
        # A JSON value that Python cannot read would take all the rows that are fetched with it: each is parsed alone.
        conn.adapters.register_loader("jsonb", TextLoader)

    def _stop_preparing(self) -> None:
        with self._lock:
            if self._prepare_threshold is not None:
                log.warning("prepared statements are off: the connection pooler does not keep them")
                self._prepare_threshold = None
        self._forget_connections()

    def _forget_connections(self) -> None:
        """Replace what the pool holds: where one connection died, its neighbours most likely did."""
        for pool in (self._own, self._recording, self._flows):
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


def _has_spoken(conn: Connection) -> bool:
    """Whether something has come from the server that nobody asked for: most likely that it hangs up."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except psycopg.Error:
        return True  # it is closed already


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
