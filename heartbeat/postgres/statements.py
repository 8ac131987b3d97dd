"""How statements of `sql/` are run: one by itself, several as one transaction, every wait bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import psycopg

from heartbeat.postgres.connections import Connection
from heartbeat.postgres.errors import translated

T = TypeVar("T")

STATEMENT_TIMEOUT = 4.0
"""Seconds that a statement of ours may take: what begin_bounded says."""


class Statements(ABC):
    """Runs statements of `sql/`, every wait bounded.

    What it runs raises DatabaseUnavailable when the database cannot be reached or does not answer in time, LockTimeout
    when another session's lock was in the way, and what `postgres.errors` makes of the rest.
    """

    def run(self, statement: Callable[..., T], /, **parameters: Any) -> T:
        """Run one statement, a transaction by itself."""
        return self.run_within(STATEMENT_TIMEOUT, statement, **parameters)

    def run_within(self, seconds: float, statement: Callable[..., T], /, **parameters: Any) -> T:
        """Run one statement that may take another time than ours usually may."""
        with translated(), self._lent() as conn, self.bounded(conn, seconds):
            return statement(conn, **parameters)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run several statements as one transaction.

        They travel in one message, and so cost one round trip, unless the rows of one are read within the block.
        """
        with translated(), self._lent() as conn:
            try:
                with self.bounded(conn, STATEMENT_TIMEOUT), conn.pipeline():
                    yield conn
            except psycopg.Error:
                conn.close()  # psycopg takes for prepared what a message that was aborted has never parsed
                raise

    @abstractmethod
    def _lent(self) -> AbstractContextManager[Connection]:
        """Lend a connection that is good."""

    @abstractmethod
    def bounded(self, conn: Connection, seconds: float) -> AbstractContextManager[None]:
        """Bound each wait in the block."""
