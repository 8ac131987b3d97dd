"""Writes what became of runs: one thread, one statement for whatever has ended since the last.

Any thread puts outcomes, and heartbeats to be finished, into a deque each; all else here belongs to the recorder's own
thread, and the session that records belongs to it alone.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from heartbeat.cleaning import clean
from heartbeat.engine.live_runs import LiveRuns
from heartbeat.engine.outage import Outage
from heartbeat.engine.run import Outcome, Run
from heartbeat.engine.run_log import RunLog, tell_rest
from heartbeat.engine.tally import Tally
from heartbeat.errors import DatabaseUnavailable, HeartbeatError, LockTimeout, StatementTimeout
from heartbeat.postgres.database import Database, Session
from heartbeat.postgres.queries import Queries
from heartbeat.settings import Settings
from heartbeat.threads import Repeater

log = logging.getLogger("heartbeat")

_BATCH = 1000
"""Most outcomes in one statement."""

_MANY = 250
"""Runs under way from which on outcomes are let gather: each statement costs a commit, a tenth of the server's work."""

_GATHER = 0.01
"""Seconds for which they gather."""

_BATCH_BYTES = 4_000_000
"""Most text in one statement: results and backtraces can be large."""

_RETRY = 0.25
"""Seconds between attempts while the database is away."""

_REASON_LIMIT = 500
"""Characters of the database's reason in a run's error: it must not be what is refused next."""


class Recorder:
    """Takes outcomes from any thread and keeps them until they are on record."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        live_runs: LiveRuns,
        outage: Outage,
        thread_ended: Callable[[Run], None],
    ) -> None:
        """`thread_ended` is called where a run that another hand had ended is over: its flow may start again."""
        self._settings = settings
        self._database = database
        self._session = Session(database, "bound_recording")
        self._queries = queries
        self._live_runs = live_runs
        self._outage = outage
        self._thread_ended = thread_ended
        self.run_log = RunLog()
        self._waiting: deque[Outcome] = deque()
        self._parts: deque[list[Outcome]] = deque()
        """Of batches that were refused. They take turns with what comes in, so that a slow refusal holds nothing up."""
        self._unfinished: deque[Tally] = deque()
        self._thread = Repeater("recorder", self._work)

    def start(self) -> None:
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome; returns at once."""
        self._waiting.append(outcome)
        self._thread.wake()

    def finish(self, tally: Tally) -> None:
        """Have a heartbeat's row finished once its last run is on record; returns at once."""
        self._unfinished.append(tally)
        self._thread.wake()

    @property
    def is_done(self) -> bool:
        """Whether every heartbeat that was handed over is finished."""
        return not self._unfinished

    def stop(self) -> None:
        """Stop writing; what is not on record by now is left to those that find this runner dead."""
        self._thread.stop()
        self._session.close()

    # ── on the recorder's thread ─────────────────────────────────────────────────────────────────────────────

    def _work(self) -> float | None:
        while self._waiting or self._parts:
            if len(self._live_runs) - len(self._waiting) > _MANY:
                self._thread.pause(_GATHER)
            if self._waiting:
                self._write_until_written(self._take())
            if self._parts:
                self._write_until_written(self._parts.popleft())
            self._finish_heartbeats()  # also while outcomes whose rows are locked come back again and again
        return self._finish_heartbeats()

    def _take(self) -> list[Outcome]:
        """Take what waits, as much as one statement may hold: runs that were claimed under one lease."""
        batch: list[Outcome] = []
        size = 0
        while self._waiting and len(batch) < _BATCH and size < _BATCH_BYTES:
            if batch and self._waiting[0].run.lease is not batch[0].run.lease:
                break
            outcome = self._waiting.popleft()
            size += sum(len(text) for text in (outcome.result, outcome.error, outcome.backtrace) if text)
            batch.append(outcome)
        return batch

    def _write_until_written(self, batch: list[Outcome]) -> None:
        """Write a batch, however long the database is away, unless it is refused or the process stops before."""
        has_timed_out = is_warned = False
        while not self._thread.is_stopped:
            try:
                self._write(batch)
                return self._outage.over("recorder")
            except Exception as exc:  # noqa: BLE001 -- whatever it is, no outcome may be lost to another's
                is_timeout = isinstance(exc, StatementTimeout)
                if not isinstance(exc, DatabaseUnavailable) or (is_timeout and has_timed_out):
                    return self._take_apart(batch, exc)
                has_timed_out = is_timeout
                _doubt(batch)
                if not self._outage.met("recorder", exc) and not is_warned:
                    log.warning("%d outcomes wait for the database: %s", len(batch), exc)
                    is_warned = True
            self._thread.pause(_RETRY)
        return None

    def _take_apart(self, batch: list[Outcome], exc: Exception) -> None:
        """Have the halves of a refused batch tried; who stands alone is recorded as failed, or else not at all."""
        half = len(batch) // 2
        if half:
            self._parts.extend((batch[:half], batch[half:]))
        elif batch[0].is_refused:
            self._give_up(batch[0], exc)
        else:
            self._parts.append([_refused(batch[0], exc)])

    def _give_up(self, outcome: Outcome, exc: Exception) -> None:
        """Leave a run in progress for whoever looks into the database: it refuses even to fail it."""
        run = outcome.run
        log.warning(
            "run %d of %s cannot be recorded at all and stays in progress: %s",
            run.run_id, run.name, _reason(exc),
            extra={"event": "outcome_refused", "flow": run.name, "run_id": run.run_id},
        )  # fmt: skip
        self._live_runs.set_aside(run)
        self._tell([outcome], set())

    def _write(self, batch: Sequence[Outcome]) -> None:
        """Put a batch on record, and with the last of a heartbeat its row; then tell who waits."""
        self._note_stuck_threads(batch)
        ending = _tally_that_ends(batch)
        try:
            record = self._record(batch, ending)
            record.written |= self._on_record([outcome for outcome in batch if outcome.is_in_doubt])
        except BaseException:
            if ending is not None:
                ending.refuse()
            raise
        self._waiting.extend(outcome for outcome in batch if outcome.run.run_id in record.locked)
        told = [outcome for outcome in batch if outcome.run.run_id not in record.locked]
        for outcome in told:
            if outcome.run.run_id not in record.written:
                _log_late(outcome)
                if not outcome.body_lives:
                    self._thread_ended(outcome.run)
        self._tell(told, record.written)
        if ending is not None:
            if record.answer is not None and len(record.written) == len(batch):
                ending.answer(record.answer.flows_remaining, record.answer.next_due_at)
            else:
                ending.refuse()

    def _note_stuck_threads(self, batch: Sequence[Outcome]) -> None:
        """Keep the flows of runs whose body goes on from being started, before their ends are on record."""
        for outcome in batch:
            if outcome.body_lives:
                self._database.run(
                    self._queries.add_stuck_thread,
                    run_id=outcome.run.run_id,
                    runner_id=outcome.run.lease.id,
                )

    def _record(self, batch: Sequence[Outcome], ending: Tally | None) -> _Record:
        try:
            if ending is not None and (together := self._record_the_last(batch, ending)):
                return together
            rows = self._session.run(self._queries.record_outcomes, **_columns(batch))
            return _Record({row.run_id for row in rows})
        except LockTimeout:
            # A flow, a run or a table is locked: what can go on record does, all the same.
            rows = self._database.run(self._queries.record_outcomes_only, **_columns(batch))
            written = {row.run_id for row in rows if row.is_ended}
            return _Record(written, locked={row.run_id for row in rows} - written)

    def _record_the_last(self, batch: Sequence[Outcome], ending: Tally) -> _Record | None:
        """Write a heartbeat's last outcomes and its row; None where one of them was refused, perhaps the row."""
        try:
            return self._record_with_row(batch, ending)
        except HeartbeatError as exc:
            if isinstance(exc, DatabaseUnavailable) and not isinstance(exc, StatementTimeout):
                raise
            return None

    def _record_with_row(self, batch: Sequence[Outcome], ending: Tally) -> _Record:
        """Write outcomes and a heartbeat's row: one message, one commit."""
        counts = Counter(outcome.status for outcome in batch)
        with self._session.transaction() as conn:
            recorded = self._queries.send(conn, "record_outcomes", **_columns(batch))
            answered = self._queries.send(
                conn,
                "answer_heartbeat",
                heartbeat_id=ending.heartbeat_id,
                is_finished=True,
                triggered=ending.triggered,
                succeeded=ending.succeeded + counts["success"],
                failed=ending.failed + counts["failed"],
                as_of=ending.as_of,
                first_turn=ending.first_turn,
                run_tolerance=self._settings.run_tolerance,
            )
        return _Record({row.run_id for row in recorded}, answer=answered.fetchone())

    def _on_record(self, doubtful: Sequence[Outcome]) -> set[int]:
        """Return which of these an earlier attempt has recorded, although its answer never arrived."""
        if not doubtful:
            return set()
        columns = _columns(doubtful)
        del columns["results"], columns["backtraces"]
        return {row.run_id for row in self._database.run(self._queries.outcomes_on_record, **columns)}

    def _tell(self, batch: Sequence[Outcome], written: set[int]) -> None:
        """Tell the threads that wait. A run that was ended by another hand counts as failed: so it stands on record."""
        self.run_log.tell(batch, written)
        succeeded: Counter[Tally] = Counter()
        failed: Counter[Tally] = Counter()
        for outcome in batch:
            run = outcome.run
            is_success = outcome.status == "success" and run.run_id in written
            self._live_runs.remove(run)
            if run.done is not None:
                run.done.set_result(outcome)
            if run.tally is not None:
                (succeeded if is_success else failed)[run.tally] += 1
        for tally in succeeded.keys() | failed.keys():
            tally.recorded(succeeded[tally], failed[tally])

    def _finish_heartbeats(self) -> float | None:
        """Finish the rows of heartbeats that were answered before their last run had ended."""
        for tally in list(self._unfinished):
            if tally.running:
                continue
            try:
                self._database.run(
                    self._queries.finish_heartbeat,
                    heartbeat_id=tally.heartbeat_id,
                    triggered=tally.triggered,
                    succeeded=tally.succeeded,
                    failed=tally.failed,
                )
            except HeartbeatError as exc:
                if not self._outage.met("recorder", exc):
                    log.warning("heartbeat %d could not be finished: %s", tally.heartbeat_id, exc)
                return _RETRY
            self._outage.over("recorder")
            self._unfinished.remove(tally)
            tell_rest(tally)
        return None


@dataclass(slots=True)
class _Record:
    """What became of a batch: the runs that are on record, those that are locked, and a heartbeat's answer."""

    written: set[int]
    locked: set[int] = field(default_factory=set)
    answer: Any = None


def _tally_that_ends(batch: Sequence[Outcome]) -> Tally | None:
    """Return the heartbeat whose last outcomes these are, if they are that and nothing else."""
    tally = batch[0].run.tally
    if tally is None or any(outcome.run.tally is not tally or outcome.is_in_doubt for outcome in batch):
        return None
    return tally if tally.ends_with(len(batch)) else None


def _columns(batch: Sequence[Outcome]) -> dict[str, Any]:
    """Make the parameters of a batch. What no outcome of it has is left out: each element costs."""
    columns: dict[str, list[str | None]] = {
        "statuses": [None if outcome.status == "success" else outcome.status for outcome in batch],
        "results": [outcome.result for outcome in batch],
        "errors": [outcome.error for outcome in batch],
        "backtraces": [outcome.backtrace for outcome in batch],
    }
    return {
        "runner_id": batch[0].run.lease.id,
        "run_ids": f"{{{','.join(str(outcome.run.run_id) for outcome in batch)}}}",
        **{name: column if any(column) else [] for name, column in columns.items()},
    }


def _refused(outcome: Outcome, exc: Exception) -> Outcome:
    """Make the outcome to record in the place of one that the database refused; a caller gets the flow's exception."""
    error = f"the outcome could not be recorded: {_reason(exc)}"
    return replace(
        outcome,
        status="failed",
        result=None,
        error=error,
        backtrace=None,
        exception=outcome.exception or HeartbeatError(error),
        is_refused=True,
    )


def _reason(exc: Exception) -> str:
    """Say why; of an exception that is not ours the type alone, for its text may hold what flows returned."""
    reason = str(exc) if isinstance(exc, HeartbeatError) else type(exc).__name__
    return clean(reason[:_REASON_LIMIT], _REASON_LIMIT)


def _log_late(outcome: Outcome) -> None:
    run = outcome.run
    log.warning(
        "run %d of %s had been ended by somebody else; its outcome (%s) was not written",
        run.run_id, run.name, outcome.status,
        extra={"event": "late_outcome", "flow": run.name, "run_id": run.run_id},
    )  # fmt: skip


def _doubt(batch: Sequence[Outcome]) -> None:
    for outcome in batch:
        outcome.is_in_doubt = True
