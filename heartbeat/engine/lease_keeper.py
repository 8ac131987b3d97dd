"""The thread that keeps this process's lease, on a session of its own: no flow, pool or lock delays a sign of life.

After a renewal it also gives up the runs that another hand has ended, and fails those whose claim was cut off.
`lease` is replaced by this thread alone once it has started; others read it in one step.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from heartbeat.engine.lease import Lease, now
from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.outage import Outage
from heartbeat.engine.run import GivenUp, Run
from heartbeat.engine.run_log import MOST, tell_lost
from heartbeat.errors import HeartbeatError
from heartbeat.postgres.database import Database, Session
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings
from heartbeat.threads import Repeater

log = logging.getLogger("heartbeat")

_RETRY = 1.0
"""Seconds to the next attempt when the lease could not be renewed; a third of the TTL if that is shorter."""


class LeaseKeeper:
    """Registers this process as a runner and renews it, on a thread and a session of its own."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        live_runs: LiveRuns,
        outage: Outage,
        give_up: Callable[[Run, Exception], None],
    ) -> None:
        """`give_up` is called with each run that another hand has ended."""
        self.lease = Lease(settings.runner_ttl)
        self._settings = settings
        self._database = database
        self._session = Session(database)
        self._queries = queries
        self._live_runs = live_runs
        self._outage = outage
        self._give_up = give_up
        self._thread = Repeater("lease", self._keep)

    def start(self) -> None:
        """Register and begin to renew. Raises DatabaseUnavailable."""
        self._register(self._database.run)
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing. The row stays until all runs are on record: see `unregister`."""
        self._thread.stop()
        self._session.close()

    def unregister(self) -> None:
        """Remove this process's row, for its runs are all on record."""
        try:
            self._database.run_within(1.0, self._queries.unregister_runner, runner_id=self.lease.id)
        except HeartbeatError as exc:
            log.warning("runner %s could not be unregistered: %s", self.lease.id, exc)

    def _keep(self) -> float:
        interval = self._settings.runner_ttl / 3
        try:
            self._renew()
        except Exception as exc:  # whatever it is, the next renewal must be tried
            if not self._outage.met("lease", exc):
                log.warning(
                    "the lease could not be renewed: %s", exc,
                    exc_info=None if isinstance(exc, HeartbeatError) else exc, extra={"event": "renewal_failed"},
                )  # fmt: skip
            self._session.close()
            return min(_RETRY, interval)
        self._outage.over("lease")
        return interval

    def _register(self, run: Callable[..., int]) -> None:
        lease = Lease(self._settings.runner_ttl)
        run(self._queries.register_runner, runner_id=lease.id, host=socket.gethostname(), pid=os.getpid())
        self.lease = lease

    def _renew(self) -> None:
        sent_at = now()
        lease = self.lease
        if self._session.run(self._queries.renew_runner, runner_id=lease.id):
            lease.renewed(sent_at)
            self._compare_runs(lease)
            return
        log.error(
            "runner %s was given up for dead; its runs write nothing any more, and this process begins anew",
            lease.id, extra={"event": "lease_lost"},
        )  # fmt: skip
        lease.renewed(float("-inf"))  # what waits under it must not begin
        for run in self._live_runs:
            run.ask_to_stop()
        self._register(self._session.run)

    def _compare_runs(self, lease: Lease) -> None:
        """Hold the runs that this process knows against those that stand under its name."""
        known = [
            run for run in self._live_runs if run.lease is lease
        ]  # first: what is claimed later is in no answer
        live = self._live_run_ids(lease)
        for run in known:
            if run.run_id not in live and not run.is_decided:
                self._give_up(run, GivenUp("the run was ended or deleted by hand while it went on"))
        if live:
            self._fail_lost_runs(lease, live)

    def _fail_lost_runs(self, lease: Lease, live: set[int]) -> None:
        """Fail runs that were claimed for this runner by a statement whose answer never arrived."""
        unknown = self._live_runs.lost(live)
        # Unknown, and still live when asked again: not one that was recorded in between.
        lost = sorted(unknown & self._live_run_ids(lease)) if unknown else []
        if not lost:
            return
        recorded = self._session.run(
            self._queries.record_outcomes,
            runner_id=lease.id,
            run_ids=lost,
            statuses=["failed"] * len(lost),
            results=[None] * len(lost),
            errors=["the connection broke while this was claimed; it never began"] * len(lost),
            backtraces=[None] * len(lost),
        )
        named = [self._session.run(self._queries.get_run, run_id=row.run_id) for row in recorded[:MOST]]
        tell_lost([row for row in named if row is not None], len(recorded))

    def _live_run_ids(self, lease: Lease) -> set[int]:
        return {row.run_id for row in self._session.run(self._queries.live_run_ids, runner_id=lease.id)}
