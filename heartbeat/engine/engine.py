"""One process's engine: wires the parts, starts them, drains and ends them.

`start` and `close` run on the thread of the service's owner, `beat` and `run_now` on their callers'. `stop_claiming`
may run in a signal handler, and so takes no lock: it sets two fields, which the deadlines' thread sees within a
twentieth of a second (`_look_at_drain`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib import metadata

from heartbeat.engine.backlog import Backlog
from heartbeat.engine.beat import RECORDING_MARGIN, Beats
from heartbeat.engine.body import Bodies
from heartbeat.engine.claims import Claims
from heartbeat.engine.drain import Drain
from heartbeat.engine.eventloop import EventLoop
from heartbeat.engine.lease_keeper import LeaseKeeper
from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.maintenance import Maintenance
from heartbeat.engine.outage import Outage
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Interrupted, Outcome, Run
from heartbeat.engine.stuck import Stuck
from heartbeat.engine.watch import Watch
from heartbeat.engine.workers import Workers
from heartbeat.errors import Stopping
from heartbeat.flows import Registry
from heartbeat.models import BeatReport
from heartbeat.postgres.database import Database
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

log = logging.getLogger("heartbeat")


class Engine:
    """Runs flows for the heartbeats of one process."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        database: Database,
        queries: Queries,
        deadlines: Deadlines,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._deadlines = deadlines
        self._drain = Drain()
        self._is_interrupted = False
        shared = (settings, database, queries)
        self._live_runs = LiveRuns()
        self._outage = Outage()
        self._maintenance = Maintenance(*shared, self._live_runs, self._outage)
        self._recorder = Recorder(*shared, self._live_runs, self._outage, self._maintenance.thread_ended)
        self._keeper = LeaseKeeper(*shared, self._live_runs, self._outage, self._give_up)
        self._backlog = Backlog(settings.concurrency, settings.async_concurrency)
        self._stuck = Stuck(database.flows, self._maintenance)
        bodies = Bodies(registry, database.flows)
        self._loop = EventLoop(self._backlog.loop, bodies, self._recorder, self._stuck)
        self._workers = Workers(self._backlog.threads, bodies, self._loop, self._recorder, self._stuck)
        self._watch = Watch(self._backlog, self._workers, self._loop, self._recorder, self._stuck)
        self._claims = Claims(
            *shared,
            drain=self._drain,
            live_runs=self._live_runs,
            keeper=self._keeper,
            backlog=self._backlog,
            workers=self._workers,
            loop=self._loop,
            async_classes=registry.async_classes,
        )
        self._beats = Beats(
            *shared,
            drain=self._drain,
            keeper=self._keeper,
            maintenance=self._maintenance,
            claims=self._claims,
            recorder=self._recorder,
        )

    @property
    def stuck_threads(self) -> int:
        """Timed-out runs of this process whose thread lives on."""
        return len(self._stuck)

    def problem(self) -> str | None:
        """Say what keeps this process from doing its work; None where nothing does."""
        since = self._live_runs.waiting_since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited <= self._settings.runner_ttl:
            return None
        return f"how a run ended could not be recorded for {waited:.0f} s"

    def start(self) -> None:
        """Register and begin to renew. Raises DatabaseUnavailable."""
        self._keeper.start()
        self._recorder.start()
        self._maintenance.start()
        self._outage.quiet_pools()
        self._deadlines.at_every_look(self._watch.look)
        self._deadlines.at_every_look(self._look_at_drain)
        self._log("started", flows=len(self._registry.classes))

    def beat(self, client_ip: str | None = None, *, until_all_ended: bool = False) -> BeatReport:
        """Claim and run what is due, and return the counts: see `Beats.take`."""
        return self._beats.take(client_ip, until_all_ended=until_all_ended)

    def run_now(self, name: str) -> Outcome:
        """Run one flow in this process, whatever its schedule says, and return how it ended, once on record.

        Raises FlowNotFound, AlreadyRunning, Stopping, DatabaseUnavailable.
        """
        done: Future[Outcome] = Future()
        self._claims.claim_one(name, done)
        return done.result()

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    def stop_claiming(self, *, now: bool = False) -> None:
        """Claim no more and start the drain's clock, or end it now. Safe in a signal handler."""
        self._drain.begin(0.0 if now else self._settings.drain_timeout)

    def close(self) -> None:
        """Give running flows the drain's time, record the rest as interrupted, and unregister."""
        self.stop_claiming()
        self._live_runs.await_claims()  # there will be no other
        _wait(lambda: not self._live_runs.undecided, lambda: self._drain.until)
        self._interrupt()
        recorded_by = time.monotonic() + RECORDING_MARGIN
        _wait(self._is_all_recorded, lambda: recorded_by)
        self._maintenance.stop()
        self._keeper.stop()
        self._recorder.stop()
        self._backlog.close()
        self._loop.stop()
        for run in self._live_runs:
            if run.done is not None:  # nobody else will say how it ended
                run.done.set_exception(Stopping("the process stopped before the run's end could be recorded"))
        if self._live_runs:
            log.error(
                "%d runs could not be recorded; a later heartbeat finds this runner dead and fails them",
                len(self._live_runs),
            )
        else:
            self._keeper.unregister()
        self._outage.close()
        runs = self._recorder.run_log
        self._log("stopped", runs_succeeded=runs.succeeded, runs_failed=runs.failed)

    def _log(self, event: str, **counts: int) -> None:
        """Say who has started or stopped, so that the rows that name this runner can be told from others'."""
        runner_id, version = self._keeper.lease.id, metadata.version("data-flow-heartbeat")
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        fields = {"event": event, "runner_id": runner_id, "version": version, **counts}
        log.info("runner %s %s: version %s, %s", runner_id, event, version, said, extra=fields)

    def _look_at_drain(self) -> None:
        """Ask flows to stop once nothing is claimed any more, and interrupt them when the drain's time is up."""
        if not self._drain.has_begun:
            return
        for run in self._live_runs:
            run.ask_to_stop()
        if self._drain.is_over and not self._is_interrupted:
            self._interrupt()

    def _give_up(self, run: Run, reason: Exception) -> None:
        self._watch.give_up(run, reason)

    def _interrupt(self) -> None:
        """Fail the runs that have no outcome yet: the process goes now."""
        self._is_interrupted = True
        for run in self._live_runs:
            when = "while this ran" if run.has_begun else "before the run began"
            outcome = run.give_up(Interrupted(f"the process stopped {when}"))
            if outcome is not None:
                self._recorder.put(outcome)

    def _is_all_recorded(self) -> bool:
        return not self._live_runs and not self._beats.under_way and self._recorder.is_done


def _wait(condition: Callable[[], bool], deadline: Callable[[], float]) -> None:
    """Wait for a condition, or for a time of `time.monotonic()` that may move."""
    while not condition() and time.monotonic() < deadline():
        time.sleep(0.01)
