"""A beat: count, claim, run, record, answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from heartbeat.engine.claims import STOPPING, Claims
from heartbeat.engine.lease_keeper import Keeper
from heartbeat.engine.maintenance import Housekeeper
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run import Beat, LiveRuns, Outcome
from heartbeat.engine.workers import Workers
from heartbeat.errors import HeartbeatError, SessionEnded, Stopping
from heartbeat.flows import Registry
from heartbeat.models import BeatReport
from heartbeat.postgres.database import Connection, Database
from heartbeat.postgres.deadlines import Deadlines
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

log = logging.getLogger("heartbeat")

_RECORDING_MARGIN = 2.0
"""Seconds that a stopping process takes, after its flows were interrupted, to put that on record."""


_DRAIN_LOOK = 0.1
"""Seconds between looks at whether the process stops."""


class Runner:
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
        self._database = database
        self._queries = queries
        self._deadlines = deadlines
        self._drain_until = float("inf")
        self._beats: set[Beat] = set()
        self._live_runs = LiveRuns()
        self._recorder = Recorder(database, queries, on_recorded=self._live_runs.remove)
        self._workers = Workers(
            settings.concurrency,
            registry,
            database,
            deadlines,
            on_outcome=self._recorder.put,
            on_thread_ended=lambda run: self._housekeeper.thread_ended(run),
        )
        self._keeper = Keeper(
            settings, database, queries, self._live_runs, on_lease_lost=self._workers.ask_to_stop
        )
        self._housekeeper = Housekeeper(settings, database, queries, self._live_runs)
        self._claims = Claims(settings, database, queries, self._live_runs, self._keeper, self._workers)

    @property
    def stuck_threads(self) -> int:
        """Timed-out runs of this process whose thread lives on."""
        return self._workers.stuck_threads

    def start(self) -> None:
        """Register and begin to renew. Raises DatabaseUnavailable."""
        self._keeper.start()
        self._workers.start()
        self._recorder.start()
        self._housekeeper.start()
        self._watch_drain()

    # ── a heartbeat ──────────────────────────────────────────────────────────────────────────────────────────

    def beat(self, client_ip: str | None = None, *, until_all_ended: bool = False) -> BeatReport:
        """Claim and run what is due, and return the counts.

        Claims for at most the time budget, and returns by then too, unless told to wait for the last run's end.
        Raises Stopping and DatabaseUnavailable; what was claimed by then runs on and is recorded.
        """
        if self._claims.are_over:
            raise Stopping(STOPPING)
        claim_until = time.monotonic() + self._settings.time_budget
        answer_by = float("inf") if until_all_ended else claim_until
        opened = self._open(client_ip)
        self._housekeeper.ask_to_prune()
        beat = Beat(opened.heartbeat_id, opened.as_of)
        if not opened.may_have_work or not self._count_due(beat):
            return _report(beat, 0, opened.next_due_at)
        self._beats.add(beat)
        try:
            self._claims.claim_all(beat, claim_until)
            beat.wait(lambda: min(answer_by, self._drain_until + _RECORDING_MARGIN))
            return self._close_beat(beat)
        except HeartbeatError:
            self._answer_unclosed(beat)
            raise
        finally:
            self._beats.discard(beat)

    def _open(self, client_ip: str | None) -> Any:
        try:
            return self._open_once(client_ip, trusting=True)
        except SessionEnded:
            return self._open_once(client_ip, trusting=False)

    def _open_once(self, client_ip: str | None, *, trusting: bool) -> Any:
        with self._database.transaction(trusting=trusting) as conn:
            return self._queries.open_heartbeat(
                conn,
                client_ip=client_ip,
                runner_id=self._keeper.lease.id,
                run_tolerance=self._settings.run_tolerance,
                runner_ttl=self._settings.runner_ttl,
            )

    def _count_due(self, beat: Beat) -> int:
        """Count what is due; where the dead left something, that is put right first and counted too."""
        for may_repair in (True, False):
            with self._database.transaction() as conn:
                counted = self._queries.count_due(
                    conn,
                    heartbeat_id=beat.heartbeat_id,
                    run_tolerance=self._settings.run_tolerance,
                    runner_ttl=self._settings.runner_ttl,
                )
            if counted is None:  # somebody has deleted the row
                break
            beat.flows_due = counted.flows_due
            if not (counted.needs_repair and may_repair):
                break
            self._housekeeper.repair()
        return beat.flows_due

    def _close_beat(self, beat: Beat) -> BeatReport:
        """Answer a heartbeat. Its row is finished now, or by the recorder once its last run has ended."""
        finished = beat.answer(self._finish_beat)
        with self._database.transaction() as conn:
            remaining = self._queries.what_remains(
                conn, as_of=beat.as_of, run_tolerance=self._settings.run_tolerance
            )
            self._write_counts(conn, beat, finished=finished)
        return _report(beat, remaining.flows_remaining, remaining.next_due_at)

    def _answer_unclosed(self, beat: Beat) -> None:
        if beat.answer(self._finish_beat):
            self._finish_beat(beat)

    def _finish_beat(self, beat: Beat) -> None:
        """Finish the row of a heartbeat that was answered before its last run had ended."""
        try:
            with self._database.transaction() as conn:
                self._write_counts(conn, beat, finished=True)
        except HeartbeatError as exc:
            log.warning("heartbeat %d could not be finished: %s", beat.heartbeat_id, exc)

    def _write_counts(self, conn: Connection, beat: Beat, *, finished: bool) -> None:
        self._queries.finish_heartbeat(
            conn,
            heartbeat_id=beat.heartbeat_id,
            finished=finished,
            flows_triggered=beat.triggered,
            flows_succeeded=beat.succeeded,
            flows_failed=beat.failed,
        )

    # ── one run, now ─────────────────────────────────────────────────────────────────────────────────────────

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
        drain = 0.0 if now else self._settings.drain_timeout
        self._drain_until = min(self._drain_until, time.monotonic() + drain)
        self._claims.are_over = True

    def _watch_drain(self) -> None:
        """Ask flows to stop once nothing is claimed any more, and interrupt them when the drain's time is up.

        Looks again and again because a signal handler can do no more than set a flag.
        """
        if self._claims.are_over:
            self._workers.ask_to_stop()
            if time.monotonic() >= self._drain_until:
                self._workers.interrupt()
                return
        self._deadlines.add(_DRAIN_LOOK, self._watch_drain)

    def close(self) -> None:
        """Give running flows the drain's time, record the rest as interrupted, and unregister."""
        self.stop_claiming()
        self._live_runs.await_claims()  # there will be no other
        _wait(lambda: self._workers.is_idle, lambda: self._drain_until)
        self._workers.interrupt()
        recorded_by = time.monotonic() + _RECORDING_MARGIN
        _wait(lambda: not self._live_runs and not self._beats, lambda: recorded_by)
        self._housekeeper.stop()
        self._keeper.stop()
        self._recorder.stop()
        self._workers.stop()
        if self._live_runs:
            log.error(
                "%d runs could not be recorded; a later heartbeat finds this runner dead and fails them",
                len(self._live_runs),
            )
        else:
            self._keeper.unregister()


def _report(beat: Beat, remaining: int, next_due_at: datetime | None) -> BeatReport:
    return BeatReport(
        flows_due=beat.flows_due,
        flows_triggered=beat.triggered,
        flows_succeeded=beat.succeeded,
        flows_failed=beat.failed,
        flows_running=beat.running,
        flows_remaining=remaining,
        next_due_at=next_due_at,
        heartbeat_id=beat.heartbeat_id,
        timestamp=beat.as_of,
    )


def _wait(condition: Callable[[], bool], deadline: Callable[[], float]) -> None:
    """Wait for a condition, or for a time of `time.monotonic()` that may move."""
    while not condition() and time.monotonic() < deadline():
        time.sleep(0.01)
