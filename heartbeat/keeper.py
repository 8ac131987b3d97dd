"""The thread that keeps this process's lease, and puts right what others left behind."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from heartbeat.database import Connection, Database
from heartbeat.errors import HeartbeatError
from heartbeat.lease import Lease, now
from heartbeat.queries import Queries
from heartbeat.runs import ClaimedRun, LiveRuns
from heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

_RETRY = 1.0
"""Seconds to the next attempt when the lease could not be renewed; a third of the TTL if that is shorter."""

_PRUNE_BATCH = 2000
"""Rows that are pruned at most by one statement; it then takes some 10 ms."""

_PRUNE_EVERY = 5.0
"""Seconds between the prunings of heartbeats that come in quick succession."""

_PRUNE_SECONDS = 1.0
"""How long pruning may go on after a heartbeat that found more than a batch."""


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
        self._ended_threads: dict[int, ClaimedRun] = {}
        self._prune_due = False
        self._pruned_at = float("-inf")
        self._wake = threading.Event()
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
        self._wake.set()
        self._thread.join(timeout=1.0)

    def unregister(self) -> None:
        """Remove this process's row, for its runs are all on record."""
        try:
            with self._database.transaction(timeout=1.0) as conn:
                self._queries.unregister_runner(conn, runner_id=self.lease.id)
        except HeartbeatError as exc:
            log.warning("runner %s could not be unregistered: %s", self.lease.id, exc)

    def ask_to_prune(self) -> None:
        """Have history pruned soon, not more often than once in a few seconds; returns at once."""
        if self._settings.retention_days and time.monotonic() - self._pruned_at >= _PRUNE_EVERY:
            self._prune_due = True
            self._wake.set()

    def thread_ended(self, run: ClaimedRun) -> None:
        """Let a flow start again: the thread of its timed-out run has ended."""
        self._ended_threads[run.run_id] = run
        self._wake.set()

    def repair(self, conn: Connection | None = None) -> None:
        """Close what the dead left, and put stale statuses right. Each statement commits by itself."""
        ttl = self._settings.runner_ttl
        with self._database.transaction(conn) as bounded:
            closed = self._queries.close_runs_of_dead_runners(bounded, runner_ttl=ttl)
        if closed:
            log.warning("failed %d runs of dead runners", closed, extra={"event": "runs_of_dead_closed"})
        with self._database.transaction(conn) as bounded:
            self._queries.settle_flows(bounded)
        with self._database.transaction(conn) as bounded:
            self._queries.close_heartbeats_of_dead_runners(bounded, runner_ttl=ttl)
        with self._database.transaction(conn) as bounded:
            self._queries.remove_dead_runners(bounded, runner_ttl=ttl)

    def _keep(self) -> None:
        interval = self._settings.runner_ttl / 3
        renew_at = time.monotonic()
        conn: Connection | None = None
        while not self._stopped.is_set():
            try:
                conn = conn or self._database.connect()
                if time.monotonic() >= renew_at:
                    self._renew(conn)
                    renew_at = time.monotonic() + interval
                    self.repair(conn)
                self._forget_ended_threads(conn)
                if self._prune_due:
                    self._prune(conn)
                    self._prune_due = False
            except HeartbeatError as exc:
                log.warning("the lease could not be looked after: %s", exc, extra={"event": "keeper_failed"})
                _close(conn)
                conn = None
                renew_at = time.monotonic() + min(_RETRY, interval)
            except Exception:
                log.exception("the keeper failed", extra={"event": "keeper_failed"})
                renew_at = time.monotonic() + min(_RETRY, interval)
            self._wake.wait(max(renew_at - time.monotonic(), 0))
            self._wake.clear()
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
                run_ids=lost,
                runner_ids=[lease.id] * len(lost),
                statuses=["failed"] * len(lost),
                results=[None] * len(lost),
                errors=["the connection broke while this was claimed; it never began"] * len(lost),
                backtraces=[None] * len(lost),
            )

    def _live_run_ids(self, conn: Connection, lease: Lease) -> set[int]:
        with self._database.transaction(conn) as bounded:
            return {row.run_id for row in self._queries.live_run_ids(bounded, runner_id=lease.id)}

    def _forget_ended_threads(self, conn: Connection) -> None:
        # A row is written with its run's outcome: take away only those whose outcome is on record.
        for run_id in self._live_runs.unknown(set(self._ended_threads)) if self._ended_threads else ():
            with self._database.transaction(conn) as bounded:
                self._queries.remove_stuck_thread(bounded, run_id=run_id)
            del self._ended_threads[run_id]

    def _prune(self, conn: Connection) -> None:
        """Delete a bounded share of what is older than the retention; on this thread, so no heartbeat waits."""
        self._pruned_at = time.monotonic()
        for statement in (self._queries.prune_runs, self._queries.prune_heartbeats):
            deleted = _PRUNE_BATCH
            while deleted == _PRUNE_BATCH and time.monotonic() - self._pruned_at < _PRUNE_SECONDS:
                with self._database.transaction(conn) as bounded:
                    deleted = statement(
                        bounded, retention_days=self._settings.retention_days, max_rows=_PRUNE_BATCH
                    )


def _close(conn: Connection | None) -> None:
    if conn is not None:
        conn.close()
