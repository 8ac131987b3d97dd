"""A beat: count, claim, run, record, answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from heartbeat.database import Connection, Database
from heartbeat.deadlines import Deadlines
from heartbeat.errors import AlreadyRunning, FlowNotFound, HeartbeatError, SessionEnded, Stopping
from heartbeat.flows import Registry
from heartbeat.housekeeper import Housekeeper
from heartbeat.keeper import Keeper
from heartbeat.lease import Lease
from heartbeat.models import BeatReport
from heartbeat.queries import Queries
from heartbeat.recorder import Recorder
from heartbeat.runs import Beat, ClaimedRun, LiveRuns, Outcome
from heartbeat.settings import Settings
from heartbeat.workers import Workers

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
        self._stopping = False
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
        self._refuse_when_stopping()
        claim_until = time.monotonic() + self._settings.time_budget
        answer_by = float("inf") if until_all_ended else claim_until
        opened = self._open(client_ip)
        self._housekeeper.ask_to_prune()
        beat = Beat(opened.heartbeat_id, opened.as_of)
        if not opened.may_have_work or not self._count_due(beat):
            return _report(beat, 0, opened.next_due_at)
        self._beats.add(beat)
        try:
            self._claim_all(beat, claim_until)
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

    def _claim_all(self, beat: Beat, deadline: float) -> None:
        """Claim until nothing is left. One heartbeat of a process claims at a time: the others wait their turn."""
        while (left := deadline - time.monotonic()) > 0 and not self._stopping:
            if not self._live_runs.claiming.acquire(timeout=min(left, 0.5)):
                continue
            try:
                if not self._claim_some(beat):
                    return
            finally:
                self._live_runs.claiming.release()
            if self._workers.room() == 0 or not self._keeper.lease.is_valid():
                self._workers.wait_for_room(min(max(deadline - time.monotonic(), 0), 0.5))

    def _claim_some(self, beat: Beat) -> bool:
        """Claim as many runs as there is room for; False when fewer were left."""
        if self._stopping:
            return False
        room = self._workers.room()
        if room == 0 or not self._keeper.lease.is_valid():
            return True
        lease = self._keeper.lease
        began = time.monotonic()
        with self._database.transaction() as conn:
            rows = self._queries.claim(
                conn,
                as_of=beat.as_of,
                run_tolerance=self._settings.run_tolerance,
                max_runs=room,
                heartbeat_id=beat.heartbeat_id,
                runner_id=lease.id,
                runner_ttl=self._settings.runner_ttl,
            )
        self._workers.claim_seconds = time.monotonic() - began
        beat.claimed(len(rows))
        self._begin([self._claimed(row, lease, beat) for row in sorted(rows)])
        return len(rows) == room

    def _claimed(self, row: Any, lease: Lease, beat: Beat | None = None) -> ClaimedRun:
        timeout = self._settings.run_timeout if row.run_timeout is None else row.run_timeout
        return ClaimedRun(row.run_id, row.data_flow_id, row.name, row.configuration, timeout, lease, beat)

    def _begin(self, runs: list[ClaimedRun]) -> None:
        self._live_runs.add(runs)
        self._workers.put(runs)

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
        self._queries.close_heartbeat(
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
        with self._live_runs.claiming:
            self._refuse_when_stopping()
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
        return done.result()

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────

    def stop_claiming(self, *, now: bool = False) -> None:
        """Claim no more and start the drain's clock, or end it now. Safe in a signal handler."""
        drain = 0.0 if now else self._settings.drain_timeout
        self._drain_until = min(self._drain_until, time.monotonic() + drain)
        self._stopping = True

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise Stopping("the service is stopping; it starts nothing any more")

    def _watch_drain(self) -> None:
        """Ask flows to stop once nothing is claimed any more, and interrupt them when the drain's time is up.

        Looks again and again because a signal handler can do no more than set a flag.
        """
        if self._stopping:
            self._workers.ask_to_stop()
            if time.monotonic() >= self._drain_until:
                self._workers.interrupt()
                return
        self._deadlines.add(_DRAIN_LOOK, self._watch_drain)

    def close(self) -> None:
        """Give running flows the drain's time, record the rest as interrupted, and unregister."""
        self.stop_claiming()
        with self._live_runs.claiming:
            pass  # a claim that was under way has handed over its runs by now, and there will be no other
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


_STUCK = (
    "data flow {!r} has timed out and its thread has not ended; "
    "restart the process that data_flow_stuck_threads names"
)


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
