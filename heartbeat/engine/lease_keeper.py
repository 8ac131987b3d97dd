"""The thread that keeps this process's lease; it does nothing else, so that nothing delays a sign of life."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

from heartbeat.engine.lease import Lease, now
from heartbeat.engine.run import LiveRuns
from heartbeat.errors import HeartbeatError
from heartbeat.postgres.database import Connection, Database
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

_RETRY = 1.0
"""Seconds to the next attempt when the lease could not be renewed; a third of the TTL if that is shorter."""


class Keeper:
    """Registers this process as a runner and renews it, on a thread and a connection of its own."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        live_runs: LiveRuns,
        on_lease_lost: Callable[[], None],
    ) -> None:
        self.lease = Lease(settings.runner_ttl)
        self._settings = settings
        self._database = database
        self._queries = queries
        self._live_runs = live_runs
        self._on_lease_lost = on_lease_lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="heartbeat-keeper", daemon=True)

    def start(self) -> None:
        """Register and begin to renew. Raises DatabaseUnavailable."""
        with self._database.transaction() as conn:
            self._register(conn)
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing. The row stays: whoever has seen all runs recorded unregisters."""
        self._stopped.set()
        self._thread.join(timeout=1.0)

    def unregister(self) -> None:
        """Remove this process's row, for its runs are all on record."""
        try:
            with self._database.transaction(timeout=1.0) as conn:
                self._queries.unregister_runner(conn, runner_id=self.lease.id)
        except HeartbeatError as exc:
            log.warning("runner %s could not be unregistered: %s", self.lease.id, exc)

    def _keep(self) -> None:
        interval = self._settings.runner_ttl / 3
        conn: Connection | None = None
        pause = 0.0
        while not self._stopped.wait(pause):
            pause = interval
            try:
                conn = conn or self._database.connect()
                self._renew(conn)
            except Exception as exc:  # whatever it is, the next renewal must be tried
                log.warning(
                    "the lease could not be renewed: %s", exc,
                    exc_info=None if isinstance(exc, HeartbeatError) else exc, extra={"event": "renewal_failed"},
                )  # fmt: skip
                _close(conn)
                conn = None
                pause = min(_RETRY, interval)
        _close(conn)

    def _register(self, conn: Connection) -> None:
        lease = Lease(self._settings.runner_ttl)
        self._queries.register_runner(conn, runner_id=lease.id, host=socket.gethostname(), pid=os.getpid())
        self.lease = lease

    def _renew(self, conn: Connection) -> None:
        sent_at = now()
        lease = self.lease
        with self._database.transaction(conn) as bounded:
            is_registered = self._queries.renew_runner(bounded, runner_id=lease.id)
        if is_registered:
            lease.renewed(sent_at)
            self._close_lost_runs(conn, lease)
            return
        log.error(
            "runner %s was given up for dead; its runs write nothing any more, and this process begins anew",
            lease.id, extra={"event": "lease_lost"},
        )  # fmt: skip
        self._on_lease_lost()
        with self._database.transaction(conn) as bounded:
            self._register(bounded)

    def _close_lost_runs(self, conn: Connection, lease: Lease) -> None:
        """Fail runs that were claimed for this runner by a statement whose answer never arrived."""
        unknown = self._live_runs.unknown(self._live_run_ids(conn, lease))
        # Unknown, and still live when asked again: not one that was recorded in between.
        lost = sorted(unknown & self._live_run_ids(conn, lease)) if unknown else []
        if not lost:
            return
        log.error("failing %d runs whose claim was cut off, %d to %d", len(lost), lost[0], lost[-1])
        with self._database.transaction(conn) as bounded:
            self._queries.record_outcomes(
                bounded,
                runner_id=lease.id,
                run_ids=lost,
                statuses=["failed"] * len(lost),
                results=[None] * len(lost),
                errors=["the connection broke while this was claimed; it never began"] * len(lost),
                backtraces=[None] * len(lost),
            )

    def _live_run_ids(self, conn: Connection, lease: Lease) -> set[int]:
        with self._database.transaction(conn) as bounded:
            return {row.run_id for row in self._queries.live_run_ids(bounded, runner_id=lease.id)}


def _close(conn: Connection | None) -> None:
    if conn is not None:
        conn.close()
