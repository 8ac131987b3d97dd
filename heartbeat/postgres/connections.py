"""What is to be known about single connections: how to reach them, whether they are good, and how to break them."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from heartbeat.postgres.deadlines import Deadlines

Connection = psycopg.Connection[Any]
C = TypeVar("C", bound=psycopg.Connection[Any])

CONNECT_TIMEOUT = 3
"""Seconds to establish a connection, libpq's own bound. With a check's limit it keeps a 503 within five seconds."""

# libpq's defaults wait for minutes on a peer that has vanished. What the URL says wins.
_BOUNDS: dict[str, str | int] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "heartbeat",
}


POOL: Mapping[str, Any] = {
    "min_size": 0,
    "num_workers": 2,
    "timeout": float(CONNECT_TIMEOUT),
    # Give a failed attempt up at once, so that the next request tries anew instead of waiting out a backoff.
    "reconnect_timeout": 0.5,
}

_PROOF_LIMIT = 1.0
"""Seconds for a pooled connection to prove itself: one into a black hole would hang for minutes."""


class ConnectFailure:
    """Why a pool last failed to connect: the pool itself says only that it took too long."""

    def __init__(self) -> None:
        self._last: tuple[float, psycopg.Error] | None = None

    def noted_by(self, base: type[C]) -> type[C]:
        """Make a connection class that notes it here."""
        failure = self

        class Noting(base):  # type: ignore[valid-type,misc]
            @classmethod
            def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
                try:
                    return super().connect(conninfo, **kwargs)
                except psycopg.Error as exc:
                    failure._last = (time.monotonic(), exc)
                    raise

        return Noting

    def behind(self, timeout: PoolTimeout) -> psycopg.Error:
        """Return what was in the way of a connection that the pool did not give in time."""
        if self._last is not None and time.monotonic() - self._last[0] <= CONNECT_TIMEOUT + 1:
            return self._last[1]
        return timeout


def bounded_conninfo(url: str) -> str:
    """Return a connection string that says what `url` says and bounds every wait that it leaves open."""
    bounds: dict[str, str | int] = {
        **_BOUNDS,
        **{k: v for k, v in conninfo_to_dict(url).items() if v is not None},
    }
    # Whatever a role, a database or the environment says: text that a session cannot encode could not be recorded.
    return make_conninfo("", **bounds | {"client_encoding": "UTF8"})


def with_options(conninfo: str, options: str) -> str:
    """Return a connection string whose sessions have more settings from their start."""
    given = conninfo_to_dict(conninfo).get("options") or ""
    return make_conninfo(conninfo, options=f"{given} {options}".strip())


def sever(conn: Connection) -> None:
    """Break a connection from another thread, so that the thread that waits on it gets an error."""
    try:
        duplicate = socket.socket(fileno=os.dup(conn.fileno()))
    except (psycopg.Error, OSError):
        return  # it is closed already
    with duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def prove(conn: Connection, deadlines: Deadlines) -> None:
    """Make sure that the server still answers. Raises psycopg.Error."""
    with deadlines.limit(_PROOF_LIMIT, lambda: sever(conn)):
        ConnectionPool.check_connection(conn)


def has_spoken(conn: Connection) -> bool:
    """Whether something has come from the server that nobody asked for: most likely that it hangs up."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except psycopg.Error:
        return True  # it is closed already


def looks_changed(conn: Connection) -> bool:
    """Whether a borrower has changed a connection on Python's side, which no statement takes back."""
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
