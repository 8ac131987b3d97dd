"""The connections that flows borrow: a pool of their own, and nobody gets one back as another left it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from heartbeat.errors import DatabaseUnavailable
from heartbeat.postgres.connections import POOL, ConnectFailure, Connection, looks_changed, prove
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.errors import translate
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings


class FlowConnections:
    """Lends connections, one for each flow that may run at once and one for each stuck thread."""

    def __init__(self, conninfo: str, settings: Settings, queries: Queries, deadlines: Deadlines) -> None:
        self._queries = queries
        self._deadlines = deadlines
        self._is_closed = False
        self._size = settings.concurrency + settings.async_concurrency
        self._failure = ConnectFailure()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            conninfo,
            connection_class=self._failure.noted_by(psycopg.Connection),
            max_size=self._size,
            name="heartbeat-flows",
            check=self._check,
            configure=_configure,
            reset=self._reset,
            open=False,  # its threads begin when it is opened: flows that borrow nothing cost none
            **POOL,
        )

    def lend(self) -> Connection:
        """Take a connection for a flow; it must be given back. Raises DatabaseUnavailable when none is to be had."""
        if self._is_closed:
            raise DatabaseUnavailable("the database is closed")
        try:
            self._pool.open()  # does nothing where it is open
            return self._pool.getconn()
        except PoolTimeout as exc:
            raise DatabaseUnavailable(self._reason(exc)) from exc
        except (PoolClosed, psycopg.Error) as exc:
            raise DatabaseUnavailable(f"no database connection could be had for the flow: {exc}") from exc

    def _reason(self, timeout: PoolTimeout) -> str:
        """Say what was in the way: the database, or the flows that have borrowed all there are."""
        failure = self._failure.behind(timeout)
        if failure is not timeout:
            return f"no database connection could be had for the flow: {translate(failure)}"
        most = self._pool.max_size
        return f"no database connection could be had for the flow in time: at most {most} are lent at once"

    def take_back(self, conn: Connection) -> None:
        """Return a connection to the pool, which resets it."""
        self._pool.putconn(conn)

    def allow_more(self, count: int) -> None:
        """Have `count` more than flows may run at once: stuck threads keep theirs."""
        self._pool.resize(0, self._size + count)

    def forget(self) -> None:
        """Replace what the pool holds."""
        if not self._pool.closed:
            self._pool.drain()

    def close(self) -> None:
        self._is_closed = True  # a pool that was never opened could still be
        self._pool.close(timeout=1.0)

    def _check(self, conn: Connection) -> None:
        try:
            prove(conn, self._deadlines)
        except psycopg.Error:
            self.forget()  # where one died, its neighbours most likely did
            raise

    def _reset(self, conn: Connection) -> None:
        """Take back what a flow may have changed on the server; one that it changed in Python is thrown away."""
        if looks_changed(conn):
            conn.close()
            return
        conn.autocommit = True
        self._queries.discard_session(conn)
        conn.autocommit = False


def _configure(conn: psycopg.Connection[Any]) -> None:
    # DISCARD ALL drops prepared statements behind psycopg's back: it must not believe that it has some.
    conn.prepare_threshold = None
