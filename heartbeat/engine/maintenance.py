"""The thread that puts right what others left behind, and prunes history: in nobody's way."""

from __future__ import annotations

import logging
import threading
import time

from heartbeat.engine.run import ClaimedRun, LiveRuns
from heartbeat.errors import HeartbeatError
from heartbeat.postgres.database import Database
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

_SOON = 0.2
"""Seconds to the next look while a stuck thread's note waits to be taken away."""

_PRUNE_BATCH = 2000
"""Rows that are pruned at most by one statement; it then takes some 10 ms."""

_PRUNE_EVERY = 5.0
"""Seconds between the prunings of heartbeats that come in quick succession."""

_PRUNE_SECONDS = 1.0
"""How long pruning may go on after a heartbeat that found more than a batch."""


class Housekeeper:
    """Closes what the dead left every third of the TTL, and prunes after heartbeats."""

    def __init__(self, settings: Settings, database: Database, queries: Queries, live_runs: LiveRuns) -> None:
        self._settings = settings
        self._database = database
        self._queries = queries
        self._live_runs = live_runs
        self._ended_threads: dict[int, ClaimedRun] = {}
        self._prune_due = False
        self._pruned_at = float("-inf")
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="heartbeat-housekeeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def ask_to_prune(self) -> None:
        """Have history pruned soon, not more often than once in a few seconds; returns at once."""
        if self._settings.retention_days and time.monotonic() - self._pruned_at >= _PRUNE_EVERY:
            self._prune_due = True
            self._wake.set()

    def thread_ended(self, run: ClaimedRun) -> None:
        """Let a flow start again: the thread of its timed-out run has ended."""
        self._ended_threads[run.run_id] = run
        self._wake.set()

    def repair(self) -> None:
        """Close what the dead left, and put stale statuses right. Each statement commits by itself."""
        ttl = self._settings.runner_ttl
        with self._database.transaction() as bounded:
            closed = self._queries.fail_runs_of_dead_runners(bounded, runner_ttl=ttl)
        if closed:
            log.warning("failed %d runs of dead runners", closed, extra={"event": "runs_of_dead_closed"})
        with self._database.transaction() as bounded:
            self._queries.refresh_stale_statuses(bounded)
        with self._database.transaction() as bounded:
            self._queries.finish_heartbeats_of_dead_runners(bounded, runner_ttl=ttl)
        with self._database.transaction() as bounded:
            self._queries.remove_dead_runners(bounded, runner_ttl=ttl)

    def _work(self) -> None:
        interval = self._settings.runner_ttl / 3
        while not self._stopped:
            try:
                self.repair()
                self._forget_ended_threads()
                if self._prune_due:
                    self._prune()
                    self._prune_due = False
            except HeartbeatError as exc:
                log.warning("housekeeping has to wait: %s", exc, extra={"event": "housekeeping_failed"})
            except Exception:
                log.exception("housekeeping failed", extra={"event": "housekeeping_failed"})
            # A thread may end before its run's outcome is on record; its note can go right after that.
            self._wake.wait(min(_SOON, interval) if self._ended_threads else interval)
            self._wake.clear()

    def _forget_ended_threads(self) -> None:
        # A row is written with its run's outcome: take away only those whose outcome is on record.
        for run_id in self._live_runs.unknown(set(self._ended_threads)) if self._ended_threads else ():
            with self._database.transaction() as bounded:
                self._queries.remove_stuck_thread(bounded, run_id=run_id)
            del self._ended_threads[run_id]

    def _prune(self) -> None:
        """Delete a bounded share of what is older than the retention; on this thread, so no heartbeat waits."""
        self._pruned_at = time.monotonic()
        for statement in (self._queries.prune_runs, self._queries.prune_heartbeats):
            deleted = _PRUNE_BATCH
            while deleted == _PRUNE_BATCH and time.monotonic() - self._pruned_at < _PRUNE_SECONDS:
                with self._database.transaction() as bounded:
                    deleted = statement(
                        bounded, retention_days=self._settings.retention_days, max_rows=_PRUNE_BATCH
                    )
