"""Claims runs for the heartbeats of a process and hands them to its threads: the next while the last are run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from heartbeat.engine.lease import Lease
from heartbeat.engine.lease_keeper import Keeper
from heartbeat.engine.run import Beat, ClaimedRun, LiveRuns, Outcome
from heartbeat.engine.workers import CLAIM, Workers
from heartbeat.errors import AlreadyRunning, FlowNotFound, Stopping
from heartbeat.postgres.database import Database
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings
from heartbeat.threads import Busy, Threads

_AT_ONCE = 2
"""Claims of a process that are under way at once: while one waits for its commit the other has the server's core.

Measured: 11 % more no-op flows a second than with one. A third gains nothing; the processors are full.
"""

_LOOK = 0.5
"""Most seconds between looks at whether to go on."""


class Claims:
    """Claims for a process, a few at once, until it stops."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        live_runs: LiveRuns,
        keeper: Keeper,
        workers: Workers,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queries = queries
        self._live_runs = live_runs
        self._keeper = keeper
        self._workers = workers
        self._turns = threading.Semaphore(_AT_ONCE)
        self._helpers = Threads("heartbeat-claim", _AT_ONCE - 1)
        self.are_over = False
        """Set when the process stops, also by a signal handler: no claim begins any more."""

    def claim_all(self, beat: Beat, deadline: float) -> None:
        """Claim what is due until nothing is left, or a time of `time.monotonic()`, and hand it to the threads.

        The claims of all heartbeats take turns. One with much to do has a helper, who claims beside it.
        """
        helper: Future[None] | None = None
        try:
            while self._may_go_on(beat, deadline):
                size = self._claim_in_turn(beat, deadline)
                if size == CLAIM and helper is None:
                    with suppress(Busy):  # it helps another heartbeat
                        helper = self._helpers.submit(lambda: self._help(beat, deadline))
        finally:
            if helper is not None:
                beat.is_exhausted = True  # whatever has ended this ends the help, too
                self._workers.wake_claimers()
                wait([helper])
        if helper is not None:
            helper.result()

    def claim_one(self, name: str, done: Future[Outcome]) -> None:
        """Claim one flow, whatever its schedule says, for whoever waits for `done`.

        Raises FlowNotFound, AlreadyRunning, Stopping, DatabaseUnavailable.
        """
        with self._live_runs.claiming():
            if self.are_over:
                raise Stopping(STOPPING)
            lease = self._keeper.lease
            with self._database.transaction() as conn:
                row = self._queries.claim_flow(conn, name=name, runner_id=lease.id)
                flow = None if row else self._queries.find_flow(conn, name=name)
            if row is None:
                if flow is None:
                    raise FlowNotFound(name)
                raise AlreadyRunning(name, _STUCK.format(name) if flow.has_stuck_thread else None)
            run = self._claimed(row, lease)
            run.done = done
            self._begin([run])

    def _help(self, beat: Beat, deadline: float) -> None:
        while self._may_go_on(beat, deadline):
            self._claim_in_turn(beat, deadline)

    def _may_go_on(self, beat: Beat, deadline: float) -> bool:
        return not (beat.is_exhausted or self.are_over or time.monotonic() >= deadline)

    def _claim_in_turn(self, beat: Beat, deadline: float) -> int:
        """Claim once there is room for it and it is our turn; returns how many runs were asked for."""
        if not self._turns.acquire(timeout=_patience(deadline)):
            return 0
        try:
            size = self._claim(beat)
        finally:
            self._turns.release()
        if size == 0:
            self._workers.wait_for_room(_patience(deadline))
        return size

    def _claim(self, beat: Beat) -> int:
        with self._live_runs.claiming():
            lease = self._keeper.lease
            if self.are_over or not lease.is_valid():
                return 0
            with self._workers.room() as size:
                if size == 0:
                    return 0
                with self._database.transaction() as conn:
                    rows = self._queries.claim(
                        conn,
                        as_of=beat.as_of,
                        run_tolerance=self._settings.run_tolerance,
                        max_runs=size,
                        heartbeat_id=beat.heartbeat_id,
                        runner_id=lease.id,
                        runner_ttl=self._settings.runner_ttl,
                    )
                beat.claimed(len(rows), is_all=len(rows) < size)
                self._begin([self._claimed(row, lease, beat) for row in sorted(rows)])
            return size

    def _claimed(self, row: Any, lease: Lease, beat: Beat | None = None) -> ClaimedRun:
        timeout = self._settings.run_timeout if row.run_timeout is None else row.run_timeout
        return ClaimedRun(row.run_id, row.data_flow_id, row.name, row.configuration, timeout, lease, beat)

    def _begin(self, runs: list[ClaimedRun]) -> None:
        self._live_runs.add(runs)
        self._workers.put(runs)


def _patience(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0), _LOOK)


STOPPING = "the service is stopping; it starts nothing any more"

_STUCK = (
    "data flow {!r} has timed out and its thread has not ended; "
    "restart the process that data_flow_stuck_threads names"
)
