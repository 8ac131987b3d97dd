"""The thread that puts right what others left behind, and prunes history: in nobody's way.

Heartbeats ask it to prune, and the threads of stuck runs say when these have ended: a flag and a dictionary, in single
steps. Where a heartbeat must not go on before it, it calls `repair` on its own thread; of two, a lock has one wait.
"""

from __future__ import annotations

import logging
import threading
import time

from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.outage import Outage
from heartbeat.engine.run import Run
from heartbeat.engine.run_log import tell_lost
from heartbeat.errors import HeartbeatError
from heartbeat.postgres.database import Database
from heartbeat.postgres.pruning import prune
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings
from heartbeat.threads import Repeater

log = logging.getLogger("heartbeat")

_SOON = 0.2
"""Seconds to the next look while a stuck thread's note waits to be taken away."""

_RETRY = 1.0
"""Seconds to the next attempt while the database is away."""

_PRUNE_EVERY = 5.0
"""Seconds between the prunings of heartbeats that come in quick succession."""

_PRUNE_SECONDS = 1.0
"""How long pruning may go on after a heartbeat that found more than a batch."""


class Maintenance:
    """Repairs what the dead left every third of the TTL, and prunes after heartbeats."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        live_runs: LiveRuns,
        outage: Outage,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queries = queries
        self._live_runs = live_runs
        self._outage = outage
        self._ended_threads: dict[int, Run] = {}
        self._repairing = threading.Lock()
        self._prune_due = False
        self._pruned_at = float("-inf")
        self._thread = Repeater("maintenance", self._work)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()

    def ask_to_prune(self) -> None:
        """Have history pruned soon, not more often than once in a few seconds; returns at once."""
        if self._settings.retention_days and time.monotonic() - self._pruned_at >= _PRUNE_EVERY:
            self._prune_due = True
            self._thread.wake()

    def thread_ended(self, run: Run) -> None:
        """Let a flow start again: the thread of its timed-out run has ended."""
        self._ended_threads[run.run_id] = run
        self._thread.wake()

    def repair(self) -> None:
        """Fail the runs of the dead, finish their heartbeats, and put stale statuses right. Each commits by itself."""
        # One at a time: what the other has failed and not committed yet is locked, and would be passed over.
        with self._repairing:
            self._repair()

    def _repair(self) -> None:
        ttl = self._settings.runner_ttl
        failed = self._database.run(self._queries.fail_runs_of_dead_runners, runner_ttl=ttl)
        if failed:
            tell_lost(failed, failed[0].runs_failed)
        self._database.run(self._queries.refresh_stale_statuses)
        self._database.run(self._queries.finish_heartbeats_of_dead_runners, runner_ttl=ttl)
        self._database.run(self._queries.remove_dead_runners, runner_ttl=ttl)

    def _work(self) -> float:
        interval = self._settings.runner_ttl / 3
        try:
            self.repair()
            self._forget_ended_threads()
            if self._prune_due:
                self._prune_due = False  # before: who asks from now on means what comes to be then
                self._prune()
        except HeartbeatError as exc:
            if self._outage.met("maintenance", exc):
                return min(_RETRY, interval)
            log.warning("maintenance has to wait: %s", exc, extra={"event": "maintenance_failed"})
        else:
            self._outage.over("maintenance")
        # A thread may end before its run's outcome is on record; its note can go right after that.
        return min(_SOON, interval) if self._ended_threads else interval

    def _forget_ended_threads(self) -> None:
        # A note is written with its run's outcome: take away only those whose outcome is on record.
        for run_id in self._live_runs.unknown(set(self._ended_threads)) if self._ended_threads else ():
            self._database.run(self._queries.remove_stuck_thread, run_id=run_id)
            del self._ended_threads[run_id]

    def _prune(self) -> None:
        """Delete a bounded share of what is older than the retention; on this thread, so no heartbeat waits."""
        self._pruned_at = time.monotonic()
        for _ in prune(self._database, self._queries, self._settings.retention_days):
            if time.monotonic() - self._pruned_at > _PRUNE_SECONDS:
                break
