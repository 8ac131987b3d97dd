"""Writes what became of runs: one thread, one statement for whatever has ended since the last."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from heartbeat.engine.run import Beat, ClaimedRun, Outcome
from heartbeat.errors import DatabaseUnavailable, HeartbeatError, LockTimeout
from heartbeat.postgres.database import Database
from heartbeat.postgres.queries import Queries

log = logging.getLogger("heartbeat")

_BATCH = 1000
"""Most outcomes in one statement."""

_BATCH_BYTES = 4_000_000
"""Most text in one statement: results and backtraces can be large."""

_RETRY = 0.25
"""Seconds between attempts while the database is away."""


class Recorder:
    """Takes outcomes from any thread and keeps them until they are on record."""

    def __init__(
        self, database: Database, queries: Queries, on_recorded: Callable[[ClaimedRun], None]
    ) -> None:
        self._database = database
        self._queries = queries
        self._on_recorded = on_recorded
        self._waiting: deque[Outcome] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="heartbeat-recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome; returns at once."""
        self._waiting.append(outcome)
        if not self._wake.is_set():
            self._wake.set()

    def stop(self) -> None:
        """Stop writing; what is not on record by now is left to whoever finds this runner dead."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                self._write_until_written(batch)

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
        """Write a batch, however long the database is away, unless the process stops before."""
        warned = False
        while not self._stopping:
            try:
                self._write(batch)
            except DatabaseUnavailable as exc:
                _doubt(batch)
                if not warned:
                    log.warning("%d outcomes wait for the database: %s", len(batch), exc)
                    warned = True
                time.sleep(_RETRY)
            except HeartbeatError:
                log.exception("a batch of %d outcomes was refused; recording them one by one", len(batch))
                for outcome in batch:
                    self._write_alone(outcome)
                return
            else:
                return

    def _write_alone(self, outcome: Outcome) -> None:
        """Record one outcome; if the database refuses even that, record that it did."""
        try:
            self._write([outcome])
        except DatabaseUnavailable:
            _doubt([outcome])
            self._waiting.append(outcome)
        except HeartbeatError as exc:
            outcome.status, outcome.result, outcome.backtrace = "failed", None, None
            outcome.error = f"the outcome could not be recorded: {type(exc).__name__}"
            try:
                self._write([outcome])
            except HeartbeatError:
                log.exception("run %d cannot be recorded at all", outcome.run.run_id)
                self._finish([outcome], set())

    def _write(self, batch: Sequence[Outcome]) -> None:
        for outcome in batch:
            if outcome.thread_lives:
                self._note_stuck_thread(outcome)
        try:
            rows = self._record(self._queries.record_outcomes, batch, recording=True)
            written, locked = {row.run_id for row in rows}, set()
        except LockTimeout:
            # Somebody sits on a flow, on a run or on the table: what can go on record does, all the same.
            rows = self._record(self._queries.record_outcomes_only, batch)
            written = {row.run_id for row in rows if row.is_ended}
            locked = {row.run_id for row in rows} - written
        written |= self._on_record([outcome for outcome in batch if outcome.is_in_doubt])
        self._waiting.extend(outcome for outcome in batch if outcome.run.run_id in locked)
        self._finish([outcome for outcome in batch if outcome.run.run_id not in locked], written)

    def _record(
        self, statement: Callable[..., list[Any]], batch: Sequence[Outcome], *, recording: bool = False
    ) -> list[Any]:
        with self._database.transaction(recording=recording) as conn:
            return statement(
                conn,
                runner_id=batch[0].run.lease.id,
                run_ids=[outcome.run.run_id for outcome in batch],
                statuses=[outcome.status for outcome in batch],
                results=[outcome.result for outcome in batch],
                errors=[outcome.error for outcome in batch],
                backtraces=[outcome.backtrace for outcome in batch],
            )

    def _on_record(self, doubtful: Sequence[Outcome]) -> set[int]:
        """Return which of these an earlier attempt has recorded, although its answer never arrived."""
        if not doubtful:
            return set()
        with self._database.transaction() as conn:
            rows = self._queries.outcomes_on_record(
                conn,
                runner_id=doubtful[0].run.lease.id,
                run_ids=[outcome.run.run_id for outcome in doubtful],
                statuses=[outcome.status for outcome in doubtful],
                errors=[outcome.error for outcome in doubtful],
            )
        return {row.run_id for row in rows}

    def _note_stuck_thread(self, outcome: Outcome) -> None:
        with self._database.transaction() as conn:
            self._queries.add_stuck_thread(conn, run_id=outcome.run.run_id, runner_id=outcome.run.lease.id)

    def _finish(self, batch: Sequence[Outcome], written: set[int]) -> None:
        """Tell everybody who waits. A run that somebody else ended counts as failed: so it stands on record."""
        succeeded: Counter[Beat] = Counter()
        failed: Counter[Beat] = Counter()
        for outcome in batch:
            run = outcome.run
            is_success = outcome.status == "success" and run.run_id in written
            if run.run_id not in written:
                log.warning(
                    "run %d of %s had been ended by somebody else; its outcome (%s) was not written",
                    run.run_id, run.name, outcome.status,
                    extra={"event": "late_outcome", "flow": run.name, "run_id": run.run_id},
                )  # fmt: skip
            self._on_recorded(run)
            if run.done is not None:
                run.done.set_result(outcome)
            if run.beat is not None:
                (succeeded if is_success else failed)[run.beat] += 1
        for beat in succeeded.keys() | failed.keys():
            beat.recorded(succeeded[beat], failed[beat])


def _doubt(batch: Sequence[Outcome]) -> None:
    for outcome in batch:
        outcome.is_in_doubt = True
