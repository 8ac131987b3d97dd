"""The protocol of one heartbeat: open, repair where that is needed, count and claim, wait, answer.

Runs on the thread that takes the heartbeat: one of HTTP's, or the caller's. Its counts are a `Tally`, which the
claiming threads and the recorder write too; heartbeats are added to `under_way` and taken away in single steps.
"""

from __future__ import annotations

import time
from typing import Any

from heartbeat.engine.claims import Claims
from heartbeat.engine.drain import Drain
from heartbeat.engine.lease_keeper import LeaseKeeper
from heartbeat.engine.maintenance import Maintenance
from heartbeat.engine.recorder import Recorder
from heartbeat.engine.run_log import tell_rest
from heartbeat.engine.tally import Tally
from heartbeat.models import BeatReport
from heartbeat.postgres.database import Database
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings

RECORDING_MARGIN = 2.0
"""Seconds that a stopping process takes, after its flows were interrupted, to put that on record."""


class Beats:
    """Takes heartbeats for one process; `under_way` are those that have claims or wait for runs."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        *,
        drain: Drain,
        keeper: LeaseKeeper,
        maintenance: Maintenance,
        claims: Claims,
        recorder: Recorder,
    ) -> None:
        self._settings = settings
        self._database = database
        self._queries = queries
        self._drain = drain
        self._keeper = keeper
        self._maintenance = maintenance
        self._claims = claims
        self._recorder = recorder
        self.under_way: set[Tally] = set()

    def take(self, client_ip: str | None, *, until_all_ended: bool) -> BeatReport:
        """Claim and run what is due, and return the counts.

        Claims for at most the time budget, and returns by then too, unless told to wait for the last run's end.
        Raises Stopping and DatabaseUnavailable; what was claimed by then runs on and is recorded.
        """
        self._drain.refuse()
        claim_until = time.monotonic() + self._settings.time_budget
        answer_by = float("inf") if until_all_ended else claim_until
        opened = self._open(client_ip)
        tally = Tally(opened.heartbeat_id, opened.as_of, opened.first_turn)
        tally.next_due_at = opened.next_due_at
        self._maintenance.ask_to_prune()
        if not opened.may_have_work:
            return _report(tally)
        self.under_way.add(tally)
        try:
            if opened.needs_repair:
                self._maintenance.repair()  # flows of the dead may be due now
            self._claims.claim_all(tally, claim_until)
            if tally.wait(lambda: min(answer_by, self._drain.until + RECORDING_MARGIN)):
                tell_rest(tally)
            else:
                self._answer(tally)
        except BaseException:
            self._recorder.finish(tally)  # its row must end, whatever has ended this
            raise
        finally:
            self.under_way.discard(tally)
        return _report(tally)

    def _open(self, client_ip: str | None) -> Any:
        return self._database.run_trusting(
            self._queries.open_heartbeat,
            client_ip=client_ip,
            runner_id=self._keeper.lease.id,
            run_tolerance=self._settings.run_tolerance,
            runner_ttl=self._settings.runner_ttl,
        )

    def _answer(self, tally: Tally) -> None:
        """Write the counts so far, and find out what remains."""
        is_finished = not tally.running
        row = self._database.run(
            self._queries.answer_heartbeat,
            heartbeat_id=tally.heartbeat_id,
            is_finished=is_finished,
            triggered=tally.triggered,
            succeeded=tally.succeeded,
            failed=tally.failed,
            as_of=tally.as_of,
            first_turn=tally.first_turn,
            run_tolerance=self._settings.run_tolerance,
        )
        tally.remaining, tally.next_due_at = row.flows_remaining, row.next_due_at
        if is_finished:
            tell_rest(tally)
        else:
            self._recorder.finish(tally)


def _report(tally: Tally) -> BeatReport:
    return BeatReport(
        flows_due=tally.due,
        flows_triggered=tally.triggered,
        flows_succeeded=tally.succeeded,
        flows_failed=tally.failed,
        flows_running=tally.running,
        flows_remaining=tally.remaining,
        next_due_at=tally.next_due_at,
        heartbeat_id=tally.heartbeat_id,
        timestamp=tally.as_of,
    )
